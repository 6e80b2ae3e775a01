"""A connection that falls silent without an end is found out by pings: by the client, and by the server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from service.api import server
from service.client import FantailAdminClient, FantailClient, FantailSyncClient, RpcError, Tls, connection
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from tests.integration.conftest import Serve
from tests.integration.harness import DEADLINE_S, HELLO, NAMES, WatchedEngine, fan_out_request

HASTE = 30
"""How many times sooner than in earnest both ends ping, so that silence is found out well within a deadline."""

NOWHERE = "127.0.0.1:1"


@dataclass
class Wire:
    """Stands between clients and a server, and passes on what they send.

    `address`: for clients; `opened`: connections so far; `silent`: of these the first so many stay open, and pass on
    nothing any more.
    """

    port: int
    address: str = ""
    opened: int = 0
    silent: int = 0

    async def connect(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.opened += 1
        number = self.opened
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self.port)
        await asyncio.gather(
            self._pass_on(number, from_client, to_server), self._pass_on(number, from_server, to_client)
        )

    async def _pass_on(self, number: int, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.closing(sink), contextlib.suppress(ConnectionError):
            while data := await source.read(1 << 16):
                if number > self.silent:
                    sink.write(data)


@pytest.fixture
async def wire(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Wire]:
    """To a server that pings sooner, as its clients do."""
    for end in (server, connection):
        monkeypatch.setattr(end, "KEEPALIVE", tuple((name, ms // HASTE) for name, ms in end.KEEPALIVE))
    between = Wire(int((await serve()).rsplit(":", 1)[1]))
    listening = await asyncio.start_server(between.connect, "127.0.0.1", 0)
    between.address = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    yield between
    listening.close()


async def test_a_call_over_a_connection_that_fell_silent_is_answered_over_another(
    wire: Wire, engine: WatchedEngine
) -> None:
    engine.gate.clear()
    async with FantailClient(wire.address) as client:
        call = asyncio.create_task(client.fan_out(HELLO, timeout=DEADLINE_S))
        await engine.begun(len(NAMES))
        wire.silent = wire.opened
        engine.gate.set()
        assert len((await call).results) == len(NAMES)
    assert wire.opened > 1


async def test_a_call_that_is_not_made_again_fails_as_unavailable_before_its_deadline(
    wire: Wire, engine: WatchedEngine
) -> None:
    engine.gate.clear()
    async with FantailClient(wire.address, retries=False) as client:
        call = asyncio.create_task(client.fan_out(HELLO, timeout=DEADLINE_S))
        await engine.begun(len(NAMES))
        wire.silent = wire.opened
        with pytest.raises(RpcError) as failure:
            await call
    assert (failure.value.code, failure.value.reason) == (grpc.StatusCode.UNAVAILABLE, "")


async def test_the_work_of_a_caller_who_fell_silent_is_cancelled(wire: Wire, engine: WatchedEngine) -> None:
    engine.gate.clear()
    async with grpc.aio.insecure_channel(wire.address) as without_pings:
        call = ClassificationServiceStub(without_pings).FanOut(fan_out_request())
        await engine.begun(len(NAMES))
        wire.silent = wire.opened
        await engine.ended(len(NAMES))  # long before the server's limit for a call
        call.cancel()
    assert engine.requests == []


CLIENTS: dict[str, Callable[[Tls | None], Any]] = {
    "the async client": lambda tls: FantailClient(NOWHERE, tls=tls),
    "the sync client": lambda tls: FantailSyncClient(NOWHERE, tls=tls),
    "the operator's client": lambda tls: FantailAdminClient(NOWHERE, key="key", tls=tls),
}


@pytest.mark.parametrize(
    ("tls", "function"), [(None, "insecure_channel"), (Tls(), "secure_channel")], ids=["in the clear", "TLS"]
)
@pytest.mark.parametrize("make", CLIENTS.values(), ids=CLIENTS)
async def test_every_client_pings_after_a_minute_of_silence_and_waits_20_s(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[Tls | None], Any], tls: Tls | None, function: str
) -> None:
    options: dict[str, Any] = {}
    open_channel = getattr(grpc.aio, function)

    def opened(*arguments: Any) -> grpc.aio.Channel:
        options.update(arguments[-1])
        return open_channel(*arguments)

    monkeypatch.setattr(grpc.aio, function, opened)
    client = make(tls)
    if isinstance(client, FantailSyncClient):
        client.__exit__(None, None, None)
    else:
        await client.__aexit__(None, None, None)
    assert options["grpc.keepalive_time_ms"] == 60_000
    assert options["grpc.keepalive_timeout_ms"] == options["grpc.http2.ping_timeout_ms"] == 20_000


def test_clients_ping_no_more_often_than_the_server_allows() -> None:
    allowed_ms = dict(server.KEEPALIVE)["grpc.http2.min_ping_interval_without_data_ms"]
    assert dict(connection.KEEPALIVE)["grpc.keepalive_time_ms"] >= allowed_ms
