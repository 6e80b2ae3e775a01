"""Standard health and server reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest
from grpc_health.v1.health_pb2_grpc import HealthStub, add_HealthServicer_to_server
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from service.api import health as health_module
from service.api.health import MAX_NAME, Health
from service.api.server import SERVICE
from service.catalogue import Catalogue
from service.registry.registry import Registry
from tests.integration.conftest import Serve
from tests.integration.harness import DEADLINE_S, WatchedEngine

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
NAMES = pytest.mark.parametrize("name", ["", SERVICE], ids=["overall", "by name"])


async def _state(stub: HealthStub, name: str) -> int:
    return (await stub.Check(HealthCheckRequest(service=name), timeout=DEADLINE_S)).status


async def _reflect(channel: grpc.aio.Channel, request: ServerReflectionRequest) -> ServerReflectionResponse:
    async def requests() -> AsyncIterator[ServerReflectionRequest]:
        yield request

    (response,) = [
        each async for each in ServerReflectionStub(channel).ServerReflectionInfo(requests(), timeout=DEADLINE_S)
    ]
    return response


@pytest.fixture
async def followed(engine: WatchedEngine, registry: Registry) -> AsyncIterator[tuple[Health, HealthStub]]:
    """A server of nothing but health, which changes when the test says so."""
    health = Health(engine, Catalogue(registry), (SERVICE,), SERVICE)
    server = grpc.aio.server()
    add_HealthServicer_to_server(health.servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield health, HealthStub(channel)
    await server.stop(0)


@NAMES
async def test_a_server_with_a_living_engine_is_serving(health: HealthStub, name: str) -> None:
    assert await _state(health, name) == SERVING


@NAMES
async def test_health_follows_the_engines_death_and_life(
    followed: tuple[Health, HealthStub], engine: WatchedEngine, name: str
) -> None:
    health, stub = followed
    states = []
    for engine.dead in (False, True, False):
        await health.update()
        states.append(await _state(stub, name))
    assert states == [SERVING, NOT_SERVING, SERVING]


@NAMES
async def test_a_server_whose_engine_is_dead_at_start_is_not_serving(
    serve: Serve, engine: WatchedEngine, name: str
) -> None:
    engine.dead = True
    async with grpc.aio.insecure_channel(await serve()) as channel:
        assert await _state(HealthStub(channel), name) == NOT_SERVING


@NAMES
async def test_a_running_server_tells_watchers_of_the_engines_death_and_life(
    serve: Serve, engine: WatchedEngine, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("service.api.health.CHECK_SECONDS", 0.001)
    async with grpc.aio.insecure_channel(await serve()) as channel:
        watch = HealthStub(channel).Watch(HealthCheckRequest(service=name), timeout=DEADLINE_S)
        states = []
        for engine.dead in (False, True, False):
            states.append((await watch.read()).status)
        assert states == [SERVING, NOT_SERVING, SERVING]
        watch.cancel()


async def test_health_of_an_unknown_service_is_not_found(health: HealthStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await _state(health, "fantail.v1.NoSuchService")
    assert failure.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_lists_the_whole_and_the_services_and_no_classifier(
    followed: tuple[Health, HealthStub], engine: WatchedEngine
) -> None:
    health, stub = followed
    for engine.dead, expected in ((False, SERVING), (True, NOT_SERVING)):
        await health.update()
        listed = await stub.List(HealthListRequest(), timeout=DEADLINE_S)
        assert {name: each.status for name, each in listed.statuses.items()} == {"": expected, SERVICE: expected}


async def test_reflection_lists_the_three_services(channel: grpc.aio.Channel) -> None:
    response = await _reflect(channel, ServerReflectionRequest(list_services=""))
    assert {service.name for service in response.list_services_response.service} == {
        "fantail.v1.ClassificationService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


@pytest.mark.parametrize("symbol", [SERVICE, "fantail.v1.ErrorReason", "google.rpc.Status", "google.rpc.ErrorInfo"])
async def test_reflection_describes_what_calls_carry(channel: grpc.aio.Channel, symbol: str) -> None:
    response = await _reflect(channel, ServerReflectionRequest(file_containing_symbol=symbol))
    assert response.WhichOneof("message_response") == "file_descriptor_response"
    assert response.file_descriptor_response.file_descriptor_proto


async def test_calls_are_answered_while_health_is_watched(serve: Serve) -> None:
    async with grpc.aio.insecure_channel(await serve()) as channel:
        stub = HealthStub(channel)
        watches = [stub.Watch(HealthCheckRequest(service=""), timeout=DEADLINE_S) for _ in range(3)]
        responses = await asyncio.gather(*(watch.read() for watch in watches))
        assert [response.status for response in responses] == [SERVING] * 3
        assert await _state(stub, SERVICE) == SERVING
        for watch in watches:
            watch.cancel()


async def test_a_watched_name_may_not_be_longer_than_any(followed: tuple[Health, HealthStub]) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await anext(aiter(followed[1].Watch(HealthCheckRequest(service="x" * (MAX_NAME + 1)), timeout=DEADLINE_S)))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_no_more_than_so_many_watch(followed: tuple[Health, HealthStub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "MAX_WATCHERS", 2)
    stub = followed[1]
    first, second = (stub.Watch(HealthCheckRequest(), timeout=DEADLINE_S) for _ in range(2))
    for watcher in (first, second):
        await watcher.read()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Watch(HealthCheckRequest(), timeout=DEADLINE_S).read()
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    first.cancel()
    async with asyncio.timeout(DEADLINE_S):
        while followed[0].servicer._watchers.total() > 1:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert await stub.Watch(HealthCheckRequest(), timeout=DEADLINE_S).read() is not grpc.aio.EOF
