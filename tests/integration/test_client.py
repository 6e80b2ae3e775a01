"""The async client: what it sends, what it returns, and its typed errors."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from service.api.server import Listening, listen
from service.classify import Classify
from service.client import FantailClient, RpcError, Turns
from service.domain import Conversation, Role, Turn
from service.errors import EngineDeadError, EngineError, OverloadedError, RateLimitedError
from service.keys import KeyRing, new_key
from service.metrics import Metrics
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.registry.registry import Registry
from tests.integration.conftest import Serve
from tests.integration.harness import ACTIVATED, DEADLINE_S, HELLO, NAMES, NEVER_S, PLAIN, asks
from tests.integration.holding_engine import HoldingEngine
from tests.integration.listener import Listener

TURNS: Turns = [("customer", "hi"), ("agent", "hello"), ("system", "moved"), ("customer", "well?")]
SAID = tuple(Turn(Role(role), text) for role, text in TURNS)

Ask = Callable[[FantailClient, Turns, float], Awaitable[Any]]


async def _stream(client: FantailClient, turns: Turns, timeout: float) -> list[pb.FanOutResult]:
    return [each async for each in client.stream_fan_out(turns, [PLAIN], timeout=timeout)]


async def _follow(client: FantailClient, turns: Turns, timeout: float) -> pb.FanOutResponse | None:
    async with client.follow([PLAIN], timeout=timeout) as live:
        return await live.tell(turns)


ASKING: dict[str, Ask] = {
    "classify": lambda client, turns, timeout: client.classify(turns, PLAIN, timeout=timeout),
    "fan_out": lambda client, turns, timeout: client.fan_out(turns, [PLAIN], timeout=timeout),
    "stream_fan_out": _stream,
    "classify_batch": lambda client, turns, timeout: client.classify_batch([turns], [PLAIN], timeout=timeout),
    "follow": _follow,
}
LOOKING: dict[str, Ask] = {
    "list_classifiers": lambda client, turns, timeout: client.list_classifiers(timeout=timeout),
    "get_classifier": lambda client, turns, timeout: client.get_classifier(PLAIN, timeout=timeout),
}
BY_ASKING = pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)


@pytest.fixture
def engine() -> HoldingEngine:
    return HoldingEngine()


async def failure_of(work: Awaitable[object]) -> RpcError:
    with pytest.raises(RpcError) as failure:
        await work
    return failure.value


@BY_ASKING
async def test_turns_are_sent_in_their_roles(client: FantailClient, listener: Listener, ask: Ask) -> None:
    await ask(client, TURNS, DEADLINE_S)
    assert listener.heard == [Conversation("", SAID)]


async def test_the_callers_id_is_sent(client: FantailClient, listener: Listener) -> None:
    await client.classify(HELLO, PLAIN, timeout=DEADLINE_S, id="one")
    await client.fan_out(HELLO, timeout=DEADLINE_S, id="two")
    assert len([each async for each in client.stream_fan_out(HELLO, timeout=DEADLINE_S, id="three")]) == len(NAMES)
    assert [conversation.id for conversation in listener.heard] == ["one", "two", "three"]


@BY_ASKING
async def test_the_deadline_is_passed_on(client: FantailClient, listener: Listener, ask: Ask) -> None:
    await ask(client, HELLO, DEADLINE_S)
    (call,) = listener.calls
    assert 0 < call.deadline.remaining() < 2 * DEADLINE_S  # gRPC rounds it; the server's own is longer


async def test_a_deadline_that_has_passed_sends_nothing_to_the_engine(
    client: FantailClient, engine: HoldingEngine
) -> None:
    error = await failure_of(client.fan_out(HELLO, timeout=-1.0))
    assert error.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert engine.requests == []


async def test_a_batch_is_answered_in_its_order(client: FantailClient, listener: Listener) -> None:
    response = await client.classify_batch([HELLO, [("customer", " ")], TURNS], [PLAIN], timeout=DEADLINE_S)
    assert [item.WhichOneof("outcome") for item in response.items] == ["fan_out", "status", "fan_out"]
    assert RpcError.of_status(response.items[1].status).violations.keys() == {"conversations[1].turns[0].text"}
    assert [len(conversation.turns) for conversation in listener.heard] == [len(HELLO), len(TURNS)]


async def test_classifiers_are_listed_and_described(client: FantailClient) -> None:
    listed = await client.list_classifiers(timeout=DEADLINE_S)
    assert [each.name for each in listed] == NAMES
    assert await client.get_classifier(PLAIN, timeout=DEADLINE_S) == listed[NAMES.index(PLAIN)]


async def test_each_streamed_result_comes_when_it_is_ready(
    client: FantailClient, engine: HoldingEngine, registry: Registry
) -> None:
    held = engine.hold(asks(ACTIVATED, registry))
    results = client.stream_fan_out(HELLO, [ACTIVATED, PLAIN], timeout=DEADLINE_S)
    assert (await anext(results)).classifier == PLAIN
    held.set()
    assert [each.classifier async for each in results] == [ACTIVATED]


async def test_closing_a_stream_midway_cancels_the_engines_work(
    client: FantailClient, engine: HoldingEngine, registry: Registry
) -> None:
    engine.hold(asks(ACTIVATED, registry))
    async with contextlib.aclosing(client.stream_fan_out(HELLO, [ACTIVATED, PLAIN], timeout=DEADLINE_S)) as results:
        await anext(results)
    await engine.ended(2)
    assert engine.cancelled == 1


ERRORS = {
    "engine failed": (EngineError("No."), grpc.StatusCode.INTERNAL, "ENGINE_FAILED", None, {}),
    "overloaded": (
        OverloadedError("No.", NEVER_S, {"limit": "calls"}), grpc.StatusCode.RESOURCE_EXHAUSTED,
        "OVERLOADED", NEVER_S, {"limit": "calls"},
    ),
    "rate limited": (
        RateLimitedError("No.", NEVER_S + 0.25), grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED", NEVER_S + 0.25, {}
    ),
    "engine dead": (EngineDeadError("No."), grpc.StatusCode.UNAVAILABLE, "ENGINE_DEAD", 5.0, {}),
    "a defect": (ValueError("secret"), grpc.StatusCode.INTERNAL, "DEFECT", None, {}),
}  # fmt: skip


@pytest.mark.parametrize(("raised", "code", "reason", "delay", "metadata"), ERRORS.values(), ids=ERRORS)
async def test_a_failed_call_says_everything_that_the_server_said(
    client: FantailClient, engine: HoldingEngine, raised: Exception, code: grpc.StatusCode, reason: str,
    delay: float | None, metadata: dict[str, str],
) -> None:  # fmt: skip
    engine.fault = lambda request: raised
    error = await failure_of(client.classify(HELLO, PLAIN, timeout=DEADLINE_S))
    assert (error.code, error.reason) == (code, f"ERROR_REASON_{reason}")
    assert (error.retry_after_s, error.metadata, error.violations) == (delay, metadata, {})
    assert str(error) == f"{code.name}: {error.message}"
    assert "secret" not in str(error)
    assert re.fullmatch("[0-9a-f]{32}", error.request_id)


REFUSABLE = {name: ASKING[name] for name in ("classify", "fan_out", "stream_fan_out", "follow")}


@pytest.mark.parametrize("ask", REFUSABLE.values(), ids=REFUSABLE)
async def test_a_refusal_names_every_offending_field(client: FantailClient, ask: Ask) -> None:
    turns: Any = [("somebody", "hi"), ("customer", " ")]
    error = await failure_of(ask(client, turns, DEADLINE_S))
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ERROR_REASON_ROLE_MISSING")
    fields = [field.removeprefix("conversation.") for field in error.violations]
    assert fields == ["turns[0].role", "turns[1].text"]
    assert error.violations[error.metadata["field"]] == error.message


async def test_an_error_midway_in_a_stream_is_typed(
    client: FantailClient, engine: HoldingEngine, registry: Registry
) -> None:
    dies = asks(PLAIN, registry)
    engine.fault = lambda request: EngineDeadError("No.") if dies(request) else None
    held = engine.hold(dies)
    results = client.stream_fan_out(HELLO, [ACTIVATED, PLAIN], timeout=DEADLINE_S)
    await anext(results)
    held.set()
    assert (await failure_of(anext(results))).reason == "ERROR_REASON_ENGINE_DEAD"


@pytest.mark.parametrize("name", ["classify", "stream_fan_out", "follow"])
async def test_a_server_that_is_not_there_is_unavailable_without_a_reason(
    classify: Classify, metrics: Metrics, name: str
) -> None:
    async with listen(classify, Listening("127.0.0.1:0", grace_seconds=0.0), metrics) as port:
        pass
    async with FantailClient(f"127.0.0.1:{port}") as client:
        error = await failure_of(ASKING[name](client, HELLO, DEADLINE_S))
    assert error.code is grpc.StatusCode.UNAVAILABLE
    assert (error.reason, error.request_id, error.retry_after_s) == ("", "", None)
    assert (error.metadata, error.violations) == ({}, {})


@pytest.fixture
async def locked(serve: Serve, tmp_path: Path) -> tuple[str, str]:
    """Address of a server that wants a key, and the key of `support`."""
    key, digest = new_key()
    (tmp_path / "keys.toml").write_text(f'[[key]]\nname = "support"\nsha256 = "{digest}"\nscopes = ["classify"]\n')
    return await serve(keys=KeyRing(tmp_path / "keys.toml")), key


@BY_ASKING
async def test_the_key_is_sent_with_every_call(locked: tuple[str, str], listener: Listener, ask: Ask) -> None:
    address, key = locked
    async with FantailClient(address, key=key) as client:
        await ask(client, HELLO, DEADLINE_S)
    assert [call.caller for call in listener.calls] == ["support"]


@pytest.mark.parametrize("ask", LOOKING.values(), ids=LOOKING)
async def test_the_key_is_sent_with_calls_that_ask_nothing(locked: tuple[str, str], ask: Ask) -> None:
    address, key = locked
    async with FantailClient(address, key=key) as client:
        await ask(client, HELLO, DEADLINE_S)


@pytest.mark.parametrize("key", [None, "another"], ids=["no key", "another key"])
@pytest.mark.parametrize("ask", (ASKING | LOOKING).values(), ids=ASKING | LOOKING)
async def test_without_the_key_each_call_is_refused(locked: tuple[str, str], ask: Ask, key: str | None) -> None:
    async with FantailClient(locked[0], key=key) as client:
        error = await failure_of(ask(client, HELLO, DEADLINE_S))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "ERROR_REASON_KEY_INVALID")


async def test_waiting_needs_no_key(locked: tuple[str, str]) -> None:
    async with FantailClient(locked[0]) as client, asyncio.timeout(DEADLINE_S):
        await client.wait_until_serving()


async def test_waiting_ends_when_a_dead_engine_lives_again(serve: Serve, engine: HoldingEngine) -> None:
    engine.dead = True
    async with FantailClient(await serve()) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await client.wait_until_serving()
        engine.dead = False
        async with asyncio.timeout(DEADLINE_S):
            await client.wait_until_serving()


async def test_waiting_ends_when_a_server_comes(serve: Serve, classify: Classify, metrics: Metrics) -> None:
    async with listen(classify, Listening("127.0.0.1:0", grace_seconds=0.0), metrics) as port:
        pass
    classify.admission.stopping.clear()
    async with FantailClient(f"127.0.0.1:{port}") as client, asyncio.timeout(DEADLINE_S):
        waiting = asyncio.create_task(client.wait_until_serving())
        with pytest.raises(RpcError):
            await client.list_classifiers(timeout=DEADLINE_S)
        assert not waiting.done()
        await serve(address=f"127.0.0.1:{port}")
        await waiting
