"""Reloads classifiers whose folders change, and reports what the engine says of itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
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
"""How often it is looked whether the engine serves again and whether the folder is still the one that is watched."""

QUIET_MS = 1600
"""How long changes of files are gathered: an adapter is not written in one instant."""


async def reload_changed(
    directory: Path, deployer: Deployer, catalogue: Catalogue, is_serving: Callable[[], bool]
) -> None:
    """Reload every classifier with a changed file, for as long as the task runs.

    What is refused while the engine does not serve is tried again once it does.
    """
    again: set[str] = set()
    async for changed in changes(directory):
        known = (await asyncio.to_thread(folders_by_name, directory)).keys() | catalogue.current.classifiers.keys()
        names = set(known) if changed is None else changed & known
        if is_serving():
            names |= again & known
        if names:
            try:
                refused = {each.classifier for each in await deployer.reload(names) if each.problems}
            except FantailError as error:
                logger.error("reload: %s", error.message)
                again |= names
                continue
            except Exception:  # a defect of ours must not end a server that answers
                logger.exception("reload of %s", sorted(names))
                continue
            again = (again - names) | (set() if is_serving() else refused)


@dataclass(frozen=True, slots=True)
class Place:
    """The folder that a path leads to now; another one once a link is turned or the folder is made again."""

    root: Path
    device: int
    inode: int


async def changes(directory: Path) -> AsyncIterator[set[str] | None]:
    """What has changed directly under `directory`, by name, now and then nothing; None where it is another folder
    than before, so that anything may have changed."""
    from watchfiles import awatch

    is_another = False
    while True:
        try:
            place = await asyncio.to_thread(place_of, directory)
            watch = awatch(place.root, debounce=QUIET_MS, step=200, rust_timeout=LOOK_MS, yield_on_timeout=True)
            async with contextlib.aclosing(watch):
                async for found in watch:
                    paths = {Path(path).relative_to(place.root).parts for _, path in found}
                    yield {parts[0] for parts in paths if parts}
                    if is_another:
                        yield None  # only now: what is written from here on is seen
                    is_another = () in paths or await asyncio.to_thread(place_of, directory) != place
                    if is_another:
                        logger.info("%s is another folder than before", directory)
                        break
        except (OSError, RuntimeError) as error:
            # It or its mount is gone for a moment, or the system has no watch left.
            if not is_another:
                logger.error("%s cannot be watched: %s", directory, error)
            is_another = True
            await asyncio.sleep(LOOK_MS / 1000)


def place_of(directory: Path) -> Place:
    """Raises OSError."""
    root = directory.resolve(strict=True)
    found = root.stat()
    return Place(root, found.st_dev, found.st_ino)


async def report(engine: SupervisedEngine, catalogue: Catalogue, metrics: Metrics) -> None:
    """Keep the metrics of engine and catalogue fresh, for as long as the task runs."""
    while True:
        try:
            async with asyncio.timeout(ASK_SECONDS):
                counters, places = await engine.counters(), await engine.places()
            metrics.engine_seen(engine.restarts, counters, places)
        except (FantailError, TimeoutError):  # one that hangs says nothing, and is found out elsewhere
            metrics.engine_seen(engine.restarts, None, {})
        metrics.registry_seen(catalogue.current)
        await asyncio.sleep(REPORT_SECONDS)
