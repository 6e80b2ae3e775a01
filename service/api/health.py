"""Standard health (grpc.health.v1): serving while the engine can answer, told per service and overall."""

from __future__ import annotations

import asyncio
import logging

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health

from service.engine.base import ScoringEngine
from service.errors import EngineDeadError

logger = logging.getLogger(__name__)

CHECK_SECONDS = 1.0


class Health:
    """Follows the engine; `services` are reported beside the overall state (the empty name)."""

    def __init__(self, engine: ScoringEngine, services: tuple[str, ...]) -> None:
        self.servicer = health.HealthServicer()
        self._engine = engine
        self._names = ("", *services)
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
                await self.servicer.set(name, state)

    async def drain(self) -> None:
        """Report not serving from now on, whatever the engine says."""
        await self.servicer.enter_graceful_shutdown()
