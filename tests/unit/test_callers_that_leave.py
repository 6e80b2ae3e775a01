"""What a caller leaves behind who goes away: work that is ended or finished, and no error that nobody hears of."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest

from service.api.servicer import until
from service.errors import MalformedRequestError
from service.registry.loader import RegistryLoader
from tests.deployment import ACTIVATED, WAIT_S, serving

ERRORS = [MalformedRequestError("The request's bytes are not the message.", ""), ValueError()]


@pytest.fixture
async def unheard() -> list[str]:
    """What the event loop complains of, a message each."""
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: complaints.append(about["message"]))
    return complaints


async def heard(complaints: list[str]) -> list[str]:
    """The complaints, with those about tasks that nobody holds any more."""
    await asyncio.sleep(0)
    gc.collect()
    return complaints


class Requests:
    """A stream of requests that waits, and then fails with `error`. `asked`, `ended`: for a request, and how it was."""

    def __init__(self, error: Exception) -> None:
        self.error, self.asked, self.failing = error, asyncio.Event(), asyncio.Event()
        self.ended = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[None]:
        self.asked.set()
        try:
            await self.failing.wait()
            raise self.error
        finally:
            self.ended.set()
        yield


async def read_all(requests: Requests, stopping: asyncio.Event) -> None:
    async for _ in until(stopping, aiter(requests)):
        raise AssertionError("there are none")


async def left(work: Coroutine[Any, Any, Any], begun: asyncio.Event) -> None:
    """Begin work and give it up once it is under way."""
    task = asyncio.create_task(work)
    async with asyncio.timeout(WAIT_S):
        await begun.wait()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_a_request_is_awaited_no_longer_when_the_reader_leaves(unheard: list[str]) -> None:
    requests = Requests(ValueError())
    await left(read_all(requests, asyncio.Event()), requests.asked)
    assert requests.ended.is_set()


@pytest.mark.parametrize("error", ERRORS, ids=lambda each: type(each).__name__)
async def test_a_request_that_fails_as_the_reader_leaves_is_no_complaint(unheard: list[str], error: Exception) -> None:
    requests = Requests(error)
    reading = asyncio.create_task(read_all(requests, asyncio.Event()))
    await requests.asked.wait()
    requests.failing.set()
    reading.cancel()
    await asyncio.wait({reading}, timeout=WAIT_S)
    await asyncio.wait_for(requests.ended.wait(), WAIT_S)
    assert reading.cancelled()
    del reading
    assert await heard(unheard) == []


async def test_a_request_is_awaited_no_longer_when_the_server_stops(unheard: list[str]) -> None:
    requests, stopping = Requests(ValueError()), asyncio.Event()
    reading = asyncio.create_task(read_all(requests, stopping))
    await requests.asked.wait()
    stopping.set()
    await asyncio.wait_for(reading, WAIT_S)
    assert requests.ended.is_set()


async def test_an_error_of_the_requests_is_the_readers() -> None:
    requests = Requests(ValueError())
    requests.failing.set()
    with pytest.raises(ValueError):  # noqa: PT011
        await read_all(requests, asyncio.Event())


class Large:
    """Stands for a request that takes much memory."""


async def test_a_request_that_has_been_read_is_not_kept_until_the_next_one() -> None:
    never = asyncio.Event()

    async def two() -> AsyncIterator[Large]:
        yield Large()
        await never.wait()
        yield Large()

    reading = until(asyncio.Event(), two())
    read = weakref.ref(await anext(reading))
    following = asyncio.create_task(anext(reading))
    await asyncio.sleep(0)
    assert read() is None
    following.cancel()
    await asyncio.wait({following}, timeout=WAIT_S)


async def test_a_change_that_is_refused_after_its_caller_left_is_no_complaint(
    tmp_path: Path, loader: RegistryLoader, unheard: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with serving(tmp_path, loader) as served:
        served.engine.back.clear()
        change = asyncio.create_task(served.deployer.load(ACTIVATED, served.candidate(2, probabilities=(0.1, 0.1))))
        await served.engine.until("back", 1)
        change.cancel()
        await asyncio.wait({change}, timeout=WAIT_S)
        del change
        served.engine.back.set()
        await served.deployer.reload()  # made after the change
    assert await heard(unheard) == []
    assert "a change was not made: RevisionRefusedError" in caplog.messages
