"""Standard health (grpc.health.v1): serving while the engine can answer, told overall, per service and per classifier.

A classifier is asked about as `fantail.v1.ClassificationService/NAME`; one that did not pass its gate is not serving,
and takes neither the service nor the whole with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio as health

from service.catalogue import Catalogue
from service.engine.base import ScoringEngine
from service.errors import EngineDeadError, NotServingError

logger = logging.getLogger(__name__)

CHECK_SECONDS = 0.5
LAST_WORD_SECONDS = 0.2
"""How long a watcher has to be told that the server stops."""

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


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
    """Follows the engine and the catalogue. `services`: reported beside the overall state (the empty name)."""

    def __init__(self, engine: ScoringEngine, catalogue: Catalogue, services: Sequence[str], prefix: str) -> None:
        self.servicer = DrainingHealthServicer()
        self._engine, self._catalogue = engine, catalogue
        self._services = ("", *services)
        self._prefix = prefix
        self._told: dict[str, int] = {}

    async def follow(self) -> None:
        """Check for as long as the task runs."""
        while True:
            await self.update()
            await asyncio.sleep(CHECK_SECONDS)

    async def update(self) -> None:
        """Check once and report what changed."""
        states = await self._states()
        for name in self._told.keys() - states.keys():
            states[name] = SERVICE_UNKNOWN
        if states[""] != self._told.get("", NOT_SERVING):
            serving = states[""] == SERVING
            logger.log(
                logging.INFO if serving else logging.ERROR, "health: %s", "serving" if serving else "not serving"
            )
        for name, state in states.items():
            if self._told.get(name) != state:
                self._told[name] = state
                await self.servicer.set(name, state)

    async def drain(self) -> None:
        """Report not serving from now on, whatever the engine says."""
        await self.servicer.enter_graceful_shutdown()

    async def _states(self) -> dict[str, Any]:
        state: Any = SERVING
        try:
            await self._engine.check()
        except (EngineDeadError, NotServingError):
            state = NOT_SERVING
        registry = self._catalogue.current
        withheld = registry.withheld
        states = dict.fromkeys(self._services, state)
        return states | {
            f"{self._prefix}/{name}": NOT_SERVING if name in withheld else state for name in registry.classifiers
        }
