"""Reloads classifiers whose folders change, and reports what the engine says of itself."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from service.catalogue import Catalogue
from service.deploy import Deployer
from service.engine.supervised import SupervisedEngine
from service.errors import FantailError
from service.metrics import Metrics
from service.registry.loader import classifier_folders

logger = logging.getLogger(__name__)

REPORT_SECONDS = 2.0
QUIET_MS = 1600
"""How long changes of files are gathered: an adapter is not written in one instant."""


async def reload_changed(directory: Path, deployer: Deployer, catalogue: Catalogue) -> None:
    """Reload every classifier with a changed file, for as long as the task runs."""
    from watchfiles import awatch

    root = await asyncio.to_thread(directory.resolve)
    async for changes in awatch(root, debounce=QUIET_MS, step=200):
        changed = {Path(path).relative_to(root).parts[0] for _, path in changes}
        there = {folder.name for folder in await asyncio.to_thread(classifier_folders, root)}
        if names := changed & (there | catalogue.current.classifiers.keys()):
            try:
                await deployer.reload(names)
            except FantailError as error:
                logger.error("reload: %s", error.message)


async def report(engine: SupervisedEngine, catalogue: Catalogue, metrics: Metrics) -> None:
    """Keep the metrics of engine and catalogue fresh, for as long as the task runs."""
    while True:
        try:
            metrics.engine_seen(engine.restarts, await engine.counters(), await engine.places())
        except FantailError:
            metrics.engine_seen(engine.restarts, None, {})
        metrics.registry_seen(catalogue.current)
        await asyncio.sleep(REPORT_SECONDS)
