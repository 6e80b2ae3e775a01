"""The engine refuses to serve what it could only answer wrongly, and says so when it dies over what it is told."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from service.domain import Classification, Classifier
from service.engine.base import engine_adapter
from service.engine.vllm_engine import VllmConfig, VllmEngine, start_vllm
from service.errors import ClassifierWithheldError, EngineDeadError, PluginInactiveError
from service.gate import Gate
from service.registry.calibration import CALIBRATION_FILE
from service.settings import Settings
from service.start import GATE_TOLERANCE, Prompting, start_classify
from service.training.probes import make_probes
from tests.vllm.adapters import asked_like
from tests.vllm.conftest import ROOT, Strangers
from tests.vllm.faults import OTHER, VICTIM, scale_alpha

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


async def test_a_start_withholds_the_classifier_that_fails_its_gate_and_serves_the_others(tmp_path: Path) -> None:
    shutil.copy(ROOT / "classifiers" / "prompt.toml", tmp_path)
    for name in (VICTIM, OTHER):
        shutil.copytree(ROOT / "classifiers" / name, tmp_path / name)
    scale_alpha(tmp_path / VICTIM, 2)
    (tmp_path / VICTIM / CALIBRATION_FILE).unlink()
    async with start_classify(Settings(classifiers=tmp_path, kv_gib=0.5)) as classify:
        registry = classify.catalogue.current
        assert (registry.serving_names, list(registry.withheld)) == ((OTHER,), [VICTIM])
        assert "from PEFT's" in registry.withheld[VICTIM]
        answers = dict((await classify.fan_out(registry.get(OTHER).probes[0].conversation, [OTHER, VICTIM])).results)
    assert isinstance(answers[OTHER], Classification)
    assert isinstance(answers[VICTIM], ClassifierWithheldError)


TAKEN_BACK = """
def register():
    from vllm.v1.core import kv_cache_utils

    kv_cache_utils.generate_block_hash_extra_keys = lambda *of: (None, 0)
"""
"""A plugin that is loaded behind ours: no block's hash says any more whose KV it is."""

STOCK_CPU_LORA = """
def register():
    from vllm.platforms.cpu import CpuPlatform

    CpuPlatform.get_punica_wrapper = classmethod(lambda cls: "vllm.lora.punica_wrapper.punica_cpu.PunicaWrapperCPU")
"""

BOTH_TAKEN_BACK = (
    TAKEN_BACK
    + """
    from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

    from service.vllm_plugin import token_mapping

    LoRAModelRunnerMixin.set_active_loras = token_mapping._stock
"""
)
"""Nor does an adapter begin at its position."""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs a vLLM plugin of that text behind ours, for the processes that are started from now on."""

    def installed(text: str) -> None:
        (tmp_path / "other_plugin.py").write_text(text)
        facts = tmp_path / "other_plugin-1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: other_plugin\nVersion: 1.0\n")
        (facts / "entry_points.txt").write_text("[vllm.general_plugins]\nother = other_plugin:register\n")
        monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])

    return installed


@pytest.fixture
def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are believed that their patches are active."""

    async def believed(engine: VllmEngine) -> None:
        pass

    monkeypatch.setattr(VllmEngine, "prove_patches", believed)


# The last four, since this process loads its plugins only once.
async def test_with_patches_off_the_gate_withholds_what_the_proof_would_have_refused(
    engine_config: VllmConfig,
    prompting: Prompting,
    classifiers: tuple[Classifier, ...],
    strangers: Strangers,
    install: Callable[[str], None],
    unproven: None,
) -> None:
    """An activated adapter acts on the conversation too; a plain one meets KV that others have left."""

    install(BOTH_TAKEN_BACK)
    first, *activated = classifiers[:3]
    plain = asked_like(strangers.plain, first)
    talks = [probe.conversation for probe in activated[0].probes]
    (probes,) = make_probes(prompting.base, prompting.builder, {plain.name: talks}, [plain]).values()
    plain = replace(plain, probes=tuple(probes))
    adapters = tuple(filter(None, map(engine_adapter, (plain, *activated))))
    async with start_vllm(replace(engine_config, adapters=adapters)) as engine:
        gate = Gate(prompting.builder, engine, GATE_TOLERANCE["float32"])
        failures = await gate.check(activated) | await gate.check([plain])
    assert sorted(failures) == sorted(each.name for each in (plain, *activated))
    assert all("from PEFT's" in why for why in failures.values()), failures


@pytest.mark.faults
async def test_with_vllms_own_cpu_lora_the_gate_withholds_what_goes_wrong_beside_others(
    engine_config: VllmConfig,
    prompting: Prompting,
    classifiers: tuple[Classifier, ...],
    install: Callable[[str], None],
    unproven: None,
) -> None:
    """Rows without an adapter get one's weights in a batch, and so whatever is read there."""

    install(STOCK_CPU_LORA)
    some = classifiers[:3]
    adapters = tuple(filter(None, map(engine_adapter, some)))
    async with start_vllm(replace(engine_config, adapters=adapters)) as engine:
        failures = await Gate(prompting.builder, engine, GATE_TOLERANCE["float32"]).check(some)
    assert sorted(failures) == sorted(each.name for each in some), failures


async def test_an_engine_process_in_which_something_else_took_one_patch_back_is_refused(
    engine_config: VllmConfig, install: Callable[[str], None]
) -> None:
    install(TAKEN_BACK)
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
