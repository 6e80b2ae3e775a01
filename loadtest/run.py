"""A run: several generator processes against one server at one rate; and a sweep of runs that finds the knee."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from loadtest.generator import Share, told
from loadtest.outcome import Outcome, has_percentile, merged, pooled, seconds
from loadtest.profile import Profile
from loadtest.target import Target

START_SECONDS = 3.0
"""How long the generators are given to start before the first call is due."""

LATE_SHARE = 0.01
"""Share of late sends from which the generator is called the limit."""

GROWTH = 1.5
"""From one run of a sweep to the next."""

MOST_STEPS = 14

MOST_RUNS = 1000
"""Of one load test: seeds are that far apart, so that the next explicit one shares no run with this one."""

MOST_SLOWER = 2.0
"""Times that overload may lengthen the 99th percentile of accepted calls."""

LEAST_GOODPUT = 0.9
"""Share of capacity that is answered under overload at least."""

MOST_DISTORTED = 1.02
"""Times the server's own 99th percentile that the generator's may be, where some calls were sent late."""

OVERLOAD = 9.5
"""Times its capacity that a server is offered in an overload; ten, of which chance may lack some."""

KNEE_SHARE = 0.95
"""The knee is the highest rate of which at least so much is answered well."""


async def run(profile_path: Path, target: Target, rate: float, seed: int, processes: int) -> Outcome:
    """One run at `rate` calls a second, by so many generator processes. Raises RuntimeError when one of them fails."""
    begins_at = time.time() + START_SECONDS

    async def generator(index: int) -> Outcome:
        share = Share(str(profile_path), target, rate, seed, index, processes, begins_at)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "loadtest.generator"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        output, _ = await process.communicate(told(share))
        if process.returncode:
            raise RuntimeError(f"a generator ended with {process.returncode}")
        return Outcome.from_json(json.loads(output))

    return merged(await asyncio.gather(*map(generator, range(processes))))


async def sweep(
    profile_path: Path, target: Target, rates: Sequence[float], seed: int, processes: int, rounds: int = 1
) -> AsyncIterator[tuple[float, Outcome]]:
    """A run at each rate, in so many rounds; without rates, one at growing ones until half of them is not answered.

    Each run has a seed of its own, so that none finds its conversations in the prefix cache.
    """
    if rates:
        for step, rate in enumerate([*rates] * rounds):
            yield rate, await run(profile_path, target, rate, seed * MOST_RUNS + step, processes)
        return
    rate = await first_rate(target, seed)
    for step in range(MOST_STEPS):
        outcome = await run(profile_path, target, rate, seed * MOST_RUNS + step, processes)
        yield rate, outcome
        if outcome.goodput < 0.5 * outcome.offered_rate:
            return
        rate *= GROWTH


async def first_rate(target: Target, seed: int) -> float:
    """A rate that any server bears: a third of what calls one after the other reach."""
    async with target.connect() as client:
        began = time.perf_counter()
        for number in range(3):
            await client.fan_out([("customer", f"how fast are you, number {number} of {seed}? " * 20)], timeout=120)
        return 1.0 / (time.perf_counter() - began)


def knee(runs: Sequence[tuple[float, Outcome]]) -> tuple[float, Outcome] | None:
    """The highest rate that was answered well; None when none was. A run that the generator limited says nothing."""
    valid = [each for each in runs if not is_generator_the_limit(each[1])]
    good = [each for each in valid if 0 < KNEE_SHARE * each[1].offered_rate <= each[1].goodput]
    return max(good, key=lambda each: each[0], default=None)


def by_rate(runs: Sequence[tuple[float, Outcome]]) -> dict[float, list[Outcome]]:
    """The runs at each rate, in the order of the rates' first ones."""
    rounds: dict[float, list[Outcome]] = {}
    for rate, outcome in runs:
        rounds.setdefault(rate, []).append(outcome)
    return rounds


def unloaded(rates: Sequence[tuple[float, Outcome]]) -> Outcome:
    """What stands for a server without load: the lowest rate."""
    return min(rates, key=lambda each: each[0])[1]


def pool(runs: Sequence[tuple[float, Outcome]]) -> list[tuple[float, Outcome]]:
    """One run for each rate: all of its rounds together."""
    return [(rate, pooled(rounds)) for rate, rounds in by_rate(runs).items()]


def is_generator_the_limit(outcome: Outcome) -> bool:
    return outcome.late_sends > LATE_SHARE * max(1, outcome.sent)


def broken_promises(rates: Sequence[tuple[float, Outcome]]) -> list[str]:
    """What the highest rate, which is to be far beyond capacity, shows of an overload that is not borne honestly.

    Against the lowest rate, which stands for no load, accepted calls may take twice as long at the 99th percentile;
    against capacity, the best goodput of all lower rates, a tenth of the goodput may be lost. `rates`: each once.
    """
    *lower, (_, highest) = sorted(rates, key=lambda each: each[0])
    if not lower:
        return ["one rate alone says nothing of overload"]
    broken = [f"at {rate:g} a second the generator was the limit" for rate, o in rates if is_distorted(o)]
    capacity = max(outcome.goodput for _, outcome in lower)
    if highest.offered_rate < OVERLOAD * capacity:
        broken.append(
            f"{highest.offered_rate:.2f} a second are no {OVERLOAD:g} times the {capacity:.2f} that it can do"
        )
    latencies = highest.latency, unloaded(rates).latency
    if not all(has_percentile(each, 99) for each in latencies):
        return [*broken, "too few calls were answered for a 99th percentile"]
    loaded_s, unloaded_s = (seconds(each, 99) for each in latencies)
    if loaded_s > MOST_SLOWER * unloaded_s:
        broken.append(f"the 99th percentile of accepted calls is {loaded_s:.2f} s, without load {unloaded_s:.2f}")
    if highest.goodput < LEAST_GOODPUT * capacity:
        broken.append(f"goodput is {highest.goodput:.2f} where {capacity:.2f} was reached")
    return broken


def is_distorted(outcome: Outcome) -> bool:
    """Whether the generator's late sends show in the 99th percentile: a latency counts from when the call was due, and
    the server's own account of it from when it came."""
    if not is_generator_the_limit(outcome) or not has_percentile(outcome.latency, 99):
        return is_generator_the_limit(outcome)
    own_s = seconds(outcome.stages["total"], 99)
    return seconds(outcome.latency, 99) > MOST_DISTORTED * own_s


def duration_s(profile: Profile) -> float:
    """How long a run takes, its last answers aside."""
    return START_SECONDS + profile.warm_up_s + profile.steady_s
