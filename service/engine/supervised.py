"""An engine that is started again when it dies, and answers nobody before it is proven. Knows no kind of engine."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from service.engine.base import (
    AdapterPlace,
    EngineAdapter,
    EngineCounters,
    LabelLogprobs,
    ScoringEngine,
    ScoringRequest,
)
from service.errors import EngineDeadError, FantailError, StartError, StartingError

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

CHECK_SECONDS = 0.25
FIRST_DELAY_S, MAX_DELAY_S = 0.5, 60.0
START_SECONDS = 3600.0
"""How long an engine may take to start. Large models are loaded from slow disks, but not for ever."""

PROVE_SECONDS = 600.0
"""How long an engine may take to prove itself; one that takes longer is given up."""

LOOKED_AT = 0.25
"""After which share of the time to a stall an engine that finishes nothing is asked what it computes."""

PAUSE_SECONDS = 2.0
"""A server that comes so late to look after its engine stood still itself: its container was paused, its machine
moved or slept. What the engine did not do meanwhile is no fault of it."""

STEADY_SECONDS = 60.0
"""How long an engine has to live for the next restart to begin without delay again."""


class State(enum.Enum):
    """Where the engine stands."""

    STARTING = "starting"
    SERVING = "serving"
    DEAD = "dead"


class SupervisedEngine:
    """Stands for whichever engine runs at the moment, as long as somebody runs `run`.

    `start`: an engine for as long as its context lasts; `prove`: returns once it may answer, or raises;
    `stall_seconds`: an engine that has work and neither finishes nor computes any of it for so long is as good as dead.
    """

    def __init__(
        self,
        start: Callable[[], AbstractAsyncContextManager[ScoringEngine]],
        prove: Callable[[ScoringEngine], Awaitable[None]],
        stall_seconds: float = math.inf,
    ) -> None:
        self._start, self._prove, self._stall_seconds = start, prove, stall_seconds
        self._engine: ScoringEngine | None = None
        self._died = asyncio.Event()
        self._waiting, self._owing = 0, False
        self._progress = 0.0
        self._computed: int | None = None
        self.state = State.STARTING
        self.restarts = 0

    async def score(self, request: ScoringRequest) -> LabelLogprobs:
        engine = self._serving()
        clock = asyncio.get_running_loop().time
        if not self._waiting and not self._owing:
            self._progress = clock()
        self._waiting += 1
        try:
            answer = await engine.score(request)
            self._progress, self._owing = clock(), False
            return answer
        except asyncio.CancelledError:
            # Whoever gives up proves nothing: an engine that hangs is asked by one such caller after the other.
            self._owing = self._owing or engine is self._engine
            raise
        except EngineDeadError:
            self._found_dead(engine)
            raise
        finally:
            if engine is self._engine:
                self._waiting -= 1

    async def check(self) -> None:
        await self._told(lambda engine: engine.check())

    async def load(self, adapter: EngineAdapter) -> None:
        await self._told(lambda engine: engine.load(adapter))

    async def unload(self, name: str) -> None:
        await self._told(lambda engine: engine.unload(name))

    async def places(self) -> Mapping[str, AdapterPlace]:
        return await self._told(lambda engine: engine.places())

    async def counters(self) -> EngineCounters:
        return await self._told(lambda engine: engine.counters())

    @property
    def is_serving(self) -> bool:
        """Whether there is an engine that nobody has found dead."""
        return self.state is State.SERVING and not self._died.is_set()

    async def _told(self, question: Callable[[ScoringEngine], Awaitable[Answer]]) -> Answer:
        """What the engine says; notes that it is dead. Raises what the engine raises."""
        engine = self._serving()
        try:
            return await question(engine)
        except EngineDeadError:
            self._found_dead(engine)
            raise

    def _found_dead(self, engine: ScoringEngine) -> None:
        if engine is self._engine:  # and not one before it, whose requests may end late
            self._died.set()

    def _serving(self) -> ScoringEngine:
        if self._engine is not None:
            return self._engine
        if self.state is State.STARTING:
            raise StartingError("The server is starting: its classifiers are being loaded and proven.")
        raise EngineDeadError("The engine is not running; it is being started again.")

    async def run(self, started: asyncio.Event) -> None:
        """Keep an engine running until cancelled; sets `started` when the first one serves.

        Raises what the first start raises: a server that never could serve must say so, not try on.
        """
        delay = 0.0
        while True:
            try:
                lived = await self._live(started)
                delay = 0.0 if lived >= STEADY_SECONDS else max(FIRST_DELAY_S, 2 * delay)
            except Exception as error:
                if not started.is_set():
                    raise
                delay = max(FIRST_DELAY_S, 2 * delay)
                known = isinstance(error, FantailError)
                logger.error("the engine did not start again: %s", error, exc_info=None if known else error)
            delay = min(delay, MAX_DELAY_S)
            self.restarts += 1
            logger.error("the engine is started again in %.1f s", delay)
            await asyncio.sleep(delay)

    async def _live(self, started: asyncio.Event) -> float:
        """Start one engine, serve with it until it dies; returns for how many seconds it served."""
        clock = asyncio.get_running_loop().time
        async with contextlib.AsyncExitStack() as stack:
            async with limited(START_SECONDS, "start"):
                engine = await stack.enter_async_context(self._start())
            async with limited(PROVE_SECONDS, "answer its probes"):
                await self._prove(engine)
            self._died.clear()
            self._waiting, self._owing, self._computed = 0, False, None
            self._engine, self.state, began = engine, State.SERVING, clock()
            started.set()
            logger.info("the engine serves")
            try:
                await self._death(engine)
            finally:
                self._engine, self.state = None, State.DEAD
        return clock() - began

    async def _death(self, engine: ScoringEngine) -> None:
        """Return when the engine is dead, noticed by a request or by asking, or does nothing."""
        looking: asyncio.Task[None] | None = None
        clock = asyncio.get_running_loop().time
        looked = clock()
        try:
            while not self._died.is_set():
                now = clock()
                if (late := now - looked - CHECK_SECONDS) > PAUSE_SECONDS:
                    logger.warning("this server stood still for %.0f s", late)
                    self._progress = min(now, self._progress + late)
                looked = now
                try:
                    await engine.check()
                except EngineDeadError:
                    break
                silent = looked - self._progress if self._waiting or self._owing else 0.0
                if silent > self._stall_seconds and (self._waiting or looking is not None):
                    logger.error("the engine has computed nothing for %.0f s", self._stall_seconds)
                    break
                if silent > LOOKED_AT * self._stall_seconds and (looking is None or looking.done()):
                    looking = asyncio.create_task(self._look_at(engine))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_SECONDS):
                        await self._died.wait()
        finally:
            if looking is not None:  # an engine that hangs never answers it
                looking.cancel()
        logger.error("the engine is dead")

    async def _look_at(self, engine: ScoringEngine) -> None:
        """Ask an engine that finishes nothing how far it is: to get further is progress, and so is to have no work."""
        with contextlib.suppress(FantailError):
            counters = await engine.counters()
            is_idle = not (self._waiting or counters.running or counters.waiting)
            if is_idle or (self._computed is not None and counters.computed_tokens > self._computed):
                self._progress = asyncio.get_running_loop().time()
            self._owing = self._owing and not is_idle
            self._computed = counters.computed_tokens


@contextlib.asynccontextmanager
async def limited(seconds: float, what: str) -> AsyncIterator[None]:
    """Give up the body after so many seconds. Raises StartError, which says what took too long."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise StartError(f"The engine did not {what} in {seconds:.0f} s.") from None
