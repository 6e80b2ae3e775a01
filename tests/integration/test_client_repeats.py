"""When the client makes a call again, how often, and when not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from service.client import FantailClient, RpcError
from service.client.client import ATTEMPTS
from service.engine.base import ScoringRequest
from service.errors import EngineDeadError, EngineError, OverloadedError, RateLimitedError
from tests.integration.harness import DEADLINE_S, HELLO, PLAIN, WatchedEngine
from tests.integration.listener import Listener

DELAY_S = 0.2


async def _stream(client: FantailClient, timeout: float) -> list[Any]:
    return [each async for each in client.stream_fan_out(HELLO, [PLAIN], timeout=timeout)]


Ask = Callable[[FantailClient, float], Awaitable[Any]]
UNARY: dict[str, Ask] = {
    "classify": lambda client, timeout: client.classify(HELLO, PLAIN, timeout=timeout),
    "fan_out": lambda client, timeout: client.fan_out(HELLO, [PLAIN], timeout=timeout),
}
ASKING = UNARY | {"stream_fan_out": _stream}
BY_UNARY = pytest.mark.parametrize("ask", UNARY.values(), ids=UNARY)
BY_ASKING = pytest.mark.parametrize("ask", ASKING.values(), ids=ASKING)
FAILURES = pytest.mark.parametrize(
    ("failures", "answered"),
    [(ATTEMPTS - 2, True), (ATTEMPTS - 1, True), (ATTEMPTS, False)],
    ids=["limit-1", "limit", "limit+1"],
)


def fail(engine: WatchedEngine, times: int, error: Exception) -> None:
    """Let so many attempts fail; the next one is answered."""
    errors = iter([error] * times)
    engine.fault = lambda request: next(errors, None)


async def failure_of(work: Awaitable[object]) -> RpcError:
    with pytest.raises(RpcError) as failure:
        await work
    return failure.value


@FAILURES
@BY_ASKING
async def test_an_unavailable_server_is_asked_again_until_the_attempts_are_spent(
    client: FantailClient, engine: WatchedEngine, ask: Ask, failures: int, answered: bool
) -> None:
    fail(engine, failures, EngineDeadError("No."))
    if answered:
        assert await ask(client, DEADLINE_S)
    else:
        assert (await failure_of(ask(client, DEADLINE_S))).code is grpc.StatusCode.UNAVAILABLE
    assert len(engine.requests) == min(failures + 1, ATTEMPTS)


@FAILURES
@pytest.mark.parametrize("kind", [OverloadedError, RateLimitedError])
@BY_UNARY
async def test_an_overloaded_server_is_asked_again_until_the_attempts_are_spent(
    client: FantailClient, engine: WatchedEngine, ask: Ask, kind: type[OverloadedError], failures: int, answered: bool
) -> None:
    fail(engine, failures, kind("No.", 0.01))
    if answered:
        assert await ask(client, DEADLINE_S)
    else:
        error = await failure_of(ask(client, DEADLINE_S))
        assert (error.code, error.retry_after_s) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 0.01)
    assert len(engine.requests) == min(failures + 1, ATTEMPTS)


@BY_UNARY
async def test_the_delay_that_the_server_asks_for_is_kept_before_each_attempt(
    client: FantailClient, engine: WatchedEngine, ask: Ask
) -> None:
    moments: list[float] = []
    delays = iter([DELAY_S, DELAY_S / 2])

    def fault(request: ScoringRequest) -> Exception | None:
        moments.append(asyncio.get_running_loop().time())
        return OverloadedError("No.", delay) if (delay := next(delays, None)) else None

    engine.fault = fault
    await ask(client, DEADLINE_S)
    first, second, third = moments
    assert second - first >= DELAY_S
    assert third - second >= DELAY_S / 2


async def test_all_attempts_share_the_deadline(
    client: FantailClient, engine: WatchedEngine, listener: Listener
) -> None:
    fail(engine, 1, OverloadedError("No.", 1.0))
    await client.fan_out(HELLO, timeout=DEADLINE_S)
    first, second = (call.deadline.at for call in listener.calls)
    assert second - first < 0.5  # not the delay later; gRPC rounds deadlines


@pytest.mark.parametrize("delay_s", [DEADLINE_S, DEADLINE_S + 1, 3600.0], ids=str)
@BY_UNARY
async def test_a_delay_for_which_the_deadline_leaves_no_room_is_not_waited_for(
    client: FantailClient, engine: WatchedEngine, ask: Ask, delay_s: float
) -> None:
    fail(engine, 1, OverloadedError("No.", delay_s))
    assert (await failure_of(ask(client, DEADLINE_S))).retry_after_s == delay_s
    assert len(engine.requests) == 1


@BY_UNARY
async def test_an_overloaded_server_that_names_no_delay_is_not_asked_again(
    client: FantailClient, engine: WatchedEngine, ask: Ask
) -> None:
    error = OverloadedError("No.", 0.01)
    error.retry_after_s = None
    fail(engine, 1, error)
    assert (await failure_of(ask(client, DEADLINE_S))).retry_after_s is None
    assert len(engine.requests) == 1


async def test_a_stream_from_an_overloaded_server_is_left_to_its_caller(
    client: FantailClient, engine: WatchedEngine
) -> None:
    fail(engine, 1, OverloadedError("No.", 0.01))
    assert (await failure_of(_stream(client, DEADLINE_S))).retry_after_s == 0.01
    assert len(engine.requests) == 1


FINAL = {"a defect": ValueError("No."), "the engine failed": EngineError("No.")}


@pytest.mark.parametrize("error", FINAL.values(), ids=FINAL)
async def test_other_failures_are_not_repeated(client: FantailClient, engine: WatchedEngine, error: Exception) -> None:
    fail(engine, 1, error)
    assert (await failure_of(client.classify(HELLO, PLAIN, timeout=DEADLINE_S))).code is grpc.StatusCode.INTERNAL
    assert len(engine.requests) == 1


async def test_a_refused_request_is_not_repeated(client: FantailClient, listener: Listener) -> None:
    error = await failure_of(client.fan_out([("customer", "word " * 1000)], timeout=DEADLINE_S))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert len(listener.heard) == 1
