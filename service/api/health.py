"""Standard health (grpc.health.v1): serving while the engine can answer, told overall, per service and per classifier.

A classifier is asked about as `fantail.v1.ClassificationService/NAME`; one that did not pass its gate is not serving,
and takes neither the service nor the whole with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from ipaddress import IPv6Network
from typing import Any
from urllib.parse import unquote

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.catalogue import Catalogue
from service.engine.base import ScoringEngine
from service.errors import EngineDeadError, NotServingError

logger = logging.getLogger(__name__)

CHECK_SECONDS = 0.5

MAX_NAME = 256
MAX_WATCHERS = 1000
"""Whoever watches needs no key, so that what all of them hold is bounded: a watcher is kept with its request."""

MAX_WATCHERS_OF_ONE = MAX_WATCHERS // 2
"""From one address, so that nobody can take all places; many watch from one where a proxy stands between."""

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class States(health_pb2_grpc.HealthServicer):
    """What is serving, by name, and those who watch it. A watcher that does not read holds up itself alone, and all of
    them end when the server stops."""

    def __init__(self) -> None:
        self._states: dict[str, Any] = {}
        self._changed = asyncio.Event()
        self._draining = False
        self._watchers: Counter[str] = Counter()

    def set(self, name: str, state: Any) -> None:
        """Tell all watchers of a name, unless the server stops."""
        if not self._draining:
            self._states[name] = state
            self._tell()

    def drain(self) -> None:
        """Nothing serves from now on, and nobody watches."""
        self._draining = True
        self._states = dict.fromkeys(self._states, NOT_SERVING)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> health_pb2.HealthCheckResponse:
        if (state := self._states.get(request.service)) is None:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return health_pb2.HealthCheckResponse(status=state)

    async def List(self, request: Any, context: Any) -> Any:
        """Overall and per service; which classifiers there are is for those with a key, and nobody needs one here."""
        states = {name: state for name, state in self._states.items() if "/" not in name}
        return health_pb2.HealthListResponse(  # type: ignore[attr-defined]  # its stubs are from before List
            statuses={name: health_pb2.HealthCheckResponse(status=state) for name, state in states.items()}
        )

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Any
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        if len(request.service) > MAX_NAME:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no service has so long a name")
        address = address_of(context.peer())
        if self._watchers.total() >= MAX_WATCHERS or self._watchers[address] >= MAX_WATCHERS_OF_ONE:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watch already; ask by Check")
        self._watchers[address] += 1
        try:
            told = None
            while True:
                changed, state = self._changed, self._states.get(request.service, SERVICE_UNKNOWN)
                if state != told:
                    yield health_pb2.HealthCheckResponse(status=state)
                    told = state
                elif self._draining:
                    return
                else:
                    await changed.wait()
        finally:
            self._watchers[address] -= 1
            self._watchers += Counter()  # forgets addresses from which nobody watches


def address_of(peer: str) -> str:
    """Where a peer of gRPC's naming is, without its port; of IPv6 the network, as whoever has one has all of it."""
    kind, _, place = unquote(peer).partition(":")
    host = place.rpartition(":")[0].strip("[]").partition("%")[0]
    return str(IPv6Network((host, 64), strict=False)) if kind == "ipv6" else host


class Health:
    """Follows the engine and the catalogue. `services`: reported beside the overall state (the empty name)."""

    def __init__(self, engine: ScoringEngine, catalogue: Catalogue, services: Sequence[str], prefix: str) -> None:
        self.servicer = States()
        self._engine, self._catalogue = engine, catalogue
        self._services = ("", *services)
        self._prefix = prefix
        self._told: dict[str, int] = {}

    async def follow(self) -> None:
        """Check for as long as the task runs."""
        while True:
            try:
                await self.update()
            except Exception:  # or whoever asks would be told the last state for ever
                logger.exception("health is not known")
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
                self.servicer.set(name, state)

    def drain(self) -> None:
        """Report not serving from now on, whatever the engine says."""
        self.servicer.drain()

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
