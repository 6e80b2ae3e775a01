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
    """One classifier under two revisions.

    Right is who gives the right answer and does not abstain: `old_accuracy` and `new_accuracy` are shares of that,
    `mended` and `broken` ids of records where it came or went, `changed` of those where a wrong label or an abstention
    became another one. `p_value`: exact McNemar test of mended against broken, two-sided.
    """

    classifier: str
    records: int
    old_accuracy: float
    new_accuracy: float
    p_value: float
    mended: tuple[str, ...]
    broken: tuple[str, ...]
    changed: tuple[str, ...]

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
    new = new.at(places)
    if edited := [old.ids[i] for i in range(len(places)) if old.texts[i] != new.texts[i]]:
        raise ConfigurationError(
            f"{name}: the texts of {len(edited)} records were changed between the two, {edited[0]!r} for one"
        )
    was, now = old.right & ~old.abstained, new.right & ~new.abstained
    differs = (old.chosen != new.chosen) | (old.abstained != new.abstained)
    mended, broken, changed = (
        tuple(old.ids[i] for i in np.flatnonzero(which)) for which in (now & ~was, was & ~now, differs & ~was & ~now)
    )
    p_value = mcnemar(len(mended), len(broken))
    return Comparison(name, len(was), float(was.mean()), float(now.mean()), p_value, mended, broken, changed)


def mcnemar(one: int, other: int) -> float:
    """Two-sided exact p-value of so uneven a split of the changed records, were both revisions equally good."""
    changed = one + other
    tail = sum(math.comb(changed, k) for k in range(min(one, other) + 1))
    return min(1.0, float(2 * tail / 2**changed))
