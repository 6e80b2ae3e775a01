"""A distribution to a decision: which label, how sure, and whether to abstain. Knows numpy-free numbers only."""

from __future__ import annotations

from dataclasses import dataclass

from service.scoring.distribution import LabelDistribution

LABEL_MASS_TOO_LOW = "label mass too low"


@dataclass(frozen=True, slots=True)
class Decision:
    """`index` of the chosen label, its probability, and None or why not to act on it."""

    index: int
    confidence: float
    abstain_reason: str | None


def decide(distribution: LabelDistribution, min_label_mass: float) -> Decision:
    """Choose the most probable label (the first of equals) and abstain when the labels' mass is below the bound."""
    index = max(range(len(distribution.probabilities)), key=distribution.probabilities.__getitem__)
    reason = LABEL_MASS_TOO_LOW if distribution.mass < min_label_mass else None
    return Decision(index, distribution.probabilities[index], reason)
