"""What is served now, and what calls under way still hold: registries are replaced whole, never changed."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator

from service.registry.registry import Registry


class Catalogue:
    """The current registry. A call leases it once and keeps to it, so that no answer mixes revisions."""

    def __init__(self, registry: Registry) -> None:
        self._current = registry
        self._generation = 0
        self._leases: Counter[int] = Counter()
        self._returned = asyncio.Event()

    @property
    def current(self) -> Registry:
        return self._current

    @contextlib.contextmanager
    def lease(self) -> Iterator[Registry]:
        """The registry of this moment, held until the end."""
        generation = self._generation
        self._leases[generation] += 1
        try:
            yield self._current
        finally:
            self._leases[generation] -= 1
            if not self._leases[generation]:
                del self._leases[generation]
                self._returned.set()

    def replace(self, registry: Registry) -> None:
        """Let every call that begins from now on see `registry`."""
        self._current = registry
        self._generation += 1

    async def drained(self) -> None:
        """Return when no call holds a registry that has been replaced by now."""
        generation = self._generation
        while any(each < generation for each in self._leases):
            self._returned.clear()
            await self._returned.wait()
