"""The measured rate of the engine, and what is reckoned by it: when to come back, and which deadlines are too near."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterator

import pytest

from service.admission import (
    FADING,
    GUESSED_RATE,
    LARGEST,
    LEAST_MEASURED,
    LEAST_RETRY_S,
    OPTIMISM,
    SHARES,
    Admission,
    Job,
)
from service.deadline import Deadline
from service.domain import Priority
from service.errors import DeadlineTooNearError, OverloadedError
from tests.clock import HandTurned, hand_turned

MAX_TOKENS = 1000
RATE = 512.0
"""A power of two, so that deadlines at the very limit are exact."""
NEVER = Deadline()
EPSILON = 1e-6


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandTurned:
    return hand_turned(monkeypatch, "service.admission", "service.deadline")


@pytest.fixture
def admission(clock: HandTurned) -> Admission:
    return Admission(1, MAX_TOKENS, 1)


@pytest.fixture
def busy(admission: Admission) -> Iterator[Admission]:
    """With all tokens in flight."""
    with admission.admit(0, [Job(MAX_TOKENS)], NEVER):
        yield admission


def answer(admission: Admission, clock: HandTurned, tokens: int, seconds: float) -> None:
    """A fan-out for which the engine computes so many tokens in so long."""
    with admission.admit(0, [Job(tokens)], NEVER):
        clock.now += seconds
        admission.computed(tokens)


def refusal(admission: Admission, *jobs: Job, shared: int = 0) -> OverloadedError:
    with pytest.raises(OverloadedError) as refused, admission.admit(shared, jobs, NEVER):
        pass
    return refused.value


def test_at_first_no_rate_is_known(admission: Admission) -> None:
    assert admission.rate is None


def test_the_rate_is_what_was_computed_over_the_time_it_took(admission: Admission, clock: HandTurned) -> None:
    answer(admission, clock, 1000, 2.0)
    assert admission.rate == 500.0


async def test_background_work_is_measured_too(admission: Admission, clock: HandTurned) -> None:
    async with admission.admit_in_background(0, [Job(1000)]):
        clock.now += 2.0
        admission.computed(1000)
    assert admission.rate == 500.0


def test_the_rate_counts_what_was_computed_meanwhile_for_others(admission: Admission, clock: HandTurned) -> None:
    with admission.admit(0, [Job(300)], NEVER):
        with admission.admit(0, [Job(100)], NEVER):
            clock.now += 1.0
            admission.computed(100)
        clock.now += 1.0
        admission.computed(900)
    assert admission.rate == 500.0


def test_what_others_had_begun_before_is_not_counted(admission: Admission, clock: HandTurned) -> None:
    with contextlib.ExitStack() as first:
        first.enter_context(admission.admit(0, [Job(400)], NEVER))
        clock.now += 1.0
        with admission.admit(0, [Job(200)], NEVER):
            clock.now += 0.5
            admission.computed(400)  # nearly all of it before the second call came
            admission.computed(200)
        assert admission.rate == 400.0
        clock.now += 0.5
        first.pop_all().close()


def test_calls_that_are_all_but_cached_leave_the_rate_alone(admission: Admission, clock: HandTurned) -> None:
    answer(admission, clock, 1000, 1.0)
    with admission.admit(0, [Job(48)], NEVER):  # one of them is always under way
        for _ in range(200):
            with admission.admit(0, [Job(48)], NEVER):
                clock.now += 0.1
                admission.computed(48)
    assert admission.rate == 1000.0


def test_a_faster_rate_counts_at_once(admission: Admission, clock: HandTurned) -> None:
    answer(admission, clock, 1000, 2.0)
    answer(admission, clock, 1000, 1.0)
    assert admission.rate == 1000.0


def test_a_slower_one_lets_the_best_fade(admission: Admission, clock: HandTurned) -> None:
    answer(admission, clock, 1000, 2.0)
    answer(admission, clock, 1000, 4.0)
    assert admission.rate == FADING * 500.0


def test_the_best_fades_to_what_is_measured_now_and_no_further(admission: Admission, clock: HandTurned) -> None:
    answer(admission, clock, 1000, 1.0)
    for _ in range(1000):
        answer(admission, clock, 1000, 4.0)
    assert admission.rate == 250.0


@pytest.mark.parametrize(("over", "measured"), [(-1, False), (0, True), (1, True)], ids=["limit-1", "limit", "limit+1"])
def test_too_few_tokens_are_not_measured(admission: Admission, clock: HandTurned, over: int, measured: bool) -> None:
    answer(admission, clock, LEAST_MEASURED + over, 1.0)
    assert (admission.rate is not None) is measured


def test_what_took_no_time_is_not_measured(admission: Admission, clock: HandTurned) -> None:
    answer(admission, clock, 1000, 0.0)
    assert admission.rate is None


def test_work_that_was_taken_on_and_not_done_is_not_measured(admission: Admission, clock: HandTurned) -> None:
    with admission.admit(500, [Job(500)], NEVER):
        clock.now += 0.01
    assert admission.rate is None


def test_a_call_with_nothing_to_do_beside_much_work_is_not_measured(busy: Admission, clock: HandTurned) -> None:
    with busy.admit(0, [], NEVER):
        clock.now += 0.001
    assert busy.rate is None


@pytest.mark.parametrize("raised", [RuntimeError(), asyncio.CancelledError()], ids=lambda each: type(each).__name__)
def test_work_that_did_not_end_well_is_not_measured(
    admission: Admission, clock: HandTurned, raised: BaseException
) -> None:
    with contextlib.suppress(RuntimeError, asyncio.CancelledError), admission.admit(0, [Job(1000)], NEVER):
        clock.now += 1.0
        admission.computed(1000)
        raise raised
    assert admission.rate is None


@pytest.mark.parametrize(
    ("rate", "reckoned"), [(RATE, RATE), (2 * RATE, 2 * RATE), (None, GUESSED_RATE)], ids=["one", "double", "unknown"]
)
@pytest.mark.parametrize("priority", Priority)
def test_the_delay_is_how_long_the_engine_needs_to_make_room(
    busy: Admission, priority: Priority, rate: float | None, reckoned: float
) -> None:
    busy.rate = rate
    in_the_way = MAX_TOKENS - (SHARES[priority] - LARGEST) * MAX_TOKENS
    delay = refusal(busy, Job(20, priority), Job(30, priority), shared=100).retry_after_s
    assert delay == pytest.approx(in_the_way / reckoned)


def test_the_delay_is_until_there_is_room_for_the_first_of_several(busy: Admission) -> None:
    busy.rate = RATE
    error = refusal(busy, Job(100, Priority.CRITICAL), Job(100, Priority.LOW))
    assert error.retry_after_s == pytest.approx(LARGEST * MAX_TOKENS / RATE)


def test_the_delay_is_never_less_than_the_least(busy: Admission) -> None:
    busy.rate = 1e9
    assert refusal(busy, Job(1, Priority.CRITICAL)).retry_after_s == LEAST_RETRY_S


def test_the_delay_of_a_call_too_many_is_that_of_everything_in_flight(busy: Admission) -> None:
    busy.rate = RATE
    with busy.call(), pytest.raises(OverloadedError) as refused, busy.call():
        pass
    assert refused.value.retry_after_s == MAX_TOKENS / RATE


def test_the_delay_of_a_conversation_too_many_is_that_of_everything_in_flight(busy: Admission) -> None:
    busy.rate = RATE
    with busy.follow(), pytest.raises(OverloadedError) as refused, busy.follow():
        pass
    assert refused.value.retry_after_s == MAX_TOKENS / RATE


NEEDED_S = (100 + 300 + 50) / (OPTIMISM * RATE)
"""For 100 tokens in flight, 300 that are shared and the smallest job, at this many times the best rate."""


@pytest.mark.parametrize(
    ("spare", "accepted"), [(EPSILON, True), (0.0, True), (-EPSILON, False)], ids=["limit-eps", "limit", "limit+eps"]
)
def test_a_deadline_is_too_near_only_where_even_optimism_does_not_help(
    admission: Admission, spare: float, accepted: bool
) -> None:
    admission.rate = RATE
    deadline = Deadline(Deadline.after(0.0).at + NEEDED_S + spare)
    with admission.admit(0, [Job(100)], NEVER):
        work = admission.admit(300, [Job(90), Job(50)], deadline)
        if accepted:
            with work as taken:
                assert taken == (True, True)
            return
        with pytest.raises(DeadlineTooNearError) as refused, work:
            pass
        assert refused.value.metadata == {"needed_ms": str(math.ceil(1000 * NEEDED_S))}
        assert admission.tokens == 100


def test_before_anything_is_measured_no_deadline_is_too_near(admission: Admission) -> None:
    with admission.admit(0, [Job(MAX_TOKENS)], Deadline.after(0.0)) as taken:
        assert taken == (True,)


def test_without_a_deadline_nothing_is_too_much(admission: Admission) -> None:
    admission.rate = EPSILON
    with admission.admit(0, [Job(MAX_TOKENS)], NEVER) as taken:
        assert taken == (True,)


def test_only_jobs_that_there_is_room_for_are_reckoned_with(admission: Admission) -> None:
    admission.rate = RATE
    jobs = [Job(10, Priority.LOW), Job(490, Priority.CRITICAL)]
    needed = (500 + 490) / (OPTIMISM * RATE)
    with admission.admit(0, [Job(500)], NEVER), pytest.raises(DeadlineTooNearError) as refused:
        with admission.admit(0, jobs, Deadline.after(needed - EPSILON)):
            pass
    assert refused.value.metadata == {"needed_ms": str(math.ceil(1000 * needed))}


def test_nothing_to_do_is_done_in_time_by_any_deadline(busy: Admission) -> None:
    busy.rate = EPSILON
    with busy.admit(0, [], Deadline.after(0.0)) as taken:
        assert taken == ()
