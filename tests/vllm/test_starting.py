"""The engine refuses to serve what it could only answer wrongly, and says so when it dies over what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

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


OTHER_PLUGIN = """
def register():
    from vllm.v1.core import kv_cache_utils

    kv_cache_utils.generate_block_hash_extra_keys = lambda *of: (None, 0)
"""


# The last two, since this process loads its plugins only once.
async def test_an_engine_process_in_which_something_else_took_one_patch_back_is_refused(
    engine_config: VllmConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other_plugin.py").write_text(OTHER_PLUGIN)
    installed = tmp_path / "other_plugin-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: other_plugin\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[vllm.general_plugins]\nother = other_plugin:register\n")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])  # behind ours, as each process gets it
    with pytest.raises(PluginInactiveError, match="engine core process: block_hashes: keys are None before"):
        async with start_vllm(replace(engine_config, adapters=engine_config.adapters[:1])):
            pytest.fail("it served")


async def test_an_engine_process_without_the_plugin_is_refused(
    engine_config: VllmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_PLUGINS", "something_else")
    with pytest.raises(PluginInactiveError, match="did not load Fantail's vLLM plugin"):
        async with start_vllm(replace(engine_config, adapters=engine_config.adapters[:1])):
            pytest.fail("it served")
