"""What a caller learns of a defect, and what the log does not keep."""

from __future__ import annotations

import logging
import re

import grpc
import pytest

from service.client import FantailClient, RpcError
from service.errors import EngineError
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from tests.integration.harness import DEADLINE_S, PLAIN, WatchedEngine

SPOKEN = "my card is 4929-1111-2222-3333"
TURNS = (("customer", SPOKEN),)
CAUSE = "cannot unpack slot 17 of /opt/secret"


@pytest.fixture(autouse=True)
def everything_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)


async def _call(client: FantailClient, method: str) -> None:
    if method == "classify":
        await client.classify(TURNS, PLAIN, timeout=DEADLINE_S)
    else:
        await client.fan_out(TURNS, timeout=DEADLINE_S)


@pytest.mark.parametrize("method", ["classify", "fan_out"])
async def test_a_defect_tells_the_caller_nothing_but_its_request_id(
    client: FantailClient, engine: WatchedEngine, method: str
) -> None:
    engine.fault = lambda request: RuntimeError(f"{CAUSE}: {SPOKEN}")
    with pytest.raises(RpcError) as failure:
        await _call(client, method)
    error, raw = failure.value, failure.value.__cause__
    assert isinstance(raw, grpc.aio.AioRpcError)
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "ERROR_REASON_DEFECT")
    assert re.fullmatch("[0-9a-f]{32}", error.request_id)
    everything = f"{raw.details()} {raw.debug_error_string()} {raw.trailing_metadata()} {raw.initial_metadata()}"
    assert error.message in everything
    assert error.request_id in everything
    for hidden in (CAUSE, SPOKEN, "RuntimeError", "Traceback"):
        assert hidden not in everything


@pytest.mark.parametrize("method", ["classify", "fan_out"])
async def test_a_defect_leaves_its_traceback_in_the_log_under_the_request_id(
    client: FantailClient, engine: WatchedEngine, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    engine.fault = lambda request: RuntimeError(CAUSE)
    with pytest.raises(RpcError) as failure:
        await _call(client, method)
    (record,) = (r for r in caplog.records if failure.value.request_id in r.getMessage())
    assert record.levelno == logging.ERROR
    assert record.exc_info
    assert "Traceback" in caplog.text
    assert CAUSE in caplog.text
    assert SPOKEN not in caplog.text


@pytest.mark.parametrize(
    "fault", [None, EngineError("The engine failed on this prompt.")], ids=["an answer", "an engine failure"]
)
async def test_the_log_never_holds_conversation_text(
    client: FantailClient, engine: WatchedEngine, caplog: pytest.LogCaptureFixture, fault: Exception | None
) -> None:
    engine.fault = lambda request: fault
    await client.fan_out(TURNS, timeout=DEADLINE_S)
    assert len(engine.requests) == 4
    assert SPOKEN not in caplog.text


@pytest.mark.parametrize(
    "turns",
    [
        pytest.param([("customer", SPOKEN), ("customer", " ")], id="a blank turn"),
        pytest.param([("nobody", SPOKEN)], id="no role"),
        pytest.param([("customer", SPOKEN * 200)], id="a too long turn"),
        pytest.param([("customer", SPOKEN * 2000)], id="a turn too long to tokenise"),
        pytest.param([("customer", SPOKEN)] * 1001, id="too many turns"),
    ],
)
async def test_a_refusal_holds_no_conversation_text(
    client: FantailClient, caplog: pytest.LogCaptureFixture, turns: list[tuple[str, str]]
) -> None:
    with pytest.raises(RpcError) as failure:
        await client.fan_out(turns, timeout=DEADLINE_S)
    raw = failure.value.__cause__
    assert isinstance(raw, grpc.aio.AioRpcError)
    assert failure.value.code is grpc.StatusCode.INVALID_ARGUMENT
    assert SPOKEN not in f"{raw.details()} {raw.trailing_metadata()}"
    assert SPOKEN not in caplog.text


async def test_bytes_that_are_no_message_are_refused_without_telling_how_they_are_read(
    stub: ClassificationServiceStub, channel: grpc.aio.Channel
) -> None:
    send = channel.unary_unary("/fantail.v1.ClassificationService/FanOut")
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await send(b"\xff\xff\xff", timeout=DEADLINE_S)
    assert failure.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "google.protobuf" not in (failure.value.details() or "")
    assert RpcError.of_call(failure.value).reason
