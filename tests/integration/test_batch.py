"""ClassifyBatch: many fan-outs in one call, in order, a status per item, giving way to every other call."""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import replace
from types import MappingProxyType

import grpc
import pytest

from service.admission import Admission
from service.api.servicer import BATCH_AT_ONCE, Limits
from service.call import Call
from service.client import RpcError
from service.domain import Conversation, Priority
from service.observer import Observer
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.prompt.builder import PromptBuilder
from service.registry.registry import Registry
from tests.integration.conftest import Serve
from tests.integration.harness import (
    ACTIVATED,
    DEADLINE_S,
    LABELS,
    NAMES,
    PLAIN,
    asks,
    fan_out_request,
    small_registry,
)
from tests.integration.holding_engine import HoldingEngine, about
from tests.integration.talking import customer

ROOM_TOKENS = 800
"""In flight at most: enough for one fan-out, not for a batch beside it."""

MANY = 3 * BATCH_AT_ONCE


class Asked(Observer):
    """Tells when a conversation is about to be asked about."""

    def __init__(self) -> None:
        self.background = asyncio.Event()

    def asked(self, conversation: Conversation, call: Call) -> None:
        if call.background:
            self.background.set()


@pytest.fixture
def engine() -> HoldingEngine:
    return HoldingEngine()


@pytest.fixture(scope="module")
def registry(builder: PromptBuilder) -> Registry:
    """Whose classifiers have every priority."""
    small = small_registry(builder).classifiers
    priorities = [*Priority, Priority.NORMAL]
    return Registry(
        MappingProxyType({n: replace(c, priority=p) for (n, c), p in zip(small.items(), priorities, strict=True)})
    )


@pytest.fixture
def observer() -> Asked:
    return Asked()


@pytest.fixture
def admission() -> Admission:
    return Admission(100, ROOM_TOKENS)


def talks(*texts: str) -> list[pb.Conversation]:
    return [pb.Conversation(turns=[customer(text)]) for text in texts]


def batch_request(*texts: str, names: tuple[str, ...] = ()) -> pb.ClassifyBatchRequest:
    return pb.ClassifyBatchRequest(conversations=talks(*texts), classifiers=names)


def numbered(count: int) -> list[str]:
    return [f"order {number} is late" for number in range(count)]


async def refusal(stub: ClassificationServiceStub, request: pb.ClassifyBatchRequest) -> RpcError:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.ClassifyBatch(request, timeout=DEADLINE_S)
    return RpcError.of_call(failure.value)


def outcomes(response: pb.ClassifyBatchResponse) -> list[str | None]:
    return [item.WhichOneof("outcome") for item in response.items]


async def test_each_item_is_what_a_fan_out_gives_in_the_order_of_the_request(
    stub: ClassificationServiceStub, engine: HoldingEngine
) -> None:
    engine.favour = lambda request: zlib.crc32(str(request.token_ids).encode()) % len(request.label_ids)
    texts = numbered(MANY)
    response = await stub.ClassifyBatch(batch_request(*texts), timeout=DEADLINE_S)
    found, expected = [], []
    for item, text in zip(response.items, texts, strict=True):
        alone = await stub.FanOut(fan_out_request(turns=[customer(text)]), timeout=DEADLINE_S)
        for results, labels in ((item.fan_out.results, found), (alone.results, expected)):
            labels.append([(each.classifier, each.classification.label) for each in results])
    assert found == expected
    assert [name for name, _ in found[0]] == NAMES
    assert len(set(map(tuple, found))) > MANY // 2


async def test_an_item_that_is_ready_late_keeps_its_place(
    stub: ClassificationServiceStub, engine: HoldingEngine, builder: PromptBuilder
) -> None:
    texts = numbered(MANY)
    first = about(texts[0], builder)
    released = engine.hold(first)
    engine.favour = lambda request: int(first(request))
    call = stub.ClassifyBatch(batch_request(*texts, names=(PLAIN,)), timeout=DEADLINE_S)
    await engine.ended(MANY - 1)
    released.set()
    labels = [item.fan_out.results[0].classification.label for item in (await call).items]
    assert labels == [LABELS[PLAIN][1], *[LABELS[PLAIN][0]] * (MANY - 1)]


async def test_results_come_in_the_order_asked(stub: ClassificationServiceStub) -> None:
    response = await stub.ClassifyBatch(batch_request("one", "two", names=(PLAIN, ACTIVATED)), timeout=DEADLINE_S)
    assert [[r.classifier for r in item.fan_out.results] for item in response.items] == [[PLAIN, ACTIVATED]] * 2


BAD = {
    "no turns": (pb.Conversation(), "CONVERSATION_EMPTY", ["turns"]),
    "no role": (pb.Conversation(turns=[pb.Turn(text="hi")]), "ROLE_MISSING", ["turns[0].role"]),
    "two blank texts": (
        pb.Conversation(turns=[customer(" "), customer("hi"), customer("")]),
        "TEXT_MISSING",
        ["turns[0].text", "turns[2].text"],
    ),
    "too many turns": (pb.Conversation(turns=[customer("hi")] * 1001), "CONVERSATION_TOO_LONG", ["turns"]),
    "two turns too long": (
        pb.Conversation(turns=[customer("word " * 1000), customer("hi"), customer("x" * 20_000)]),
        "TURN_TOO_LONG",
        ["turns[0].text", "turns[2].text"],
    ),
}


