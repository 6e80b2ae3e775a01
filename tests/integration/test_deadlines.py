"""Deadlines: what is ready is answered, the rest is given up, and what cannot be done in time is not begun."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import grpc
import pytest

from service.admission import Job
from service.api.servicer import BATCH_AT_ONCE
from service.classify import ANSWER_SECONDS, Classify
from service.client import RpcError
from service.deadline import Deadline
from service.domain import Priority
from service.engine.base import LabelLogprobs, ScoringRequest
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.registry.registry import Registry
from tests.clock import HandTurned, hand_turned
from tests.integration.asking import ASKING, answer, every, refusal
from tests.integration.conftest import Serve
from tests.integration.harness import (
    ACTIVATED,
    DEADLINE_S,
    NAMES,
    NEVER_S,
    PLAIN,
    REFUND,
    SECOND_ACTIVATED,
    WITHOUT_ADAPTER,
    WatchedEngine,
    asks,
    fan_out_request,
)

LONGEST_S = 5.0
SOON_S = 0.05
"""Of calls that are not answered, however long they are given."""

LATE = (grpc.StatusCode.DEADLINE_EXCEEDED, "ERROR_REASON_DEADLINE_EXCEEDED")
TOO_NEAR = (grpc.StatusCode.DEADLINE_EXCEEDED, "ERROR_REASON_DEADLINE_TOO_NEAR")
PRIORITIES = {ACTIVATED: Priority.LOW, SECOND_ACTIVATED: Priority.CRITICAL}
"""Of those classifiers that are not normal ones."""


@dataclass
class HalfStuckEngine(WatchedEngine):
    """Never answers the requests that `stuck` tells."""

    stuck: Callable[[ScoringRequest], bool] = lambda request: False

    async def score(self, request: ScoringRequest) -> LabelLogprobs:
        self.latency_s = NEVER_S if self.stuck(request) else 0.0
        return await super().score(request)


@pytest.fixture
def registry(registry: Registry) -> Registry:
    made = {
        name: replace(each, priority=PRIORITIES.get(name, Priority.NORMAL))
        for name, each in registry.classifiers.items()
    }
    return Registry(MappingProxyType(made))


@pytest.fixture
def engine() -> HalfStuckEngine:
    return HalfStuckEngine()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandTurned:
    return hand_turned(monkeypatch, "service.deadline")


@pytest.fixture
def all_but_plain_stuck(engine: HalfStuckEngine, registry: Registry, clock: HandTurned) -> None:
    """When the one classifier answers that does, it is `ANSWER_SECONDS` before the deadline."""
    engine.stuck = lambda request: not asks(PLAIN, registry)(request)

    def answered(request: ScoringRequest, answer: LabelLogprobs) -> LabelLogprobs:
        clock.now += LONGEST_S - ANSWER_SECONDS
        return answer

    engine.distort = answered


async def results(method: str, address: str) -> list[pb.FanOutResult]:
    """Of a fan-out over everything, in the order of their names."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = getattr(ClassificationServiceStub(channel), method)(fan_out_request(), timeout=DEADLINE_S)
        found = list((await call).results) if method == "FanOut" else [result async for result in call]
        return sorted(found, key=lambda result: NAMES.index(result.classifier))


BOTH = pytest.mark.parametrize("method", ["FanOut", "StreamFanOut"])


@BOTH
@pytest.mark.usefixtures("all_but_plain_stuck")
async def test_shortly_before_the_deadline_what_is_ready_is_answered_and_the_rest_is_too_late(
    serve: Serve, method: str
) -> None:
    found = await results(method, await serve(longest_seconds=LONGEST_S))
    assert [result.classifier for result in found] == NAMES
    ready = {result.classifier for result in found if result.HasField("classification")}
    late = [RpcError.of_status(result.status) for result in found if result.HasField("status")]
    assert ready == {PLAIN}
    assert [(error.code, error.reason) for error in late] == [LATE] * (len(NAMES) - 1)


