"""Chooses dtype, cores and KV memory for the machine at hand, and says why. Knows torch, not vLLM."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.errors import ConfigurationError

GIB = 1 << 30
CPU_KV_SHARE = 0.25
MAX_CPU_KV_GIB = 4.0

CONTROL_GROUP = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 62

Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a choice depends on. `cores`: usable by this process; `free_bytes`: of main memory."""

    gpu: bool
    cores: tuple[int, ...]
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Choice:
    """Settings of the engine that follow from the machine. `kv_bytes` and `cores`: None on a GPU, where vLLM decides.

    `block_tokens`: size of a KV block; `reasons`: one line each, for the log.
    """

    dtype: str
    block_tokens: int
    kv_bytes: int | None
    cores: tuple[int, ...] | None
    reasons: tuple[str, ...]


def detect_hardware() -> Hardware:
    """Look at this process's machine, and at what its container may have of it."""
    import torch

    with open("/proc/meminfo", encoding="ascii") as file:
        facts = dict(line.split(":", 1) for line in file)
    free = min(int(facts["MemAvailable"].split()[0]) * 1024, free_in_group(CONTROL_GROUP))
    return Hardware(torch.cuda.is_available(), tuple(sorted(os.sched_getaffinity(0))), free)


def free_in_group(group: Path) -> int:
    """Bytes left below the memory limit of a control group (version 2, else 1); without a limit more than there is.

    /proc/meminfo is the host's, also in a container. Files that are only cached are free.
    """
    for folder, limit, used, cached in (
        (group, "memory.max", "memory.current", "inactive_file"),
        (group / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            most, now = ((folder / name).read_text(encoding="ascii").strip() for name in (limit, used))
            facts = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        except (OSError, ValueError):
            continue
        return UNLIMITED if most == "max" else max(0, int(most) - int(now) + int(facts.get(cached, 0)))
    return UNLIMITED


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
        chosen, why = (
            (dtype, "as set") if dtype != "auto" else ("bfloat16", "a GPU's matrix units compute it at full rate")
        )
        return Choice(
            chosen,
            16,
            None,
            None,
            (
                f"dtype {chosen}: {why}",
                "KV blocks of 16 tokens: vLLM's GPU kernels",
                "KV memory: vLLM's share of the GPU",
            ),
        )
    chosen, why = (
        (dtype, "as set") if dtype != "auto" else ("float32", "answers equal PEFT's float32 reference to 1e-3 on a CPU")
    )
    count = min(cores or len(hardware.cores), len(hardware.cores))
    used = hardware.cores[:count]
    cores_why = "as set" if cores == count else "all that this process may use"
    kv_why = "as set" if kv_gib is not None else f"a quarter of free memory, at most {MAX_CPU_KV_GIB:g} GiB"
    kv = kv_gib if kv_gib is not None else cpu_kv_gib(hardware.free_bytes)
    return Choice(
        chosen,
        32,
        int(kv * GIB),
        used,
        (
            f"dtype {chosen}: {why}",
            "KV blocks of 32 tokens: the CPU attention kernel's unit",
            f"KV memory {kv:.1f} GiB: {kv_why}",
            f"cores {','.join(map(str, used))}: {cores_why}",
        ),
    )
