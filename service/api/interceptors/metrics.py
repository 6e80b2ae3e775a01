"""Counts calls, their durations and how they ended."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator

import grpc

from service.api.interceptors.around import AroundInterceptor, Context
from service.metrics import Metrics

CODES = {code.value[0]: code.name for code in grpc.StatusCode}


class MetricsInterceptor(AroundInterceptor):
    """The outermost: it sees every call, and what became of it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    @contextlib.asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        began = time.perf_counter()
        code = "CANCELLED"  # unless it ends in another way
        with self._metrics.call_in_flight(method):
            try:
                yield
                code = "OK"
            except grpc.aio.AbortError:
                code = name_of(context.code())
                raise
            except Exception:
                code = "UNKNOWN"
                raise
            finally:
                self._metrics.call_ended(method, code, time.perf_counter() - began)


def name_of(code: object) -> str:
    """A status code's name, whether gRPC gives the code or its number."""
    if isinstance(code, grpc.StatusCode):
        return code.name
    return CODES.get(code, "UNKNOWN") if isinstance(code, int) else "UNKNOWN"
