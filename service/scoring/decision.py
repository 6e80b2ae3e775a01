"""A distribution to a decision: which label, how sure, and whether to abstain. Knows numbers only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LABEL_MASS_TOO_LOW = "label mass too low"
BELOW_THRESHOLD = "below threshold"


@dataclass(frozen=True, slots=True)
class Decision:
    """`index` of the chosen label, its probability, and None or why not to act on it."""

    index: int
    confidence: float
    abstain_reason: str | None


def decide(
    probabilities: Sequence[float], mass: float, min_label_mass: float, thresholds: Sequence[float] = ()
) -> Decision:
    """Choose the most probable label (the first of equals); abstain for want of label mass or of confidence.

    `thresholds`: one per label, or none at all; 1 means never. Too little mass is said first: confidence means nothing
    then.
    """
    index = max(range(len(probabilities)), key=probabilities.__getitem__)
    confidence = probabilities[index]
    if mass < min_label_mass:
        return Decision(index, confidence, LABEL_MASS_TOO_LOW)
    if thresholds and (confidence < thresholds[index] or thresholds[index] >= 1):
        return Decision(index, confidence, BELOW_THRESHOLD)
    return Decision(index, confidence, None)
