"""A span for each call, and the trace context for everything below it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import grpc

from service.api.interceptors.around import OURS, AroundInterceptor, Context
from service.call import changed_call, current_call
from service.tracing import Tracing


class TracingInterceptor(AroundInterceptor):
    """`tracing`: None makes no spans, and hands the caller's trace context on as it came."""

    def __init__(self, tracing: Tracing | None) -> None:
        self._tracing = tracing

    @contextlib.asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        if self._tracing is None or not method.startswith(OURS):
            yield
            return
        call = current_call()
        with self._tracing.call(method, trace_headers(context)) as (span, below):
            span.set_attributes({"fantail.request_id": call.request_id, "fantail.caller": call.caller})
            try:
                with changed_call(trace_headers=below):
                    yield
            except grpc.aio.AbortError:
                span.set_attribute("rpc.grpc.status_code", str(context.code()))
                raise


def trace_headers(context: Context) -> dict[str, str]:
    """The W3C trace context among the call's metadata."""
    return {
        key: value
        for key, value in context.invocation_metadata() or ()
        if key in ("traceparent", "tracestate") and isinstance(value, str)
    }
