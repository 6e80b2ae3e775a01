"""Who watches health from one address leaves room for others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub, add_HealthServicer_to_server

from service.api import health as health_module
from service.api.health import States, address_of
from tests.integration.harness import DEADLINE_S

FULL = grpc.StatusCode.RESOURCE_EXHAUSTED
PEERS = {
    "ipv4:192.0.2.7:50051": "192.0.2.7",
    "ipv6:%5B2001:db8:1:2:3:4:5:6%5D:50051": "2001:db8:1:2::/64",
    "ipv6:%5B2001:db8:1:2::9%5D:1": "2001:db8:1:2::/64",
    "ipv6:%5B::1%5D:50051": "::/64",
    "ipv6:%5Bfe80::1%25eth0%5D:50051": "fe80::/64",
    "unix:": "",
    "unix:/run/fantail.sock": "",
}


@pytest.mark.parametrize(("peer", "address"), PEERS.items())
def test_an_address_is_that_of_a_machine_or_an_ipv6_network(peer: str, address: str) -> None:
    assert address_of(peer) == address


@pytest.fixture
async def addresses(tmp_path: Path) -> AsyncIterator[list[str]]:
    """Two ways to one server of health; who comes by the one has another address than who comes by the other."""
    server = grpc.aio.server()
    add_HealthServicer_to_server(States(), server)
    socket = f"unix:{tmp_path / 'health.sock'}"
    server.add_insecure_port(socket)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield [f"127.0.0.1:{port}", socket]
    await server.stop(0)


async def code(channel: grpc.aio.Channel) -> grpc.StatusCode | None:
    """Of one more who watches and is refused; None for one who may."""
    call: Any = HealthStub(channel).Watch(HealthCheckRequest(), timeout=DEADLINE_S)
    told = asyncio.ensure_future(call.read())
    await asyncio.wait({told, asyncio.ensure_future(call.code())}, return_when=asyncio.FIRST_COMPLETED)
    refused: grpc.StatusCode | None = await call.code() if call.done() else None
    return refused


async def test_one_address_does_not_take_every_place(addresses: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "MAX_WATCHERS_OF_ONE", 2)
    monkeypatch.setattr(health_module, "MAX_WATCHERS", 3)
    first, second = addresses
    async with grpc.aio.insecure_channel(first) as one, grpc.aio.insecure_channel(second) as other:
        for channel, expected in ((one, None), (one, None), (one, FULL), (other, None), (other, FULL)):
            assert await code(channel) is expected


def test_an_address_may_not_take_every_place() -> None:
    assert health_module.MAX_WATCHERS_OF_ONE < health_module.MAX_WATCHERS