@BOTH
@pytest.mark.usefixtures("all_but_plain_stuck")
async def test_the_engines_work_for_what_is_too_late_is_cancelled(
    serve: Serve, engine: HalfStuckEngine, method: str
) -> None:
    await results(method, await serve(longest_seconds=LONGEST_S))
    await engine.ended(len(NAMES))
    assert engine.cancelled == len(NAMES) - 1


@pytest.mark.usefixtures("all_but_plain_stuck")
async def test_after_an_answer_that_lacks_some_nothing_is_in_flight(serve: Serve, classify: Classify) -> None:
    await results("FanOut", await serve(longest_seconds=LONGEST_S))
    assert (classify.admission.calls, classify.admission.tokens) == (0, 0)


@pytest.mark.usefixtures("all_but_plain_stuck")
async def test_what_was_too_late_does_not_count_as_computed(serve: Serve, classify: Classify) -> None:
    address = await serve(longest_seconds=LONGEST_S)
    computed: list[int] = []
    classify.admission.computed = computed.append  # type: ignore[method-assign]
    found = await results("FanOut", address)
    (ready,) = [result.classification for result in found if result.HasField("classification")]
    assert computed == [ready.usage.computed_tokens]


@pytest.mark.parametrize("method", ["Classify", "FanOut"])
@pytest.mark.parametrize("timeout", [None, DEADLINE_S], ids=["no deadline", "a later deadline"])
async def test_a_call_of_which_nothing_is_ready_fails_when_it_has_lasted_longest(
    serve: Serve, engine: HalfStuckEngine, method: str, timeout: float | None
) -> None:
    engine.gate.clear()
    async with grpc.aio.insecure_channel(await serve(longest_seconds=SOON_S)) as channel:
        error = await refusal(ClassificationServiceStub(channel), method, ASKING[method], timeout)
    assert (error.code, error.reason) == LATE
    await engine.ended(1 if method == "Classify" else len(NAMES))


async def test_a_stream_of_which_nothing_is_ready_ends_with_what_is_too_late(
    serve: Serve, engine: HalfStuckEngine
) -> None:
    engine.gate.clear()
    found = await results("StreamFanOut", await serve(longest_seconds=SOON_S))
    late = [RpcError.of_status(result.status) for result in found]
    assert [(error.code, error.reason) for error in late] == [LATE] * len(NAMES)


@every(ASKING)
async def test_a_call_that_comes_too_late_to_be_answered_begins_nothing(
    serve: Serve, engine: HalfStuckEngine, clock: HandTurned, method: str, request_: Any
) -> None:
    async with grpc.aio.insecure_channel(await serve(longest_seconds=ANSWER_SECONDS)) as channel:
        error = await refusal(ClassificationServiceStub(channel), method, request_, None)
    assert (error.code, error.reason) == LATE
    assert engine.requests == []


@every(ASKING)
async def test_a_call_whose_deadline_is_too_near_is_refused_before_the_engine_is_asked(
    stub: ClassificationServiceStub, classify: Classify, engine: HalfStuckEngine, method: str, request_: Any
) -> None:
    classify.admission.rate = 1e-3
    error = await refusal(stub, method, request_)
    assert (error.code, error.reason) == TOO_NEAR
    assert int(error.metadata["needed_ms"]) > 1000 * DEADLINE_S
    assert engine.requests == []
    assert (classify.admission.calls, classify.admission.tokens) == (0, 0)


@every(ASKING)
async def test_a_call_whose_deadline_is_far_enough_is_answered(
    stub: ClassificationServiceStub, classify: Classify, engine: HalfStuckEngine, method: str, request_: Any
) -> None:
    classify.admission.rate = 1e3
    assert await answer(stub, method, request_)
    assert engine.requests


