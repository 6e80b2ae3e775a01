"""How far recent answers are from those on the calibration split. Pure numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

MEMORY = 500.0
"""How many recent answers weigh: an answer counts e times less after so many others."""

FLOOR = 1e-3
"""Shares below this count as this, so that a label that never occurs does not weigh infinitely."""


@dataclass(slots=True)
class LabelDrift:
    """Follows answers with fading memory.

    `shares`: of each label on the calibration split; `confidence`: mean there; `answers`: how many were followed.
    """

    shares: tuple[float, ...]
    confidence: float
    answers: int = 0
    _counts: list[float] = field(default_factory=list)
    _confidence: float = 0.0

    def add(self, label: int, confidence: float) -> None:
        """One more answer: index of its label, and its confidence."""
        kept = math.exp(-1 / MEMORY)
        counts = self._counts or [0.0] * len(self.shares)
        self._counts = [count * kept + (index == label) for index, count in enumerate(counts)]
        self._confidence = self._confidence * kept + confidence
        self.answers += 1

    @property
    def stability_index(self) -> float:
        """Population stability index, after one answer or more: under 0.1 is calm, over 0.25 worth looking into."""
        total = sum(self._counts)
        pairs = [
            (max(count / total, FLOOR), max(share, FLOOR))
            for count, share in zip(self._counts, self.shares, strict=True)
        ]
        return sum((p - q) * math.log(p / q) for p, q in pairs)

    @property
    def confidence_shift(self) -> float:
        """Mean confidence lately minus that on the calibration split, after one answer or more."""
        return self._confidence / sum(self._counts) - self.confidence
