"""Work beside a body: done as long as the body lasts, and the end of the body when it fails."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

import pytest

from service.serve import beside


@dataclass
class Work:
    """Lasts until it is told to end, and then ends as told."""

    fails: Exception | None = None
    fails_when_cancelled: Exception | None = None
    began: asyncio.Event = field(default_factory=asyncio.Event)
    told: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    ended: str = ""

    async def do(self) -> None:
        self.began.set()
        try:
            await self.told.wait()
        except asyncio.CancelledError:
            self.ended = "cancelled"
            if self.fails_when_cancelled is not None:
                raise self.fails_when_cancelled from None
            raise
        self.ended = "failed" if self.fails else "done"
        self.over.set()
        if self.fails is not None:
            raise self.fails


async def test_the_work_is_done_beside_the_body() -> None:
    works = Work(), Work()
    async with beside(*(work.do() for work in works)):
        for work in works:
            await work.began.wait()
        assert [work.ended for work in works] == ["", ""]


async def test_at_the_end_of_the_body_the_work_is_cancelled_and_waited_for() -> None:
    works = Work(), Work()
    async with beside(*(work.do() for work in works)):
        for work in works:
            await work.began.wait()
    assert [work.ended for work in works] == ["cancelled", "cancelled"]


async def test_work_that_is_done_leaves_the_body_alone() -> None:
    short, long = Work(), Work()
    async with beside(short.do(), long.do()):
        await long.began.wait()
        short.told.set()
        await short.over.wait()
        assert (short.ended, long.ended) == ("done", "")


async def test_the_failure_of_work_cancels_the_body_and_the_other_work_and_is_raised() -> None:
    failing, other, body = Work(fails=RuntimeError("no")), Work(), Work()

    async def run() -> None:
        async with beside(failing.do(), other.do()):
            await other.began.wait()
            failing.told.set()
            await body.do()

    with pytest.raises(RuntimeError, match="no"):
        await run()
    assert (body.ended, other.ended) == ("cancelled", "cancelled")


async def test_the_failure_of_the_body_cancels_the_work_and_is_raised() -> None:
    work, body = Work(), Work(fails=RuntimeError("body"))

    async def run() -> None:
        async with beside(work.do()):
            await work.began.wait()
            body.told.set()
            await body.do()

    with pytest.raises(RuntimeError, match="body"):
        await run()
    assert work.ended == "cancelled"


async def test_work_that_fails_as_it_is_cancelled_is_raised() -> None:
    work = Work(fails_when_cancelled=RuntimeError("at the end"))
    with pytest.raises(RuntimeError, match="at the end"):
        async with beside(work.do()):
            await work.began.wait()


async def test_cancelling_the_body_from_outside_cancels_the_work_and_stays_a_cancellation() -> None:
    work = Work()

    async def body() -> None:
        async with beside(work.do()):
            await Work().do()

    task = asyncio.create_task(body())
    await work.began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended == "cancelled"


async def test_a_body_that_the_failure_of_work_ended_can_be_followed_by_more() -> None:
    failing = Work(fails=RuntimeError("no"))
    failing.told.set()
    with contextlib.suppress(RuntimeError):
        async with beside(failing.do()):
            await Work().do()
    await asyncio.sleep(0)
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0
