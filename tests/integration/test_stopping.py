"""A stopping server waits for what it accepted, until the answer is sent, and for nothing else that is open."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from service.api.server import Listening, listen
from service.classify import Classify
from service.client import FantailClient
from service.metrics import Metrics
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from tests.integration.harness import DEADLINE_S, HELLO, NAMES, REFUND, WatchedEngine
from tests.integration.talking import Following, customer

LEAVING_S = 0.05
GRACE_S = DEADLINE_S
SLOW_S = 6 * LEAVING_S

HALF_OPEN = {
    "Classify": "/fantail.v1.ClassificationService/Classify",
    "Check": "/grpc.health.v1.Health/Check",
    "Watch": "/grpc.health.v1.Health/Watch",
}


@dataclass
class Stopping:
    """A server that the test stops; each client has a connection of its own."""

    port: int
    servers: contextlib.AsyncExitStack

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def stop(self) -> asyncio.Task[None]:
        return asyncio.create_task(self.servers.aclose())


@pytest.fixture
async def stopping(classify: Classify, metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stopping]:
    for name in ("TELLING_SECONDS", "LEAVING_SECONDS"):
        monkeypatch.setattr(f"service.api.server.{name}", LEAVING_S)
    async with contextlib.AsyncExitStack() as servers:
        listening = Listening("127.0.0.1:0", grace_seconds=GRACE_S)
        yield Stopping(await servers.enter_async_context(listen(classify, listening, metrics)), servers)


@pytest.fixture
async def channel(stopping: Stopping) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(stopping.address) as connected:
        yield connected


async def reflecting(channel: grpc.aio.Channel) -> Any:
    """A stream of reflection that was answered once and stays open, as grpcui leaves it."""
    call = ServerReflectionStub(channel).ServerReflectionInfo()
    await call.write(ServerReflectionRequest(list_services=""))
    assert await call.read() is not grpc.aio.EOF
    return call


async def stops_at_once(stopped: asyncio.Task[None]) -> None:
    began = time.monotonic()
    await stopped
    assert time.monotonic() - began < GRACE_S / 2


async def test_only_an_accepted_call_is_waited_for_and_answered(
    stopping: Stopping, channel: grpc.aio.Channel, engine: WatchedEngine
) -> None:
    engine.gate.clear()
    opened = [await reflecting(channel), *(channel.stream_unary(method)() for method in HALF_OPEN.values())]
    async with FantailClient(stopping.address) as client:
        under_way = asyncio.create_task(client.fan_out(HELLO, timeout=DEADLINE_S))
        await engine.begun(len(NAMES))
        stopped = stopping.stop()
        await asyncio.wait({stopped}, timeout=SLOW_S)
        assert not stopped.done()
        assert not under_way.done()
        engine.gate.set()
        assert len((await under_way).results) == len(NAMES)
        await stops_at_once(stopped)
    for call in opened:
        assert await call.code() is not grpc.StatusCode.OK


async def test_an_open_stream_of_reflection_is_ended(stopping: Stopping, channel: grpc.aio.Channel) -> None:
    call = await reflecting(channel)
    await stops_at_once(stopping.stop())
    assert await call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)


@pytest.mark.parametrize("method", HALF_OPEN.values(), ids=HALF_OPEN)
async def test_a_call_whose_request_never_came_is_ended(
    stopping: Stopping, channel: grpc.aio.Channel, method: str
) -> None:
    await reflecting(channel)  # by then the connection is there
    call = channel.stream_unary(method)()
    await asyncio.wait({asyncio.ensure_future(call.code())}, timeout=LEAVING_S)
    await stops_at_once(stopping.stop())
    assert await call.code() is not grpc.StatusCode.OK


async def test_a_live_conversation_hears_the_answer_under_way(
    stopping: Stopping, channel: grpc.aio.Channel, engine: WatchedEngine
) -> None:
    engine.gate.clear()
    talk = Following(ClassificationServiceStub(channel).Follow(timeout=DEADLINE_S))
    await talk.tell(customer("where is my refund??"))
    await engine.begun(len(NAMES))
    stopped = stopping.stop()
    await asyncio.wait({stopped}, timeout=SLOW_S)
    engine.gate.set()
    assert len((await talk.answer()).fan_out.results) == len(NAMES)
    await stops_at_once(stopped)
    assert await talk.call.code() is grpc.StatusCode.UNAVAILABLE


@dataclass
class Wire:
    """Stands between a client and a server. While `open` is not set it keeps what the server sends; `much` is set once
    that is more than any refusal."""

    port: int
    open: asyncio.Event = field(default_factory=asyncio.Event)
    much: asyncio.Event = field(default_factory=asyncio.Event)

    async def connect(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self.port)
        await asyncio.gather(self._pass(from_client, to_server), self._keep(from_server, to_client))

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.closing(sink), contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 14):
                sink.write(data)

    async def _keep(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        kept = b""
        with contextlib.closing(sink), contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 14):
                kept += data
                if len(kept) >= 1 << 14:
                    self.much.set()
                    await self.open.wait()
                if self.open.is_set():
                    sink.write(kept)
                    kept = b""


async def test_an_answer_that_is_being_sent_is_sent_to_its_end(stopping: Stopping, classify: Classify) -> None:
    wire = Wire(stopping.port)
    wire.open.set()
    between = await asyncio.start_server(wire.connect, "127.0.0.1", 0)
    request = pb.ClassifyBatchRequest(classifiers=[f"{index:064}" for index in range(64)])
    request.conversations.extend([pb.Conversation(turns=REFUND)] * 100)
    small_window = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1 << 16))
    between_address = f"127.0.0.1:{between.sockets[0].getsockname()[1]}"
    async with grpc.aio.insecure_channel(between_address, small_window) as channel:
        await reflecting(channel)  # by then the connection is there
        wire.open.clear()
        answered = asyncio.ensure_future(ClassificationServiceStub(channel).ClassifyBatch(request, timeout=DEADLINE_S))
        await asyncio.wait_for(wire.much.wait(), DEADLINE_S)
        assert classify.admission.batches == 0
        stopped = stopping.stop()
        await asyncio.wait({stopped}, timeout=SLOW_S)
        assert not stopped.done()
        wire.open.set()
        assert len((await answered).items) == len(request.conversations)
        await stops_at_once(stopped)
    between.close()