@pytest.mark.parametrize("timeout", [None, NEVER_S, DEADLINE_S], ids=["none", "later", "earlier"])
async def test_of_the_callers_deadline_and_the_servers_the_earlier_counts(
    serve: Serve, classify: Classify, timeout: float | None
) -> None:
    classify.admission.rate = 1.0
    async with grpc.aio.insecure_channel(await serve(longest_seconds=NEVER_S / 2)) as channel:
        stub = ClassificationServiceStub(channel)
        with classify.admission.admit(0, [Job(1000)], Deadline()):
            if timeout != DEADLINE_S:
                assert await answer(stub, "Classify", ASKING["Classify"], timeout)
                return
            error = await refusal(stub, "Classify", ASKING["Classify"], timeout)
    assert (error.code, error.reason) == TOO_NEAR


async def statuses_of_batch(serve: Serve, conversations: int) -> list[tuple[grpc.StatusCode, str]]:
    """Of a batch without a deadline, of which every item fails."""
    request = pb.ClassifyBatchRequest(conversations=[pb.Conversation(turns=REFUND)] * conversations)
    async with grpc.aio.insecure_channel(await serve(longest_batch_seconds=SOON_S)) as channel:
        response = await ClassificationServiceStub(channel).ClassifyBatch(request)
    errors = [RpcError.of_status(item.status) for item in response.items]
    return [(error.code, error.reason) for error in errors]


async def test_of_a_batch_what_finds_no_room_is_too_late_at_the_deadline(
    serve: Serve, classify: Classify, engine: HalfStuckEngine
) -> None:
    classify.admission.max_tokens = 1
    with classify.admission.admit(0, [Job(1)], Deadline()):
        assert await statuses_of_batch(serve, 2) == [LATE] * 2
    assert engine.requests == []


async def test_of_a_batch_nothing_more_begins_after_the_deadline(serve: Serve, engine: HalfStuckEngine) -> None:
    engine.stuck = lambda request: True
    assert await statuses_of_batch(serve, 3 * BATCH_AT_ONCE) == [LATE] * (3 * BATCH_AT_ONCE)
    assert len(engine.requests) <= BATCH_AT_ONCE * len(NAMES)


def priorities(engine: HalfStuckEngine, registry: Registry) -> dict[str, int]:
    """By classifier, as the engine was told; forgets what it was asked."""
    told = {name: request.priority for name in NAMES for request in engine.requests if asks(name, registry)(request)}
    engine.requests.clear()
    return told


async def test_the_engine_is_told_to_compute_first_what_matters_most(
    stub: ClassificationServiceStub, engine: HalfStuckEngine, registry: Registry
) -> None:
    await stub.FanOut(fan_out_request(), timeout=DEADLINE_S)
    told = priorities(engine, registry)
    assert told[SECOND_ACTIVATED] < told[PLAIN] == told[WITHOUT_ADAPTER] < told[ACTIVATED]


async def test_the_engine_is_told_to_compute_last_what_nobody_waits_for(
    stub: ClassificationServiceStub, engine: HalfStuckEngine, registry: Registry
) -> None:
    await stub.FanOut(fan_out_request(), timeout=DEADLINE_S)
    waited_for = priorities(engine, registry)
    batch = pb.ClassifyBatchRequest(conversations=[pb.Conversation(turns=REFUND)])
    await stub.ClassifyBatch(batch, timeout=DEADLINE_S)
    told = priorities(engine, registry)
    assert min(told.values()) > max(waited_for.values())


async def test_a_batch_has_a_limit_of_its_own(serve: Serve, engine: HalfStuckEngine) -> None:
    address = await serve(longest_seconds=NEVER_S, longest_batch_seconds=SOON_S)
    engine.gate.clear()
    request = pb.ClassifyBatchRequest(conversations=[pb.Conversation(turns=REFUND)], classifiers=NAMES)
    async with grpc.aio.insecure_channel(address) as channel:
        (item,) = (await ClassificationServiceStub(channel).ClassifyBatch(request, timeout=NEVER_S)).items
    error = RpcError.of_status(item.status)
    assert (error.code, error.reason) == LATE
    assert error.message.endswith(f"the server's limit of {SOON_S:g} s for a batch.")
