"""The calls of a run, fixed before the first is sent: when each is due, and what it asks."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtest.conversations import Turns, conversation, with_next_turn
from loadtest.profile import Profile, ProfileError

RECENT = 50
"""A follow-up goes on with one of so many latest conversations."""

MOST_TURNS = 24
"""A conversation that has so many turns is not gone on with."""


@dataclass(frozen=True, slots=True)
class Call:
    """`at_s`: when it is due, in seconds from the start; `classifiers`: none for all; `follow_up`: goes on with a
    conversation that was asked about before; `length`: tokens that the profile wanted when the conversation began."""

    at_s: float
    turns: Turns
    classifiers: tuple[str, ...]
    follow_up: bool
    length: int


def arrival_times(profile: Profile, rate: float, seed: int) -> Iterator[float]:
    """When calls are due, in seconds, `rate` a second on average, up to the end of the run."""
    end = profile.warm_up_s + profile.steady_s
    return itertools.takewhile(lambda at: at < end, _endless(profile, rate, seed))


def _endless(profile: Profile, rate: float, seed: int) -> Iterator[float]:
    if profile.arrivals == "constant":
        return (number / rate for number in itertools.count())
    if profile.arrivals == "trace":
        return _repeated(_read_trace(Path(profile.trace)), rate)
    rng = random.Random(f"arrivals {seed}")
    return itertools.accumulate(rng.expovariate(rate) for _ in itertools.count())


def _repeated(times: Sequence[float], rate: float) -> Iterator[float]:
    """A trace sped up or slowed down to a rate, again and again."""
    length = times[-1] * len(times) / (len(times) - 1)
    speed = rate * length / len(times)
    for lap in itertools.count():
        for at in times:
            yield (lap * length + at) / speed


def _read_trace(path: Path) -> list[float]:
    try:
        times = sorted(float(line) for line in path.read_text(encoding="utf-8").split())
    except (OSError, ValueError) as error:
        raise ProfileError(f"{path} is not a file of numbers: {error}") from error
    if not all(map(math.isfinite, times)) or len(times) < 2 or times[0] == times[-1]:
        raise ProfileError(f"{path} does not hold two different moments or more")
    return [at - times[0] for at in times]


def calls(profile: Profile, rate: float, classifiers: Sequence[str], seed: int) -> Iterator[Call]:
    """The calls of a run in order; equal arguments give equal calls."""
    rng = random.Random(f"calls {seed}")
    recent: list[tuple[int, Turns]] = []
    weights = [each.weight for each in profile.lengths]
    popularity = [1 / place**profile.skew for place in range(1, len(classifiers) + 1)]
    for number, at in enumerate(arrival_times(profile, rate, seed)):
        follow_up = bool(recent) and rng.random() < profile.follow_ups
        if follow_up:
            length, before = recent.pop(rng.randrange(len(recent)))
            turns = with_next_turn(before, f"{seed} {number}")
        else:
            length = rng.choices(profile.lengths, weights)[0].tokens
            turns = conversation(length, f"{seed} {number}")
        if len(turns) < MOST_TURNS:
            recent = [*recent[-RECENT + 1 :], (length, turns)]
        asked = () if rng.random() < profile.fan_out else tuple(rng.choices(list(classifiers), popularity))
        yield Call(at, turns, asked, follow_up, length)
