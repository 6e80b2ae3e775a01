"""The sync client: the same as the async one, from threads that do not await."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest

from service.classify import Classify
from service.client import FantailSyncClient, RpcError
from service.errors import OverloadedError
from service.keys import KeyRing, new_key
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.registry.registry import Registry
from tests.integration.conftest import Serve
from tests.integration.harness import ACTIVATED, DEADLINE_S, HELLO, NAMES, NEVER_S, PLAIN, asks
from tests.integration.holding_engine import HoldingEngine
from tests.integration.listener import Listener

CALLERS = 8
Value = TypeVar("Value")

BLANK: Any = [("customer", " ")]


@pytest.fixture
def engine() -> HoldingEngine:
    return HoldingEngine()


@pytest.fixture
async def sync(address: str) -> AsyncIterator[FantailSyncClient]:
    client = FantailSyncClient(address)
    yield client
    await asyncio.to_thread(client.__exit__, None, None, None)


def names(response: pb.FanOutResponse | None) -> list[str]:
    assert response
    return [result.classification.classifier for result in response.results if result.HasField("classification")]


def in_thread(work: Callable[[], Value]) -> Future[Value]:
    """Work in a thread that keeps no test from ending."""
    found: Future[Value] = Future()

    def run() -> None:
        try:
            found.set_result(work())
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return found


async def failure_of(work: Callable[[], object]) -> RpcError:
    """What some work in another thread raises."""
    with pytest.raises(RpcError) as failure:
        await asyncio.to_thread(work)
    return failure.value


async def test_one_classifier_is_asked(sync: FantailSyncClient, listener: Listener) -> None:
    response = await asyncio.to_thread(sync.classify, HELLO, PLAIN, timeout=DEADLINE_S, id="mine")
    assert response.classification.classifier == PLAIN
    assert [conversation.id for conversation in listener.heard] == ["mine"]


async def test_many_classifiers_are_asked(sync: FantailSyncClient, listener: Listener) -> None:
    assert names(await asyncio.to_thread(sync.fan_out, HELLO, timeout=DEADLINE_S)) == NAMES
    response = await asyncio.to_thread(sync.fan_out, HELLO, [PLAIN, ACTIVATED], timeout=DEADLINE_S, id="mine")
    assert names(response) == [PLAIN, ACTIVATED]
    assert [conversation.id for conversation in listener.heard] == ["", "mine"]


async def test_a_batch_is_answered_in_its_order(sync: FantailSyncClient) -> None:
    response = await asyncio.to_thread(sync.classify_batch, [HELLO, BLANK, HELLO], [PLAIN], timeout=DEADLINE_S)
    assert [item.WhichOneof("outcome") for item in response.items] == ["fan_out", "status", "fan_out"]


async def test_classifiers_are_listed_and_described(sync: FantailSyncClient) -> None:
    listed = await asyncio.to_thread(sync.list_classifiers, timeout=DEADLINE_S)
    assert [each.name for each in listed] == NAMES
    assert await asyncio.to_thread(sync.get_classifier, PLAIN, timeout=DEADLINE_S) in listed


async def test_each_streamed_result_comes_when_it_is_ready(
    sync: FantailSyncClient, engine: HoldingEngine, registry: Registry
) -> None:
    held = engine.hold(asks(ACTIVATED, registry))
    results = sync.stream_fan_out(HELLO, [ACTIVATED, PLAIN], timeout=DEADLINE_S)
    assert (await asyncio.to_thread(next, results)).classifier == PLAIN
    held.set()
    assert [each.classifier for each in await asyncio.to_thread(list, results)] == [ACTIVATED]


async def test_a_stream_that_is_left_midway_cancels_the_engines_work(
    sync: FantailSyncClient, engine: HoldingEngine, registry: Registry
) -> None:
    engine.hold(asks(ACTIVATED, registry))

    def leave() -> None:
        for _ in sync.stream_fan_out(HELLO, [ACTIVATED, PLAIN], timeout=DEADLINE_S):
            break

    await asyncio.to_thread(leave)
    await engine.ended(2)
    assert engine.cancelled == 1


async def test_errors_are_typed(sync: FantailSyncClient, engine: HoldingEngine) -> None:
    engine.fault = lambda request: OverloadedError("No.", NEVER_S)
    calls: list[Callable[[], object]] = [
        lambda: sync.classify(HELLO, PLAIN, timeout=DEADLINE_S),
        lambda: sync.fan_out(HELLO, timeout=DEADLINE_S),
        lambda: list(sync.stream_fan_out(HELLO, timeout=DEADLINE_S)),
    ]
    for call in calls:
        error = await failure_of(call)
        assert (error.code, error.retry_after_s) == (grpc.StatusCode.RESOURCE_EXHAUSTED, NEVER_S)


async def test_the_key_is_sent(serve: Serve, listener: Listener, tmp_path: Path) -> None:
    key, digest = new_key()
    (tmp_path / "keys.toml").write_text(f'[[key]]\nname = "support"\nsha256 = "{digest}"\nscopes = ["classify"]\n')
    address = await serve(keys=KeyRing(tmp_path / "keys.toml"))

    def call() -> pb.FanOutResponse:
        with FantailSyncClient(address, key=key) as client:
            return client.fan_out(HELLO, timeout=DEADLINE_S)

    await asyncio.to_thread(call)
    assert [call.caller for call in listener.calls] == ["support"]


async def test_a_live_conversation_is_followed(sync: FantailSyncClient, listener: Listener) -> None:
    def follow() -> list[list[str]]:
        with sync.follow([PLAIN], timeout=DEADLINE_S, id="mine") as live:
            first = live.tell(HELLO)
            assert live.tell([("agent", "hello")]) is None
            return [names(first), names(live.tell([], classifiers=()))]

    assert await asyncio.to_thread(follow) == [[PLAIN], NAMES]
    assert [(heard.id, len(heard.turns)) for heard in listener.heard] == [("mine", 1), ("mine", 2)]


async def test_a_refused_message_raises_and_the_conversation_goes_on(
    sync: FantailSyncClient, listener: Listener
) -> None:
    def follow() -> list[str]:
        with sync.follow(timeout=DEADLINE_S) as live:
            with pytest.raises(RpcError) as failure:
                live.tell(BLANK)
            assert failure.value.violations.keys() == {"turns[0].text"}
            return names(live.tell(HELLO))

    assert await asyncio.to_thread(follow) == NAMES
    assert len(listener.heard[0].turns) == 1


async def test_the_time_for_an_answer_is_sent(sync: FantailSyncClient, engine: HoldingEngine) -> None:
    engine.hold(lambda request: True)

    def follow() -> None:
        with sync.follow(timeout=DEADLINE_S) as live:
            live.tell(HELLO, timeout=0.1)

    assert (await failure_of(follow)).code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_leaving_a_conversation_with_an_error_raises_it_and_cancels_what_is_under_way(
    sync: FantailSyncClient, engine: HoldingEngine
) -> None:
    engine.hold(lambda request: True)
    begun = threading.Event()

    def follow() -> None:
        with sync.follow(timeout=NEVER_S) as live:
            in_thread(lambda: live.tell(HELLO))
            begun.wait()
            raise ValueError("the caller's own")

    following = in_thread(follow)
    await engine.begun(len(NAMES))
    begun.set()
    assert str(await asyncio.to_thread(following.exception, DEADLINE_S)) == "the caller's own"
    await engine.ended(len(NAMES))
    assert engine.cancelled == len(NAMES)


async def test_leaving_a_conversation_ends_its_call(sync: FantailSyncClient, classify: Classify) -> None:
    def follow() -> int:
        with sync.follow(timeout=DEADLINE_S) as live:
            live.tell(HELLO)
            return classify.admission.follows

    assert await asyncio.to_thread(follow) == 1
    assert classify.admission.follows == 0


async def test_threads_that_call_at_once_each_get_their_own_answers(
    sync: FantailSyncClient, engine: HoldingEngine
) -> None:
    engine.gate.clear()
    asked = [NAMES[index % len(NAMES)] for index in range(CALLERS)]
    calls = [in_thread(partial(sync.fan_out, HELLO, [name], timeout=DEADLINE_S)) for name in asked]
    await engine.begun(CALLERS)  # all are under way at once
    engine.gate.set()
    assert [names(await asyncio.wrap_future(call)) for call in calls] == [[name] for name in asked]


async def test_several_clients_talk_side_by_side(address: str) -> None:
    def call() -> list[str]:
        with FantailSyncClient(address) as one, FantailSyncClient(address) as other:
            return names(one.fan_out(HELLO, timeout=DEADLINE_S)) + names(other.fan_out(HELLO, timeout=DEADLINE_S))

    assert await asyncio.to_thread(call) == NAMES + NAMES


async def test_waiting_returns_once_the_server_serves(sync: FantailSyncClient) -> None:
    await asyncio.to_thread(sync.wait_until_serving, DEADLINE_S)


async def test_waiting_gives_up_after_its_time(serve: Serve, engine: HoldingEngine) -> None:
    engine.dead = True
    address = await serve()

    def wait() -> None:
        with FantailSyncClient(address) as client:
            client.wait_until_serving(0.3)

    with pytest.raises(TimeoutError):
        await asyncio.to_thread(wait)


async def test_closing_ends_the_clients_thread(address: str) -> None:
    def call() -> None:
        with FantailSyncClient(address) as client:
            client.fan_out(HELLO, timeout=DEADLINE_S)

    await asyncio.to_thread(call)
    assert "fantail-client" not in {thread.name for thread in threading.enumerate()}


UNDER_WAY: dict[str, Exception | None] = {"for the engine": None, "for another attempt": OverloadedError("No.", 10.0)}


@pytest.mark.parametrize("fault", UNDER_WAY.values(), ids=UNDER_WAY)
async def test_closing_ends_calls_that_other_threads_wait_for(
    address: str, engine: HoldingEngine, fault: Exception | None
) -> None:
    held = engine.hold(lambda request: True)
    engine.fault = lambda request: fault
    client = FantailSyncClient(address)
    call = in_thread(lambda: client.fan_out(HELLO, [PLAIN], timeout=DEADLINE_S))
    await engine.begun(1)
    if fault:
        held.set()
        await engine.ended(1)
        await asyncio.to_thread(client.list_classifiers, timeout=DEADLINE_S)  # so that the refusal has arrived before
    await asyncio.to_thread(client.__exit__, None, None, None)
    error = await asyncio.to_thread(call.exception, DEADLINE_S)
    assert isinstance(error, RpcError)
    assert error.code is grpc.StatusCode.CANCELLED


async def test_a_closed_client_makes_no_calls(address: str) -> None:
    def call() -> None:
        with FantailSyncClient(address) as client:
            pass
        client.fan_out(HELLO, timeout=DEADLINE_S)

    with pytest.raises(RuntimeError, match="the client is closed"):
        await asyncio.to_thread(call)


def test_a_client_of_before_a_fork_says_so_instead_of_waiting(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    client = FantailSyncClient(address)
    monkeypatch.setattr("os.getpid", lambda: -1)
    with pytest.raises(RuntimeError, match="of another process; make one in each"):
        client.list_classifiers(timeout=DEADLINE_S)
