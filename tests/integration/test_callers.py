"""What a server grants each caller: so many calls, and KV of their own for those who are isolated."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from service.api.server import SERVICE
from service.client import RpcError
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from tests.clock import HandTurned, hand_turned
from tests.integration.asking import ASKING, BATCH, DESCRIBING, answer
from tests.integration.conftest import Serve
from tests.integration.harness import DEADLINE_S, REFUND, WatchedEngine, fan_out_request
from tests.integration.keyring import bearer, ring_of

FOLLOW = {"Follow": pb.FollowRequest(turns=REFUND)}
EVERY = ASKING | BATCH | DESCRIBING | FOLLOW
RATE = "calls_per_second = 0.001"
EXHAUSTED = (grpc.StatusCode.RESOURCE_EXHAUSTED, "ERROR_REASON_RATE_LIMITED")

LIMITED = {
    "first": f'name = "limited"\n{RATE}\nburst = 3',
    "second": f'name = "limited"\n{RATE}\nburst = 3',
    "single": f'name = "single"\n{RATE}',
    "free": 'name = "free"',
}
ISOLATED = {
    "alone-1": 'name = "alone"\nisolated = true',
    "alone-2": 'name = "alone"\nisolated = true',
    "apart": 'name = "apart"\nisolated = true',
    "shared": 'name = "shared"',
    "likewise": 'name = "likewise"',
}


async def make(channel: grpc.aio.Channel, key: str, method: str = "FanOut") -> None:
    """Make a call that must succeed, to its end."""
    stub, request = ClassificationServiceStub(channel), EVERY[method]
    if method == "Follow":
        call = stub.Follow(iter([request]), timeout=DEADLINE_S, metadata=bearer(key))
        assert [response.WhichOneof("outcome") async for response in call] == ["fan_out"]
    else:
        await answer(stub, method, request, metadata=bearer(key))


async def refusal(channel: grpc.aio.Channel, key: str, method: str = "FanOut") -> RpcError:
    """The error of a call that must fail. Nothing is sent in a stream: gRPC for Python loses the status of a call that
    ends while a message is being sent."""
    stub, metadata = ClassificationServiceStub(channel), bearer(key)
    if method == "Follow":
        made = stub.Follow(timeout=DEADLINE_S, metadata=metadata).read()
    else:
        made = answer(stub, method, EVERY[method], metadata=metadata)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await made
    return RpcError.of_call(refused.value)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandTurned:
    return hand_turned(monkeypatch, "service.keys")


@pytest.fixture
async def limiting(serve: Serve, tmp_path: Path, clock: HandTurned) -> AsyncIterator[grpc.aio.Channel]:
    """A server where some callers have a rate."""
    async with grpc.aio.insecure_channel(await serve(keys=ring_of(tmp_path, LIMITED))) as channel:
        yield channel


BY_METHOD = pytest.mark.parametrize("method", EVERY)


@BY_METHOD
async def test_a_call_of_whatever_method_beyond_the_rate_is_refused_unread(
    limiting: grpc.aio.Channel, engine: WatchedEngine, method: str
) -> None:
    await make(limiting, "single")
    asked = len(engine.requests)
    error = await refusal(limiting, "single", method)
    assert (error.code, error.reason) == EXHAUSTED
    assert (error.retry_after_s, error.metadata) == (1000.0, {"calls_per_second": "0.001"})
    assert len(engine.requests) == asked


@BY_METHOD
async def test_a_call_of_whatever_method_counts(limiting: grpc.aio.Channel, method: str) -> None:
    await make(limiting, "single", method)
    assert (await refusal(limiting, "single")).reason == EXHAUSTED[1]


async def test_a_burst_is_accepted_and_the_call_after_it_is_not(limiting: grpc.aio.Channel) -> None:
    for _ in range(3):
        await make(limiting, "first")
    assert (await refusal(limiting, "first")).reason == EXHAUSTED[1]


async def test_the_call_is_accepted_after_the_delay_that_was_asked_for(
    limiting: grpc.aio.Channel, clock: HandTurned
) -> None:
    await make(limiting, "single")
    delay = (await refusal(limiting, "single")).retry_after_s
    assert delay is not None
    clock.now += delay
    await make(limiting, "single")


async def test_keys_of_one_caller_share_the_rate_and_leave_other_callers_alone(limiting: grpc.aio.Channel) -> None:
    for key in ("first", "second", "first"):
        await make(limiting, key)
    assert [(await refusal(limiting, key)).reason for key in ("first", "second")] == [EXHAUSTED[1]] * 2
    for key in ("single", "free", "free", "free", "free"):
        await make(limiting, key)


async def test_health_checks_do_not_count(limiting: grpc.aio.Channel) -> None:
    for _ in range(3):
        request = HealthCheckRequest(service=SERVICE)
        await HealthStub(limiting).Check(request, timeout=DEADLINE_S, metadata=bearer("single"))
    await make(limiting, "single")


async def test_a_call_with_an_unknown_key_uses_up_nobodys_rate(limiting: grpc.aio.Channel) -> None:
    for _ in range(3):
        assert (await refusal(limiting, "unknown")).code is grpc.StatusCode.UNAUTHENTICATED
    await make(limiting, "single")


Salts = Callable[..., Awaitable[set[str]]]


@pytest.fixture
def salts(engine: WatchedEngine) -> Salts:
    """With which salts the engine is asked by such a call."""

    async def found(channel: grpc.aio.Channel, key: str, method: str = "FanOut") -> set[str]:
        before = len(engine.requests)
        await make(channel, key, method)
        assert len(engine.requests) > before
        return {request.cache_salt for request in engine.requests[before:]}

    return found


@pytest.fixture
async def isolating(serve: Serve, tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A server where some callers are isolated."""
    async with grpc.aio.insecure_channel(await serve(keys=ring_of(tmp_path, ISOLATED))) as channel:
        yield channel


