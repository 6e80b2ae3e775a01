"""What a baseline may learn from, to be compared fairly: what the adapters learnt from, and nothing that is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from service.errors import ConfigurationError
from service.registry.folders import learnt_from
from service.training.records import Record, read_records


def learnable(
    folders: Sequence[Path],
    given: Sequence[Record],
    asked: Sequence[Record],
    shipped: Sequence[Path],
    labels: Mapping[str, Sequence[str]],
) -> list[Record]:
    """The given records and those of the shipped files, the first of each id, without those that are asked.

    Of a shipped file only the labels of classifiers in `folders` that were trained on it, or of which nobody knows on
    what.
    """
    known = {folder.name: learnt_from(folder) for folder in folders}
    records = list(given)
    for path in shipped:
        records += read_records(
            [path], {name: of for name, of in labels.items() if not known.get(name) or path.name in known[name]}
        )
    unasked = {record.conversation.id: record for record in reversed(records)}
    for record in asked:
        unasked.pop(record.conversation.id, None)
    return list(reversed(unasked.values()))


def require_train(learnt: Sequence[Record]) -> None:
    """Raise ConfigurationError when there is nothing to train on."""
    if not any(record.split == "train" and record.labels for record in learnt):
        raise ConfigurationError("no record of the train split is left, so no baseline can learn")
