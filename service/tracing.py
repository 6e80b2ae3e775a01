"""Traces of calls over OTLP, joined to the caller's and to the engine's own. Only this place knows OpenTelemetry."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

from service.domain import StageSeconds
from service.observer import Observer

SERVICE_NAME = "fantail"


class Tracing(Observer):
    """Spans of calls and, below them, of their stages. Made by `tracing`."""

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer

    @contextlib.contextmanager
    def call(self, method: str, headers: Mapping[str, str]) -> Iterator[tuple[Any, Mapping[str, str]]]:
        """A span for a call, below the one that `headers` name; yields it, and the headers for what is below it."""
        from opentelemetry.propagators.textmap import DefaultGetter
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        propagator = TraceContextTextMapPropagator()
        above = propagator.extract(headers, getter=DefaultGetter())
        with self._tracer.start_as_current_span(
            method.lstrip("/"), above, SpanKind.SERVER, {"rpc.system": "grpc", "rpc.method": method}
        ) as span:
            below: dict[str, str] = {}
            propagator.inject(below)
            yield span, below

    def finished(self, stages: StageSeconds) -> None:
        """Spans of the stages, which are over: they end now, one after the other."""
        end = time.time_ns()
        begin = end - round(1e9 * stages.total)
        for name in ("prompt", "engine", "scoring"):
            until = begin + round(1e9 * getattr(stages, name))
            self._tracer.start_span(name, start_time=begin).end(end_time=until)
            begin = until


@contextlib.contextmanager
def tracing(endpoint: str | None) -> Iterator[Tracing | None]:
    """Send spans to an OTLP/gRPC endpoint until the end, where the last ones are flushed; None: no tracing."""
    if endpoint is None:
        yield None
        return
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(resource=Resource.create({"service.name": SERVICE_NAME}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, insecure=endpoint.startswith("http://"))))
    try:
        yield Tracing(provider.get_tracer(SERVICE_NAME))
    finally:
        provider.shutdown()
