"""ClassifyBatch when something fails: each item has its own outcome, and the call goes on."""

from __future__ import annotations

import re

import grpc
import pytest

from service.client import RpcError
from service.errors import EngineDeadError, EngineError
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.prompt.builder import PromptBuilder
from service.registry.registry import Registry
from tests.integration.conftest import Serve
from tests.integration.harness import DEADLINE_S, NAMES, PLAIN, asks
from tests.integration.holding_engine import HoldingEngine, about
from tests.integration.talking import customer

REQUEST = pb.ClassifyBatchRequest(
    conversations=[pb.Conversation(turns=[customer(text)]) for text in ("one", "two", "three")]
)


@pytest.fixture
def engine() -> HoldingEngine:
    return HoldingEngine()


def errors(response: pb.ClassifyBatchResponse) -> list[RpcError | None]:
    """The status of each item; None where it has answers."""
    return [RpcError.of_status(item.status) if item.HasField("status") else None for item in response.items]


async def test_a_dead_engine_is_the_whole_batchs_status(stub: ClassificationServiceStub, engine: HoldingEngine) -> None:
    engine.dead = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ClassifyBatch(REQUEST, timeout=DEADLINE_S)
    error = RpcError.of_call(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_ENGINE_DEAD")


async def test_an_engine_that_dies_midway_leaves_what_was_answered(
    stub: ClassificationServiceStub, engine: HoldingEngine, builder: PromptBuilder
) -> None:
    last = about("three", builder)
    engine.fault = lambda request: EngineDeadError("The engine is not running.") if last(request) else None
    found = errors(await stub.ClassifyBatch(REQUEST, timeout=DEADLINE_S))
    assert found[:2] == [None, None]
    assert found[2]
    assert found[2].code is grpc.StatusCode.UNAVAILABLE


async def test_a_classifier_that_fails_on_one_conversation_is_a_status_in_its_result_alone(
    stub: ClassificationServiceStub, engine: HoldingEngine, builder: PromptBuilder, registry: Registry
) -> None:
    second, plain = about("two", builder), asks(PLAIN, registry)
    engine.fault = lambda request: EngineError("No.") if second(request) and plain(request) else None
    response = await stub.ClassifyBatch(REQUEST, timeout=DEADLINE_S)
    failed = [[r.classifier for r in item.fan_out.results if r.HasField("status")] for item in response.items]
    assert failed == [[], [PLAIN], []]
    assert [len(item.fan_out.results) for item in response.items] == [len(NAMES)] * 3


async def test_a_defect_is_a_status_of_its_item_alone_and_its_trace_is_logged(
    stub: ClassificationServiceStub, engine: HoldingEngine, builder: PromptBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    second = about("two", builder)
    engine.fault = lambda request: ValueError("secret") if second(request) else None
    found = errors(await stub.ClassifyBatch(REQUEST, timeout=DEADLINE_S))
    assert [error is None for error in found] == [True, False, True]
    assert found[1]
    assert (found[1].code, found[1].reason) == (grpc.StatusCode.INTERNAL, "ERROR_REASON_DEFECT")
    assert "secret" not in found[1].message
    assert re.fullmatch("[0-9a-f]{32}", found[1].request_id)
    assert f"request {found[1].request_id}" in caplog.text
    assert "ValueError: secret" in caplog.text


async def test_what_is_not_ready_at_the_deadline_has_a_status_and_its_work_is_cancelled(
    serve: Serve, engine: HoldingEngine, builder: PromptBuilder
) -> None:
    engine.hold(about("two", builder))
    async with grpc.aio.insecure_channel(await serve(longest_batch_seconds=1.0)) as channel:
        found = errors(await ClassificationServiceStub(channel).ClassifyBatch(REQUEST, timeout=DEADLINE_S))
    assert [error is None for error in found] == [True, False, True]
    assert found[1]
    assert (found[1].code, found[1].reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "ERROR_REASON_DEADLINE_EXCEEDED")
    assert found[1].message == "The answer was not ready at the server's limit of 1 s for a batch."
    assert engine.cancelled == len(NAMES)