@pytest.mark.parametrize("method", ASKING | BATCH | FOLLOW)
async def test_whatever_an_isolated_caller_asks_has_one_salt_and_what_others_ask_has_none(
    isolating: grpc.aio.Channel, salts: Salts, method: str
) -> None:
    (salt,) = await salts(isolating, "alone-1", method)
    assert salt
    assert await salts(isolating, "shared", method) == {""}
    assert await salts(isolating, "alone-1") == {salt}


async def test_isolated_callers_are_isolated_from_each_other_whichever_key_they_use(
    isolating: grpc.aio.Channel, salts: Salts
) -> None:
    alone, rotated, apart = [await salts(isolating, key) for key in ("alone-1", "alone-2", "apart")]
    assert alone == rotated
    assert alone != apart


async def test_callers_who_are_not_isolated_share(isolating: grpc.aio.Channel, salts: Salts) -> None:
    assert [await salts(isolating, key) for key in ("shared", "likewise")] == [{""}, {""}]


async def test_a_server_may_isolate_every_caller(serve: Serve, tmp_path: Path, salts: Salts) -> None:
    async with grpc.aio.insecure_channel(await serve(keys=ring_of(tmp_path, ISOLATED, isolate_all=True))) as channel:
        found = [await salts(channel, key) for key in ("alone-1", "apart", "shared", "likewise")]
    assert len(set().union(*found) - {""}) == len(found)


async def test_without_keys_everybody_shares(channel: grpc.aio.Channel, engine: WatchedEngine) -> None:
    await ClassificationServiceStub(channel).FanOut(fan_out_request(), timeout=DEADLINE_S)
    assert {request.cache_salt for request in engine.requests} == {""}


async def test_messages_that_are_refused_count_against_the_rate_and_end_the_call_beyond_it(
    serve: Serve, tmp_path: Path
) -> None:
    nothing = pb.FollowRequest(turns=[pb.Turn(role=pb.ROLE_CUSTOMER, text=" ")])
    async with grpc.aio.insecure_channel(await serve(keys=ring_of(tmp_path, LIMITED))) as channel:
        call = ClassificationServiceStub(channel).Follow(timeout=DEADLINE_S, metadata=bearer("first"))
        codes = []
        for _ in range(3):  # of three calls that it may make at once this is one, and two messages are the others
            await call.write(nothing)
            codes.append((await call.read()).status.code)
        assert codes == [grpc.StatusCode.INVALID_ARGUMENT.value[0]] * 3
        await call.write(nothing)
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await call.read()
    error = RpcError.of_call(ended.value)
    assert (error.code, error.reason) == EXHAUSTED
