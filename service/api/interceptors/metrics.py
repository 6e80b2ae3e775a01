"""Counts calls, their durations and how they ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

import grpc
from google.rpc import error_details_pb2, status_pb2

from service.api.interceptors.around import AroundInterceptor, Context
from service.api.status import DETAILS_KEY
from service.metrics import Metrics

CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class MetricsInterceptor(AroundInterceptor):
    """The outermost: it sees every call, and what became of it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    @contextlib.asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        began = time.perf_counter()
        code, reason = "CANCELLED", ""  # unless it ends in another way
        with self._metrics.call_in_flight(method):
            try:
                yield
                code = "OK"
            except grpc.aio.AbortError:
                code, reason = name_of(context.code()), reason_of(context)
                raise
            except Exception:
                code = "UNKNOWN"
                raise
            finally:
                self._metrics.call_ended(method, code, reason, time.perf_counter() - began)


def name_of(code: object) -> str:
    """A status code's name, whether gRPC gives the code or its number."""
    if isinstance(code, grpc.StatusCode):
        return code.name
    return CODES.get(code, "UNKNOWN") if isinstance(code, int) else "UNKNOWN"


def reason_of(context: Context) -> str:
    """The reason in the details that a failed call ends with; empty when it ends without any."""
    info = error_details_pb2.ErrorInfo()
    for key, value in context.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            for detail in status_pb2.Status.FromString(value).details:
                detail.Unpack(info)  # leaves it as it is where the detail is another one
    return str(info.reason)
