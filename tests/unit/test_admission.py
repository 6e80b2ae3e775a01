"""How much is in flight at most, who is shed first, and that everything is given back."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest

from service.admission import BACKGROUND_SHARE, LARGEST, SHARES, Admission, Job
from service.deadline import Deadline
from service.domain import Priority
from service.errors import OverloadedError, StoppingError
from tests.clock import HandTurned, hand_turned

MAX_CALLS, MAX_TOKENS, MAX_FOLLOWS = 3, 1000, 2
CRITICAL, NORMAL, LOW = Priority.CRITICAL, Priority.NORMAL, Priority.LOW
NEVER = Deadline()
IN_FLIGHT = 100

Permit = Callable[[Admission], AbstractContextManager[None]]
PERMITS = pytest.mark.parametrize(
    ("permit", "count", "limit", "bound"),
    [
        pytest.param(Admission.call, "calls", "calls", MAX_CALLS, id="calls"),
        pytest.param(Admission.follow, "follows", "follows", MAX_FOLLOWS, id="follows"),
    ],
)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandTurned:
    return hand_turned(monkeypatch, "service.admission", "service.deadline")


@pytest.fixture
def admission(clock: HandTurned) -> Admission:
    return Admission(MAX_CALLS, MAX_TOKENS, MAX_FOLLOWS)


@pytest.fixture
def held(admission: Admission) -> Iterator[contextlib.ExitStack]:
    """What is in flight until the stack is closed: at first, one job."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(admission.admit(0, [Job(IN_FLIGHT)], NEVER))
        yield stack


@PERMITS
@pytest.mark.parametrize(("over", "accepted"), [(-1, True), (0, True), (1, False)], ids=["limit-1", "limit", "limit+1"])
def test_no_more_are_under_way_than_the_bound(
    admission: Admission, permit: Permit, count: str, limit: str, bound: int, over: int, accepted: bool
) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(bound + over - 1):
            stack.enter_context(permit(admission))
        if accepted:
            stack.enter_context(permit(admission))
            assert getattr(admission, count) == bound + over
            return
        with pytest.raises(OverloadedError) as refusal:
            stack.enter_context(permit(admission))
        assert refusal.value.metadata == {"limit": limit}
        assert getattr(admission, count) == bound


@PERMITS
def test_a_permit_given_back_can_be_taken_again(
    admission: Admission, permit: Permit, count: str, limit: str, bound: int
) -> None:
    for _ in range(bound + 1):
        with permit(admission):
            assert getattr(admission, count) == 1


@PERMITS
def test_after_stop_nothing_more_is_taken_on(
    admission: Admission, permit: Permit, count: str, limit: str, bound: int
) -> None:
    admission.stop()
    with pytest.raises(StoppingError), permit(admission):
        pass
    assert getattr(admission, count) == 0


def test_what_is_under_way_at_stop_goes_on(admission: Admission) -> None:
    with admission.call(), admission.follow():
        admission.stop()
        with admission.admit(0, [Job(10)], NEVER) as taken:
            assert taken == (True,)
    assert (admission.calls, admission.follows, admission.tokens) == (0, 0, 0)


@pytest.mark.parametrize(
    "raised", [None, RuntimeError(), asyncio.CancelledError(), GeneratorExit()], ids=lambda each: type(each).__name__
)
async def test_everything_is_given_back_however_the_work_ends(
    admission: Admission, raised: BaseException | None
) -> None:
    with contextlib.suppress(RuntimeError, asyncio.CancelledError, GeneratorExit):
        async with admission.admit_in_background(5, [Job(10)]):
            with admission.call(), admission.follow(), admission.admit(20, [Job(30)], NEVER):
                assert (admission.calls, admission.follows, admission.tokens) == (1, 1, 65)
                if raised is not None:
                    raise raised
    assert (admission.calls, admission.follows, admission.tokens) == (0, 0, 0)


@pytest.mark.parametrize("priority", Priority)
@pytest.mark.parametrize(("over", "accepted"), [(-1, True), (0, True), (1, False)], ids=["limit-1", "limit", "limit+1"])
def test_each_priority_is_let_in_beside_its_share_of_the_tokens(
    admission: Admission, priority: Priority, over: int, accepted: bool
) -> None:
    in_flight = round(MAX_TOKENS * (SHARES[priority] - LARGEST)) + over
    with admission.admit(0, [Job(in_flight)], NEVER):
        if accepted:
            with admission.admit(0, [Job(1, priority)], NEVER) as taken:
                assert taken == (True,)
            return
        with pytest.raises(OverloadedError) as refusal, admission.admit(0, [Job(1, priority)], NEVER):
            pass
        assert refusal.value.metadata == {"limit": "tokens"}
        assert admission.tokens == in_flight


def test_the_shares_follow_the_priorities() -> None:
    assert 1.0 == SHARES[CRITICAL] > SHARES[NORMAL] > SHARES[LOW] > BACKGROUND_SHARE


