"""Chooses dtype, cores and KV memory for the machine at hand, and says why. Knows torch, not vLLM."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Literal

from service.engine import control_group
from service.errors import ConfigurationError

GIB = 1 << 30
CPU_KV_SHARE = 0.25
MAX_CPU_KV_GIB = 4.0
BFLOAT16_CAPABILITY = (8, 0)
"""The compute capability of an NVIDIA GPU from which on vLLM computes in bfloat16 on it."""

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a choice depends on.

    `cores`: usable by this process; `free_bytes`: of main memory; `granted_cores`: of how many cores' time its control
    groups grant it at most; `capability`: of the GPU, major and minor; (0, 0) without one.
    """

    gpu: bool
    cores: tuple[int, ...]
    free_bytes: int
    granted_cores: float = math.inf
    capability: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class Choice:
    """Settings of the engine that follow from the machine.

    `block_tokens`: size of a KV block; `kv_bytes`, `threads`: None on a GPU, where vLLM decides; `cores`: one for each
    thread, or none where the system chooses; `reasons`: one line each, for the log.
    """

    dtype: str
    block_tokens: int
    kv_bytes: int | None
    threads: int | None
    cores: tuple[int, ...]
    reasons: tuple[str, ...]

    @property
    def on_cpu(self) -> bool:
        return self.threads is not None


def detect_hardware() -> Hardware:
    """Look at this process's machine, and at what its container may have of it."""
    import torch

    with open("/proc/meminfo", encoding="ascii") as file:
        facts = dict(line.split(":", 1) for line in file)
    free = min(int(facts["MemAvailable"].split()[0]) * 1024, control_group.free_bytes())
    cores = tuple(sorted(os.sched_getaffinity(0)))
    gpu = torch.cuda.is_available()
    capability = torch.cuda.get_device_capability() if gpu else (0, 0)
    return Hardware(gpu, cores, int(free), control_group.granted_cores(), capability)


def cpu_kv_gib(free_bytes: float) -> float:
    """What is kept for KV of a CPU's free memory unless a setting says otherwise, GiB."""
    return min(MAX_CPU_KV_GIB, free_bytes / GIB * CPU_KV_SHARE)


def choose(hardware: Hardware, dtype: Dtype, cores: int | None, kv_gib: float | None) -> Choice:
    """The settings for `hardware`, each overridden where the caller gives one ('auto' or None: not given).

    Raises ConfigurationError for a choice that this hardware cannot follow.
    """
    if hardware.gpu:
        if cores is not None or kv_gib is not None:
            raise ConfigurationError(
                "FANTAIL_CORES and FANTAIL_KV_GIB are for a CPU, but there is a GPU; set FANTAIL_GPU_MEMORY_SHARE"
            )
        chosen, why = choose_gpu_dtype(hardware, dtype)
        return Choice(
            chosen,
            16,
            None,
            None,
            (),
            (
                f"dtype {chosen}: {why}",
                "KV blocks of 16 tokens: vLLM's GPU kernels",
                "KV memory: vLLM's share of the GPU",
            ),
        )
    chosen, why = (
        (dtype, "as set") if dtype != "auto" else ("float32", "answers equal PEFT's float32 reference to 1e-3 on a CPU")
    )
    threads, bound, threads_why = choose_threads(hardware, cores)
    kv_why = "as set" if kv_gib is not None else f"a quarter of free memory, at most {MAX_CPU_KV_GIB:g} GiB"
    kv = kv_gib if kv_gib is not None else cpu_kv_gib(hardware.free_bytes)
    return Choice(
        chosen,
        32,
        int(kv * GIB),
        threads,
        bound,
        (
            f"dtype {chosen}: {why}",
            "KV blocks of 32 tokens: the CPU attention kernel's unit",
            f"KV memory {kv:.1f} GiB: {kv_why}",
            threads_why,
        ),
    )


def choose_gpu_dtype(hardware: Hardware, asked: Dtype) -> tuple[str, str]:
    """What a GPU's matrix units compute at full rate, and why. Raises ConfigurationError for what they cannot."""
    young = hardware.capability >= BFLOAT16_CAPABILITY
    if asked == "float32":
        raise ConfigurationError("FANTAIL_DTYPE=float32 is for a CPU: on a GPU vLLM's LoRA kernels take half precision")
    if asked == "bfloat16" and not young:
        raise ConfigurationError("this GPU has no bfloat16; leave FANTAIL_DTYPE out, or set it to float16")
    if asked != "auto":
        return asked, "as set"
    if young:
        return "bfloat16", "a GPU's matrix units compute it at full rate"
    return "float16", "GPUs of this age, compute capability {}.{}, have no bfloat16".format(*hardware.capability)


def choose_threads(hardware: Hardware, asked: int | None) -> tuple[int, tuple[int, ...], str]:
    """How many threads compute, the core of each (none: whichever is free), and why.

    Where only some of the cores that are seen are used, or a quota grants less, others compute on them too, and whoever
    is started the same way would be bound to the same ones.
    """
    seen, granted = len(hardware.cores), hardware.granted_cores
    threads = min(asked or (max(1, int(granted)) if granted < seen else seen), seen)
    bound = hardware.cores if granted >= seen == threads else ()
    where = f"cores {','.join(map(str, bound))}" if bound else f"cores any of {seen}, {threads} threads"
    why = "all that this process may use" if bound else f"a control group grants the time of {granted:g}"
    return threads, bound, f"{where}: {'as set' if threads == asked else why}"
