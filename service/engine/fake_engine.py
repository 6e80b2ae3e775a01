"""An engine without a model, for testing the service around the engine. Its numbers mean nothing."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from service.domain import TokenUsage
from service.engine.base import AdapterPlace, EngineAdapter, EngineCounters, LabelLogprobs, ScoringRequest
from service.errors import EngineDeadError


@dataclass(slots=True)
class FakeEngine:
    """Answers after `latency_s`, remembering prefixes as a prefix cache would.

    `favour`: index of the label that each request gets most probability for. `fault`: raised, when it returns an
    error, instead of answering. `mass`: total probability of the labels. `requests`: everything asked so far;
    `cancelled`: how many were cancelled while under way; `unfit`: raised, when it returns an error, instead of loading;
    `computed`: what it says to have computed of what is under way.
    """

    latency_s: float = 0.0
    mass: float = 0.9
    favour: Callable[[ScoringRequest], int] = lambda request: 0
    fault: Callable[[ScoringRequest], Exception | None] = lambda request: None
    dead: bool = False
    requests: list[ScoringRequest] = field(default_factory=list)
    cancelled: int = 0
    unfit: Callable[[EngineAdapter], Exception | None] = lambda adapter: None
    loaded: dict[str, int] = field(default_factory=dict)
    under_way: int = 0
    computed: int = 0
    _cached: set[tuple[int, ...]] = field(default_factory=set)

    async def score(self, request: ScoringRequest) -> LabelLogprobs:
        await self.check()
        self.requests.append(request)
        usage = self._usage(request)
        self.under_way += 1
        try:
            await asyncio.sleep(self.latency_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        if (error := self.fault(request)) is not None:
            raise error
        rest = len(request.label_ids) - 1
        best = self.favour(request)
        shares = [0.8 if i == best else 0.2 / rest for i in range(len(request.label_ids))]
        return LabelLogprobs(tuple(math.log(self.mass * share) for share in shares), usage)

    async def check(self) -> None:
        if self.dead:
            raise EngineDeadError("The engine is not running.")

    async def load(self, adapter: EngineAdapter) -> None:
        await self.check()
        if (error := self.unfit(adapter)) is not None:
            raise error
        self.loaded.setdefault(adapter.name, len(self.loaded))

    async def unload(self, name: str) -> None:
        await self.check()
        self.loaded.pop(name, None)

    async def places(self) -> Mapping[str, AdapterPlace]:
        await self.check()
        return {name: AdapterPlace(slot, 1) for name, slot in self.loaded.items()}

    async def counters(self) -> EngineCounters:
        await self.check()
        return EngineCounters(self.under_way, self.computed, 0, len(self._cached), 1000, 32, len(self.requests))

    def _usage(self, request: ScoringRequest) -> TokenUsage:
        shared = request.token_ids[: request.activation_index or 0]
        reused = len(shared) if shared in self._cached else 0
        self._cached.add(shared)
        return TokenUsage(len(request.token_ids) - reused, reused)
