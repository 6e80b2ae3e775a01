"""Each patch alone, in this process, without an engine."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.lora.peft_helper import PEFTHelper
from vllm.platforms.cpu import CpuPlatform
from vllm.utils import cpu_resource_utils
from vllm.v1.core import kv_cache_utils
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.sample import sampler
from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

from service.vllm_plugin import block_hashes, cgroup_memory, ledger, peft_config, report, token_mapping
from service.vllm_plugin.handover import ADD_REQUESTS
from service.vllm_plugin.position import POSITION_KEY
from service.vllm_plugin.token_mapping import mask_before_positions


@pytest.fixture(autouse=True)
def patched() -> Iterator[None]:
    ledger.apply_all()
    yield
    ledger.apply_all()


def request(lora: str | None, position: int | None, salt: str | None = None) -> SimpleNamespace:
    return SimpleNamespace(
        sampling_params=SimpleNamespace(extra_args=None if position is None else {POSITION_KEY: position}),
        lora_request=SimpleNamespace(lora_name=lora, lora_path=f"/{lora}") if lora else None,
        cache_salt=salt,
        mm_features=[],
        prompt_embeds=None,
    )


def keys(of: SimpleNamespace, start: int, stop: int) -> object:
    return kv_cache_utils.generate_block_hash_extra_keys(of, start, stop, 0)[0]  # type: ignore[arg-type]


def test_every_patch_proves_itself_active() -> None:
    assert ledger.inactive_patches() == {}


def test_applying_twice_changes_nothing() -> None:
    ledger.apply_all()
    assert ledger.inactive_patches() == {}


def test_every_ledger_entry_says_what_why_and_until_when() -> None:
    for patch in ledger.LEDGER:
        assert all([patch.symbol, patch.why, patch.how, patch.upstream, patch.remove_when]), patch.name


UNDONE: dict[str, tuple[object, str, object]] = {
    "peft_config": (PEFTHelper, "_validate_features", peft_config._stock),
    "block_hashes": (kv_cache_utils, "generate_block_hash_extra_keys", block_hashes._stock),
    "token_mapping": (LoRAModelRunnerMixin, "set_active_loras", token_mapping._stock),
    "cpu_lora": (CpuPlatform, "get_punica_wrapper", classmethod(lambda cls: "vllm.PunicaWrapperCPU")),
    "handover": (EngineCoreProc, ADD_REQUESTS, None),
    "token_ranks": (sampler, "batched_count_greater_than", lambda x, values: (x >= values).sum(-1)),
    "cgroup_memory": (cpu_resource_utils, "get_cgroup_memory_usage", cgroup_memory._stock),
    "report": (LRUCacheLoRAModelManager, "activate_adapter", report._stock_activate),
}


@pytest.mark.parametrize("patch", [patch.name for patch in ledger.LEDGER])
def test_an_undone_patch_is_noticed(patch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, stock = UNDONE[patch]
    monkeypatch.setattr(owner, attribute, stock)
    assert list(ledger.inactive_patches()) == [patch]


def test_another_vllm_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger.vllm, "__version__", "0.33.0")
    with pytest.raises(ledger.PatchError, match=r"0\.33\.0.*0\.32\.0 alone"):
        ledger.apply_all()


@pytest.mark.parametrize(
    ("start", "stop", "shared"),
    [(0, 32, True), (32, 63, True), (32, 64, True), (33, 65, False), (64, 96, False)],
    ids=["before", "ends before", "ends at", "ends after", "behind"],
)
def test_blocks_up_to_the_position_hash_as_the_base_models(start: int, stop: int, shared: bool) -> None:
    activated, base = keys(request("a", 64), start, stop), keys(request(None, None), start, stop)
    assert (activated == base) == shared
    assert (activated == keys(request("b", 64), start, stop)) == shared


def test_cache_salts_stay_in_shared_blocks() -> None:
    assert keys(request("a", 64, salt="tenant"), 0, 32) == keys(request(None, None, salt="tenant"), 0, 32)
    assert keys(request("a", 64, salt="tenant"), 0, 32) != keys(request("a", 64, salt="other"), 0, 32)


def test_plain_adapters_share_no_block() -> None:
    assert keys(request("a", None), 0, 32) != keys(request(None, None), 0, 32)


def test_rows_before_the_position_have_no_adapter_however_the_prompt_is_cut() -> None:
    rng = random.Random(5)
    for _ in range(300):
        requests = rng.randint(1, 6)
        scheduled = [rng.randint(1, 9) for _ in range(requests)]
        computed = [rng.randint(0, 20) for _ in range(requests)]
        positions = [rng.choice([None, 0, rng.randint(0, 30)]) for _ in range(requests)]
        ids = [rng.randint(0, 3) for _ in range(requests)]
        per_row = [
            0 if position is not None and done + row < position else lora
            for lora, rows, done, position in zip(ids, scheduled, computed, positions, strict=True)
            for row in range(rows)
        ]
        masked = mask_before_positions(
            np.repeat(np.array(ids), scheduled), np.array(scheduled), np.array(computed), positions
        )
        assert masked.tolist() == per_row


@pytest.mark.parametrize(
    ("statistics", "usage"),
    [
        pytest.param("anon 5\nactive_file 20\ninactive_file 30", 50, id="version 2"),
        pytest.param(
            "active_file 1\ntotal_active_file 40\ntotal_inactive_file 70", 0, id="version 1, all of it cached"
        ),
        pytest.param(None, 100, id="not said"),
    ],
)
def test_cached_files_are_no_memory_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statistics: str | None, usage: int
) -> None:
    version = 2 if statistics is None or statistics.startswith("anon") else 1
    paths = tmp_path / "2", tmp_path / "1"
    if statistics is not None:
        (tmp_path / str(version)).write_text(statistics)
    monkeypatch.setattr(cgroup_memory, "_STATISTICS", paths)
    monkeypatch.setattr(cgroup_memory, "_stock", lambda: 100)
    assert cpu_resource_utils.get_cgroup_memory_usage() == usage
