"""Lets every engine process answer, over vLLM's own calls between processes, which patches are inactive in it."""

from __future__ import annotations

from typing import Any

from vllm.v1.engine.core import EngineCore
from vllm.v1.worker.worker_base import WorkerBase

from service.vllm_plugin import token_mapping

METHOD = "fantail_inactive_patches"
"""A process without the plugin has no such method, and the call fails: that is an answer too."""


def _inactive_patches(self: Any) -> dict[str, str]:
    from service.vllm_plugin.ledger import inactive_patches

    return inactive_patches()


def _inactive_patches_of_worker(self: Any) -> dict[str, str]:
    bypassed = token_mapping.bypassed_by(self.model_runner)
    return _inactive_patches(self) | ({} if bypassed is None else {"token_mapping": bypassed})


def apply() -> None:
    setattr(EngineCore, METHOD, _inactive_patches)
    setattr(WorkerBase, METHOD, _inactive_patches_of_worker)


def inactive_because() -> str | None:
    missing = [owner.__name__ for owner in (EngineCore, WorkerBase) if not hasattr(owner, METHOD)]
    return f"{', '.join(missing)} cannot report" if missing else None
