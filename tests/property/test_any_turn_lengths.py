"""What holds for the cut of a too long conversation, whatever the lengths of its turns."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from service.prompt.truncation import turns_to_drop

BUDGET = 200
LENGTHS = st.lists(st.integers(1, BUDGET), min_size=1, max_size=60)
STEPS = st.integers(1, 150)


def wanted(lengths: list[int], step: int) -> int:
    """The excess over the budget, rounded up to whole steps."""
    return -(-max(0, sum(lengths) - BUDGET) // step) * step


@given(lengths=LENGTHS, step=STEPS)
def test_what_is_left_fits_and_holds_the_last_turn(lengths: list[int], step: int) -> None:
    dropped = turns_to_drop(lengths, BUDGET, step)
    assert 0 <= dropped < len(lengths)
    assert sum(lengths[dropped:]) <= BUDGET


@given(lengths=LENGTHS, step=STEPS)
def test_nothing_is_dropped_exactly_when_all_fits(lengths: list[int], step: int) -> None:
    assert (turns_to_drop(lengths, BUDGET, step) == 0) == (sum(lengths) <= BUDGET)


@given(lengths=LENGTHS, step=STEPS)
def test_no_more_turns_are_dropped_than_the_steps_need(lengths: list[int], step: int) -> None:
    dropped = turns_to_drop(lengths, BUDGET, step)
    assert dropped == 0 or sum(lengths[: dropped - 1]) < wanted(lengths, step)
    assert dropped == len(lengths) - 1 or sum(lengths[:dropped]) >= wanted(lengths, step)


@given(lengths=LENGTHS, more=st.integers(1, BUDGET), step=STEPS)
def test_a_turn_more_never_brings_a_dropped_turn_back(lengths: list[int], more: int, step: int) -> None:
    assert turns_to_drop([*lengths, more], BUDGET, step) >= turns_to_drop(lengths, BUDGET, step)


@given(lengths=LENGTHS, growth=st.lists(st.integers(1, 20), max_size=60), step=st.integers(20, 150))
def test_the_cut_moves_at_most_once_for_each_step_of_growth(lengths: list[int], growth: list[int], step: int) -> None:
    cuts = [turns_to_drop(lengths + growth[:count], BUDGET, step) for count in range(len(growth) + 1)]
    held_back = len(lengths) - 1  # a cut that only the last turn stopped goes on when there are more turns
    moves = sum(after != before and before != held_back for before, after in pairwise(cuts))
    assert moves <= sum(growth) // step + 1
