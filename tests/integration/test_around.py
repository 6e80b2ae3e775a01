"""What interceptors do around a call: begun and ended once each, in one task, for all four kinds of calls.

However the call ends: answered, failed, given up while the handler works, or given up while an answer is being sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from service.api.interceptors.around import FACTORIES, AroundInterceptor, Context
from service.call import changed_call, current_call
from tests.integration.harness import DEADLINE_S

KINDS = {(False, False): "unary_unary", (False, True): "unary_stream"} | {
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS, ids=KINDS.values())
ANSWERS_IN_A_STREAM = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind[1]], ids=lambda kind: KINDS[kind])
LARGE = b"x" * 100_000
"""More than a connection takes in before the caller reads."""


@dataclass
class Witness(AroundInterceptor):
    """Writes down what it sees in a log that several share."""

    name: str
    seen: list[str]
    ended: asyncio.Event
    tasks: set[Any] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        self.seen.append(f"{self.name} begins")
        self.tasks.add(asyncio.current_task())
        how = "left"
        try:
            with changed_call(request_id=f"{current_call().request_id}{self.name}"):
                yield
            how = "done"
        except (ValueError, asyncio.CancelledError) as error:
            how = type(error).__name__
            raise
        finally:
            self.tasks.add(asyncio.current_task())
            self.seen.append(f"{self.name} ends: {how}")
            self.ended.set()


@dataclass
class Handler:
    """Answers calls of every kind as `behave` says, under whatever name the call has."""

    behave: Callable[[], AsyncIterator[bytes]]
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    request_ids: list[str] = field(default_factory=list)

    def of(self, kind: tuple[bool, bool]) -> grpc.RpcMethodHandler[Any, Any]:
        return FACTORIES[kind](self.streamed if kind[1] else self.answered)

    async def answered(self, request: Any, context: Context) -> bytes:
        return b"".join([answer async for answer in self.streamed(request, context)])

    async def streamed(self, request: Any, context: Context) -> AsyncIterator[bytes]:
        self.request_ids.append(current_call().request_id)
        self.begun.set()
        async for answer in self.behave():
            yield answer


@dataclass
class Surrounded:
    """A server of one handler, surrounded by two witnesses; the method of each kind is called `Call`."""

    handler: Handler
    outer: Witness
    inner: Witness
    channel: grpc.aio.Channel
    kind: tuple[bool, bool]

    def call(self) -> Any:
        method = getattr(self.channel, KINDS[self.kind])("/test.Service/Call")
        return method(iter([b"request"]) if self.kind[0] else b"request", timeout=DEADLINE_S)

    async def answers(self) -> list[bytes]:
        call = self.call()
        return [answer async for answer in call] if self.kind[1] else [await call]

    async def ended(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.outer.ended.wait()


Start = Callable[[tuple[bool, bool], Callable[[], AsyncIterator[bytes]]], Awaitable[Surrounded]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """Serve calls of one kind that behave in one way; at the end the server is stopped."""
    async with contextlib.AsyncExitStack() as stack:

        async def started(kind: tuple[bool, bool], behave: Callable[[], AsyncIterator[bytes]]) -> Surrounded:
            seen: list[str] = []
            outer, inner = (Witness(name, seen, asyncio.Event()) for name in ("outer", "inner"))
            handler = Handler(behave)
            server = grpc.aio.server(interceptors=[outer, inner])
            methods = {"Call": handler.of(kind)}
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", methods),))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            stack.push_async_callback(server.stop, 0)
            channel = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
            return Surrounded(handler, outer, inner, channel, kind)

        yield started


async def answering() -> AsyncIterator[bytes]:
    yield b"one"
    yield b"two"


async def failing() -> AsyncIterator[bytes]:
    yield b"one"
    raise ValueError("failed")


async def working() -> AsyncIterator[bytes]:
    yield b"one"
    await asyncio.Event().wait()


async def never_ending() -> AsyncIterator[bytes]:
    while True:
        yield LARGE


def both(how: str) -> list[str]:
    return ["outer begins", "inner begins", f"inner ends: {how}", f"outer ends: {how}"]


@EVERY_KIND
async def test_a_call_that_is_answered_is_surrounded_once(start: Start, kind: tuple[bool, bool]) -> None:
    service = await start(kind, answering)
    assert await service.answers() == ([b"one", b"two"] if kind[1] else [b"onetwo"])
    await service.ended()
    assert service.outer.seen == both("done")


@EVERY_KIND
async def test_a_call_that_fails_is_surrounded_once_and_fails_around_too(start: Start, kind: tuple[bool, bool]) -> None:
    service = await start(kind, failing)
    with pytest.raises(grpc.aio.AioRpcError):
        await service.answers()
    await service.ended()
    assert service.outer.seen == both("ValueError")


@EVERY_KIND
async def test_a_call_that_is_given_up_while_the_handler_works_is_surrounded_once(
    start: Start, kind: tuple[bool, bool]
) -> None:
    service = await start(kind, working)
    call = service.call()
    await service.handler.begun.wait()
    call.cancel()
    await service.ended()
    assert service.outer.seen == both("CancelledError")


@ANSWERS_IN_A_STREAM
async def test_a_call_that_is_given_up_while_an_answer_is_sent_is_surrounded_once(
    start: Start, kind: tuple[bool, bool], caplog: pytest.LogCaptureFixture
) -> None:
    service = await start(kind, never_ending)
    call = service.call()
    await call.read()
    call.cancel()
    await service.ended()
    assert service.outer.seen == both("CancelledError")
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


@EVERY_KIND
@pytest.mark.parametrize("behave", [answering, failing, working, never_ending])
async def test_what_surrounds_a_call_ends_in_the_task_that_it_began_in(
    start: Start, kind: tuple[bool, bool], behave: Callable[[], AsyncIterator[bytes]]
) -> None:
    service = await start(kind, working if behave is never_ending and not kind[1] else behave)
    call = service.call()
    await service.handler.begun.wait()
    if behave in (working, never_ending):
        call.cancel()
    await service.ended()
    assert len(service.outer.tasks | service.inner.tasks) == 1


@EVERY_KIND
async def test_the_handler_knows_what_was_said_around_it_from_outside_in(start: Start, kind: tuple[bool, bool]) -> None:
    service = await start(kind, answering)
    await service.answers()
    assert service.handler.request_ids == ["outerinner"]


async def test_a_method_that_nobody_handles_is_surrounded_by_nothing(start: Start) -> None:
    service = await start((False, False), answering)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await service.channel.unary_unary("/test.Service/Other")(b"", timeout=DEADLINE_S)
    assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert service.outer.seen == []


class Gone:
    """The context of a call whose caller is gone: nothing can be written to it any more."""

    async def write(self, answer: bytes) -> None:
        raise grpc.aio.InternalError("Failed to send.")


@ANSWERS_IN_A_STREAM
async def test_an_answer_that_cannot_be_sent_cancels_the_call(kind: tuple[bool, bool]) -> None:
    witness, handler = Witness("outer", [], asyncio.Event()), Handler(answering).of(kind)
    details: Any = SimpleNamespace(method="/test.Service/Call")

    async def found(details: Any) -> Any:
        return handler

    surrounded: Any = await witness.intercept_service(found, details)
    with pytest.raises(asyncio.CancelledError):
        await getattr(surrounded, KINDS[kind])(b"request", Gone())
    assert witness.seen == ["outer begins", "outer ends: CancelledError"]
