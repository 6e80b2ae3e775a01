"""Lets every engine process answer, over vLLM's own calls between processes, what is otherwise known in it alone.

Which patches are inactive in it; in the engine core how much it has to do; in a worker which adapter is in which slot.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from vllm.lora.model_manager import LRUCacheLoRAModelManager
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore
from vllm.v1.worker.worker_base import WorkerBase

from service.vllm_plugin import token_mapping

INACTIVE_PATCHES = "fantail_inactive_patches"
"""A process without the plugin has no such method, and the call fails: that is an answer too."""

COUNTERS = "fantail_counters"
ADAPTERS = "fantail_adapters"

_stock_schedule = Scheduler.schedule
_steps = 0
"""Of this process: steps scheduled that compute something. vLLM also schedules empty ones, as many as chance has it."""

_stock_activate = LRUCacheLoRAModelManager.activate_adapter
_slot_loads: Counter[int] = Counter()
"""Of this process: how often each adapter, by id, was put into a slot."""


def _inactive_patches(self: Any) -> dict[str, str]:
    from service.vllm_plugin.ledger import inactive_patches

    return inactive_patches()


def _inactive_patches_of_worker(self: Any) -> dict[str, str]:
    bypassed = token_mapping.bypassed_by(self.model_runner)
    return _inactive_patches(self) | ({} if bypassed is None else {"token_mapping": bypassed})


def _counters(self: Any) -> dict[str, int]:
    """Of an engine core: requests being computed, tokens of these that are done, requests waiting, KV blocks in use and
    in all (one is vLLM's own), tokens of a block, steps that compute something. It answers between two steps, or never
    when one hangs.
    """
    scheduler = self.scheduler
    pool = scheduler.kv_cache_manager.block_pool
    blocks = pool.num_gpu_blocks - 1
    return {
        "running": len(scheduler.running),
        "computed_tokens": sum(request.num_computed_tokens for request in scheduler.running),
        "waiting": len(scheduler.waiting),
        "kv_blocks_used": blocks - pool.get_num_free_blocks(),
        "kv_blocks": blocks,
        "block_tokens": scheduler.block_size,
        "steps": _steps,
    }


def _adapters(self: Any) -> dict[int, tuple[int | None, int]]:
    """Of a worker: slot (None while only kept in memory) and slot loads of each adapter, by id."""
    if self.model_runner.lora_config is None:
        return {}
    manager = self.model_runner.lora_manager._adapter_manager
    slots = {adapter: slot for slot, adapter in enumerate(manager.lora_index_to_id) if adapter is not None}
    held = {adapter: (slots.get(adapter), _slot_loads[adapter]) for adapter in manager.list_adapters()}
    for gone in set(_slot_loads) - set(held):
        del _slot_loads[gone]
    return held


def _schedule(self: Scheduler, *args: Any, **options: Any) -> SchedulerOutput:
    global _steps
    scheduled = _stock_schedule(self, *args, **options)
    _steps += scheduled.total_num_scheduled_tokens > 0
    return scheduled


def _activate_adapter(self: Any, lora_id: int) -> bool:
    activated: bool = _stock_activate(self, lora_id)
    _slot_loads[lora_id] += activated
    return activated


def apply() -> None:
    setattr(EngineCore, INACTIVE_PATCHES, _inactive_patches)
    setattr(EngineCore, COUNTERS, _counters)
    setattr(WorkerBase, INACTIVE_PATCHES, _inactive_patches_of_worker)
    setattr(WorkerBase, ADAPTERS, _adapters)
    LRUCacheLoRAModelManager.activate_adapter = _activate_adapter
    Scheduler.schedule = _schedule


def inactive_because() -> str | None:
    wanted = ((EngineCore, INACTIVE_PATCHES), (EngineCore, COUNTERS), (WorkerBase, ADAPTERS))
    missing = [owner.__name__ for owner, method in wanted if not hasattr(owner, method)]
    if missing:
        return f"{', '.join(missing)} cannot report"
    if LRUCacheLoRAModelManager.activate_adapter is not _activate_adapter:
        return "slot loads are not counted"
    return None if Scheduler.schedule is _schedule else "steps are not counted"
