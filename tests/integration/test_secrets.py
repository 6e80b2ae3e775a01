"""What callers confide to a server, keys and conversations, appears in no log, error, metric or span."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import prometheus_client
import pytest

from service.api.server import Listening, listen
from service.engine.fake_engine import FakeEngine
from service.errors import EngineError
from service.metrics import Metrics
from service.observer import Observers
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.prompt.builder import PromptBuilder
from service.registry.registry import Registry
from service.tracing import tracing
from tests.integration.collecting import Collector, collecting
from tests.integration.harness import DEADLINE_S, fan_out_request
from tests.integration.keyring import bearer, ring_of, sha256
from tests.support import classify_with

KEY, SPENT, EXPIRED, UNKNOWN = "key-of-support-4f1c", "key-of-billing-77aa", "key-of-old-c0de", "key-of-nobody-0bad"
KEYS = {
    KEY: 'name = "support"\nisolated = true',
    SPENT: 'name = "billing"\ncalls_per_second = 0.001',
    EXPIRED: 'name = "old"\nexpires = 2020-01-01T00:00:00Z',
}
SPOKEN = "my card is 4929-1111-2222-3333"
SAID = [pb.Turn(role=pb.ROLE_CUSTOMER, text=SPOKEN)]
SERVICE = "/fantail.v1.ClassificationService"


@dataclass
class Sent:
    """What is sent. `request`: a message, or bytes that are none; `times`: how often; `fault`: of the engine."""

    key: str
    request: Any
    times: int = 1
    fault: Exception | None = None
    metadata: tuple[tuple[str, str], ...] = field(default=())


FAN_OUT = fan_out_request(turns=SAID)
SENT = {
    "an answer": Sent(KEY, FAN_OUT),
    "a bad turn": Sent(KEY, fan_out_request(turns=[*SAID, pb.Turn(role=pb.ROLE_CUSTOMER, text=" ")])),
    "a turn too long": Sent(KEY, fan_out_request(turns=[pb.Turn(role=pb.ROLE_CUSTOMER, text=SPOKEN * 200)])),
    "half a message": Sent(KEY, FAN_OUT.SerializeToString()[:-3]),
    "an engine failure": Sent(KEY, FAN_OUT, fault=EngineError("The engine failed.")),
    "a defect": Sent(KEY, FAN_OUT, fault=RuntimeError("slot 17")),
    "too many calls": Sent(SPENT, FAN_OUT, times=2),
    "an expired key": Sent(EXPIRED, FAN_OUT),
    "an unknown key": Sent(UNKNOWN, FAN_OUT),
    "a key as request id": Sent(KEY, FAN_OUT, metadata=(("x-request-id", f"{KEY} {SPOKEN}"),)),
    "a key in a trace": Sent(KEY, FAN_OUT, metadata=(("traceparent", KEY), ("tracestate", f"k={SPOKEN}"))),
}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


async def end(channel: grpc.aio.Channel, sent: Sent) -> str:
    """Make the call; everything that the caller is told when it fails."""
    request = sent.request if isinstance(sent.request, bytes) else sent.request.SerializeToString()
    send = channel.unary_unary(f"{SERVICE}/FanOut")
    try:
        await send(request, timeout=DEADLINE_S, metadata=(*bearer(sent.key), *sent.metadata))
    except grpc.aio.AioRpcError as error:
        told = (error.code(), error.details(), error.debug_error_string())
        return f"{told} {error.initial_metadata()} {error.trailing_metadata()}"
    return "StatusCode.OK"


@pytest.mark.parametrize("sent", SENT.values(), ids=SENT)
async def test_neither_keys_nor_what_was_said_appear_outside_of_the_call(
    registry: Registry, builder: PromptBuilder, collector: Collector, tmp_path: Path, sent: Sent,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    metrics, engine = Metrics(), FakeEngine(fault=lambda request: sent.fault)
    listening = Listening("127.0.0.1:0", grace_seconds=0.0, keys=ring_of(tmp_path, KEYS))
    with tracing(collector.address) as traces:
        assert traces is not None
        classify = classify_with(registry, builder, engine, observer=Observers(metrics, traces))
        async with (
            listen(classify, listening, metrics, tracing=traces) as port,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            told = [await end(channel, sent) for _ in range(sent.times)]
    numbers = prometheus_client.generate_latest(metrics.registry).decode()
    shown = {
        "error": "".join(told), "log": caplog.text, "metrics": numbers, "spans": str(collector.received),
        "standard error": "".join(capfd.readouterr()),
    }  # fmt: skip
    assert "StatusCode." in shown["error"]
    assert "fantail_calls_total" in shown["metrics"]
    secret = [SPOKEN, *KEYS, UNKNOWN, *map(sha256, KEYS)]
    assert [(place, each) for place, text in shown.items() for each in secret if each in text] == []
