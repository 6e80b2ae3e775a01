"""Traces of calls over OTLP, joined to the caller's and to the engine's own. Only this place knows OpenTelemetry."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from service.domain import StageSeconds
from service.observer import Observer

SERVICE_NAME = "fantail"

EXPORT_SECONDS = 3.0
"""How long a collector may take; a stopping server waits no longer for one that is not there."""

OUR_FAULT = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
"""Statuses that make a server's span a failed one; the others are the caller's doing (OpenTelemetry's conventions)."""


@dataclass(frozen=True, slots=True)
class CallSpan:
    """A call's span while the call lasts."""

    span: Any

    def ended(self, code: str) -> None:
        """Say how the call ended: the name of its status code."""
        from opentelemetry.trace import StatusCode

        self.span.set_attribute("rpc.response.status_code", code)
        if code in OUR_FAULT:
            self.span.set_attribute("error.type", code)
            self.span.set_status(StatusCode.ERROR)


class Tracing(Observer):
    """Spans of calls and, below them, of their stages. Made by `tracing`."""

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer

    @contextlib.contextmanager
    def call(
        self, method: str, headers: Mapping[str, str], about: Mapping[str, str]
    ) -> Iterator[tuple[CallSpan, Mapping[str, str]]]:
        """A span for a call, below the one that `headers` name; yields it, and the headers for what is below it.

        `method`: with its service, as in `package.Service/Method`; `about`: further attributes.
        """
        from opentelemetry.propagators.textmap import DefaultGetter
        from opentelemetry.trace import SpanKind
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        propagator = TraceContextTextMapPropagator()
        above = propagator.extract(headers, getter=DefaultGetter())
        attributes = {"rpc.system.name": "grpc", "rpc.method": method, **about}
        with self._tracer.start_as_current_span(
            method,
            above,
            SpanKind.SERVER,
            attributes,
            # An exception's text may hold what customers write, and belongs in no span.
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            below: dict[str, str] = {}
            propagator.inject(below)
            yield CallSpan(span), below

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
    exporter = OTLPSpanExporter(endpoint, insecure=endpoint.startswith("http://"), timeout=EXPORT_SECONDS)
    provider.add_span_processor(BatchSpanProcessor(exporter))
    try:
        yield Tracing(provider.get_tracer(SERVICE_NAME))
    finally:
        provider.shutdown()
