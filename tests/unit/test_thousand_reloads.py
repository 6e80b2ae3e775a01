"""A server that is reloaded a thousand times holds no more than one that was reloaded once."""

from __future__ import annotations

import asyncio
import gc
import logging
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.registry.loader import RegistryLoader
from tests.deployment import ACTIVATED, WAIT_S, Served, change_adapter, serving
from tests.support import talk

UNMEASURED, MEASURED = 500, 500
"""Reloads without and with an account of memory, which slows them down."""

GROWTH_BYTES = 250 * MEASURED
"""The least that is kept of a revision, a pair of its name and its digest, takes more."""


@pytest.fixture
async def served(tmp_path: Path, loader: RegistryLoader) -> AsyncIterator[Served]:
    async with serving(tmp_path, loader, ACTIVATED) as found:
        yield found


async def reload_and_ask(served: Served, number: int) -> None:
    """Serve another adapter, ask it, and report, as a server does."""
    change_adapter(served.classifiers / ACTIVATED, lora_alpha=2 + number)
    (result,) = await served.deployer.reload()
    assert result.problems == ()
    answer, _ = await served.classify.one(talk("hi"), ACTIVATED)
    assert answer.revision == result.revision
    served.metrics.registry_seen(served.catalogue.current)
    served.metrics.engine_seen(0, await served.engine.counters(), await served.engine.places())
    served.engine.requests.clear()
    served.engine.unloaded.clear()


def series(served: Served) -> int:
    return sum(len(family.samples) for family in served.metrics.registry.collect())


async def test_a_thousand_reloads_leave_nothing_behind(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)  # or pytest itself keeps a record of each
    await reload_and_ask(served, 0)
    before = series(served)
    for number in range(1, UNMEASURED):
        await reload_and_ask(served, number)
    gc.collect()
    tracemalloc.start()
    try:
        for number in range(UNMEASURED, UNMEASURED + MEASURED):
            await reload_and_ask(served, number)
        gc.collect()
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    served.require_tidy()
    assert series(served) == before
    assert set(served.metrics.last_used) == {(ACTIVATED, served.current().revision)}
    served.catalogue.replace(served.catalogue.current)
    async with asyncio.timeout(WAIT_S):
        await served.catalogue.drained()
    assert grown < GROWTH_BYTES