SIX = [Job(100, LOW), Job(100, NORMAL), Job(100, CRITICAL), Job(100, LOW), Job(100, NORMAL), Job(100, CRITICAL)]
FOUR = [Job(200, NORMAL), Job(200, CRITICAL), Job(200, NORMAL), Job(200, CRITICAL)]


@pytest.mark.parametrize(
    ("in_flight", "jobs", "expected"),
    [
        pytest.param(79, SIX, (1, 1, 1, 1, 1, 1), id="room for all"),
        pytest.param(101, SIX, (1, 1, 1, 0, 1, 1), id="the second low one is shed"),
        pytest.param(201, SIX, (0, 1, 1, 0, 1, 1), id="both low ones are shed"),
        pytest.param(299, FOUR, (1, 1, 0, 1), id="the second normal one is shed"),
        pytest.param(500, FOUR, (0, 1, 0, 1), id="only critical ones are left"),
    ],
)
def test_what_matters_least_is_shed_first(
    admission: Admission, in_flight: int, jobs: list[Job], expected: tuple[int, ...]
) -> None:
    with admission.admit(0, [Job(in_flight)], NEVER), admission.admit(0, jobs, NEVER) as taken:
        assert tuple(map(int, taken)) == expected
        assert admission.tokens == in_flight + jobs[0].tokens * sum(expected)


def test_a_small_job_is_taken_where_a_larger_one_of_its_kind_has_no_room(
    admission: Admission, held: contextlib.ExitStack
) -> None:
    held.enter_context(admission.admit(0, [Job(200)], NEVER))
    assert held.enter_context(admission.admit(0, [Job(450), Job(450), Job(10)], NEVER)) == (True, False, True)


def test_what_is_shared_is_counted_once(admission: Admission, held: contextlib.ExitStack) -> None:
    held.enter_context(admission.admit(300, [Job(10), Job(20)], NEVER))
    assert admission.tokens == IN_FLIGHT + 330


@pytest.mark.parametrize(("in_flight", "room"), [(499, True), (500, True), (501, False)])
@pytest.mark.parametrize(("shared", "own"), [(0, 1), (500, 1), (5 * MAX_TOKENS, 1), (0, 5 * MAX_TOKENS)])
def test_a_long_conversation_finds_room_where_a_short_one_does(
    admission: Admission, in_flight: int, room: bool, shared: int, own: int
) -> None:
    expected = contextlib.nullcontext() if room else pytest.raises(OverloadedError)
    with admission.admit(0, [Job(in_flight)], NEVER), expected, admission.admit(shared, [Job(own, CRITICAL)], NEVER):
        assert admission.tokens == in_flight + shared + own


@pytest.mark.parametrize(
    ("in_flight", "expected"),
    [
        pytest.param(485, (1, 1, 1), id="room for all"),
        pytest.param(493, (0, 1, 1), id="the low one is left out"),
        pytest.param(498, (0, 0, 1), id="the normal one too"),
    ],
)
def test_a_tail_after_a_conversation_that_is_read_anyway_is_shed_only_where_it_does_not_fit(
    admission: Admission, in_flight: int, expected: tuple[int, ...]
) -> None:
    fan_out = [Job(3, LOW), Job(3, NORMAL), Job(3, CRITICAL)]
    with admission.admit(0, [Job(in_flight)], NEVER), admission.admit(500, fan_out, NEVER) as taken:
        assert tuple(map(int, taken)) == expected


def test_a_classifier_that_reads_the_conversation_again_leaves_the_room_of_its_priority(
    admission: Admission, held: contextlib.ExitStack
) -> None:
    fan_out = [Job(300, LOW), Job(3, LOW), Job(300, CRITICAL)]
    held.enter_context(admission.admit(0, [Job(100)], NEVER))
    assert held.enter_context(admission.admit(300, fan_out, NEVER)) == (False, True, True)


@pytest.mark.parametrize("priority", Priority)
def test_where_nothing_else_is_in_flight_nothing_is_shed(admission: Admission, priority: Priority) -> None:
    with admission.admit(5 * MAX_TOKENS, [Job(5 * MAX_TOKENS, priority)] * 3, NEVER) as taken:
        assert taken == (True, True, True)
        assert admission.tokens == 20 * MAX_TOKENS


def test_beside_more_than_fits_nothing_else_is_taken(admission: Admission) -> None:
    with admission.admit(0, [Job(5 * MAX_TOKENS)], NEVER):
        with pytest.raises(OverloadedError), admission.admit(0, [Job(1, CRITICAL)], NEVER):
            pass
    with admission.admit(0, [Job(1, CRITICAL)], NEVER) as taken:
        assert taken == (True,)


def test_nothing_to_do_is_never_refused(admission: Admission) -> None:
    with admission.admit(0, [Job(5 * MAX_TOKENS)], NEVER), admission.admit(0, [], NEVER) as taken:
        assert taken == ()
