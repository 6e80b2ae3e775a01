"""What a system answered to labelled records: asked through the serving path, kept as arrays, written as JSON."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.classify import Classify
from service.domain import Classification, Classifier, Conversation
from service.errors import ConfigurationError, FantailError, InvalidRequestError
from service.files import write_whole
from service.training.records import Record

AT_ONCE = 8
"""Conversations asked at a time: enough to fill the engine's steps."""


@dataclass(frozen=True, slots=True)
class Predictions:
    """One classifier's answers to the records that carry its label.

    `labels` [k]; `ids`, `texts` (digests, as of `text_digest`), `sources`, `gold` (index into labels), `mass`,
    `abstained` [n]; `raw` and `probabilities` (before and after calibration) [n, k]. `revision`: of what answered.
    """

    labels: tuple[str, ...]
    revision: str
    ids: tuple[str, ...]
    texts: tuple[str, ...]
    sources: tuple[str, ...]
    gold: NDArray[np.int64]
    raw: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    mass: NDArray[np.float64]
    abstained: NDArray[np.bool_]

    @property
    def chosen(self) -> NDArray[np.int64]:
        """Index of the most probable label, the first of equals."""
        chosen: NDArray[np.int64] = self.probabilities.argmax(axis=1)
        return chosen

    @property
    def right(self) -> NDArray[np.bool_]:
        right: NDArray[np.bool_] = self.chosen == self.gold
        return right

    def where(self, keep: NDArray[np.bool_]) -> Predictions:
        """The same of some records."""
        return self.at(np.flatnonzero(keep))

    def at(self, places: NDArray[np.intp]) -> Predictions:
        """The same of the records at these places, in their order."""
        return Predictions(
            self.labels,
            self.revision,
            tuple(self.ids[i] for i in places),
            tuple(self.texts[i] for i in places),
            tuple(self.sources[i] for i in places),
            self.gold[places],
            self.raw[places],
            self.probabilities[places],
            self.mass[places],
            self.abstained[places],
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "labels": list(self.labels),
            "revision": self.revision,
            "ids": list(self.ids),
            "texts": list(self.texts),
            "sources": list(self.sources),
            "gold": self.gold.tolist(),
            "raw": self.raw.round(6).tolist(),
            "probabilities": self.probabilities.round(6).tolist(),
            "mass": self.mass.round(6).tolist(),
            "abstained": self.abstained.tolist(),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Predictions:
        shape = (len(value["ids"]), len(value["labels"]))
        return cls(
            tuple(value["labels"]),
            value["revision"],
            tuple(value["ids"]),
            tuple(value.get("texts", ())),
            tuple(value["sources"]),
            np.asarray(value["gold"], dtype=np.int64),
            np.asarray(value["raw"], dtype=np.float64).reshape(shape),
            np.asarray(value["probabilities"], dtype=np.float64).reshape(shape),
            np.asarray(value["mass"], dtype=np.float64),
            np.asarray(value["abstained"], dtype=np.bool_),
        )


def text_digest(conversation: Conversation) -> str:
    """First 16 hex digits of sha256 over the role and text of every turn, whatever the id."""
    turns = [[turn.role.value, turn.text] for turn in conversation.turns]
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()[:16]


def of_probabilities(
    labels: Sequence[str], records: Sequence[Record], name: str, probabilities: NDArray[np.float64]
) -> Predictions:
    """Predictions of a system that has nothing but probabilities; every record must carry the label `name`."""
    return Predictions(
        tuple(labels),
        "",
        tuple(record.conversation.id for record in records),
        tuple(text_digest(record.conversation) for record in records),
        tuple(record.source for record in records),
        np.asarray([list(labels).index(record.labels[name]) for record in records], dtype=np.int64),
        probabilities,
        probabilities,
        np.ones(len(records)),
        np.zeros(len(records), dtype=np.bool_),
    )


async def predict(
    classify: Classify, records: Sequence[Record], on_record: Callable[[], None]
) -> dict[str, Predictions]:
    """Ask every serving classifier about every record that carries its label, through the serving path.

    Raises the error of the first classifier that fails on a record: a hole in an evaluation is a wrong evaluation.
    """
    registry = classify.catalogue.current
    serving = {name: registry.get(name) for name in registry.serving_names}
    permits = asyncio.Semaphore(AT_ONCE)

    async def ask(record: Record) -> list[tuple[str, Record, Classification]]:
        names = [name for name in record.labels if name in serving]
        if not names:
            return []
        async with permits:
            try:
                answers = await classify.fan_out(record.conversation, names)
            except InvalidRequestError as error:
                raise ConfigurationError(f"record {record.conversation.id}: {error.message}") from error
        on_record()
        found = []
        for name, outcome in answers.results:
            if isinstance(outcome, InvalidRequestError):
                raise ConfigurationError(f"record {record.conversation.id}: {name}: {outcome.message}") from outcome
            if isinstance(outcome, FantailError):
                raise outcome
            found.append((name, record, outcome))
        return found

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask(record)) for record in records]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    answered: dict[str, list[tuple[Record, Classification]]] = {name: [] for name in serving}
    for task in tasks:
        for name, record, outcome in task.result():
            answered[name].append((record, outcome))
    return {name: _collect(serving[name], rows) for name, rows in answered.items() if rows}


def _collect(classifier: Classifier, rows: Sequence[tuple[Record, Classification]]) -> Predictions:
    labels = tuple(label.name for label in classifier.labels)
    return Predictions(
        labels,
        classifier.revision,
        tuple(record.conversation.id for record, _ in rows),
        tuple(text_digest(record.conversation) for record, _ in rows),
        tuple(record.source for record, _ in rows),
        np.asarray([labels.index(record.labels[classifier.name]) for record, _ in rows], dtype=np.int64),
        np.asarray([answer.raw_probabilities for _, answer in rows], dtype=np.float64),
        np.asarray([answer.probabilities for _, answer in rows], dtype=np.float64),
        np.asarray([answer.label_mass for _, answer in rows], dtype=np.float64),
        np.asarray([answer.abstain_reason is not None for _, answer in rows], dtype=np.bool_),
    )


Systems = dict[str, dict[str, Predictions]]
"""Predictions by system (`fantail` or a baseline's name) and classifier."""


def write_predictions(path: Path, systems: Systems, facts: Mapping[str, Any]) -> None:
    """Write predictions and what is known of their making, as a whole or not at all."""
    value = dict(facts) | {
        "systems": {
            system: {name: predictions.to_json() for name, predictions in found.items()}
            for system, found in systems.items()
        }
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(value) + "\n")


def read_predictions(path: Path) -> Systems:
    """What `write_predictions` wrote. Raises ConfigurationError when it is something else, or an older version did."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        systems = {
            system: {name: Predictions.from_json(each) for name, each in found.items()}
            for system, found in value["systems"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} holds no predictions as `fantail evaluate` writes them") from error
    if any(len(each.texts) != len(each.ids) for found in systems.values() for each in found.values()):
        raise ConfigurationError(f"{path} is an older one that does not tell which texts were answered; evaluate again")
    return systems
