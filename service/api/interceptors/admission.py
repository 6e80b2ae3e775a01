"""Takes a permit before work: calls beyond the bound are turned away at once. Knows which calls were accepted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from service.admission import Admission
from service.api.interceptors.around import BATCH, LONG_LIVED, OPERATING, OURS, AroundInterceptor, Context


class AdmissionInterceptor(AroundInterceptor):
    """Holds a permit for as long as the call lasts. Health, reflection and the operator always get through."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._accepted = 0
        self._ended = asyncio.Event()

    @contextlib.asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        if not method.startswith(OURS) or OPERATING in method:
            yield
            return
        with self._permit(method):
            self._accepted += 1
            context.add_done_callback(self._end)  # type: ignore[arg-type]  # the stubs want a class
            yield

    async def idle(self) -> None:
        """Return once every call that was accepted has ended: later than its permit, as its answer has to be sent."""
        while self._accepted:
            self._ended.clear()
            await self._ended.wait()

    def _end(self, context: Context) -> None:
        self._accepted -= 1
        self._ended.set()

    def _permit(self, method: str) -> contextlib.AbstractContextManager[None]:
        if method.endswith(LONG_LIVED):
            # It takes a permit for each of its messages; the stream itself has a bound of its own.
            return self._admission.follow()
        return self._admission.batch() if method.endswith(BATCH) else self._admission.call()
