"""Answers that were never given: predictions and the records that they are about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from service.domain import Conversation
from service.evaluation.predictions import Predictions
from service.training.records import Record
from tests.support import talk


def predictions(confidences: Sequence[float], gold: Sequence[int], sources: Sequence[str] = ()) -> Predictions:
    """Answers that are the first label with these confidences; ids are the places in the list."""
    size = len(gold)
    found = np.asarray([[each, 1 - each] for each in confidences]).reshape(size, 2)
    return Predictions(
        ("yes", "no"),
        "0123456789abcdef",
        tuple(map(str, range(size))),
        ("",) * size,
        tuple(sources or ["invented"] * size),
        np.asarray(gold, dtype=np.int64),
        found,
        found,
        np.ones(size),
        np.zeros(size, dtype=np.bool_),
    )


def talks(*conversations: Conversation) -> dict[str, Record]:
    """Records by id, which is the place in the list."""
    return {str(place): Record(replace(each, id=str(place)), {}) for place, each in enumerate(conversations)}


HELLO = talk("hello")
GOOD, POOR = predictions([0.9, 0.8, 0.3, 0.6], [0, 0, 1, 1]), predictions([0.6, 0.4, 0.6, 0.6], [0, 0, 1, 1])
ONE_CLASS = predictions([0.9, 0.8], [0, 0])
FOUR = talks(HELLO, talk("hello", "good day"), *[talk("a", "b", "c")] * 2)
