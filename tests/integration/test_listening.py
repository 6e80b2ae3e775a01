"""Addresses, message sizes, unknown methods, and how a server stops."""

from __future__ import annotations

import asyncio
import contextlib
import time

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from service.api.server import Listening, listen
from service.classify import Classify
from service.client import FantailClient, RpcError
from service.errors import ConfigurationError
from service.metrics import Metrics
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.prompt.builder import PromptBuilder
from service.registry.registry import Registry
from tests.integration.conftest import Serve
from tests.integration.harness import DEADLINE_S, HELLO, NAMES, NEVER_S, WatchedEngine, fan_out_request
from tests.support import classify_with

LIMIT = 4096


async def test_an_address_in_use_is_a_configuration_error_that_names_the_setting(serve: Serve, address: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^FANTAIL_ADDRESS: .*{address}") as failure:
        await serve(address=address)
    assert "another server" in failure.value.message


async def test_an_address_in_use_leaves_its_server_serving(serve: Serve, address: str) -> None:
    with pytest.raises(ConfigurationError):
        await serve(address=address)
    async with FantailClient(address) as client:
        assert len((await client.fan_out(HELLO, timeout=DEADLINE_S)).results) == len(NAMES)


async def test_an_address_of_another_machine_is_a_configuration_error(serve: Serve) -> None:
    with pytest.raises(ConfigurationError, match=r"^FANTAIL_ADDRESS: "):
        await serve(address="192.0.2.1:0")


@pytest.mark.parametrize(("over", "accepted"), [(-1, True), (0, True), (1, False)], ids=["limit-1", "limit", "limit+1"])
async def test_a_message_over_the_size_limit_is_refused(
    serve: Serve, engine: WatchedEngine, over: int, accepted: bool
) -> None:
    request = fan_out_request()
    request.conversation.id = "x" * (LIMIT // 2)
    request.conversation.id += "x" * (LIMIT + over - request.ByteSize())
    assert request.ByteSize() == LIMIT + over
    async with grpc.aio.insecure_channel(await serve(max_message_bytes=LIMIT)) as channel:
        call = ClassificationServiceStub(channel).FanOut(request, timeout=DEADLINE_S)
        if accepted:
            assert len((await call).results) == len(NAMES)
            return
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await call
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert engine.requests == []


async def test_a_method_that_is_not_there_is_unimplemented(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await channel.unary_unary("/fantail.v1.ClassificationService/NoSuchMethod")(b"", timeout=DEADLINE_S)
    assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_stopping_lets_a_call_under_way_finish_and_refuses_new_ones(
    classify: Classify, engine: WatchedEngine, metrics: Metrics
) -> None:
    engine.gate.clear()
    async with contextlib.AsyncExitStack() as server:
        port = await server.enter_async_context(
            listen(classify, Listening("127.0.0.1:0", grace_seconds=DEADLINE_S), metrics)
        )
        async with FantailClient(f"127.0.0.1:{port}") as client:
            under_way = asyncio.create_task(client.fan_out(HELLO, timeout=DEADLINE_S))
            await engine.begun(len(NAMES))
            stopping = asyncio.create_task(server.aclose())
            assert await _refusal(port) is grpc.StatusCode.UNAVAILABLE
            assert not under_way.done()
            assert not stopping.done()
            engine.gate.set()
            assert len((await under_way).results) == len(NAMES)
            await stopping


async def test_callers_of_a_stopping_server_reach_another_while_it_finishes_what_it_accepted(
    classify: Classify,
    engine: WatchedEngine,
    metrics: Metrics,
    registry: Registry,
    builder: PromptBuilder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.api.server.TELLING_SECONDS", 0.05)
    engine.gate.clear()
    listening = Listening("127.0.0.1:0", grace_seconds=DEADLINE_S)
    other = classify_with(registry, builder, WatchedEngine())
    async with listen(other, listening, Metrics()) as second, contextlib.AsyncExitStack() as server:
        first = await server.enter_async_context(listen(classify, listening, metrics))
        async with FantailClient(f"ipv4:127.0.0.1:{first},127.0.0.1:{second}") as client:
            under_way = asyncio.create_task(client.fan_out(HELLO, timeout=DEADLINE_S))
            await engine.begun(len(NAMES))
            stopping = asyncio.create_task(server.aclose())
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    with contextlib.suppress(RpcError):
                        await client.fan_out(HELLO, timeout=DEADLINE_S)
                        break
            assert not under_way.done()
            engine.gate.set()
            assert len((await under_way).results) == len(NAMES)
            await stopping


async def _refusal(port: int) -> grpc.StatusCode:
    """Call until a call is refused; those that come before the server begins to stop are answered.

    A call that reaches the open connection in the instant of stopping is ended by gRPC itself as CANCELLED; the
    next one finds nobody listening.
    """
    async with asyncio.timeout(DEADLINE_S):
        while True:
            async with FantailClient(f"127.0.0.1:{port}") as late:
                try:
                    await late.list_classifiers(timeout=DEADLINE_S)
                except RpcError as error:
                    if error.code is not grpc.StatusCode.CANCELLED:
                        return error.code


async def test_a_call_that_outlasts_the_grace_is_ended_and_its_work_cancelled(
    classify: Classify, engine: WatchedEngine, metrics: Metrics
) -> None:
    engine.latency_s = NEVER_S
    async with contextlib.AsyncExitStack() as server:
        port = await server.enter_async_context(listen(classify, Listening("127.0.0.1:0", grace_seconds=0.01), metrics))
        async with FantailClient(f"127.0.0.1:{port}") as client:
            under_way = asyncio.create_task(client.fan_out(HELLO, timeout=DEADLINE_S))
            await engine.begun(len(NAMES))
            await server.aclose()
            with pytest.raises(RpcError) as failure:
                await under_way
            assert failure.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            await engine.ended(len(NAMES))
            assert engine.cancelled == len(NAMES)


async def test_a_stopping_server_tells_health_watchers(classify: Classify, metrics: Metrics) -> None:
    async with contextlib.AsyncExitStack() as server:
        port = await server.enter_async_context(listen(classify, Listening("127.0.0.1:0", grace_seconds=0.05), metrics))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            watch = HealthStub(channel).Watch(HealthCheckRequest(service=""), timeout=DEADLINE_S)
            assert (await watch.read()).status == HealthCheckResponse.SERVING
            await server.aclose()
            assert (await watch.read()).status == HealthCheckResponse.NOT_SERVING


async def test_a_stopping_server_does_not_wait_for_health_watchers(classify: Classify, metrics: Metrics) -> None:
    grace_seconds = 4.0
    async with contextlib.AsyncExitStack() as server:
        port = await server.enter_async_context(
            listen(classify, Listening("127.0.0.1:0", grace_seconds=grace_seconds), metrics)
        )
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            watch = HealthStub(channel).Watch(HealthCheckRequest(service=""), timeout=DEADLINE_S)
            assert (await watch.read()).status == HealthCheckResponse.SERVING
            began = time.monotonic()
            await server.aclose()
            assert time.monotonic() - began < grace_seconds / 2


async def test_an_address_is_free_again_after_the_server_stopped(classify: Classify, metrics: Metrics) -> None:
    async with listen(classify, Listening("127.0.0.1:0", grace_seconds=0), metrics) as port:
        pass
    async with listen(classify, Listening(f"127.0.0.1:{port}", grace_seconds=0), metrics) as again:
        assert again == port
