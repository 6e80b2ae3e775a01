"""Runs one after the other: which rates, which seeds, where a sweep ends, and which of them is the knee."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from loadtest.outcome import Outcome
from loadtest.run import (
    GROWTH,
    KNEE_SHARE,
    MOST_RUNS,
    MOST_STEPS,
    broken_promises,
    by_rate,
    is_generator_the_limit,
    knee,
    sweep,
    unloaded,
)
from loadtest.target import Target
from tests.traffic import outcome

TARGET = Target("nowhere", ("refund",))
FIRST_RATE = 2.0


def at_rate(rate: float, goodput: float) -> tuple[float, Outcome]:
    """A run of a hundred seconds that offered `rate`."""
    good = round(100 * goodput)
    return rate, outcome(steady_s=100.0, OK=good, UNAVAILABLE=round(100 * rate) - good)


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        pytest.param([(1, 1), (2, 2), (4, 3)], 2, id="the last rate that was borne"),
        pytest.param([(1, 1), (2, 2), (4, 4)], 4, id="all were borne"),
        pytest.param([(4, 3), (2, 2), (1, 1)], 2, id="in any order"),
        pytest.param([(1, 0.9), (2, 2), (4, 0.5)], 2, id="a lower one was not borne"),
        pytest.param([(1, 0.5), (2, 0)], None, id="none was borne"),
        pytest.param([(1, KNEE_SHARE)], 1, id="just borne"),
        pytest.param([(1, KNEE_SHARE - 0.01)], None, id="just not borne"),
        pytest.param([(1, 1), (2, 0)], 1, id="nothing was answered"),
        pytest.param([(0.001, 0)], None, id="nothing was asked"),
        pytest.param([], None, id="no runs"),
    ],
)
def test_the_knee_is_the_highest_rate_that_was_answered_well(
    runs: Sequence[tuple[float, float]], expected: float | None
) -> None:
    found = knee([at_rate(*each) for each in runs])
    assert (found and found[0]) == expected


def test_the_knee_comes_with_its_outcome() -> None:
    runs = [at_rate(1, 1), at_rate(2, 2)]
    assert knee(runs) == runs[1]


@pytest.mark.parametrize(("late", "is_limit"), [(0, False), (9, False), (10, False), (11, True), (1000, True)], ids=str)
def test_the_generator_is_the_limit_from_one_late_send_in_a_hundred_on(late: int, is_limit: bool) -> None:
    assert is_generator_the_limit(outcome(OK=1000, late=late)) == is_limit


def test_a_run_that_the_generator_limited_says_nothing_of_the_knee() -> None:
    limited = (8.0, outcome(steady_s=10.0, OK=80, late=2))
    borne = at_rate(2, 2)
    assert knee([borne, limited]) == borne
    assert knee([limited]) is None


def test_the_lowest_rate_stands_for_a_server_without_load() -> None:
    lowest, highest = at_rate(1, 1), at_rate(4, 2)
    assert unloaded([highest, lowest]) is lowest[1]


def test_a_run_without_calls_was_not_limited_by_the_generator() -> None:
    assert not is_generator_the_limit(outcome())


class Runs:
    """What stands for `run`: keeps rates and seeds, bears so many calls a second."""

    def __init__(self, borne: Callable[[float], float]) -> None:
        self.borne = borne
        self.rates: list[float] = []
        self.seeds: list[int] = []

    async def run(self, profile: Path, target: Target, rate: float, seed: int, processes: int) -> Outcome:
        self.rates.append(rate)
        self.seeds.append(seed)
        return at_rate(rate, min(rate, self.borne(rate)))[1]

    async def sweep(self, *rates: float) -> list[tuple[float, Outcome]]:
        return [each async for each in sweep(Path("test.toml"), TARGET, rates, 7, 1)]


@pytest.fixture
def make_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[float], float]], Runs]:
    async def first_rate(target: Target, seed: int) -> float:
        return FIRST_RATE

    def make(borne: Callable[[float], float]) -> Runs:
        runs = Runs(borne)
        monkeypatch.setattr("loadtest.run.run", runs.run)
        monkeypatch.setattr("loadtest.run.first_rate", first_rate)
        return runs

    return make


MakeRuns = Callable[[Callable[[float], float]], Runs]


async def test_wanted_rates_are_run_as_they_are_given(make_runs: MakeRuns) -> None:
    runs = make_runs(lambda rate: 0.0)
    assert [rate for rate, _ in await runs.sweep(4.0, 1.0, 2.0)] == [4.0, 1.0, 2.0]


async def test_rounds_take_the_rates_in_turn(make_runs: MakeRuns) -> None:
    runs = make_runs(lambda rate: rate)
    made = [each async for each in sweep(Path("test.toml"), TARGET, (4.0, 1.0), 7, 1, rounds=3)]
    assert runs.rates == [4.0, 1.0] * 3
    assert runs.seeds == list(range(7 * MOST_RUNS, 7 * MOST_RUNS + 6))
    assert {rate: len(outcomes) for rate, outcomes in by_rate(made).items()} == {4.0: 3, 1.0: 3}


async def test_without_rates_they_grow_until_half_is_not_answered(make_runs: MakeRuns) -> None:
    runs = make_runs(lambda rate: 4.0)
    await runs.sweep()
    assert runs.rates == pytest.approx([FIRST_RATE * GROWTH**step for step in range(5)])  # 10.1 a second is the first
    assert runs.rates[-2] <= 2 * 4.0 < runs.rates[-1]


async def test_a_server_that_bears_everything_ends_the_sweep_some_time(make_runs: MakeRuns) -> None:
    runs = make_runs(lambda rate: rate)
    assert len(await runs.sweep()) == MOST_STEPS


@pytest.mark.parametrize("rates", [(), (1.0, 2.0, 2.0)], ids=["growing", "given"])
async def test_no_run_finds_the_conversations_of_an_earlier_one(make_runs: MakeRuns, rates: tuple[float, ...]) -> None:
    runs = make_runs(lambda rate: 3.0)
    await runs.sweep(*rates)
    assert len(set(runs.seeds)) == len(runs.rates)
    assert 7 * MOST_RUNS <= min(runs.seeds) <= max(runs.seeds) < 8 * MOST_RUNS, "the next seed's are others"
    assert len(runs.seeds) > 2


def answered_in(
    rate: float, goodput: float, slowest_s: float, late: int = 0, own_s: float | None = None
) -> tuple[float, Outcome]:
    """A run of a thousand seconds at `rate`, of whose latencies one in twenty is so long."""
    made = outcome(
        steady_s=1000.0, OK=round(1000 * goodput), RESOURCE_EXHAUSTED=round(1000 * (rate - goodput)), late=late
    )
    for _ in range(round(50 * goodput)):
        made.latency.record_value(round(1e6 * slowest_s))
        made.stages["total"].record_value(round(1e6 * (slowest_s if own_s is None else own_s)))
    return rate, made


HONEST = [answered_in(0.2, 0.2, 2.0), answered_in(1, 0.8, 3.0), answered_in(8, 0.75, 3.9)]


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        pytest.param(HONEST, [], id="as promised"),
        pytest.param(HONEST[::-1], [], id="in any order"),
        pytest.param([*HONEST[:2], answered_in(8, 0.75, 4.1)], ["99th percentile"], id="accepted calls wait too long"),
        pytest.param([*HONEST[:2], answered_in(8, 0.71, 3.9)], ["goodput is 0.71 where 0.80"], id="goodput falls"),
        pytest.param([*HONEST[:2], answered_in(7, 0.75, 3.9)], ["no 9.5 times"], id="no tenfold overload"),
        pytest.param(
            [answered_in(0.2, 0.2, 2.0, late=3, own_s=1.9), *HONEST[1:]], ["at 0.2 a second"], id="late sends that show"
        ),
        pytest.param([answered_in(0.2, 0.2, 2.0, late=3), *HONEST[1:]], [], id="late sends that do not show"),
        pytest.param([*HONEST[:2], answered_in(8, 0.05, 3.9)], ["too few"], id="hardly anybody is answered"),
        pytest.param(HONEST[:1], ["one rate alone"], id="one rate"),
    ],
)
def test_an_overload_that_breaks_a_promise_is_said(runs: Sequence[tuple[float, Outcome]], said: list[str]) -> None:
    broken = broken_promises(runs)
    assert len(broken) == len(said)
    assert all(words in sentence for words, sentence in zip(said, broken, strict=True))
