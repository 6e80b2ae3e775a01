"""Two revisions on the same records: what changed, and whether the new one may take the old one's place."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from service.errors import ConfigurationError
from service.evaluation.predictions import Predictions


@dataclass(frozen=True, slots=True)
class Comparison:
    """One classifier under two revisions. `p_value`: exact McNemar test, two-sided; `mended`, `broken`: record ids."""

    classifier: str
    records: int
    old_accuracy: float
    new_accuracy: float
    p_value: float
    mended: tuple[str, ...]
    broken: tuple[str, ...]

    @property
    def regression(self) -> float:
        return (len(self.broken) - len(self.mended)) / self.records


def compare(old: Mapping[str, Predictions], new: Mapping[str, Predictions]) -> list[Comparison]:
    """Compare every classifier that both have. Raises ConfigurationError when they were not asked the same."""
    if not (shared := sorted(set(old) & set(new))):
        raise ConfigurationError("the two have no classifier in common")
    if missing := sorted(set(old) - set(new)):
        raise ConfigurationError(f"the new one does not answer for {', '.join(missing)}")
    return [_compare_one(name, old[name], new[name]) for name in shared]


def _compare_one(name: str, old: Predictions, new: Predictions) -> Comparison:
    if old.labels != new.labels:
        raise ConfigurationError(f"{name}: the labels differ: {list(old.labels)} and {list(new.labels)}")
    order = {record: place for place, record in enumerate(new.ids)}
    if set(order) != set(old.ids):
        raise ConfigurationError(f"{name}: the two were evaluated on different records")
    places = np.asarray([order[record] for record in old.ids])
    if not np.array_equal(old.gold, new.gold[places]):
        raise ConfigurationError(f"{name}: the records were labelled differently when the two were evaluated")
    was, now = old.right, new.right[places]
    mended = tuple(old.ids[i] for i in np.flatnonzero(now & ~was))
    broken = tuple(old.ids[i] for i in np.flatnonzero(was & ~now))
    return Comparison(
        name, len(was), float(was.mean()), float(now.mean()), mcnemar(len(mended), len(broken)), mended, broken
    )


def mcnemar(one: int, other: int) -> float:
    """Two-sided exact p-value of so uneven a split of the changed records, were both revisions equally good."""
    changed = one + other
    tail = sum(math.comb(changed, k) for k in range(min(one, other) + 1))
    return min(1.0, float(2 * tail / 2**changed))
