"""A collector of traces: the other end of OTLP over gRPC, which keeps what it is sent."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Collector(TraceServiceServicer):
    """Keeps everything that is sent to it. `address`: where it listens, empty for nowhere."""

    address: str = ""
    received: list[ExportTraceServiceRequest] = field(default_factory=list)
    _more: threading.Condition = field(default_factory=threading.Condition)

    def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
        with self._more:
            self.received.append(request)
            self._more.notify_all()
        return ExportTraceServiceResponse()

    def wait_for(self, enough: Callable[[list[Span]], bool], seconds: float) -> list[Span]:
        """The spans once there are enough of them, or those there are after so many seconds; blocks."""
        with self._more:
            self._more.wait_for(lambda: enough(self.spans), seconds)
            return self.spans

    @property
    def spans(self) -> list[Span]:
        return [
            span
            for request in self.received
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def calls(self) -> list[Span]:
        return [span for span in self.spans if span.kind == Span.SPAN_KIND_SERVER]

    def below(self, call: Span) -> list[str]:
        """Names of the spans right below one, as they began."""
        below = [span for span in self.spans if span.parent_span_id == call.span_id]
        return [span.name for span in sorted(below, key=lambda span: span.start_time_unix_nano)]


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free loopback port, in threads of its own: a server that ends blocks until it has been heard."""
    collector, server = Collector(), grpc.server(ThreadPoolExecutor(2))
    add_TraceServiceServicer_to_server(collector, server)
    collector.address = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(None).wait()


def attributes(span: Span) -> dict[str, str]:
    return {each.key: each.value.string_value for each in span.attributes}
