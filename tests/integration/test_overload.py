"""More than the server can do is refused at once and with a delay, what matters least first; all is given back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import grpc
import pytest

from service.admission import LEAST_RETRY_S, Admission
from service.client import RpcError
from service.domain import Priority
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.registry.registry import Registry
from tests.integration.asking import ASKING, BATCH, DESCRIBING, answer, every, refusal
from tests.integration.conftest import Serve
from tests.integration.harness import (
    ACTIVATED,
    DEADLINE_S,
    NAMES,
    SECOND_ACTIVATED,
    WITHOUT_ADAPTER,
    WatchedEngine,
    classify_request,
    fan_out_request,
)

MAX_CALLS = 3
PLENTY = 1 << 40
PRIORITIES = {ACTIVATED: Priority.LOW, WITHOUT_ADAPTER: Priority.LOW, SECOND_ACTIVATED: Priority.CRITICAL}
OTHER = [pb.Turn(role=pb.ROLE_CUSTOMER, text="the parcel never came, and nobody answers. " * 20)]

FULL = (grpc.StatusCode.RESOURCE_EXHAUSTED, "ERROR_REASON_OVERLOADED")


@pytest.fixture
def registry(registry: Registry) -> Registry:
    made = {
        name: replace(each, priority=PRIORITIES.get(name, Priority.NORMAL))
        for name, each in registry.classifiers.items()
    }
    return Registry(MappingProxyType(made))


@pytest.fixture
def admission() -> Admission:
    return Admission(MAX_CALLS, PLENTY)


Begin = Callable[..., Awaitable[None]]


@pytest.fixture
async def begin(stub: ClassificationServiceStub, engine: WatchedEngine) -> AsyncIterator[Begin]:
    """Bring so many fan-outs under way, which the engine answers at the end of the test."""
    calls: list[Any] = []

    async def begun(count: int = 1) -> None:
        engine.gate.clear()
        for _ in range(count):
            calls.append(stub.FanOut(fan_out_request(), timeout=DEADLINE_S))
            await engine.begun(len(NAMES))

    yield begun
    engine.gate.set()
    for call in calls:
        assert [result.WhichOneof("outcome") for result in (await call).results] == ["classification"] * len(NAMES)


async def given_back(admission: Admission) -> None:
    """Return once nothing is in flight."""
    async with asyncio.timeout(DEADLINE_S):
        while admission.calls or admission.batches or admission.tokens:  # noqa: ASYNC110  (what is counted tells nobody)
            await asyncio.sleep(0)


@every(BATCH)
async def test_batches_take_no_calls_place(
    stub: ClassificationServiceStub, engine: WatchedEngine, begin: Begin, method: str, request_: Any
) -> None:
    await begin(MAX_CALLS)
    batch = asyncio.ensure_future(answer(stub, method, request_))
    engine.gate.set()
    assert await batch


@every(BATCH)
async def test_a_batch_too_many_is_refused_at_once(
    stub: ClassificationServiceStub, engine: WatchedEngine, admission: Admission, method: str, request_: Any
) -> None:
    admission.max_calls = 2
    engine.gate.clear()
    first = asyncio.ensure_future(answer(stub, method, request_))
    await engine.begun(1)
    error = await refusal(stub, method, request_)
    assert (error.code, error.reason) == FULL
    assert await answer(stub, "GetClassifier", DESCRIBING["GetClassifier"])
    engine.gate.set()
    assert await first


@every(ASKING | DESCRIBING)
async def test_a_call_too_many_is_refused_at_once(
    stub: ClassificationServiceStub, engine: WatchedEngine, begin: Begin, method: str, request_: Any
) -> None:
    await begin(MAX_CALLS)
    error = await refusal(stub, method, request_)
    assert (error.code, error.reason) == FULL
    assert error.metadata == {"limit": "calls"}
    assert error.retry_after_s is not None
    assert error.retry_after_s >= LEAST_RETRY_S
    assert error.request_id


@pytest.mark.parametrize("under_way", [MAX_CALLS - 2, MAX_CALLS - 1], ids=["limit-1", "limit"])
async def test_calls_up_to_the_bound_are_answered(
    stub: ClassificationServiceStub, begin: Begin, under_way: int
) -> None:
    await begin(under_way)
    assert await answer(stub, "GetClassifier", DESCRIBING["GetClassifier"])


@every(ASKING)
async def test_a_call_that_has_ended_makes_room_for_the_next(
    stub: ClassificationServiceStub, admission: Admission, method: str, request_: Any
) -> None:
    admission.max_calls = 1
    for _ in range(3):
        assert await answer(stub, method, request_)
        await given_back(admission)


@every(ASKING | BATCH)
async def test_a_call_that_is_given_up_gives_back_what_it_held(
    stub: ClassificationServiceStub, engine: WatchedEngine, admission: Admission, method: str, request_: Any
) -> None:
    engine.gate.clear()
    call = getattr(stub, method)(request_, timeout=DEADLINE_S)
    await engine.begun(1)
    assert admission.calls + admission.batches == 1
    assert admission.tokens > 0
    call.cancel()
    await given_back(admission)


async def test_a_stream_that_nobody_reads_gives_back_what_it_held(serve: Serve, admission: Admission) -> None:
    narrow = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024))  # or gRPC would read ahead megabytes
    async with grpc.aio.insecure_channel(await serve(longest_seconds=0.2), options=narrow) as channel:
        names = [f"{number:064}" for number in range(250)]  # each is said again in its result, three times
        call = ClassificationServiceStub(channel).StreamFanOut(fan_out_request(ACTIVATED, *names))
        async with asyncio.timeout(DEADLINE_S):
            while not admission.calls:  # noqa: ASYNC110  (what is counted tells nobody)
                await asyncio.sleep(0)
        await given_back(admission)
        call.cancel()


@every(ASKING)
async def test_a_call_that_fails_gives_back_what_it_held(
    stub: ClassificationServiceStub, engine: WatchedEngine, admission: Admission, method: str, request_: Any
) -> None:
    engine.dead = True
    await refusal(stub, method, request_)
    await given_back(admission)


@every(ASKING)
async def test_a_conversation_for_which_there_is_no_room_is_refused_at_once(
    stub: ClassificationServiceStub,
    engine: WatchedEngine,
    admission: Admission,
    begin: Begin,
    method: str,
    request_: Any,
) -> None:
    await begin()
    admission.max_tokens, admission.rate = admission.tokens, 1.0
    error = await refusal(stub, method, request_)
    assert (error.code, error.reason) == FULL
    assert error.metadata == {"limit": "tokens"}
    assert error.retry_after_s is not None
    assert error.retry_after_s > 1.0
    engine.gate.set()
    await engine.ended(len(NAMES))
    assert len(engine.requests) == len(NAMES)


async def test_a_conversation_that_was_refused_is_no_smaller_when_it_comes_back(
    stub: ClassificationServiceStub, admission: Admission, begin: Begin
) -> None:
    await begin()
    admission.max_tokens = round(1.5 * admission.tokens)  # room for tails, not for the conversation
    for _ in range(3):
        error = await refusal(stub, "Classify", classify_request(SECOND_ACTIVATED, turns=OTHER))
        assert (error.code, error.reason) == FULL


async def test_where_room_is_short_what_matters_least_is_left_out(
    stub: ClassificationServiceStub, engine: WatchedEngine, admission: Admission, begin: Begin
) -> None:
    await begin()
    admission.max_tokens = 2 * admission.tokens
    three = fan_out_request(ACTIVATED, SECOND_ACTIVATED, WITHOUT_ADAPTER, turns=OTHER)
    call = asyncio.ensure_future(answer(stub, "FanOut", three))
    await engine.begun(1)
    engine.gate.set()
    low, critical, other_low = (await call).results
    assert critical.HasField("classification")
    errors = [RpcError.of_status(each.status) for each in (low, other_low)]
    assert [(error.code, error.reason) for error in errors] == [FULL] * 2
    assert [error.metadata for error in errors] == [{"limit": "tokens"}] * 2
    assert all(error.retry_after_s for error in errors)


@every(DESCRIBING)
async def test_describing_classifiers_takes_no_room_beside_conversations(
    stub: ClassificationServiceStub, admission: Admission, begin: Begin, method: str, request_: Any
) -> None:
    await begin()
    admission.max_tokens = 1
    assert await answer(stub, method, request_)
