"""Another run's answers, read to stand beside today's: of the same records, texts and labels, or refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from service.errors import ConfigurationError
from service.evaluation.baselines import TEXT_BASELINES, ZERO_SHOT
from service.evaluation.predictions import Predictions, read_predictions, text_digest
from service.evaluation.report import OURS
from service.training.records import Record


def own_answers(path: Path) -> dict[str, Predictions]:
    """The classifiers' own answers of another run. Raises ConfigurationError."""
    found = read_predictions(path)
    if OURS not in found:
        raise ConfigurationError(f"{path} holds no answers of Fantail's own")
    return found[OURS]


def same_records(name: str, path: Path, asked: Sequence[Record]) -> dict[str, Predictions]:
    """Another run's answers to show under `name`. Raises ConfigurationError unless they are to what is asked now."""
    if name in (OURS, ZERO_SHOT, *TEXT_BASELINES):
        raise ConfigurationError(f"{name!r} is taken; show {path} under another name")
    found = own_answers(path)
    for classifier, held in found.items():
        wanted = {record.conversation.id: record for record in asked if classifier in record.labels}
        if not wanted:
            continue
        if set(held.ids) != wanted.keys():
            raise ConfigurationError(f"{path}: {classifier} was evaluated on other records than are asked now")
        if edited := [
            each
            for each, text in zip(held.ids, held.texts, strict=True)
            if text != text_digest(wanted[each].conversation)
        ]:
            raise ConfigurationError(
                f"{path}: {classifier} was evaluated on other texts of {len(edited)} records, {edited[0]!r} for one"
            )
        if [held.labels[place] for place in held.gold] != [wanted[each].labels[classifier] for each in held.ids]:
            raise ConfigurationError(f"{path}: {classifier} was evaluated when the records were labelled differently")
    return found
