"""What vLLM is started with follows from the adapters and the machine; an adapter's id is the same everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.domain import Adapter, AdapterKind
from service.engine.base import EngineAdapter
from service.engine.hardware import GIB, Hardware, choose
from service.engine.launch import VllmConfig, engine_args, missing_on_cpu, process_environment
from service.engine.vllm_engine import adapter_id

CPU = choose(Hardware(gpu=False, cores=(0, 1), free_bytes=8 * GIB), "auto", None, None)
GPU = choose(Hardware(gpu=True, cores=(0, 1), free_bytes=8 * GIB, capability=(9, 0)), "auto", None, None)


def adapter(name: str, rank: int, *modules: str) -> EngineAdapter:
    return EngineAdapter(name, Adapter(Path("nowhere"), AdapterKind.ACTIVATED, rank, modules, "0" * 64))


ADAPTERS = (adapter("fraud@1", 4, "q_proj"), adapter("refund@2", 6, "q_proj", "down_proj"))


def arguments(**changes: Any) -> dict[str, Any]:
    return engine_args(
        VllmConfig(**{"model": Path("m"), "adapters": ADAPTERS, "choice": CPU, "context_tokens": 1024} | changes)
    )


@pytest.mark.parametrize(
    ("changes", "slots", "held", "rank"),
    [
        pytest.param({}, 2, 2, 8, id="a slot for each, of a rank that vLLM has"),
        pytest.param({"spare_adapters": 3}, 5, 5, 8, id="and for those that come later"),
        pytest.param({"slots": 1}, 1, 2, 8, id="fewer slots than adapters"),
        pytest.param({"slots": 9}, 2, 2, 8, id="never more"),
        pytest.param({"max_rank": 30}, 2, 2, 32, id="a larger rank later"),
    ],
)
def test_slots_and_ranks_follow_from_the_adapters(changes: dict[str, Any], slots: int, held: int, rank: int) -> None:
    found = arguments(**changes)
    assert (found["max_loras"], found["max_cpu_loras"], found["max_lora_rank"]) == (slots, held, rank)
    assert found["lora_target_modules"] == ["down_proj", "q_proj"]


def test_without_adapters_there_are_no_slots() -> None:
    assert "max_loras" not in arguments(adapters=())


def test_a_gpu_differs_where_it_must() -> None:
    cpu, gpu = arguments(), arguments(choice=GPU)
    differing = {name for name in cpu.keys() | gpu.keys() if cpu.get(name) != gpu.get(name)}
    assert differing == {
        "dtype", "block_size", "kv_cache_memory_bytes", "enforce_eager", "distributed_executor_backend", "lora_dtype"
    }  # fmt: skip
    for choice in (CPU, GPU):
        assert process_environment(choice)["VLLM_WORKER_MULTIPROC_METHOD"] == "spawn"


def test_an_adapters_id_is_the_same_in_every_process() -> None:
    # printf refund@2 | sha256sum: its first 8 digits, halved
    assert adapter_id(ADAPTERS[1]) == 0x7A04DC43 >> 1


def test_what_the_system_lacks_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing_on_cpu() == []

    def lacking(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", lacking)
    monkeypatch.setenv("PATH", "")
    numa, lscpu = missing_on_cpu()
    assert numa.startswith("libnuma.so.1 (package libnuma1 on Debian")
    assert lscpu == "the command lscpu (package util-linux)"
