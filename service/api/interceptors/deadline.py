"""Reads the caller's deadline once, as a value that travels with the work; gives one to those who have none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from service.api.interceptors.around import BATCH, LONG_LIVED, OPERATING, OURS, AroundInterceptor, Context
from service.call import changed_call
from service.deadline import Deadline
from service.errors import DeadlineExceededError

SLACK_SECONDS = 1.0
"""How long after its deadline a call may still be telling that it has passed, to a caller who reads."""


class DeadlineInterceptor(AroundInterceptor):
    """`longest_seconds`, of a batch or the operator's `longest_batch_seconds`: after which a call ends that has no
    deadline, or a later one."""

    def __init__(self, longest_seconds: float, longest_batch_seconds: float) -> None:
        self._longest, self._longest_batch = longest_seconds, longest_batch_seconds

    @contextlib.asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        if not method.startswith(OURS):
            yield
            return
        deadline = Deadline.after(context.time_remaining())
        # The messages of a long-lived call are given their deadlines by the servicer.
        if not method.endswith(LONG_LIVED):
            deadline = deadline.no_later_than(self._limit(method))
        with changed_call(deadline=deadline):
            if method.endswith(LONG_LIVED):
                yield
                return
            try:
                # A caller who does not read would hold what a call holds for ever.
                async with asyncio.timeout(deadline.remaining() + SLACK_SECONDS):
                    yield
            except TimeoutError:
                raise DeadlineExceededError(f"The answer was not taken before {deadline.name}.") from None

    def _limit(self, method: str) -> Deadline:
        seconds, what = self._longest, "a call"
        if OPERATING in method:
            seconds, what = self._longest_batch, "an operator's call"
        elif method.endswith(BATCH):
            seconds, what = self._longest_batch, "a batch"
        return Deadline.after(seconds).named(f"the server's limit of {seconds:g} s for {what}")
