"""Reloads classifiers whose folders change, and reports what the engine says of itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from service.catalogue import Catalogue
from service.deploy import Deployer
from service.engine.supervised import SupervisedEngine
from service.errors import FantailError
from service.metrics import Metrics
from service.registry.loader import folders_by_name

logger = logging.getLogger(__name__)

REPORT_SECONDS = 2.0
ASK_SECONDS = 30.0
"""How long the engine may take to tell of itself. It does so between two steps, and long ones take seconds."""

LOOK_MS = 2000
"""How often it is looked whether the engine serves again."""

QUIET_MS = 1600
"""How long changes of files are gathered: an adapter is not written in one instant."""


async def reload_changed(
    directory: Path, deployer: Deployer, catalogue: Catalogue, is_serving: Callable[[], bool]
) -> None:
    """Reload every classifier with a changed file, for as long as the task runs.

    What is refused while the engine does not serve is tried again once it does.
    """
    from watchfiles import awatch

    root = await asyncio.to_thread(directory.resolve)
    again: set[str] = set()
    async for changes in awatch(root, debounce=QUIET_MS, step=200, rust_timeout=LOOK_MS, yield_on_timeout=True):
        changed = {name for _, path in changes for name in Path(path).relative_to(root).parts[:1]}
        if is_serving():
            changed |= again
        there = await asyncio.to_thread(folders_by_name, root)
        if names := changed & (there.keys() | catalogue.current.classifiers.keys()):
            try:
                refused = {each.classifier for each in await deployer.reload(names) if each.problems}
            except FantailError as error:
                logger.error("reload: %s", error.message)
                continue
            again = (again - names) | (set() if is_serving() else refused)


async def report(engine: SupervisedEngine, catalogue: Catalogue, metrics: Metrics) -> None:
    """Keep the metrics of engine and catalogue fresh, for as long as the task runs."""
    while True:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                counters, places = await engine.counters(), await engine.places()
            metrics.engine_seen(engine.restarts, counters, places)
        except (FantailError, TimeoutError):  # an engine that was killed leaves such a question open for ever
            metrics.engine_seen(engine.restarts, None, {})
        metrics.registry_seen(catalogue.current)
        await asyncio.sleep(REPORT_SECONDS)
