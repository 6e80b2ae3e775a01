"""What the tests of a supervised engine share: engines, one after the other, and somebody who supervises them."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from service.domain import TokenUsage
from service.engine import supervised
from service.engine.base import LabelLogprobs, ScoringRequest
from service.engine.fake_engine import FakeEngine
from service.engine.supervised import State, SupervisedEngine
from service.errors import EngineDeadError

TIMEOUT_S = 20.0

tick = asyncio.sleep
"""Kept from before a test puts something else in its place."""


async def until(condition: Callable[[], bool]) -> None:
    """Return once it holds."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await tick(0)


@dataclass
class Engine(FakeEngine):
    """Answers at once, unless it is held; a request that was held ends as the engine has by that time.

    `gate`: while it is shut, no request ends; `asked`: requests so far; `checks`: how often its health was asked for.
    """

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    asked: int = 0
    checks: int = 0

    def __post_init__(self) -> None:
        self.gate.set()

    async def score(self, request: ScoringRequest) -> LabelLogprobs:
        self.asked += 1
        await self.gate.wait()
        if self.dead:
            raise EngineDeadError("The engine is not running.")
        if (error := self.fault(request)) is not None:
            raise error
        return LabelLogprobs((0.0,) * len(request.label_ids), TokenUsage())

    async def check(self) -> None:
        self.checks += 1
        await super().check()

    async def looked_after(self) -> None:
        """Return once it was asked for its health from beginning to end, after all that happened so far."""
        so_far = self.checks
        await until(lambda: self.checks > so_far + 1)


@dataclass
class Supervision:
    """A supervised engine, and what it starts when it has to: engines and failures, one after the other.

    `proving`: while it is shut, no engine is proven; `unproven`: raised instead of proving; `open`: started and not yet
    closed; `most_open`: of these at once; `attempts`: starts so far.
    """

    plan: list[Engine | Exception]
    stall_seconds: float = math.inf
    proving: asyncio.Event = field(default_factory=asyncio.Event)
    unproven: Exception | None = None
    open: list[Engine] = field(default_factory=list)
    most_open: int = 0
    attempts: int = 0
    started: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.proving.set()
        self.engine = SupervisedEngine(self._start, self._prove, self.stall_seconds)
        self.task: asyncio.Task[None] | None = None

    @property
    def serves(self) -> bool:
        return self.engine.state is State.SERVING

    def begin(self) -> None:
        self.task = asyncio.create_task(self.engine.run(self.started))

    async def serving(self, restarts: int = 0) -> None:
        """Return once an engine serves after so many restarts."""
        await until(lambda: self.serves and self.engine.restarts == restarts)

    async def end(self) -> None:
        """Cancel it, and return once it has ended."""
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait([self.task], timeout=TIMEOUT_S)

    @contextlib.asynccontextmanager
    async def _start(self) -> AsyncIterator[Engine]:
        self.attempts += 1
        planned = self.plan.pop(0)
        if isinstance(planned, Exception):
            raise planned
        self.open.append(planned)
        self.most_open = max(self.most_open, len(self.open))
        try:
            yield planned
        finally:
            self.open.remove(planned)

    async def _prove(self, engine: Any) -> None:
        await self.proving.wait()
        if self.unproven is not None:
            raise self.unproven


class TurnedLoop:
    """The running loop with a clock that the test turns, for a module that looks at no other. `now`: in seconds."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = 0.0

    def time(self) -> float:
        return self.now

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)


def turned_loop(monkeypatch: pytest.MonkeyPatch) -> TurnedLoop:
    """What supervision takes for the running loop, until the test ends."""
    loop = TurnedLoop()
    monkeypatch.setattr(supervised.asyncio, "get_running_loop", lambda: loop)
    return loop


Supervise = Callable[..., Supervision]


@contextlib.asynccontextmanager
async def supervising(stall_seconds: float = math.inf) -> AsyncIterator[Supervise]:
    """Begins supervisions that run until the body ends; call with the engines and failures that are started."""
    made: list[Supervision] = []

    def begin(*plan: Engine | Exception) -> Supervision:
        made.append(Supervision(list(plan), stall_seconds))
        made[-1].begin()
        return made[-1]

    yield begin
    for each in made:
        await each.end()
