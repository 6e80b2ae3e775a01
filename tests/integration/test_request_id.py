"""The id that names a call in errors and in the log: the caller's own where a log can hold it, else a new one."""

from __future__ import annotations

import logging
import re

import pytest

from service.client import RpcError
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from tests.integration.asking import answer, every, refusal
from tests.integration.harness import REFUND, classify_request, fan_out_request

UNKNOWN = "nobody"
FAILING = {
    "Classify": classify_request(UNKNOWN),
    "FanOut": fan_out_request("", ""),
    "StreamFanOut": fan_out_request("", ""),
    "ClassifyBatch": pb.ClassifyBatchRequest(),
    "GetClassifier": pb.GetClassifierRequest(classifier=UNKNOWN),
}
OURS = re.compile("[0-9a-f]{32}")
GIVEN = "4bf92f3577b34da6:ticket-17_a.b"


def given(request_id: str) -> tuple[tuple[str, str], ...]:
    return (("x-request-id", request_id),)


@pytest.mark.parametrize(
    "request_id",
    [
        pytest.param("7", id="one character"),
        pytest.param("x" * 63, id="limit-1"),
        pytest.param("x" * 64, id="limit"),
        pytest.param(GIVEN, id="every kind of character"),
    ],
)
async def test_the_callers_own_id_is_used(stub: ClassificationServiceStub, request_id: str) -> None:
    error = await refusal(stub, "Classify", FAILING["Classify"], metadata=given(request_id))
    assert error.request_id == request_id


@pytest.mark.parametrize(
    "request_id",
    [
        pytest.param("", id="empty"),
        pytest.param("x" * 65, id="limit+1"),
        pytest.param("one two", id="a space inside"),
        pytest.param('"quoted"', id="quotes"),
        pytest.param("a/b", id="a slash"),
        pytest.param("%0a", id="an escape"),
    ],
)
async def test_an_id_that_a_log_cannot_hold_is_replaced(stub: ClassificationServiceStub, request_id: str) -> None:
    error = await refusal(stub, "Classify", FAILING["Classify"], metadata=given(request_id))
    assert OURS.fullmatch(error.request_id)


async def test_calls_without_an_id_get_one_each(stub: ClassificationServiceStub) -> None:
    ids = [(await refusal(stub, "Classify", FAILING["Classify"])).request_id for _ in range(3)]
    assert all(OURS.fullmatch(each) for each in ids)
    assert len(set(ids)) == 3


@every(FAILING)
async def test_whatever_call_fails_says_the_id(stub: ClassificationServiceStub, method: str, request_: object) -> None:
    error = await refusal(stub, method, request_, metadata=given(GIVEN))
    assert error.request_id == GIVEN


async def test_a_result_that_failed_says_the_id_of_its_call(stub: ClassificationServiceStub) -> None:
    response = await answer(stub, "FanOut", fan_out_request(UNKNOWN), metadata=given(GIVEN))
    assert RpcError.of_status(response.results[0].status).request_id == GIVEN


async def test_a_streamed_result_that_failed_says_the_id_of_its_call(stub: ClassificationServiceStub) -> None:
    result = await answer(stub, "StreamFanOut", fan_out_request(UNKNOWN), metadata=given(GIVEN))
    assert RpcError.of_status(result.status).request_id == GIVEN


async def test_a_batchs_item_that_failed_says_the_id_of_its_call(stub: ClassificationServiceStub) -> None:
    request = pb.ClassifyBatchRequest(conversations=[pb.Conversation(), pb.Conversation(turns=REFUND)])
    response = await answer(stub, "ClassifyBatch", request, metadata=given(GIVEN))
    assert RpcError.of_status(response.items[0].status).request_id == GIVEN


async def test_a_failed_call_is_logged_under_its_id(
    stub: ClassificationServiceStub, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await refusal(stub, "Classify", FAILING["Classify"], metadata=given(GIVEN))
    (logged,) = [text for text in map(logging.LogRecord.getMessage, caplog.records) if "UnknownClassifier" in text]
    assert GIVEN in logged
