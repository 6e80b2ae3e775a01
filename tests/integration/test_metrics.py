"""What the served metrics count of calls: by method, status and reason, how long they took, and what is in flight."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub

from service.admission import Admission
from service.classify import Classify
from service.client import FantailClient
from service.keys import KeyRing, new_key
from service.metrics import serve_metrics
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub as Stub
from service.prompt.builder import PromptBuilder
from service.registry.registry import Registry
from tests.integration.conftest import Serve
from tests.integration.harness import (
    DEADLINE_S,
    HELLO,
    NAMES,
    PLAIN,
    REFUND,
    WatchedEngine,
    classify_request,
    fan_out_request,
)
from tests.integration.scraping import Scrape, TellingMetrics, scrape
from tests.support import classify_with

SERVICE = "/fantail.v1.ClassificationService"
SPOKEN = "my card is 4929-1111-2222-3333"
MAX_CALLS = 3

Call = Callable[[Stub], Awaitable[Any]]
Look = Callable[[], Scrape]


@pytest.fixture
def metrics() -> TellingMetrics:
    return TellingMetrics()


@pytest.fixture
def admission(metrics: TellingMetrics) -> Admission:
    admission = Admission(MAX_CALLS, 1 << 40)
    metrics.watch_admission(admission)
    return admission


@pytest.fixture
def classify(
    registry: Registry, builder: PromptBuilder, engine: WatchedEngine, metrics: TellingMetrics, admission: Admission
) -> Classify:
    return classify_with(registry, builder, engine, admission, observer=metrics)


@pytest.fixture
def look(metrics: TellingMetrics) -> Iterator[Look]:
    with serve_metrics(metrics, "127.0.0.1:0") as port:
        assert port is not None
        yield lambda: scrape(port)


async def follow(stub: Stub) -> None:
    async def messages() -> AsyncIterator[pb.FollowRequest]:
        yield pb.FollowRequest(turns=REFUND)

    assert len([each async for each in stub.Follow(messages(), timeout=DEADLINE_S)]) == 1


async def stream(stub: Stub, *names: str) -> None:
    async for _ in stub.StreamFanOut(fan_out_request(*names), timeout=DEADLINE_S):
        pass


async def batch(stub: Stub) -> None:
    conversation = pb.Conversation(turns=REFUND)
    await stub.ClassifyBatch(pb.ClassifyBatchRequest(conversations=[conversation] * 2), timeout=DEADLINE_S)


def classify_of(name: str = PLAIN, **changes: Any) -> Call:
    return lambda stub: stub.Classify(classify_request(name, **changes), timeout=DEADLINE_S)


ANSWERED: dict[str, Call] = {
    "Classify": classify_of(),
    "FanOut": lambda stub: stub.FanOut(fan_out_request(), timeout=DEADLINE_S),
    "StreamFanOut": stream,
    "ClassifyBatch": batch,
    "Follow": follow,
    "ListClassifiers": lambda stub: stub.ListClassifiers(pb.ListClassifiersRequest(), timeout=DEADLINE_S),
}


@pytest.mark.parametrize(("method", "call"), ANSWERED.items(), ids=ANSWERED)
async def test_an_answered_call_is_counted_once_as_ok(
    stub: Stub, metrics: TellingMetrics, look: Look, method: str, call: Call
) -> None:
    await call(stub)
    await metrics.called()
    assert look().series("fantail_calls_total") == [
        ({"method": f"{SERVICE}/{method}", "code": "OK", "reason": ""}, 1.0)
    ]


@dataclass(frozen=True)
class Failing:
    """A call that fails. `engine`: what is changed of the engine; `listening`: of how the server listens."""

    call: Call
    method: str
    code: str
    reason: str
    engine: dict[str, Any] = field(default_factory=dict)
    listening: dict[str, Any] = field(default_factory=dict)


def defect(request: object) -> Exception:
    return RuntimeError(SPOKEN)


FAILING = {
    "an unknown classifier": Failing(classify_of("nobody"), "Classify", "NOT_FOUND", "CLASSIFIER_UNKNOWN"),
    "no turns": Failing(classify_of(turns=[]), "Classify", "INVALID_ARGUMENT", "CONVERSATION_EMPTY"),
    "a stream": Failing(
        lambda stub: stream(stub, PLAIN, PLAIN), "StreamFanOut", "INVALID_ARGUMENT", "CLASSIFIER_DUPLICATED"
    ),
    "a dead engine": Failing(classify_of(), "Classify", "UNAVAILABLE", "ENGINE_DEAD", {"dead": True}),
    "a defect": Failing(classify_of(), "Classify", "INTERNAL", "DEFECT", {"fault": defect}),
    "too late": Failing(
        classify_of(), "Classify", "DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED", listening={"longest_seconds": 0.0}
    ),
}


@pytest.mark.parametrize("failing", FAILING.values(), ids=FAILING)
async def test_a_failed_call_is_counted_under_its_code_and_reason(
    serve: Serve, engine: WatchedEngine, metrics: TellingMetrics, look: Look, failing: Failing
) -> None:
    for name, value in failing.engine.items():
        setattr(engine, name, value)
    async with grpc.aio.insecure_channel(await serve(**failing.listening)) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await failing.call(Stub(channel))
    await metrics.called()
    labels = {"method": f"{SERVICE}/{failing.method}", "code": failing.code, "reason": f"ERROR_REASON_{failing.reason}"}
    assert look().series("fantail_calls_total") == [(labels, 1.0)]


async def test_a_call_without_a_valid_key_is_counted(
    serve: Serve, metrics: TellingMetrics, look: Look, tmp_path: Path
) -> None:
    keys = keys_of(tmp_path, "support")[0]
    async with grpc.aio.insecure_channel(await serve(keys=keys)) as channel:
        with pytest.raises(grpc.aio.AioRpcError):
            await classify_of()(Stub(channel))
    await metrics.called()
    assert look().sum("fantail_calls_total", code="UNAUTHENTICATED", reason="ERROR_REASON_KEY_INVALID") == 1


@pytest.mark.parametrize(("method", "requests"), [("Classify", 1), ("FanOut", len(NAMES)), ("StreamFanOut", 4)])
async def test_a_cancelled_call_is_counted_as_cancelled(
    stub: Stub,
    engine: WatchedEngine,
    metrics: TellingMetrics,
    look: Look,
    method: str,
    requests: int,
) -> None:
    engine.gate.clear()
    call = asyncio.ensure_future(ANSWERED[method](stub))
    await engine.begun(requests)
    call.cancel()
    await metrics.called()
    labels = {"method": f"{SERVICE}/{method}", "code": "CANCELLED", "reason": ""}
    assert look().series("fantail_calls_total") == [(labels, 1.0)]


async def test_a_stream_given_up_after_its_first_result_is_counted_as_cancelled(
    stub: Stub, engine: WatchedEngine, metrics: TellingMetrics, look: Look
) -> None:
    engine.gate.clear()
    call = stub.StreamFanOut(fan_out_request("nobody", PLAIN), timeout=DEADLINE_S)
    assert (await call.read()).classifier == "nobody"
    await engine.begun(1)
    call.cancel()
    await metrics.called()
    assert look().by("code", "fantail_calls_total") == {"CANCELLED": 1}


async def test_health_checks_are_counted(health: HealthStub, look: Look) -> None:
    await health.Check(HealthCheckRequest(), timeout=DEADLINE_S)
    assert look().sum("fantail_calls_total", method="/grpc.health.v1.Health/Check", code="OK") == 1


async def test_methods_that_are_not_there_make_no_series(channel: grpc.aio.Channel, look: Look) -> None:
    for number in range(3):
        with pytest.raises(grpc.aio.AioRpcError):
            await channel.unary_unary(f"{SERVICE}/Guess{number}")(b"", timeout=DEADLINE_S)
    assert look().series("fantail_calls_total") == []


async def test_durations_are_counted_by_method_and_code(stub: Stub, metrics: TellingMetrics, look: Look) -> None:
    await ANSWERED["FanOut"](stub)
    for _ in range(2):
        with pytest.raises(grpc.aio.AioRpcError):
            await classify_of("nobody")(stub)
    await metrics.called(3)
    seen = look()
    for method, (code, count) in {"FanOut": ("OK", 1), "Classify": ("NOT_FOUND", 2)}.items():
        labels = {"method": f"{SERVICE}/{method}", "code": code}
        assert seen.sum("fantail_call_seconds_count", **labels) == count
        assert 0 < seen.sum("fantail_call_seconds_sum", **labels) < count * DEADLINE_S
    assert seen.sum("fantail_call_seconds_count") == 3


async def test_what_is_in_flight_is_seen_and_returns_to_zero(
    client: FantailClient, engine: WatchedEngine, look: Look
) -> None:
    engine.gate.clear()
    calls = [asyncio.create_task(client.fan_out(HELLO, timeout=DEADLINE_S)) for _ in range(2)]
    await engine.begun(2 * len(NAMES))
    before = look()
    engine.gate.set()
    await asyncio.gather(*calls)
    after = look()
    labels = {"method": f"{SERVICE}/FanOut"}
    assert [each.sum("fantail_calls_in_flight", **labels) for each in (before, after)] == [2, 0]
    assert [each.sum("fantail_calls_admitted") for each in (before, after)] == [2, 0]
    assert before.sum("fantail_tokens_in_flight") > 0
    assert after.sum("fantail_tokens_in_flight") == 0


async def test_what_was_in_flight_returns_to_zero_after_calls_are_given_up(
    client: FantailClient, engine: WatchedEngine, metrics: TellingMetrics, look: Look
) -> None:
    engine.gate.clear()
    call = asyncio.create_task(client.fan_out(HELLO, timeout=DEADLINE_S))
    await engine.begun(len(NAMES))
    call.cancel()
    await metrics.called()
    for name in ("fantail_calls_in_flight", "fantail_calls_admitted", "fantail_tokens_in_flight"):
        assert look().sum(name) == 0, name


async def test_a_live_conversation_is_seen_while_it_lasts(stub: Stub, look: Look) -> None:
    call = stub.Follow(timeout=DEADLINE_S)
    await call.write(pb.FollowRequest(turns=REFUND))
    await call.read()
    during = look()
    await call.done_writing()
    assert await call.read() == grpc.aio.EOF
    assert [each.sum("fantail_follows") for each in (during, look())] == [1, 0]
    assert during.sum("fantail_follows_held_bytes") > look().sum("fantail_follows_held_bytes") == 0


@pytest.mark.parametrize("over", [0, 1], ids=["at the limit", "over the limit"])
async def test_calls_turned_away_are_told_from_others(
    client: FantailClient, stub: Stub, engine: WatchedEngine, look: Look, over: int
) -> None:
    engine.gate.clear()
    calls = [asyncio.create_task(client.fan_out(HELLO, timeout=DEADLINE_S)) for _ in range(MAX_CALLS - 1 + over)]
    await engine.begun(len(calls) * len(NAMES))
    last = asyncio.ensure_future(ANSWERED["ListClassifiers"](stub))
    failure = (await asyncio.gather(last, return_exceptions=True))[0]
    engine.gate.set()
    await asyncio.gather(*calls)
    assert isinstance(failure, grpc.aio.AioRpcError) == bool(over)
    turned_away = look().sum("fantail_calls_total", code="RESOURCE_EXHAUSTED", reason="ERROR_REASON_OVERLOADED")
    assert (turned_away, look().sum("fantail_calls_admitted_limit")) == (over, MAX_CALLS)


async def test_fan_outs_are_counted_by_the_callers_key(serve: Serve, look: Look, tmp_path: Path) -> None:
    keys, presented = keys_of(tmp_path, "support", "audit")
    address = await serve(keys=keys)
    for key in (presented["support"], presented["support"], presented["audit"]):
        async with FantailClient(address, key=key) as client:
            await client.fan_out(HELLO, timeout=DEADLINE_S)
    assert look().by("caller", "fantail_fan_outs_total") == {"support": 2, "audit": 1}


def keys_of(folder: Path, *names: str) -> tuple[KeyRing, dict[str, str]]:
    """A ring of new keys under these names, and what their callers present."""
    made = {name: new_key() for name in names}
    entries = [
        f'[[key]]\nname = "{name}"\nsha256 = "{sha256}"\nscopes = ["classify"]\n' for name, (_, sha256) in made.items()
    ]
    (folder / "keys.toml").write_text("".join(entries), encoding="utf-8")
    return KeyRing(folder / "keys.toml"), {name: key for name, (key, _) in made.items()}
