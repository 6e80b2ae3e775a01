"""Work that nobody waits for: it begins where there is room beside what others need, and never waits for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from service.admission import BACKGROUND_SHARE, Admission, Job
from service.deadline import Deadline
from service.errors import DeadlineExceededError, DeadlineTooNearError
from tests.clock import hand_turned
from tests.support import settle

MAX_TOKENS, IN_FLIGHT = 1000, 400
SHARE = round(MAX_TOKENS * BACKGROUND_SHARE)
"""Of the tokens, for work in the background; half of it has to be free."""

NEVER = Deadline()


@pytest.fixture
def admission() -> Admission:
    return Admission(1, MAX_TOKENS)


@pytest.fixture
def held(admission: Admission) -> Iterator[contextlib.ExitStack]:
    """What is in flight until the stack is closed."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(admission.admit(0, [Job(IN_FLIGHT)], NEVER))
        yield stack


class Background:
    """Work in the background that lasts until it is told to end."""

    def __init__(self, admission: Admission, tokens: int, deadline: Deadline = NEVER) -> None:
        self._admission, self._tokens, self._deadline = admission, tokens, deadline
        self._told = asyncio.Event()
        self.began = False
        self.task = asyncio.create_task(self._work())

    async def end(self) -> None:
        self._told.set()
        await self.task

    async def _work(self) -> None:
        async with self._admission.admit_in_background(0, [Job(self._tokens)], self._deadline):
            self.began = True
            await self._told.wait()


@pytest.mark.parametrize("tokens", [1, 5 * MAX_TOKENS], ids=["short", "long"])
@pytest.mark.parametrize(("in_flight", "begins"), [(SHARE // 2, True), (SHARE // 2 + 1, False)])
async def test_background_work_begins_where_half_of_its_share_is_free_and_waits_beyond(
    admission: Admission, in_flight: int, begins: bool, tokens: int
) -> None:
    with admission.admit(0, [Job(in_flight)], NEVER):
        work = Background(admission, tokens)
        await settle()
        assert work.began is begins
        assert admission.tokens == (in_flight + tokens if begins else in_flight)
    await work.end()
    assert admission.tokens == 0


async def test_background_work_that_waits_begins_when_room_is_freed(
    admission: Admission, held: contextlib.ExitStack
) -> None:
    work = Background(admission, SHARE)
    await settle()
    assert not work.began
    held.close()
    await settle()
    assert work.began
    await work.end()


async def test_background_work_larger_than_everything_begins_when_it_is_alone(admission: Admission) -> None:
    work = Background(admission, 5 * MAX_TOKENS)
    await settle()
    assert work.began
    await work.end()


async def test_of_what_waits_in_the_background_only_so_much_begins_as_fits(
    admission: Admission, held: contextlib.ExitStack
) -> None:
    works = [Background(admission, SHARE // 2) for _ in range(5)]
    await settle()
    held.close()
    await settle()
    assert (sum(work.began for work in works), admission.tokens) == (2, SHARE)
    for work in works:
        await work.end()
    assert admission.tokens == 0


async def test_background_work_that_is_cancelled_while_it_waits_leaves_nothing_behind(
    admission: Admission, held: contextlib.ExitStack
) -> None:
    work = Background(admission, SHARE)
    await settle()
    work.task.cancel()
    await asyncio.wait([work.task])
    assert admission.tokens == IN_FLIGHT


async def test_background_work_waits_no_longer_than_its_deadline(
    admission: Admission, held: contextlib.ExitStack
) -> None:
    with pytest.raises(DeadlineExceededError):
        await Background(admission, SHARE, Deadline.after(0.0)).task
    assert admission.tokens == IN_FLIGHT


async def test_background_work_that_waits_is_told_as_soon_as_it_could_not_be_done_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = hand_turned(monkeypatch, "service.admission", "service.deadline")
    admission = Admission(1, MAX_TOKENS)
    admission.rate = 100.0
    with admission.admit(0, [Job(SHARE // 2 + 1)], NEVER):
        with admission.admit(0, [Job(100)], NEVER):
            work = Background(admission, 500, Deadline.after(10.0))
            await settle()
            assert not work.task.done()
            clock.now += 8.0
        with pytest.raises(DeadlineTooNearError):
            await work.task
        assert admission.tokens == SHARE // 2 + 1


async def test_of_background_work_without_anything_to_do_nothing_is_too_much(admission: Admission) -> None:
    admission.rate = 1e-9
    async with admission.admit_in_background(0, [], Deadline.after(1.0)):
        assert admission.tokens == 0
