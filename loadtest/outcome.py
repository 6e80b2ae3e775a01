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


def has_percentile(histogram: HdrHistogram, percentile: float) -> bool:
    """Whether so much was recorded that some of it lies beyond: a hundred values for the 99th."""
    return int(histogram.get_total_count()) >= round(100 / (100 - percentile))


def milliseconds(histogram: HdrHistogram, percentile: float) -> str:
    """A percentile to be read; a dash where too little was recorded for it."""
    return f"{1000 * seconds(histogram, percentile):.0f}" if has_percentile(histogram, percentile) else "–"


def ratio(histogram: HdrHistogram, unloaded: HdrHistogram, percentile: float) -> str:
    """How many times another's percentile it is, to be read; a dash where one of them has none, and for itself."""
    if histogram is unloaded or not all(has_percentile(each, percentile) for each in (histogram, unloaded)):
        return "–"
    return f"{seconds(histogram, percentile) / seconds(unloaded, percentile):.2f}"


@dataclass(slots=True)
class OfLength:
    """Of the calls about conversations of one length: how many were sent, how many of them wholly answered in time;
    `latency`: of those that were answered, wholly or in part."""

    sent: int = 0
    good: int = 0
    latency: HdrHistogram = field(default_factory=new_histogram)

    def add(self, other: OfLength) -> None:
        self.sent += other.sent
        self.good += other.good
        self.latency.add(other.latency)

    def to_json(self) -> dict[str, Any]:
        return {"sent": self.sent, "good": self.good, **_latency_to_json(self.latency)}


@dataclass(slots=True)
class Outcome:
    """Of the calls that were due while the run was steady.

    `sent`: how many; `by_status`: how they ended, partly answered ones as PARTLY; `late_sends`: sent more than
    `LATE_SEND_S` after they were due, because the generator could not keep up; `latency`: from when a call was due to
    its answer, of answered calls; `stages`: of the server's own account; `tokens`: computed and reused;
    `classifications`: answered, also in part of a call; `lengths`: by the profile's length of the conversation, so that
    it is seen when only short ones get through; `steady_s`.
    """

    steady_s: float = 0.0
    sent: int = 0
    late_sends: int = 0
    by_status: Counter[str] = field(default_factory=Counter)
    latency: HdrHistogram = field(default_factory=new_histogram)
    stages: dict[str, HdrHistogram] = field(default_factory=lambda: {stage: new_histogram() for stage in STAGES})
    tokens: Counter[str] = field(default_factory=Counter)
    classifications: int = 0
    lengths: dict[int, OfLength] = field(default_factory=dict)

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
    def read_rate(self) -> float:
        """Tokens computed per second for calls that were answered in time, also in part: long calls count for more."""
        return self.tokens["computed"] / self.steady_s

    @property
    def shed_share(self) -> float:
        """Share of calls turned away by the server."""
        return self.by_status["RESOURCE_EXHAUSTED"] / max(1, self.sent)

    @property
    def reused_share(self) -> float:
        """Share of prompt tokens found in the prefix cache."""
        return self.tokens["reused"] / max(1, self.tokens.total())

    def ended(self, length: int, status: str, is_late: bool = False) -> None:
        """Take down how a call ended about a conversation of so many tokens, and whether it was sent late."""
        self.sent += 1
        self.late_sends += is_late
        self.by_status[status] += 1
        of_length = self.lengths.setdefault(length, OfLength())
        of_length.sent += 1
        of_length.good += status == GOOD

    def answered(
        self,
        length: int,
        latency_s: float,
        stages: Mapping[str, float],
        computed: int,
        reused: int,
        classifications: int = 1,
    ) -> None:
        """Take down the answer to a call that has ended, and how many classifications it held. Durations in seconds."""
        self.classifications += classifications
        for histogram in (self.latency, self.lengths[length].latency):
            histogram.record_value(_microseconds(latency_s))
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
        for length, of_length in other.lengths.items():
            self.lengths.setdefault(length, OfLength()).add(of_length)

    def to_json(self) -> dict[str, Any]:
        """Everything, the histograms in HdrHistogram's own compressed form beside the percentiles that they have."""
        return {
            "steady_s": self.steady_s,
            "sent": self.sent,
            "late_sends": self.late_sends,
            "by_status": dict(self.by_status),
            "tokens": dict(self.tokens),
            "offered_rate": self.offered_rate,
            "goodput": self.goodput,
            "read_rate": self.read_rate,
            "classifications": self.classifications,
            **_latency_to_json(self.latency),
            "lengths": {str(length): each.to_json() for length, each in sorted(self.lengths.items())},
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
            {
                int(length): OfLength(each["sent"], each["good"], HdrHistogram.decode(each["latency"]))
                for length, each in value["lengths"].items()
            },
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


def _latency_to_json(latency: HdrHistogram) -> dict[str, Any]:
    known = [percentile for percentile in PERCENTILES if has_percentile(latency, percentile)]
    return {
        "latency_s": {f"p{percentile:g}": seconds(latency, percentile) for percentile in known},
        "latency": latency.encode().decode(),
    }


def _microseconds(duration_s: float) -> int:
    return min(HIGHEST_US, max(LOWEST_US, round(duration_s * 1e6)))
