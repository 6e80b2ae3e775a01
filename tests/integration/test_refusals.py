"""Requests that can never succeed: code, reason, offending fields, request id, and a message that says what to do."""

from __future__ import annotations

import re
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from service.api.servicer import Limits
from service.client import FantailClient, RpcError
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.prompt.builder import PromptBuilder
from service.prompt.format import PromptFormat
from service.prompt.tokenizer import PromptTokenizer
from tests.integration.conftest import Serve
from tests.integration.harness import (
    ACTIVATED,
    DEADLINE_S,
    HELLO,
    PLAIN,
    REFUND,
    WatchedEngine,
    classify_request,
    fan_out_request,
)

GET = pb.GetClassifierRequest
UNKNOWN_ROLE = 7
CUSTOMER = pb.ROLE_CUSTOMER


def _turns(*turns: tuple[int, str]) -> list[pb.Turn]:
    return [pb.Turn(role=role, text=text) for role, text in turns]


async def refusal(stub: ClassificationServiceStub, request: Any) -> RpcError:
    """The error of a call that must fail, by the method that takes such a request."""
    method = {
        "ClassifyRequest": stub.Classify,
        "FanOutRequest": stub.FanOut,
        "GetClassifierRequest": stub.GetClassifier,
    }
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await method[type(request).__name__](request, timeout=DEADLINE_S)
    return RpcError.of_call(failure.value)


BAD_CONVERSATIONS = [
    pytest.param([], "CONVERSATION_EMPTY", {"conversation.turns": "send at least one"}, id="no turns"),
    pytest.param(
        _turns((pb.ROLE_UNSPECIFIED, "hi")), "ROLE_MISSING", {"conversation.turns[0].role": "say ROLE_CUSTOMER"},
        id="role unspecified",
    ),
    pytest.param(
        _turns((UNKNOWN_ROLE, "hi")), "ROLE_MISSING", {"conversation.turns[0].role": "say ROLE_CUSTOMER"},
        id="unknown role number",
    ),
    pytest.param(
        _turns((CUSTOMER, "")), "TEXT_MISSING", {"conversation.turns[0].text": "leave empty turns out"}, id="empty text"
    ),
    pytest.param(
        _turns((CUSTOMER, "hi"), (pb.ROLE_AGENT, " \n\t\u2003")), "TEXT_MISSING",
        {"conversation.turns[1].text": "leave empty turns out"}, id="blank text",
    ),
    pytest.param(
        _turns((CUSTOMER, "hi"), (0, "hi"), (CUSTOMER, " "), (UNKNOWN_ROLE, "")), "ROLE_MISSING",
        {
            "conversation.turns[1].role": "Turn 1",
            "conversation.turns[2].text": "Turn 2",
            "conversation.turns[3].role": "Turn 3",
            "conversation.turns[3].text": "Turn 3",
        },
        id="several bad turns",
    ),
]  # fmt: skip

BAD_NAMES = [
    pytest.param(classify_request(""), "CLASSIFIER_NAME_MISSING", {"classifier": "ListClassifiers"}, id="Classify ''"),
    pytest.param(GET(), "CLASSIFIER_NAME_MISSING", {"classifier": "ListClassifiers"}, id="GetClassifier ''"),
    pytest.param(
        fan_out_request(PLAIN, "", ""), "CLASSIFIER_NAME_MISSING",
        {"classifiers[1]": "Name 1 is empty", "classifiers[2]": "Name 2 is empty"}, id="FanOut ''",
    ),
    pytest.param(
        fan_out_request("x" * 64, "y" * 65), "CLASSIFIER_NAME_TOO_LONG", {"classifiers[1]": "has 65 characters"},
        id="name too long",
    ),
    pytest.param(
        fan_out_request(PLAIN, ACTIVATED, PLAIN, PLAIN), "CLASSIFIER_DUPLICATED",
        {"classifiers[2]": f"{PLAIN!r} is asked for twice; ask once", "classifiers[3]": PLAIN}, id="duplicates",
    ),
    pytest.param(
        fan_out_request(*["\N{GRINNING FACE}" * 64] * 21), "CLASSIFIER_DUPLICATED",
        {f"classifiers[{index}]": "twice" for index in range(1, 21)}, id="duplicates of a long name",
    ),
    pytest.param(
        fan_out_request("", PLAIN, PLAIN, "nobody", "nobody"), "CLASSIFIER_NAME_MISSING",
        {"classifiers[0]": "empty", "classifiers[2]": "twice", "classifiers[4]": "twice"}, id="all kinds of names",
    ),
]  # fmt: skip


