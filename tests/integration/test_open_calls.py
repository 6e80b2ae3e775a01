"""How many calls may be open at once, accepted or not, and for how long one may be whose request does not come."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from service.admission import Admission
from service.api.health import MAX_WATCHERS
from service.api.server import MOST_CALLS, SPARE_CALLS, most_open
from service.client import RpcError
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from tests.integration.asking import refusal
from tests.integration.conftest import Serve
from tests.integration.harness import DEADLINE_S, NAMES, PLAIN, REFUND, WatchedEngine, classify_request, fan_out_request
from tests.integration.keyring import bearer, ring_of
from tests.integration.talking import Following, customer

CHECK, CLASSIFY = "/grpc.health.v1.Health/Check", "/fantail.v1.ClassificationService/Classify"
STREAM = "/fantail.v1.ClassificationService/StreamFanOut"
MAX_CALLS, MAX_BATCHES, MAX_FOLLOWS, SPARE = 2, 1, 1, 1
MOST = MAX_CALLS + MAX_BATCHES + MAX_FOLLOWS + SPARE
SOON_S = 0.05
OF_ITS_OWN = (("grpc.use_local_subchannel_pool", 1),)

Connect = Callable[[], grpc.aio.Channel]


@pytest.fixture
def admission() -> Admission:
    return Admission(MAX_CALLS, 1 << 40, MAX_FOLLOWS)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.server.SPARE_CALLS", SPARE)
    monkeypatch.setattr("service.api.server.MAX_WATCHERS", 0)


@pytest.fixture
async def connect(address: str) -> AsyncIterator[Connect]:
    """Make one more connection."""
    async with contextlib.AsyncExitStack() as connections:
        made = [grpc.aio.insecure_channel(address, OF_ITS_OWN) for _ in range(2 * MOST)]
        for each in made:
            await connections.enter_async_context(each)
        yield iter(made).__next__


async def half_open(channel: grpc.aio.Channel, method: str = CHECK, **options: Any) -> Any:
    """A call that sent its headers and no request, and has taken its place: an earlier call's is free only after it."""
    while True:
        call = channel.stream_unary(method)(timeout=DEADLINE_S, **options)
        await state(channel)
        if not (await asyncio.wait({asyncio.ensure_future(call.code())}, timeout=SOON_S))[0]:
            return call


async def state(channel: grpc.aio.Channel) -> object:
    """Of health, or the code with which it is not told."""
    try:
        return (await HealthStub(channel).Check(HealthCheckRequest(), timeout=DEADLINE_S)).status
    except grpc.aio.AioRpcError as error:
        return error.code()


async def served_again(channel: grpc.aio.Channel) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while await state(channel) != HealthCheckResponse.SERVING:  # noqa: ASYNC110  (what is free tells nobody)
            await asyncio.sleep(0.01)


async def test_calls_that_say_nothing_are_refused_beyond_the_bound_and_served_below_it(connect: Connect) -> None:
    calls = [await half_open(connect()) for _ in range(MOST - 1)]
    await served_again(connect())
    calls.append(await half_open(connect()))
    for _ in range(3):
        assert await state(connect()) is grpc.StatusCode.RESOURCE_EXHAUSTED
    calls[0].cancel()
    await served_again(connect())
    for call in calls:
        call.cancel()


async def test_one_connection_may_carry_all_that_can_be_accepted(connect: Connect) -> None:
    channel = connect()
    calls = [await half_open(channel) for _ in range(MOST - 1)]
    await served_again(channel)
    calls.append(await half_open(channel))
    assert await state(channel) is grpc.StatusCode.RESOURCE_EXHAUSTED
    for call in calls:
        call.cancel()


