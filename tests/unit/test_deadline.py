"""A deadline as a value: what is left of it, and which of two comes first."""

from __future__ import annotations

import math

import pytest

from service.deadline import Deadline
from tests.clock import HandTurned, hand_turned

SECONDS = 10.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandTurned:
    return hand_turned(monkeypatch, "service.deadline")


@pytest.mark.parametrize("deadline", [Deadline(), Deadline.after(None)], ids=["default", "after None"])
def test_without_a_deadline_there_is_always_time_left(deadline: Deadline) -> None:
    assert deadline.remaining() == math.inf


def test_without_a_deadline_there_is_no_timeout() -> None:
    assert Deadline().timeout() is None


@pytest.mark.parametrize(
    ("passed", "left"),
    [
        pytest.param(0.0, SECONDS, id="at first"),
        pytest.param(SECONDS - 1, 1.0, id="limit-1"),
        pytest.param(SECONDS, 0.0, id="limit"),
        pytest.param(SECONDS + 1, 0.0, id="limit+1"),
    ],
)
def test_what_is_left_shrinks_to_nothing_and_no_further(clock: HandTurned, passed: float, left: float) -> None:
    deadline = Deadline.after(SECONDS)
    clock.now += passed
    assert (deadline.remaining(), deadline.timeout()) == (left, left)


def test_no_seconds_from_now_is_a_deadline_that_has_come(clock: HandTurned) -> None:
    assert Deadline.after(0.0).timeout() == 0.0


def test_an_earlier_deadline_comes_so_many_seconds_before(clock: HandTurned) -> None:
    assert Deadline.after(SECONDS).earlier(4.0).remaining() == SECONDS - 4.0


def test_a_deadline_earlier_than_never_is_never() -> None:
    assert Deadline().earlier(4.0) == Deadline()


def test_the_name_is_that_of_whichever_comes_first(clock: HandTurned) -> None:
    own, limit = Deadline.after(SECONDS), Deadline.after(SECONDS - 1).named("the server's limit")
    assert own.no_later_than(limit).earlier(1.0).name == "the server's limit"
    assert own.no_later_than(Deadline.after(SECONDS + 1).named("the server's limit")).name == "the deadline"


SOON, LATER, NEVER = Deadline(1.0), Deadline(2.0), Deadline()


@pytest.mark.parametrize(
    ("one", "other", "first"),
    [
        pytest.param(SOON, LATER, SOON, id="soon, later"),
        pytest.param(LATER, SOON, SOON, id="later, soon"),
        pytest.param(NEVER, LATER, LATER, id="never, later"),
        pytest.param(LATER, NEVER, LATER, id="later, never"),
        pytest.param(NEVER, NEVER, NEVER, id="never, never"),
    ],
)
def test_of_two_deadlines_the_first_counts(one: Deadline, other: Deadline, first: Deadline) -> None:
    assert one.no_later_than(other) == first