def _check(error: RpcError, reason: str, fields: dict[str, str]) -> None:
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.reason == f"ERROR_REASON_{reason}"
    assert list(error.violations) == list(fields)
    assert [part in error.violations[field] for field, part in fields.items()] == [True] * len(fields)
    first = next(iter(fields))
    assert error.message == error.violations[first]
    assert error.metadata["field"] == first
    assert re.fullmatch("[0-9a-f]{32}", error.request_id)


@pytest.mark.parametrize("make", [classify_request, fan_out_request], ids=["Classify", "FanOut"])
@pytest.mark.parametrize(("turns", "reason", "fields"), BAD_CONVERSATIONS)
async def test_a_bad_conversation_is_refused_with_every_bad_turn(
    stub: ClassificationServiceStub, engine: WatchedEngine, make: Any, turns: list[pb.Turn], reason: str,
    fields: dict[str, str],
) -> None:  # fmt: skip
    _check(await refusal(stub, make(PLAIN, turns=turns)), reason, fields)
    assert engine.requests == []


@pytest.mark.parametrize(("request_", "reason", "fields"), BAD_NAMES)
async def test_bad_classifier_names_are_refused_with_every_bad_name(
    stub: ClassificationServiceStub, engine: WatchedEngine, request_: Any, reason: str, fields: dict[str, str]
) -> None:
    _check(await refusal(stub, request_), reason, fields)
    assert engine.requests == []


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        pytest.param(
            fan_out_request(PLAIN, PLAIN, turns=_turns((CUSTOMER, " "))),
            {"conversation.turns[0].text", "classifiers[1]"}, id="FanOut: a turn and a name",
        ),
        pytest.param(
            classify_request("", turns=_turns((CUSTOMER, " "))), {"conversation.turns[0].text", "classifier"},
            id="Classify: a turn and the name",
        ),
        pytest.param(
            classify_request(PLAIN, turns=_turns((CUSTOMER, "x" * 20_000), (CUSTOMER, "word " * 1000))),
            {"conversation.turns[0].text", "conversation.turns[1].text"}, id="a turn by characters and one by tokens",
        ),
    ],
)  # fmt: skip
async def test_problems_of_different_kinds_are_reported_together(
    stub: ClassificationServiceStub, request_: Any, fields: set[str]
) -> None:
    error = await refusal(stub, request_)
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(error.violations) == fields


async def test_a_conversation_with_a_thousand_bad_turns_is_still_refused_with_its_reason(
    stub: ClassificationServiceStub,
) -> None:
    error = await refusal(stub, fan_out_request(turns=_turns(*[(CUSTOMER, " ")] * 1000)))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ERROR_REASON_TEXT_MISSING")
    assert error.violations


@pytest.mark.parametrize(("turns", "accepted"), [(4, True), (5, True), (6, False)], ids=["limit-1", "limit", "limit+1"])
async def test_more_turns_than_the_limit_are_refused(serve: Serve, turns: int, accepted: bool) -> None:
    async with grpc.aio.insecure_channel(await serve(limits=Limits(max_turns=5))) as channel:
        stub = ClassificationServiceStub(channel)
        request = fan_out_request(turns=REFUND * turns)
        if accepted:
            assert len((await stub.FanOut(request, timeout=DEADLINE_S)).results) == 4
            return
        error = await refusal(stub, request)
        _check(
            error, "CONVERSATION_TOO_LONG", {"conversation.turns": "6 turns, this server accepts 5; send the latest"}
        )
        assert error.metadata["max_turns"] == "5"


@pytest.mark.parametrize(("over", "accepted"), [(-1, True), (0, True), (1, False)], ids=["limit-1", "limit", "limit+1"])
async def test_a_turn_that_cannot_fit_the_context_alone_is_refused(
    stub: ClassificationServiceStub, builder: PromptBuilder, tokenizer: PromptTokenizer, prompt_format: PromptFormat,
    over: int, accepted: bool,
) -> None:  # fmt: skip
    pieces = (prompt_format.turn_start.customer, prompt_format.turn_end)
    limit = builder.max_prefix_tokens - len(tokenizer.encode_control(prompt_format.preamble))
    text = " a" * (limit - sum(len(tokenizer.encode_control(piece)) for piece in pieces) + over)
    request = fan_out_request(turns=[*REFUND, *_turns((CUSTOMER, text))])
    if accepted:
        response = await stub.FanOut(request, timeout=DEADLINE_S)
        assert [r.classification.truncation.dropped_turns for r in response.results] == [1] * 4
        return
    error = await refusal(stub, request)
    _check(error, "TURN_TOO_LONG", {"conversation.turns[1].text": f"Turn 1 has {limit + 1} tokens"})
    assert error.metadata["max_tokens"] == str(limit)
    assert "shorten it" in error.message