async def test_who_is_one_too_many_beside_all_that_can_be_accepted_is_told_by_us(
    connect: Connect, engine: WatchedEngine
) -> None:
    engine.gate.clear()
    batch = pb.ClassifyBatchRequest(conversations=[pb.Conversation(turns=REFUND)])
    calls = [ClassificationServiceStub(connect()).FanOut(fan_out_request(), timeout=DEADLINE_S)]
    calls.append(ClassificationServiceStub(connect()).ClassifyBatch(batch, timeout=DEADLINE_S))
    talk = Following(ClassificationServiceStub(connect()).Follow(timeout=DEADLINE_S))
    await talk.tell(customer("where is my refund??"))  # takes the last permit
    await engine.begun(len(NAMES) * (MAX_CALLS + MAX_BATCHES))
    error = await refusal(ClassificationServiceStub(connect()), "Classify", classify_request(PLAIN))
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ERROR_REASON_OVERLOADED")
    assert error.retry_after_s
    engine.gate.set()
    await asyncio.gather(*calls)
    await talk.answer()
    await talk.finish()


def test_the_bound_is_all_that_can_be_accepted_and_watch_and_some_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert most_open(Admission(256, 1, 10_000)) == 256 + 128 + 10_000 + MAX_WATCHERS + SPARE_CALLS
    assert most_open(Admission(1, 1, 1)) >= 3 + MAX_WATCHERS + SPARE_CALLS


@pytest.mark.parametrize("admission", [Admission(1 << 62, 1, 1 << 62)])
async def test_bounds_beyond_what_grpc_counts_are_served(channel: grpc.aio.Channel, admission: Admission) -> None:
    assert most_open(admission) == MOST_CALLS
    assert await state(channel) == HealthCheckResponse.SERVING


@pytest.mark.parametrize("method", [CLASSIFY, STREAM])
async def test_who_has_no_key_is_refused_before_the_request_comes(serve: Serve, tmp_path: Path, method: str) -> None:
    async with grpc.aio.insecure_channel(await serve(keys=ring_of(tmp_path, {"key": 'name = "support"'}))) as channel:
        call = channel.stream_unary(method)(timeout=DEADLINE_S)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await asyncio.wait_for(call, DEADLINE_S / 2)
    error = RpcError.of_call(refused.value)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "ERROR_REASON_KEY_INVALID")


@pytest.mark.parametrize("method", [CLASSIFY, STREAM])
async def test_a_request_that_does_not_come_is_not_waited_for_and_holds_no_permit(
    serve: Serve, tmp_path: Path, admission: Admission, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("service.api.interceptors.message.MESSAGE_SECONDS", 4 * SOON_S)
    async with grpc.aio.insecure_channel(await serve(keys=ring_of(tmp_path, {"key": 'name = "support"'}))) as channel:
        call = await half_open(channel, method, metadata=bearer("key"))
        assert admission.calls == 0
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call
    error = RpcError.of_call(refused.value)
    assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "ERROR_REASON_DEADLINE_EXCEEDED")


async def test_health_does_not_wait_for_a_request_either(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.interceptors.message.MESSAGE_SECONDS", SOON_S)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asyncio.wait_for(channel.stream_unary(CHECK)(timeout=DEADLINE_S), DEADLINE_S / 2)
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


@pytest.mark.parametrize("method", [CLASSIFY, STREAM])
async def test_a_call_that_ends_without_a_request_is_told_so(
    channel: grpc.aio.Channel, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    monkeypatch.setattr("service.api.interceptors.message.GONE_SECONDS", SOON_S)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asyncio.wait_for(channel.stream_unary(method)(iter(()), timeout=DEADLINE_S), DEADLINE_S / 2)
    error = RpcError.of_call(refused.value)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ERROR_REASON_REQUEST_MALFORMED")


async def test_a_request_that_grpc_refuses_is_no_defect(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.api.interceptors.message.GONE_SECONDS", 4 * SOON_S)
    request = classify_request(PLAIN)
    request.conversation.id = "x" * 5000
    async with grpc.aio.insecure_channel(await serve(max_message_bytes=4096)) as channel:
        error = await refusal(ClassificationServiceStub(channel), "Classify", request)
        await asyncio.sleep(8 * SOON_S)
        assert await state(channel) == HealthCheckResponse.SERVING
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "")
    assert not [record for record in caplog.records if "Classify" in record.getMessage()]
