"""The engine refuses to serve what it could only answer wrongly, and says so when it dies over what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
from collections.abc import AsyncIterator
from dataclasses import replace

import psutil
import pytest

from service.engine.vllm_engine import VllmConfig, start_vllm
from service.errors import EngineDeadError, PluginInactiveError

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@contextlib.asynccontextmanager
async def killed_over_what_it_is_told() -> AsyncIterator[None]:
    """What the body tells the engines reaches them, and nothing is done of it: they are suspended, then killed."""
    processes = [psutil.Process(child.pid) for child in multiprocessing.active_children()]
    assert processes
    for process in processes:
        process.suspend()

    async def kill() -> None:
        await asyncio.sleep(1.0)
        for process in processes:
            process.kill()

    killing = asyncio.create_task(kill())
    async with asyncio.timeout(60):
        yield
    await killing


async def test_an_engine_that_is_killed_while_it_loads_an_adapter_is_dead(engine_config: VllmConfig) -> None:
    first, second, *_ = engine_config.adapters
    async with start_vllm(replace(engine_config, adapters=(first,), spare_adapters=1)) as engine:
        async with killed_over_what_it_is_told():
            with pytest.raises(EngineDeadError):
                await engine.load(second)
        with pytest.raises(EngineDeadError):
            await engine.places()


# Last, since this process loads its plugins only once.
async def test_an_engine_process_without_the_plugin_is_refused(
    engine_config: VllmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "something_else")
    with pytest.raises(PluginInactiveError, match="did not load Fantail's vLLM plugin"):
        async with start_vllm(replace(engine_config, adapters=engine_config.adapters[:1])):
            pytest.fail("it served")
