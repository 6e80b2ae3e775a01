"""Reads the caller's deadline once, as a value that travels with the work; gives one to those who have none."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from service.api.interceptors.around import LONG_LIVED, OURS, AroundInterceptor, Context
from service.call import changed_call
from service.deadline import Deadline
from service.errors import DeadlineExceededError

SLACK_SECONDS = 1.0
"""How long after its deadline a call may still be telling that it has passed, to a caller who reads."""


class DeadlineInterceptor(AroundInterceptor):
    """`longest_seconds`: after which a call ends that has no deadline, or a later one."""

    def __init__(self, longest_seconds: float) -> None:
        self._longest = longest_seconds

    @contextlib.asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        if not method.startswith(OURS):
            yield
            return
        deadline = Deadline.after(context.time_remaining())
        # The messages of a long-lived call are given their deadlines by the servicer.
        if not method.endswith(LONG_LIVED):
            limit = Deadline.after(self._longest)
            deadline = deadline.no_later_than(limit.named(f"the server's limit of {self._longest:g} s for a call"))
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
