"""A fake engine that holds some requests back, so that others are answered before them, and counts them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from service.engine.base import LabelLogprobs, ScoringRequest
from service.engine.fake_engine import FakeEngine
from service.prompt.builder import PromptBuilder
from tests.integration.harness import WatchedEngine
from tests.support import talk

Which = Callable[[ScoringRequest], bool]


@dataclass
class _Holding(FakeEngine):
    """Waits where it was told to, before it answers."""

    held: list[tuple[Which, asyncio.Event]] = field(default_factory=list)
    peak: int = 0
    _now: int = 0

    def hold(self, which: Which) -> asyncio.Event:
        """Answer none of these requests before the event is set."""
        released = asyncio.Event()
        self.held.append((which, released))
        return released

    async def score(self, request: ScoringRequest) -> LabelLogprobs:
        self._now += 1
        self.peak = max(self.peak, self._now)
        try:
            await self._released(request)
            return await super().score(request)
        finally:
            self._now -= 1

    async def _released(self, request: ScoringRequest) -> None:
        try:
            for which, released in self.held:
                if which(request):
                    await released.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


@dataclass
class HoldingEngine(WatchedEngine, _Holding):
    """A watched engine with `hold`. `peak`: the most requests that were under way at once."""


def about(text: str, builder: PromptBuilder) -> Which:
    """Whether an engine request is about the conversation that consists of this text."""
    prefix = builder.prefix(talk(text)).token_ids
    return lambda request: request.token_ids[: len(prefix)] == prefix
