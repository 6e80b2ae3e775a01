"""Follow when a message cannot be answered: what is kept of it, and that the call goes on."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from service.admission import Admission
from service.api.server import Listening, listen
from service.api.servicer import Limits
from service.classify import Classify
from service.client import RpcError
from service.metrics import Metrics
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.prompt.builder import PromptBuilder
from service.registry.registry import Registry
from tests.integration.conftest import Serve
from tests.integration.harness import ACTIVATED, DEADLINE_S, NAMES, PLAIN, fan_out_request
from tests.integration.holding_engine import HoldingEngine
from tests.integration.talking import Following, agent, customer
from tests.support import classify_with

MAX_TURNS = 5
MAX_BYTES = 10_000


@pytest.fixture
def engine() -> HoldingEngine:
    return HoldingEngine()


@pytest.fixture
async def address(serve: Serve) -> str:
    return await serve(limits=Limits(max_turns=MAX_TURNS, follow_bytes=MAX_BYTES))


@pytest.fixture
def live(stub: ClassificationServiceStub) -> Following:
    return Following(stub.Follow(timeout=DEADLINE_S))


def refusal(response: pb.FollowResponse) -> RpcError:
    assert response.HasField("status")
    return RpcError.of_status(response.status)


def answered(response: pb.FollowResponse) -> list[str]:
    return [each.classification.classifier for each in response.fan_out.results if each.HasField("classification")]


LONG = "word " * 1000
REFUSED: dict[str, tuple[list[pb.Turn], dict[str, Any], str, list[str]]] = {
    "no role": ([customer("hi"), pb.Turn(text="hi")], {}, "ROLE_MISSING", ["turns[1].role"]),
    "blank text": ([customer(" \n")], {}, "TEXT_MISSING", ["turns[0].text"]),
    "an agent's blank text": ([agent(" ")], {}, "TEXT_MISSING", ["turns[0].text"]),
    "too many turns": ([agent("hi")] * MAX_TURNS, {}, "CONVERSATION_TOO_LONG", ["turns"]),
    "too long for the context": ([agent("hi"), customer(LONG)], {}, "TURN_TOO_LONG", ["turns[1].text"]),
    "an agent's turn too long": ([agent(LONG), agent("hi")], {}, "TURN_TOO_LONG", ["turns[0].text"]),
    "a name twice": (
        [customer("hi")], {"names": [PLAIN, ACTIVATED, PLAIN]}, "CLASSIFIER_DUPLICATED", ["classifiers.names[2]"],
    ),
    "a name twice and nothing said": (
        [], {"names": [PLAIN, PLAIN]}, "CLASSIFIER_DUPLICATED", ["classifiers.names[1]"],
    ),
    "an empty name": ([agent("hi")], {"names": [""]}, "CLASSIFIER_NAME_MISSING", ["classifiers.names[0]"]),
    "too many names": (
        [customer("hi")], {"names": [str(n) for n in range(1001)]}, "CLASSIFIERS_TOO_MANY", ["classifiers.names"],
    ),
    "no time": ([customer("hi")], {"timeout_ns": 0}, "TIMEOUT_INVALID", ["timeout"]),
    "negative time": ([customer("hi")], {"timeout_ns": -1}, "TIMEOUT_INVALID", ["timeout"]),
    "everything": (
        [pb.Turn()], {"names": [""], "timeout_ns": 0}, "ROLE_MISSING",
        ["turns[0].role", "turns[0].text", "timeout", "classifiers.names[0]"],
    ),
}  # fmt: skip
BY_REFUSAL = pytest.mark.parametrize(("turns", "fields", "reason", "names"), REFUSED.values(), ids=REFUSED)


@BY_REFUSAL
async def test_a_message_that_is_refused_says_why_and_what_it_was(
    live: Following, turns: list[pb.Turn], fields: dict[str, Any], reason: str, names: list[str]
) -> None:
    await live.ask(customer("before"))
    response = await live.ask(*turns, **fields)
    error = refusal(response)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, f"ERROR_REASON_{reason}")
    assert list(error.violations) == names
    assert error.metadata["field"] == names[0]
    assert re.fullmatch("[0-9a-f]{32}", error.request_id)
    assert response.message == 2


@BY_REFUSAL
async def test_nothing_of_a_refused_message_is_taken_over_and_the_call_goes_on(
    live: Following, engine: HoldingEngine, builder: PromptBuilder, turns: list[pb.Turn], fields: dict[str, Any],
    reason: str, names: list[str],
) -> None:  # fmt: skip
    before = await live.ask(customer("before"), names=[PLAIN])
    assert (await live.ask(*turns, **{"names": [ACTIVATED], **fields})).turns == before.turns == 1
    again = await live.ask()
    assert (again.message, again.turns) == (3, 1)
    assert again.fan_out.results[0].classifier == PLAIN
    first, second = engine.requests
    assert first == second
    await live.finish()


async def test_a_first_message_with_nothing_said_is_refused(live: Following, engine: HoldingEngine) -> None:
    response = await live.ask(names=[PLAIN])
    error = refusal(response)
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ERROR_REASON_CONVERSATION_EMPTY")
    assert list(error.violations) == ["turns"]
    assert (response.message, response.turns) == (1, 0)
    assert engine.requests == []
    assert answered(await live.ask(customer("hi"))) == NAMES


@pytest.mark.parametrize(("more", "accepted"), [(2, True), (3, True), (4, False)], ids=["limit-1", "limit", "limit+1"])
async def test_the_turns_of_all_messages_count_towards_the_limit(live: Following, more: int, accepted: bool) -> None:
    await live.tell(agent("hi"), agent("hello?"))
    response = await live.ask(*[customer("hi")] * more)
    assert response.HasField("fan_out") == accepted
    assert response.turns == (2 + more if accepted else 2)
    if not accepted:
        error = refusal(response)
        assert error.message == "The conversation has 6 turns, this server accepts 5; send the latest ones."
        assert error.metadata["max_turns"] == "5"


@pytest.mark.parametrize(("more", "accepted"), [(-1, True), (0, True), (1, False)], ids=["limit-1", "limit", "limit+1"])
async def test_the_text_of_all_messages_counts_towards_the_limit(live: Following, more: int, accepted: bool) -> None:
    said = 3 * ["information " * 250]  # each of 3,000 bytes, and within the context
    await live.tell(*map(agent, said))
    response = await live.ask(customer("é".ljust(MAX_BYTES - 9000 - 1 + more)))
    assert response.HasField("fan_out") == accepted
    assert response.turns == (4 if accepted else 3)
    if not accepted:
        error = refusal(response)
        assert error.message == (
            "The conversation has 10001 bytes of text, this server accepts 10000; follow its latest turns."
        )
        assert (error.metadata["max_bytes"], error.metadata["field"]) == ("10000", "turns")


@pytest.mark.parametrize(
    ("timeout_ns", "code"),
    [
        pytest.param(-1, grpc.StatusCode.INVALID_ARGUMENT, id="limit-1"),
        pytest.param(0, grpc.StatusCode.INVALID_ARGUMENT, id="limit"),
        pytest.param(1, grpc.StatusCode.DEADLINE_EXCEEDED, id="limit+1"),
    ],
)
async def test_a_timeout_must_be_positive(
    live: Following, engine: HoldingEngine, timeout_ns: int, code: grpc.StatusCode
) -> None:
    engine.hold(lambda request: True)
    assert refusal(await live.ask(customer("hi"), timeout_ns=timeout_ns)).code is code


async def test_a_dead_engine_is_a_status_that_keeps_turns_and_classifiers(
    live: Following, engine: HoldingEngine
) -> None:
    engine.dead = True
    response = await live.ask(customer("hi"), names=[PLAIN])
    error = refusal(response)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_ENGINE_DEAD")
    assert (response.message, response.turns) == (1, 1)
    engine.dead = False
    again = await live.ask()
    assert (again.message, again.turns, answered(again)) == (2, 1, [PLAIN])


async def test_a_defect_is_a_status_that_keeps_the_turns_and_its_trace_is_logged(
    live: Following, engine: HoldingEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.fault = lambda request: ValueError("secret")
    response = await live.ask(customer("hi"))
    error = refusal(response)
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "ERROR_REASON_DEFECT")
    assert response.turns == 1
    assert "secret" not in error.message
    assert f"request {error.request_id}" in caplog.text
    assert "ValueError: secret" in caplog.text
    engine.fault = lambda request: None
    assert answered(await live.ask()) == NAMES


ROOM = {"calls": (1, 1 << 40), "tokens": (100, 300)}
"""Calls and tokens in flight at most, so that the one limit is met."""


@contextlib.asynccontextmanager
async def busy(engine: HoldingEngine, stub: ClassificationServiceStub) -> AsyncIterator[None]:
    """As long as this lasts, the server has as much to do as it takes on."""
    engine.gate.clear()
    call = stub.FanOut(fan_out_request(turns=[customer("another conversation " * 50)]), timeout=DEADLINE_S)
    await engine.begun(len(NAMES))
    yield
    engine.gate.set()
    await call


@pytest.mark.parametrize("limit", ROOM)
async def test_an_overloaded_server_is_a_status_that_keeps_the_turns(
    registry: Registry, builder: PromptBuilder, engine: HoldingEngine, metrics: Metrics, limit: str
) -> None:
    classify = classify_with(registry, builder, engine, Admission(*ROOM[limit]))
    async with (
        listen(classify, Listening("127.0.0.1:0", grace_seconds=0.0), metrics) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        stub = ClassificationServiceStub(channel)
        live = Following(stub.Follow(timeout=DEADLINE_S))
        async with busy(engine, stub):
            response = await live.ask(customer("hi"), names=[PLAIN])
        error = refusal(response)
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ERROR_REASON_OVERLOADED")
        assert error.metadata == {"limit": limit}
        assert error.retry_after_s
        assert response.turns == 1
        again = await live.ask()
        assert (again.turns, answered(again)) == (1, [PLAIN])


@contextlib.asynccontextmanager
async def stopping(classify: Classify, metrics: Metrics) -> AsyncIterator[tuple[Following, contextlib.AsyncExitStack]]:
    """A live conversation, and its server to be closed."""
    async with contextlib.AsyncExitStack() as server:
        listening = Listening("127.0.0.1:0", grace_seconds=DEADLINE_S)
        port = await server.enter_async_context(listen(classify, listening, metrics))
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Following(ClassificationServiceStub(channel).Follow(timeout=DEADLINE_S)), server


async def ended(live: Following) -> RpcError:
    """What ends the call."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await live.call.read()
    return RpcError.of_call(failure.value)


async def test_a_server_that_stops_ends_an_idle_conversation_as_unavailable(
    classify: Classify, metrics: Metrics
) -> None:
    async with stopping(classify, metrics) as (live, server):
        await live.ask(customer("hi"))
        closed = asyncio.create_task(server.aclose())
        error = await ended(live)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_STOPPING")
        assert error.retry_after_s
        await closed


async def test_a_server_that_stops_answers_the_message_under_way_first(
    classify: Classify, engine: HoldingEngine, metrics: Metrics
) -> None:
    async with stopping(classify, metrics) as (live, server):
        engine.gate.clear()
        await live.tell(customer("hi"))
        await engine.begun(len(NAMES))
        closed = asyncio.create_task(server.aclose())
        await classify.admission.stopping.wait()
        engine.gate.set()
        assert answered(await live.answer()) == NAMES
        assert (await ended(live)).reason == "ERROR_REASON_STOPPING"
        await closed
