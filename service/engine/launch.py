"""What vLLM is started with: its arguments and its processes' environment. Imports nothing of vLLM."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.engine.base import EngineAdapter
from service.engine.hardware import Choice

RANK_SLOTS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks vLLM can size its adapter slots for."""


def slot_rank(rank: int) -> int:
    """The rank that every slot gets when `rank` is the largest; 0 for 0, without adapters."""
    return next(slot for slot in (0, *RANK_SLOTS) if slot >= rank)


@dataclass(frozen=True, slots=True)
class VllmConfig:
    """What an engine is started with.

    `adapters`: those that are loaded at once; `slots`: how many can be computed with in one step (None: all of them);
    `spare_adapters`: how many more can be loaded later, each with a slot unless `slots` says otherwise; `max_rank`: of
    those (None: the largest of `adapters`); `otlp_endpoint`: where vLLM sends its spans;
    `json_logs`: whether it logs JSON objects instead of lines;
    `context_tokens`: longest prompt and answer; `step_tokens`: most tokens computed in one engine step (None: vLLM's
    own choice); `concurrent_sequences`: most prompts in one step; `gpu_memory_share`: of a GPU's memory.
    """

    model: Path
    adapters: tuple[EngineAdapter, ...]
    choice: Choice
    context_tokens: int
    step_tokens: int | None = None
    slots: int | None = None
    concurrent_sequences: int = 256
    prefix_caching: bool = True
    gpu_memory_share: float = 0.9
    spare_adapters: int = 0
    max_rank: int | None = None
    otlp_endpoint: str | None = None
    json_logs: bool = False

    @property
    def rank(self) -> int:
        """The largest rank that an adapter may have."""
        return max([each.adapter.rank for each in self.adapters] + [self.max_rank or 1])

    @property
    def target_modules(self) -> frozenset[str]:
        """The modules that an adapter may change."""
        return frozenset(module for each in self.adapters for module in each.adapter.target_modules)


def process_environment(choice: Choice) -> dict[str, str]:
    """Environment that vLLM's processes inherit."""
    variables = {
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # the plugin's token mapping is written for the V1 runner
        # vLLM's warnings at start are about choices that are made here on purpose.
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "PYTHONWARNINGS": os.environ.get("PYTHONWARNINGS", "ignore"),  # of libraries, to those who develop vLLM
        "VLLM_NO_USAGE_STATS": "1",
        # vLLM would fork where nothing has used the GPU yet: beside gRPC's threads, and with its open connections.
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    if choice.on_cpu:
        cores = ",".join(map(str, choice.cores))
        variables |= {
            "VLLM_CPU_OMP_THREADS_BIND": cores or "nobind",
            # The engine core computes itself, without a worker process that it would wait for by spinning on a core
            # that computes. vLLM allows that on a CPU only when told to use no process of its own for the engine core
            # (which AsyncLLM does all the same), and then leaves OpenMP's threads to whoever starts it.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "OMP_NUM_THREADS": str(choice.threads),
            "KMP_AFFINITY": f"granularity=fine,explicit,proclist=[{cores}]" if cores else "none",
            "KMP_BLOCKTIME": "5",
            "KMP_TPAUSE": "0",
        }
        openmp = intel_openmp()
        preloaded = os.environ.get("LD_PRELOAD", "")
        if openmp is not None and "libiomp5" not in preloaded:
            variables["LD_PRELOAD"] = ":".join(filter(None, (str(openmp), preloaded)))
    return variables


def missing_on_cpu() -> list[str]:
    """What vLLM needs of the system on a CPU and does not find, with the packages that bring it.

    Without it the engine's processes end with an error about an operator that torch does not know, or a command's code.
    """
    missing = []
    try:
        ctypes.CDLL("libnuma.so.1")
    except OSError:
        missing.append("libnuma.so.1 (package libnuma1 on Debian and Ubuntu, numactl-libs on Fedora and Amazon Linux)")
    if shutil.which("lscpu") is None:
        missing.append("the command lscpu (package util-linux)")
    return missing


def intel_openmp() -> Path | None:
    """libiomp5.so of the intel-openmp package, without which vLLM computes on one core; None where there is none."""
    from importlib.metadata import PackageNotFoundError, files

    try:
        found: Iterable[Any] = files("intel-openmp") or ()
    except PackageNotFoundError:
        return None
    return next((Path(str(file.locate())).resolve() for file in found if file.name == "libiomp5.so"), None)


def engine_args(config: VllmConfig) -> dict[str, Any]:
    """Arguments of vLLM's engine; slots and ranks follow from the adapters."""
    import torch

    arguments: dict[str, Any] = {
        "model": str(config.model),
        "dtype": config.choice.dtype,
        "max_model_len": config.context_tokens,
        "block_size": config.choice.block_tokens,
        "enable_prefix_caching": config.prefix_caching,
        "max_num_seqs": config.concurrent_sequences,
        "max_num_batched_tokens": config.step_tokens,
        "gpu_memory_utilization": config.gpu_memory_share,
        "kv_cache_memory_bytes": config.choice.kv_bytes,
        "enforce_eager": config.choice.on_cpu,
        "distributed_executor_backend": "uni" if config.choice.on_cpu else None,
        "disable_log_stats": config.otlp_endpoint is None,  # vLLM's spans are made of its statistics
        "scheduling_policy": "priority",
        "otlp_traces_endpoint": config.otlp_endpoint,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "use_tqdm_on_load": False,
    }
    if config.adapters:
        room = len(config.adapters) + config.spare_adapters
        arguments |= {
            "enable_lora": True,
            "max_loras": min(config.slots or room, room),
            "max_cpu_loras": room,
            "max_lora_rank": slot_rank(config.rank),
            "lora_target_modules": sorted(config.target_modules),
            # On a CPU the plugin multiplies by adapters in float32, whatever the base is computed in.
            "lora_dtype": torch.float32 if config.choice.on_cpu else None,
        }
    return {name: value for name, value in arguments.items() if value is not None}