@pytest.mark.parametrize(("bad", "reason", "fields"), BAD.values(), ids=BAD)
async def test_a_bad_conversation_has_a_status_that_names_its_fields_and_leaves_the_others(
    stub: ClassificationServiceStub, bad: pb.Conversation, reason: str, fields: list[str]
) -> None:
    request = pb.ClassifyBatchRequest(conversations=[*talks("one"), bad, *talks("three")])
    response = await stub.ClassifyBatch(request, timeout=DEADLINE_S)
    assert outcomes(response) == ["fan_out", "status", "fan_out"]
    error = RpcError.of_status(response.items[1].status)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, f"ERROR_REASON_{reason}")
    assert list(error.violations) == [f"conversations[1].{field}" for field in fields]
    assert error.metadata["field"] == f"conversations[1].{fields[0]}"
    assert error.request_id


async def test_an_unknown_classifier_is_a_status_in_its_result_of_each_item(stub: ClassificationServiceStub) -> None:
    response = await stub.ClassifyBatch(batch_request("one", "two", names=(PLAIN, "nobody")), timeout=DEADLINE_S)
    for item in response.items:
        assert [result.WhichOneof("outcome") for result in item.fan_out.results] == ["classification", "status"]


async def test_no_more_conversations_than_the_bound_are_under_way_at_once(
    stub: ClassificationServiceStub, engine: HoldingEngine, registry: Registry
) -> None:
    released = engine.hold(asks(PLAIN, registry))
    call = stub.ClassifyBatch(batch_request(*numbered(MANY), names=(PLAIN,)), timeout=DEADLINE_S)
    await engine.begun(BATCH_AT_ONCE)
    released.set()
    assert len((await call).items) == MANY
    assert engine.peak == BATCH_AT_ONCE


@pytest.mark.parametrize(("size", "accepted"), [(2, True), (3, True), (4, False)], ids=["limit-1", "limit", "limit+1"])
async def test_more_conversations_than_the_limit_are_refused(serve: Serve, size: int, accepted: bool) -> None:
    async with grpc.aio.insecure_channel(await serve(limits=Limits(max_batch=3))) as channel:
        stub = ClassificationServiceStub(channel)
        request = batch_request(*numbered(size))
        if accepted:
            assert outcomes(await stub.ClassifyBatch(request, timeout=DEADLINE_S)) == ["fan_out"] * size
            return
        error = await refusal(stub, request)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ERROR_REASON_BATCH_TOO_LARGE")
    assert error.violations == {"conversations": error.message}
    assert "4 conversations, this server accepts 3 in one call; split it" in error.message
    assert error.metadata["max_conversations"] == "3"


REFUSED = {
    "empty": (batch_request(), ["conversations"]),
    "a name twice": (batch_request("one", names=(PLAIN, PLAIN)), ["classifiers[1]"]),
    "empty, and an empty name": (batch_request(names=("",)), ["conversations", "classifiers[0]"]),
}


@pytest.mark.parametrize(("request_", "fields"), REFUSED.values(), ids=REFUSED)
async def test_what_is_wrong_with_the_whole_batch_is_refused_unread(
    stub: ClassificationServiceStub, engine: HoldingEngine, request_: pb.ClassifyBatchRequest, fields: list[str]
) -> None:
    error = await refusal(stub, request_)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert list(error.violations) == fields
    assert engine.requests == []


async def test_usage_is_the_sum_over_the_items(stub: ClassificationServiceStub, engine: HoldingEngine) -> None:
    request = pb.ClassifyBatchRequest(conversations=[*talks("one"), pb.Conversation(), *talks("three", "one")])
    response = await stub.ClassifyBatch(request, timeout=DEADLINE_S)
    usages = [item.fan_out.usage for item in response.items]
    assert response.usage.computed_tokens == sum(usage.computed_tokens for usage in usages)
    assert response.usage.reused_tokens == sum(usage.reused_tokens for usage in usages) > 0
    prompts = sum(len(each.token_ids) for each in engine.requests)
    assert response.usage.computed_tokens + response.usage.reused_tokens == prompts


async def test_the_engine_takes_every_other_request_first(
    stub: ClassificationServiceStub, engine: HoldingEngine
) -> None:
    await stub.ClassifyBatch(batch_request("one", "two"), timeout=DEADLINE_S)
    batch = [request.priority for request in engine.requests]
    engine.requests.clear()
    await stub.FanOut(fan_out_request(), timeout=DEADLINE_S)
    assert len(set(batch)) == len(Priority)
    assert min(batch) > max(request.priority for request in engine.requests)  # the lowest is computed first


async def test_items_that_find_no_room_wait_instead_of_failing(
    stub: ClassificationServiceStub, engine: HoldingEngine, observer: Asked
) -> None:
    engine.gate.clear()
    before = stub.FanOut(fan_out_request(turns=[customer("word " * 200)]), timeout=DEADLINE_S)
    await engine.begun(len(NAMES))
    call = stub.ClassifyBatch(batch_request("word " * 200), timeout=DEADLINE_S)
    await observer.background.wait()
    engine.gate.set()
    assert len((await before).results) == len(NAMES)
    response = await call
    assert [result.WhichOneof("outcome") for result in response.items[0].fan_out.results] == ["classification"] * 4
    assert engine.peak == len(NAMES)


async def test_cancelling_a_batch_cancels_the_engines_work(
    stub: ClassificationServiceStub, engine: HoldingEngine, registry: Registry
) -> None:
    engine.hold(asks(PLAIN, registry))
    call = stub.ClassifyBatch(batch_request(*numbered(MANY), names=(PLAIN,)), timeout=DEADLINE_S)
    await engine.begun(BATCH_AT_ONCE)
    call.cancel()
    await engine.ended(BATCH_AT_ONCE)
    assert engine.cancelled == BATCH_AT_ONCE
