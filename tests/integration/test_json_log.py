"""The log for machines, of a server that is called: every line is JSON and stands under the id of its call."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from service.client import RpcError
from service.engine.base import ScoringRequest
from service.errors import EngineError
from service.logs import NOISY, QUIET, set_up_logging
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.prompt.builder import PromptBuilder
from service.registry.loader import RegistryLoader
from tests.deployment import ACTIVATED as SHADOWED
from tests.integration.harness import DEADLINE_S, NAMES, PLAIN, WatchedEngine, classify_request, fan_out_request
from tests.integration.holding_engine import about
from tests.integration.operated import Operated, operating, traffic
from tests.integration.talking import customer

SPOKEN = "my card is 4929-1111-2222-3333"
SAID = [customer(SPOKEN)]
GIVEN = "4bf92f3577b34da6:ticket-17_a.b"
OURS = re.compile("[0-9a-f]{32}")
CALLERS = 8

REQUESTS = {
    "Classify": classify_request(PLAIN, SAID),
    "FanOut": fan_out_request(PLAIN, turns=SAID),
    "StreamFanOut": fan_out_request(PLAIN, turns=SAID),
    "ClassifyBatch": pb.ClassifyBatchRequest(conversations=[pb.Conversation(turns=SAID)], classifiers=[PLAIN]),
    "Follow": pb.FollowRequest(turns=SAID, classifiers=pb.ClassifierSelection(names=[PLAIN])),
}
FAULTS = {"the engine failed": EngineError("No."), "a defect": RuntimeError("No.")}
BY_METHOD = pytest.mark.parametrize("method", REQUESTS)
BY_FAULT = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)

Lines = list[dict[str, Any]]


@pytest.fixture
def texts() -> bool:
    """Whether exceptions may quote what customers write."""
    return False


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch, texts: bool) -> Iterator[Callable[[], Lines]]:
    """Log as a server does that is set up to log JSON, and everything; read what was logged since the last time,
    in which nothing may stand of what was said."""
    root = logging.getLogger()
    handlers, levels = list(root.handlers), {name: logging.getLogger(name).level for name in ("root", *NOISY, *QUIET)}
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", standard_error := io.StringIO())
        set_up_logging("debug", "json", texts)

    def read() -> Lines:
        text = standard_error.getvalue()
        standard_error.seek(standard_error.truncate(0))
        assert SPOKEN not in text
        return [json.loads(line) for line in text.splitlines()]

    yield read
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def of_calls(lines: Lines) -> Lines:
    """What our own code logged."""
    return [line for line in lines if line["logger"].startswith("service.")]


def _failed(response: Any) -> Any:
    """The status that stands in a response in the place of an answer."""
    if isinstance(response, pb.ClassifyBatchResponse):
        return _failed(response.items[0])
    if response.HasField("status"):
        return response.status
    return response.fan_out.results[0].status


async def failure(channel: grpc.aio.Channel, method: str, metadata: Any = ()) -> RpcError:
    """What the caller is told of a call in which something fails."""
    call = getattr(ClassificationServiceStub(channel), method)
    try:
        if method == "Follow":
            stream = call(timeout=DEADLINE_S, metadata=metadata)
            await stream.write(REQUESTS[method])
            response = await stream.read()
            stream.cancel()
        elif method == "StreamFanOut":
            response = await call(REQUESTS[method], timeout=DEADLINE_S, metadata=metadata).read()
        else:
            response = await call(REQUESTS[method], timeout=DEADLINE_S, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return RpcError.of_call(error)
    return RpcError.of_status(response.results[0].status if method == "FanOut" else _failed(response))


@pytest.mark.parametrize("texts", [False, True], ids=["without texts", "with texts"])
@BY_FAULT
@BY_METHOD
async def test_what_is_logged_of_a_call_stands_under_the_id_that_the_caller_gave(
    channel: grpc.aio.Channel,
    engine: WatchedEngine,
    logged: Callable[[], Lines],
    method: str,
    fault: Exception,
    texts: bool,
) -> None:
    engine.fault = lambda request: fault
    await failure(channel, method, (("x-request-id", GIVEN),))
    lines = of_calls(logged())
    assert {line["request_id"] for line in lines} == {GIVEN}
    said = type(fault).__name__ + (": No." if texts or isinstance(fault, EngineError) else "")
    assert any(line["level"] == "ERROR" and said in line["traceback"] for line in lines)
    assert ("No." in "".join(line.get("traceback", "") for line in lines)) is said.endswith("No.")


@BY_FAULT
@BY_METHOD
async def test_what_is_logged_of_a_call_without_an_id_stands_under_the_one_that_the_caller_is_told(
    channel: grpc.aio.Channel, engine: WatchedEngine, logged: Callable[[], Lines], method: str, fault: Exception
) -> None:
    engine.fault = lambda request: fault
    told = (await failure(channel, method)).request_id
    assert OURS.fullmatch(told)
    assert {line["request_id"] for line in of_calls(logged())} == {told}


async def test_a_refusal_is_logged_under_the_id(stub: ClassificationServiceStub, logged: Callable[[], Lines]) -> None:
    with pytest.raises(grpc.aio.AioRpcError):
        await stub.Classify(classify_request("nobody", SAID), metadata=(("x-request-id", GIVEN),), timeout=DEADLINE_S)
    (line,) = of_calls(logged())
    assert line["request_id"] == GIVEN
    assert line["message"].endswith("/Classify: UnknownClassifierError")


async def test_an_answer_is_not_logged(stub: ClassificationServiceStub, logged: Callable[[], Lines]) -> None:
    assert len((await stub.FanOut(fan_out_request(turns=SAID), timeout=DEADLINE_S)).results) == len(NAMES)
    assert of_calls(logged()) == []


async def test_lines_of_calls_at_once_do_not_mix_their_ids(
    stub: ClassificationServiceStub, engine: WatchedEngine, builder: PromptBuilder, logged: Callable[[], Lines]
) -> None:
    texts = {f"caller-{number}": f"{SPOKEN} {number}" for number in range(CALLERS)}
    whose = {caller: about(text, builder) for caller, text in texts.items()}

    def fault(request: ScoringRequest) -> Exception:
        return EngineError(next(caller for caller, is_about in whose.items() if is_about(request)))

    engine.fault = fault
    engine.gate.clear()
    calls = [
        stub.FanOut(fan_out_request(turns=[customer(text)]), metadata=(("x-request-id", caller),), timeout=DEADLINE_S)
        for caller, text in texts.items()
    ]
    await engine.begun(CALLERS * len(NAMES))
    engine.gate.set()
    await asyncio.gather(*calls)
    lines = of_calls(logged())
    assert sorted(line["request_id"] for line in lines) == sorted([*texts] * len(NAMES))
    for line in lines:
        assert line["traceback"].endswith(f"EngineError: {line['request_id']}")
        assert line["message"].startswith(f"request {line['request_id']}: ")


@pytest.fixture
async def operated(tmp_path: Path, loader: RegistryLoader) -> AsyncIterator[Operated]:
    async with operating(tmp_path, loader) as found:
        yield found


async def test_what_is_logged_of_a_shadow_after_its_call_stands_under_the_id_of_the_call(
    operated: Operated, logged: Callable[[], Lines]
) -> None:
    revision = await operated.load(operated.served.candidate(2))
    await operated.admin.SetTraffic(traffic({}, revision), timeout=DEADLINE_S)
    logged()
    operated.served.engine.back.clear()
    request = classify_request(SHADOWED, SAID)
    await operated.stub.Classify(request, metadata=(("x-request-id", GIVEN),), timeout=DEADLINE_S)
    assert of_calls(logged()) == []
    operated.served.engine.back.set()
    await operated.served.metrics.shadow()
    (line,) = of_calls(logged())
    assert (line["logger"], line["request_id"]) == ("service.shadow", GIVEN)
