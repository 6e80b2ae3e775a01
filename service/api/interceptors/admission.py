"""Takes a permit before work: calls beyond the bound are turned away at once, unread."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from service.admission import Admission
from service.api.interceptors.around import BATCH, LONG_LIVED, OURS, AroundInterceptor, Context


class AdmissionInterceptor(AroundInterceptor):
    """Holds a permit for as long as the call lasts. Health, reflection and the operator always get through."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission

    @contextlib.asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        if not method.startswith(OURS) or ".AdminService/" in method:
            yield
            return
        with self._permit(method):
            yield

    def _permit(self, method: str) -> contextlib.AbstractContextManager[None]:
        if method.endswith(LONG_LIVED):
            # It takes a permit for each of its messages; the stream itself has a bound of its own.
            return self._admission.follow()
        return self._admission.batch() if method.endswith(BATCH) else self._admission.call()