async def test_every_too_long_turn_is_named(stub: ClassificationServiceStub) -> None:
    text = "word " * 1000
    error = await refusal(
        stub, fan_out_request(turns=[pb.Turn(role=CUSTOMER, text=text), *REFUND, pb.Turn(role=CUSTOMER, text=text)])
    )
    _check(error, "TURN_TOO_LONG", {"conversation.turns[0].text": "Turn 0", "conversation.turns[2].text": "Turn 2"})


@pytest.mark.parametrize(
    "request_", [classify_request("nobody"), GET(classifier="nobody")], ids=["Classify", "GetClassifier"]
)
async def test_an_unknown_classifier_is_not_found(
    stub: ClassificationServiceStub, engine: WatchedEngine, request_: Any
) -> None:
    error = await refusal(stub, request_)
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "ERROR_REASON_CLASSIFIER_UNKNOWN")
    assert error.metadata == {"classifier": "nobody"}
    assert error.violations == {}
    assert "ListClassifiers" in error.message
    assert re.fullmatch("[0-9a-f]{32}", error.request_id)
    assert engine.requests == []


async def test_an_unknown_classifier_in_a_fan_out_is_a_status_in_its_result_alone(client: FantailClient) -> None:
    response = await client.fan_out(HELLO, [PLAIN, "nobody", ACTIVATED], timeout=DEADLINE_S)
    assert [(r.classifier, r.WhichOneof("outcome")) for r in response.results] == [
        (PLAIN, "classification"), ("nobody", "status"), (ACTIVATED, "classification"),
    ]  # fmt: skip
    status = response.results[1].status
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    assert status.details[0].Unpack(info)
    assert status.details[1].Unpack(request)
    assert grpc.StatusCode.NOT_FOUND.value[0] == status.code
    assert (info.reason, info.domain) == ("ERROR_REASON_CLASSIFIER_UNKNOWN", "fantail.v1")
    assert dict(info.metadata) == {"classifier": "nobody"}
    assert re.fullmatch("[0-9a-f]{32}", request.request_id)
    assert response.usage.computed_tokens == sum(r.classification.usage.computed_tokens for r in response.results)


async def test_a_fan_out_of_unknown_classifiers_alone_is_answered_without_the_engine(
    client: FantailClient, engine: WatchedEngine
) -> None:
    response = await client.fan_out(HELLO, ["nobody", "no_one"], timeout=DEADLINE_S)
    assert [result.WhichOneof("outcome") for result in response.results] == ["status", "status"]
    assert engine.requests == []


@pytest.mark.parametrize(
    ("names", "accepted"), [(255, True), (256, True), (257, False)], ids=["limit-1", "limit", "limit+1"]
)
async def test_more_names_than_any_server_has_classifiers_are_refused(
    stub: ClassificationServiceStub, names: int, accepted: bool
) -> None:
    request = fan_out_request(*(f"nobody_{index}" for index in range(names)))
    if accepted:
        response = await stub.FanOut(request, timeout=DEADLINE_S)
        assert [result.HasField("status") for result in response.results] == [True] * names
        return
    _check(
        await refusal(stub, request), "CLASSIFIERS_TOO_MANY", {"classifiers": "names 257 classifiers, more than 256"}
    )


async def test_each_call_has_its_own_request_id(stub: ClassificationServiceStub) -> None:
    ids = [(await refusal(stub, GET(classifier="nobody"))).request_id for _ in range(3)]
    assert len(set(ids)) == 3


async def test_the_details_are_read_by_the_standard_status_library(stub: ClassificationServiceStub) -> None:
    call = stub.FanOut(fan_out_request(turns=[]), timeout=DEADLINE_S)
    with pytest.raises(grpc.aio.AioRpcError):
        await call
    status = await rpc_status.aio.from_call(call)
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert [detail.TypeName() for detail in status.details] == [
        "google.rpc.ErrorInfo", "google.rpc.RequestInfo", "google.rpc.BadRequest",
    ]  # fmt: skip
