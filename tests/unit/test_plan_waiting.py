"""Who is turned away and who waits, by the formula and by playing it."""

from __future__ import annotations

import random
from collections import deque

import pytest

from service.planning.waiting import MANY, load_of, most_offered
from service.planning.ways import let_in_of

CALLS = 200_000


def played(offered: float, let_in: int) -> tuple[float, float]:
    """Share turned away and mean number under way of calls that come at random and each take a second, one by one."""
    rng, now, turned_away, waited = random.Random(0), 0.0, 0, 0.0
    ends: deque[float] = deque()
    for _ in range(CALLS):
        now += rng.expovariate(offered)
        while ends and ends[0] <= now:
            ends.popleft()
        if len(ends) == let_in:
            turned_away += 1
        else:
            ends.append((ends[-1] if ends else now) + 1.0)
            waited += ends[-1] - now
    return turned_away / CALLS, waited / now


@pytest.mark.parametrize(
    ("offered", "let_in"), [(0.43, 1), (0.7, 1), (0.7, 2), (0.3, 2), (0.5, 3), (0.7, 5), (0.7, 40)]
)
def test_the_formula_says_what_happens(offered: float, let_in: int) -> None:
    """Of 200,000 calls a share has a standard error of 0.001 at most, a mean of one in a hundred."""
    turned_away, under_way = played(offered, let_in)
    load = load_of(offered, let_in)
    assert load.turned_away == pytest.approx(turned_away, abs=0.005)
    assert load.under_way == pytest.approx(under_way, rel=0.03)


@pytest.mark.parametrize(("calls_per_s", "measured"), [(1.3, 0.14), (3.9, 0.65), (13, 0.90)])
def test_as_many_are_turned_away_as_a_loaded_server_was_seen_to_turn_away(calls_per_s: float, measured: float) -> None:
    """docs/performance.md, Load: 1.27 calls a second are answered at best, of about 370 new tokens on average."""
    assert load_of(calls_per_s / 1.27, let_in_of(370, 1536)).turned_away == pytest.approx(measured, abs=0.05)


def test_one_call_at_a_time_is_erlangs_loss_formula() -> None:
    load = load_of(0.43, 1)
    assert load.turned_away == pytest.approx(0.43 / 1.43)  # 30 %
    assert load.under_way == pytest.approx(0.43 / 1.43)


def test_where_many_are_let_in_the_formula_goes_over_into_that_without_a_bound() -> None:
    last, unbounded = load_of(0.7, MANY), load_of(0.7, MANY + 1)
    assert last.turned_away < 1e-6
    assert last.under_way == pytest.approx(unbounded.under_way, rel=1e-4)


@pytest.mark.parametrize("let_in", [1, 2, 3, 4, 5, 40])
def test_as_much_may_be_offered_as_turns_the_share_away(let_in: int) -> None:
    offered = most_offered(let_in, 0.05, 0.7)
    assert load_of(offered, let_in).turned_away <= 0.05
    assert offered == 0.7 or load_of(1.001 * offered, let_in).turned_away > 0.05
