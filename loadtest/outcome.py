"""What became of the calls of a run: recorded in each generator, merged, and kept as JSON."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from hdrh.histogram import HdrHistogram

LOWEST_US, HIGHEST_US, DIGITS = 1, 600_000_000, 3
"""Histograms hold microseconds, from one to those of 10 minutes, to three digits."""

STAGES = ("prompt", "engine", "scoring", "total")
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)

GOOD = "OK"


def new_histogram() -> HdrHistogram:
    return HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)


def seconds(histogram: HdrHistogram, percentile: float) -> float:
    """A percentile in seconds; nan where nothing was recorded."""
    return float(histogram.get_value_at_percentile(percentile)) / 1e6 if histogram.get_total_count() else math.nan


def milliseconds(histogram: HdrHistogram, percentile: float) -> str:
    """A percentile to be read; a dash where nothing was recorded."""
    return f"{1000 * seconds(histogram, percentile):.0f}" if histogram.get_total_count() else "–"


@dataclass(slots=True)
class Outcome:
    """Of the calls that were due while the run was steady.

    `sent`: how many; `by_status`: how they ended, partly answered ones as PARTLY; `late_sends`: sent more than
    `LATE_SEND_S` after they were due, because the generator could not keep up; `latency`: from when a call was due to
    its answer, of answered calls; `stages`: of the server's own account; `tokens`: computed and reused;
    `classifications`: answered, also in part of a call; `steady_s`.
    """

    steady_s: float = 0.0
    sent: int = 0
    late_sends: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    latency: HdrHistogram = field(default_factory=new_histogram)
    stages: dict[str, HdrHistogram] = field(default_factory=lambda: {stage: new_histogram() for stage in STAGES})
    tokens: Counter[str] = field(default_factory=Counter)
    classifications: int = 0

    @property
    def offered_rate(self) -> float:
        """Calls due per second."""
        return self.sent / self.steady_s

    @property
    def goodput(self) -> float:
        """Calls wholly answered within their deadline, per second."""
        return self.by_status[GOOD] / self.steady_s

    @property
    def classification_rate(self) -> float:
        """Classifications answered in time per second, also those of partly answered calls: the work that got done."""
        return self.classifications / self.steady_s

    @property
    def shed_share(self) -> float:
        """Share of calls turned away by the server."""
        return self.by_status["RESOURCE_EXHAUSTED"] / max(1, self.sent)

    @property
    def reused_share(self) -> float:
        """Share of prompt tokens found in the prefix cache."""
        return self.tokens["reused"] / max(1, self.tokens.total())

    def answered(
        self, latency_s: float, stages: Mapping[str, float], computed: int, reused: int, classifications: int = 1
    ) -> None:
        """Take down an answer, and how many classifications it held. Durations in seconds."""
        self.classifications += classifications
        self.latency.record_value(_microseconds(latency_s))
        for stage, duration in stages.items():
            self.stages[stage].record_value(_microseconds(duration))
        self.tokens.update({"computed": computed, "reused": reused})

    def add(self, other: Outcome) -> None:
        """Take in what another generator of the same run has recorded."""
        self.sent += other.sent
        self.late_sends += other.late_sends
        self.classifications += other.classifications
        self.by_status.update(other.by_status)
        self.tokens.update(other.tokens)
        self.latency.add(other.latency)
        for stage, histogram in self.stages.items():
            histogram.add(other.stages[stage])

    def to_json(self) -> dict[str, Any]:
        """Everything, the histograms in HdrHistogram's own compressed form beside the usual percentiles, if any."""
        return {
            "steady_s": self.steady_s,
            "sent": self.sent,
            "late_sends": self.late_sends,
            "by_status": dict(self.by_status),
            "tokens": dict(self.tokens),
            "offered_rate": self.offered_rate,
            "goodput": self.goodput,
            "classifications": self.classifications,
            "latency_s": {
                f"p{percentile:g}": seconds(self.latency, percentile)
                for percentile in PERCENTILES
                if self.latency.get_total_count()
            },
            "latency": self.latency.encode().decode(),
            "stages": {stage: histogram.encode().decode() for stage, histogram in self.stages.items()},
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Outcome:
        return cls(
            value["steady_s"],
            value["sent"],
            value["late_sends"],
            Counter(value["by_status"]),
            HdrHistogram.decode(value["latency"]),
            {stage: HdrHistogram.decode(encoded) for stage, encoded in value["stages"].items()},
            Counter(value["tokens"]),
            value["classifications"],
        )


def merged(outcomes: Iterable[Outcome]) -> Outcome:
    """What several generators of one run have recorded together."""
    first, *others = outcomes
    for other in others:
        first.add(other)
    return first


def pooled(rounds: Iterable[Outcome]) -> Outcome:
    """Several runs as if they were one that lasted as long as all of them."""
    runs = list(rounds)
    whole = merged([Outcome(), *runs])
    whole.steady_s = sum(run.steady_s for run in runs)
    return whole


def _microseconds(duration_s: float) -> int:
    return min(HIGHEST_US, max(LOWEST_US, round(duration_s * 1e6)))
