"""What becomes of labels that are acted on with care: their targets, held against records that chose no threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from service.domain import Calibration
from service.evaluation.measures import wilson
from service.evaluation.predictions import Predictions
from service.registry.manifest import Target


@dataclass(frozen=True, slots=True)
class ActedOn:
    """A label with a target, on one set of records.

    `target`: in words; `threshold`: that calibration found, 1 for never. `given`: answers with the label; `acted_on`:
    those that did not abstain, and `right` of them; `deserved`: records of the label. `precision` and `recall` are of
    the answers acted on, NaN of nothing; `…_interval`: 95 % by Wilson's score.
    """

    label: str
    target: str
    threshold: float
    given: int
    acted_on: int
    right: int
    deserved: int
    precision: float
    precision_interval: tuple[float, float]
    recall: float
    recall_interval: tuple[float, float]


def acted_on(
    predictions: Predictions, targets: Mapping[str, Target], calibration: Calibration | None
) -> tuple[ActedOn, ...]:
    """One for each label with a target. `calibration`: of what answered; there is none where there are no targets."""
    found = []
    for label, target in targets.items():
        assert calibration is not None, "a classifier with targets and no calibration is withheld"
        index = predictions.labels.index(label)
        given, deserved = predictions.chosen == index, predictions.gold == index
        acted = given & ~predictions.abstained
        right, acts, deserving = (int(each.sum()) for each in (acted & deserved, acted, deserved))
        found.append(
            ActedOn(
                label=label,
                target=" ".join(f"{name} {share:g}" for name, share in target.model_dump(exclude_none=True).items()),
                threshold=calibration.thresholds[index],
                given=int(given.sum()),
                acted_on=acts,
                right=right,
                deserved=deserving,
                precision=right / acts if acts else math.nan,
                precision_interval=wilson(right, acts),
                recall=right / deserving if deserving else math.nan,
                recall_interval=wilson(right, deserving),
            )
        )
    return tuple(found)
