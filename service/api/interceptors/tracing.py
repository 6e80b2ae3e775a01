"""A span for each call, and the trace context for everything below it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from google.rpc import code_pb2

from service.api.interceptors.around import OURS, AroundInterceptor, Context
from service.api.status import DEFECT, rpc_status
from service.call import changed_call, current_call
from service.errors import FantailError
from service.tracing import Tracing


class TracingInterceptor(AroundInterceptor):
    """`tracing`: None makes no spans. Stands inside the error interceptor, so it sees errors and not yet statuses."""

    def __init__(self, tracing: Tracing | None) -> None:
        self._tracing = tracing

    @contextlib.asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        if self._tracing is None or not method.startswith(OURS):
            yield
            return
        call, code = current_call(), int(code_pb2.CANCELLED)  # unless it ends in another way
        about = {"fantail.request_id": call.request_id, "fantail.caller": call.caller}
        with self._tracing.call(method.lstrip("/"), trace_headers(context), about) as (span, below):
            try:
                with changed_call(trace_headers=below):
                    yield
                code = code_pb2.OK
            except Exception as error:
                ours = error if isinstance(error, FantailError) else DEFECT
                code = rpc_status(ours, call.request_id).code
                raise
            finally:
                span.ended(code_pb2.Code.Name(code))


def trace_headers(context: Context) -> dict[str, str]:
    """The W3C trace context among the call's metadata."""
    return {
        key: value
        for key, value in context.invocation_metadata() or ()
        if key in ("traceparent", "tracestate") and isinstance(value, str)
    }
