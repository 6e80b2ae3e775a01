"""Lets every engine process answer, over vLLM's own calls between processes, which patches are inactive in it."""

from __future__ import annotations

from typing import Any

from vllm.v1.engine.core import EngineCore
from vllm.v1.worker.worker_base import WorkerBase

METHOD = "fantail_inactive_patches"
"""A process without the plugin has no such method, and the call fails: that is an answer too."""


def _inactive_patches(self: Any) -> dict[str, str]:
    from service.vllm_plugin.ledger import inactive_patches

    return inactive_patches()


def apply() -> None:
    setattr(EngineCore, METHOD, _inactive_patches)
    setattr(WorkerBase, METHOD, _inactive_patches)


def inactive_because() -> str | None:
    missing = [owner.__name__ for owner in (EngineCore, WorkerBase) if not hasattr(owner, METHOD)]
    return f"{', '.join(missing)} cannot report" if missing else None
