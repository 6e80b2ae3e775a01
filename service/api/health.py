"""Standard health (grpc.health.v1): serving while the engine can answer, told overall, per service and per classifier.

A classifier is asked about as `fantail.v1.ClassificationService/NAME`; one that did not pass its gate is not serving,
and takes neither the service nor the whole with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health

from service.engine.base import ScoringEngine
from service.errors import EngineDeadError

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0
LAST_WORD_SECONDS = 0.2
"""How long a watcher has to be told that the server stops."""


class DrainingHealthServicer(health.HealthServicer):
    """The standard servicer, whose watchers would hold a stopping server for its whole grace: here they end."""

    def __init__(self) -> None:
        super().__init__()
        self._draining = asyncio.Event()

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        watching = asyncio.ensure_future(super().Watch(request, context))
        draining = asyncio.ensure_future(self._draining.wait())
        try:
            await asyncio.wait({watching, draining}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({watching}, timeout=LAST_WORD_SECONDS)
        finally:
            watching.cancel()
            draining.cancel()

    async def enter_graceful_shutdown(self) -> None:
        await super().enter_graceful_shutdown()
        self._draining.set()


class Health:
    """Follows the engine; `names` are reported beside the overall state (the empty name), `withheld` never serve."""

    def __init__(self, engine: ScoringEngine, names: Sequence[str], withheld: Collection[str] = ()) -> None:
        self.servicer = DrainingHealthServicer()
        self._engine = engine
        self._names = ("", *names)
        self._withheld = withheld
        self._serving: bool | None = None

    async def follow(self) -> None:
        """Check the engine for as long as the task runs."""
        while True:
            await self.update()
            await asyncio.sleep(CHECK_SECONDS)

    async def update(self) -> None:
        """Check the engine once and report what changed."""
        try:
            await self._engine.check()
            serving = True
        except EngineDeadError:
            serving = False
        if serving != self._serving:
            self._serving = serving
            logger.log(
                logging.INFO if serving else logging.ERROR, "health: %s", "serving" if serving else "the engine is dead"
            )
            state = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
            for name in self._names:
                withheld = health_pb2.HealthCheckResponse.NOT_SERVING
                await self.servicer.set(name, withheld if name in self._withheld else state)

    async def drain(self) -> None:
        """Report not serving from now on, whatever the engine says."""
        await self.servicer.enter_graceful_shutdown()
