"""Every patch to vLLM: what, why, how, where upstream stands, and when it can go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import vllm

from service.vllm_plugin import (
    block_hashes,
    cgroup_memory,
    cpu_lora,
    handover,
    peft_config,
    report,
    token_mapping,
    token_ranks,
)

SUPPORTED_VERSION = "0.32.0"
"""The only version the patched symbols were read in; another is refused rather than hoped for."""


class PatchError(RuntimeError):
    """The patches cannot be applied to the vLLM that is installed."""


@dataclass(frozen=True, slots=True)
class Patch:
    """A ledger entry. `inactive_because` proves it by behaviour: None when active, else what was seen."""

    name: str
    symbol: str
    why: str
    how: str
    upstream: str
    remove_when: str
    apply: Callable[[], None]
    inactive_because: Callable[[], str | None]


LEDGER: tuple[Patch, ...] = (
    Patch(
        name="peft_config",
        symbol="vllm.lora.peft_helper.PEFTHelper._validate_features",
        why="vLLM refuses adapters that set alora_invocation_tokens",
        how="leaves out that one refusal",
        upstream="https://github.com/vllm-project/vllm/pull/19710",
        remove_when="vLLM serves activated LoRA itself",
        apply=peft_config.apply,
        inactive_because=peft_config.inactive_because,
    ),
    Patch(
        name="block_hashes",
        symbol="vllm.v1.core.kv_cache_utils.generate_block_hash_extra_keys",
        why="every block's hash carries the adapter's name, so adapters share no KV even where they change nothing",
        how="leaves the name out of blocks that end at or before the activation position",
        upstream="https://github.com/vllm-project/vllm/pull/19710",
        remove_when="vLLM serves activated LoRA itself",
        apply=block_hashes.apply,
        inactive_because=block_hashes.inactive_because,
    ),
    Patch(
        name="token_mapping",
        symbol="vllm.v1.worker.lora_model_runner_mixin.LoRAModelRunnerMixin.set_active_loras",
        why="an adapter is applied to every token of its request",
        how="maps rows before the activation position to no adapter",
        upstream="https://github.com/vllm-project/vllm/pull/19710",
        remove_when="vLLM serves activated LoRA itself; on the V2 model runner it has to be written anew",
        apply=token_mapping.apply,
        inactive_because=token_mapping.inactive_because,
    ),
    Patch(
        name="cpu_lora",
        symbol="vllm.platforms.cpu.CpuPlatform.get_punica_wrapper",
        why="the CPU kernel copies a whole adapter per token, and gives rows without one the last slot's adapter",
        how="names a wrapper that multiplies each adapter's rows once and leaves other rows alone",
        upstream="https://github.com/vllm-project/vllm/pull/48421, https://github.com/vllm-project/vllm/pull/49656",
        remove_when="vLLM's CPU kernel groups rows by adapter and skips index -1",
        apply=cpu_lora.apply,
        inactive_because=cpu_lora.inactive_because,
    ),
    Patch(
        name="handover",
        symbol="vllm.v1.engine.core.EngineCoreProc",
        why="a fan-out's requests arrive one by one, and the engine starts to compute with the first",
        how="adds a method that takes many requests in one message",
        upstream="none; EngineCoreProc.process_input_sockets of 0.32.0",
        remove_when="AsyncLLM hands over many requests at once",
        apply=handover.apply,
        inactive_because=handover.inactive_because,
    ),
    Patch(
        name="token_ranks",
        symbol="vllm.v1.sample.sampler.batched_count_greater_than",
        why="the sampled token's rank takes a pass over all logits and a C++ compiler, and nobody reads it",
        how="answers zeros",
        upstream="none; Sampler.gather_specific_token_logprobs of 0.32.0",
        remove_when="logprob_token_ids comes without ranks",
        apply=token_ranks.apply,
        inactive_because=token_ranks.inactive_because,
    ),
    Patch(
        name="cgroup_memory",
        symbol="vllm.utils.cpu_resource_utils.get_cgroup_memory_usage",
        why="in a container the cache of the weights just read counts as memory in use, and KV that fits is refused",
        how="subtracts cached files, as vLLM itself does for a machine's memory",
        upstream="none; get_memory_node_info of 0.32.0",
        remove_when="vLLM subtracts them",
        apply=cgroup_memory.apply,
        inactive_because=cgroup_memory.inactive_because,
    ),
    Patch(
        name="report",
        symbol="vllm.v1.engine.core.EngineCore, vllm.v1.worker.worker_base.WorkerBase, "
        "vllm.lora.model_manager.LRUCacheLoRAModelManager.activate_adapter, "
        "vllm.v1.core.sched.scheduler.Scheduler.schedule",
        why="a plugin that fails to load is logged and forgotten, and nobody can ask which adapter is in which slot",
        how="adds methods by which each process says which patches are inactive in it, what it has to do and holds",
        upstream="none; vllm/plugins/__init__.py of 0.32.0",
        remove_when="no other patch is left",
        apply=report.apply,
        inactive_because=report.inactive_because,
    ),
)


def apply_all() -> None:
    """Apply every patch. Raises PatchError on another vLLM than `SUPPORTED_VERSION`."""
    if vllm.__version__.split("+")[0] != SUPPORTED_VERSION:
        raise PatchError(f"vLLM is {vllm.__version__}; the patches are for {SUPPORTED_VERSION} alone")
    for patch in LEDGER:
        patch.apply()


def inactive_patches() -> dict[str, str]:
    """Name and reason of every patch that is not active in this process; empty when all are."""
    found = {patch.name: patch.inactive_because() for patch in LEDGER}
    return {name: reason for name, reason in found.items() if reason is not None}
