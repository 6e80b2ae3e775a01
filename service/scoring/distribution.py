"""Label logprobs to a distribution and its mass. Knows numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class LabelDistribution:
    """`probabilities`: float64, one per label, sum 1. `mass`: the labels' share of the whole vocabulary, in [0, 1]."""

    probabilities: tuple[float, ...]
    mass: float


def label_distribution(logprobs: Sequence[float]) -> LabelDistribution:
    """Renormalise raw label logprobs (natural log, over the whole vocabulary) to the label set.

    The mass is kept beside it: renormalising alone hides that the model wanted to say something else.
    Raises ValueError when a logprob is NaN or above rounding of 0, or when every label has probability 0.
    """
    values = np.asarray(logprobs, dtype=np.float64)
    if values.size == 0 or np.isnan(values).any() or (values > 1e-3).any():
        raise ValueError(f"not log probabilities: {values.tolist()}")
    peak = values.max()
    if peak == -np.inf:
        raise ValueError("every label has probability 0")
    weights = np.exp(values - peak)
    mass = float(np.exp(peak) * weights.sum())
    return LabelDistribution(tuple(float(p) for p in weights / weights.sum()), min(mass, 1.0))
