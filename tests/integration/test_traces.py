"""Traces as a collector gets them over OTLP: a span per call below the caller's own, its stages below it, no texts."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest
from grpc_health.v1.health_pb2_grpc import HealthStub
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from service.api.server import Listening, listen
from service.classify import Classify
from service.keys import KeyRing, new_key
from service.metrics import Metrics
from service.observer import Observers
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.prompt.builder import PromptBuilder
from service.registry.registry import Registry
from service.tracing import tracing
from tests.integration.collecting import Collector, attributes, collecting
from tests.integration.harness import (
    DEADLINE_S,
    NAMES,
    PLAIN,
    REFUND,
    WatchedEngine,
    classify_request,
    fan_out_request,
)
from tests.integration.scraping import TellingMetrics
from tests.support import classify_with

SERVICE = "fantail.v1.ClassificationService"
STAGES = ["prompt", "engine", "scoring"]
SPOKEN = "my card is 4929-1111-2222-3333"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
def metrics() -> TellingMetrics:
    return TellingMetrics()


@dataclass(frozen=True)
class Tracer:
    """Serves with traces to a collector."""

    collector: Collector
    registry: Registry
    builder: PromptBuilder
    engine: WatchedEngine
    metrics: Metrics

    @contextlib.asynccontextmanager
    async def serving(self, **changes: Any) -> AsyncIterator[grpc.aio.Channel]:
        """A channel to a server; at the end everything is sent. `changes`: of how the server listens."""
        listening = Listening("127.0.0.1:0", grace_seconds=0.0, **changes)
        with tracing(self.collector.address or None) as traces:
            observer = Observers(self.metrics, *([traces] if traces else []))
            classify: Classify = classify_with(self.registry, self.builder, self.engine, observer=observer)
            async with (
                listen(classify, listening, self.metrics, tracing=traces) as port,
                grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
            ):
                yield channel

    async def fan_out(self, *metadata: tuple[str, str]) -> pb.FanOutResponse:
        async with self.serving() as channel:
            stub = ClassificationServiceStub(channel)
            response: pb.FanOutResponse = await stub.FanOut(fan_out_request(), metadata=metadata, timeout=DEADLINE_S)
            return response


@pytest.fixture
def tracer(
    collector: Collector, registry: Registry, builder: PromptBuilder, engine: WatchedEngine, metrics: TellingMetrics
) -> Tracer:
    return Tracer(collector, registry, builder, engine, metrics)


async def test_a_calls_span_is_below_the_callers(tracer: Tracer, collector: Collector) -> None:
    await tracer.fan_out(("traceparent", f"00-{TRACE}-{PARENT}-01"))
    (call,) = collector.calls()
    assert (call.trace_id.hex(), call.parent_span_id.hex()) == (TRACE, PARENT)
    assert call.name == f"{SERVICE}/FanOut"


@pytest.mark.parametrize("given", [[], [("traceparent", f"00-{TRACE}-nonsense-01")]], ids=["none", "malformed"])
async def test_a_call_without_a_usable_trace_begins_one(
    tracer: Tracer, collector: Collector, given: list[tuple[str, str]]
) -> None:
    await tracer.fan_out(*given)
    (call,) = collector.calls()
    assert call.parent_span_id == b""
    assert call.trace_id.hex() not in (TRACE, "0" * 32)


async def test_a_trace_that_the_caller_does_not_record_is_not_recorded(
    tracer: Tracer, collector: Collector, engine: WatchedEngine
) -> None:
    await tracer.fan_out(("traceparent", f"00-{TRACE}-{PARENT}-00"))
    assert collector.spans == []
    assert {request.trace_headers["traceparent"][-3:] for request in engine.requests} == {"-00"}


async def test_the_stages_are_spans_below_the_calls_one_after_the_other(tracer: Tracer, collector: Collector) -> None:
    response = await tracer.fan_out()
    (call,) = collector.calls()
    assert collector.below(call) == STAGES
    prompt, engine, scoring = (next(span for span in collector.spans if span.name == name) for name in STAGES)
    assert {span.trace_id for span in collector.spans} == {call.trace_id}
    assert (prompt.end_time_unix_nano, engine.end_time_unix_nano) == (
        engine.start_time_unix_nano,
        scoring.start_time_unix_nano,
    )
    took = prompt.end_time_unix_nano - prompt.start_time_unix_nano
    assert took == pytest.approx(response.durations.prompt.ToNanoseconds(), abs=1)  # rounded to whole nanoseconds twice


async def test_requests_to_the_engine_carry_the_trace_of_the_call(
    tracer: Tracer, collector: Collector, engine: WatchedEngine
) -> None:
    await tracer.fan_out(("traceparent", f"00-{TRACE}-{PARENT}-01"), ("tracestate", "vendor=value"))
    (call,) = collector.calls()
    assert len(engine.requests) == len(NAMES)
    for request in engine.requests:
        assert request.trace_headers == {
            "traceparent": f"00-{TRACE}-{call.span_id.hex()}-01",
            "tracestate": "vendor=value",
        }


async def test_without_a_collector_requests_to_the_engine_carry_no_trace(tracer: Tracer, engine: WatchedEngine) -> None:
    tracer.collector.address = ""
    await tracer.fan_out(("traceparent", f"00-{TRACE}-{PARENT}-01"))
    assert [dict(request.trace_headers) for request in engine.requests] == [{}] * len(NAMES)


async def test_calls_side_by_side_keep_their_traces_apart(
    tracer: Tracer, collector: Collector, engine: WatchedEngine
) -> None:
    traces = [f"{number:032x}" for number in range(1, 9)]
    engine.gate.clear()
    async with tracer.serving() as channel:
        stub = ClassificationServiceStub(channel)
        calls = [
            stub.FanOut(fan_out_request(), metadata=[("traceparent", f"00-{trace}-{PARENT}-01")], timeout=DEADLINE_S)
            for trace in traces
        ]
        await engine.begun(len(traces) * len(NAMES))
        engine.gate.set()
        await asyncio.gather(*calls)
    assert sorted(call.trace_id.hex() for call in collector.calls()) == traces
    assert [collector.below(call) for call in collector.calls()] == [STAGES] * len(traces)


async def test_streams_batches_and_live_conversations_are_spans_too(tracer: Tracer, collector: Collector) -> None:
    async def messages() -> AsyncIterator[pb.FollowRequest]:
        for _ in range(2):
            yield pb.FollowRequest(turns=REFUND)

    request = pb.ClassifyBatchRequest(conversations=[pb.Conversation(turns=REFUND)] * 3)
    async with tracer.serving() as channel:
        stub = ClassificationServiceStub(channel)
        assert [each async for each in stub.StreamFanOut(fan_out_request(), timeout=DEADLINE_S)]
        assert [each async for each in stub.Follow(messages(), timeout=DEADLINE_S)]
        await stub.ClassifyBatch(request, timeout=DEADLINE_S)
    fan_outs = {"StreamFanOut": 1, "Follow": 2, "ClassifyBatch": 3}
    found = {call.name: sorted(collector.below(call)) for call in collector.calls()}
    assert found == {f"{SERVICE}/{method}": sorted(STAGES * times) for method, times in fan_outs.items()}


async def test_health_checks_are_no_spans(tracer: Tracer, collector: Collector) -> None:
    async with tracer.serving() as channel:
        await HealthStub(channel).Check(HealthCheckRequest(), timeout=DEADLINE_S)
    assert collector.spans == []


async def test_a_span_says_who_called_and_under_which_id(tracer: Tracer, collector: Collector, tmp_path: Path) -> None:
    key, sha256 = new_key()
    path = tmp_path / "keys.toml"
    path.write_text(f'[[key]]\nname = "support"\nsha256 = "{sha256}"\nscopes = ["classify"]\n', encoding="utf-8")
    async with tracer.serving(keys=KeyRing(path)) as channel:
        metadata = [("authorization", f"Bearer {key}"), ("x-request-id", "call-7")]
        await ClassificationServiceStub(channel).FanOut(fan_out_request(), metadata=metadata, timeout=DEADLINE_S)
    (call,) = collector.calls()
    assert attributes(call) == {
        "rpc.system.name": "grpc",
        "rpc.method": f"{SERVICE}/FanOut",
        "rpc.response.status_code": "OK",
        "fantail.request_id": "call-7",
        "fantail.caller": "support",
    }
    assert key not in str(collector.received)


def defect(request: object) -> Exception:
    return RuntimeError(SPOKEN)


ENDINGS: dict[str, tuple[dict[str, Any], dict[str, Any], str, bool]] = {
    "answered": ({}, {"name": PLAIN}, "OK", False),
    "a callers mistake": ({}, {"name": "nobody"}, "NOT_FOUND", False),
    "an invalid request": ({}, {"name": PLAIN, "turns": []}, "INVALID_ARGUMENT", False),
    "a dead engine": ({"dead": True}, {"name": PLAIN}, "UNAVAILABLE", True),
    "a defect": ({"fault": defect}, {"name": PLAIN}, "INTERNAL", True),
}


@pytest.mark.parametrize(("engine_has", "asked", "code", "ours"), ENDINGS.values(), ids=ENDINGS)
async def test_a_span_says_how_the_call_ended(
    tracer: Tracer,
    collector: Collector,
    engine: WatchedEngine,
    engine_has: dict[str, Any],
    asked: dict[str, Any],
    code: str,
    ours: bool,
) -> None:
    async with tracer.serving() as channel:
        for name, value in engine_has.items():
            setattr(engine, name, value)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await ClassificationServiceStub(channel).Classify(classify_request(**asked), timeout=DEADLINE_S)
    (call,) = collector.calls()
    assert attributes(call)["rpc.response.status_code"] == code
    assert call.status.code == (Status.STATUS_CODE_ERROR if ours else Status.STATUS_CODE_UNSET)
    assert attributes(call).get("error.type") == (code if ours else None)


@pytest.mark.parametrize("method", ["FanOut", "StreamFanOut"])
async def test_a_span_of_a_call_given_up_says_so(
    tracer: Tracer, collector: Collector, engine: WatchedEngine, metrics: TellingMetrics, method: str
) -> None:
    engine.gate.clear()
    async with tracer.serving() as channel:
        call = getattr(ClassificationServiceStub(channel), method)(fan_out_request(), timeout=DEADLINE_S)
        await engine.begun(len(NAMES))
        call.cancel()
        await metrics.called()
    (span,) = collector.calls()
    assert attributes(span)["rpc.response.status_code"] == "CANCELLED"
    assert collector.below(span) == []


@pytest.mark.parametrize("fault", [None, defect], ids=["answered", "a defect"])
async def test_no_span_holds_what_was_said(
    tracer: Tracer, collector: Collector, engine: WatchedEngine, fault: Any
) -> None:
    engine.fault = fault or engine.fault
    turns = [pb.Turn(role=pb.ROLE_CUSTOMER, text=SPOKEN)]
    async with tracer.serving() as channel:
        stub = ClassificationServiceStub(channel)
        for call in (stub.FanOut(fan_out_request(turns=turns)), stub.Classify(classify_request(SPOKEN, turns))):
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call
    assert len(collector.calls()) == 2
    assert SPOKEN not in str(collector.received)
    assert [event for span in collector.spans for event in span.events] == []


async def test_spans_name_the_service(tracer: Tracer, collector: Collector) -> None:
    await tracer.fan_out()
    (resource,) = {str(each.resource) for request in collector.received for each in request.resource_spans}
    assert 'string_value: "fantail"' in resource


async def test_a_collector_that_is_not_there_disturbs_no_call(tracer: Tracer) -> None:
    tracer.collector.address = "http://127.0.0.1:1"
    response = await tracer.fan_out()
    assert {result.WhichOneof("outcome") for result in response.results} == {"classification"}
