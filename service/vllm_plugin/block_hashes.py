"""Shares KV blocks that lie before the activation position between all adapters and the base model.

vLLM mixes the adapter's name into the hash of every block. Before its activation position an activated adapter
leaves the base model's KV untouched, so there, and only there, the name is left out; all other keys stay.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

from vllm.v1.core import kv_cache_utils

from service.vllm_plugin.position import POSITION_KEY, activation_position

_NAME = "generate_block_hash_extra_keys"
_stock = kv_cache_utils.generate_block_hash_extra_keys

ExtraKeys = tuple[tuple[Any, ...] | None, int]


def _generate_block_hash_extra_keys(
    request: Any, start_token_idx: int, end_token_idx: int, start_mm_idx: int
) -> ExtraKeys:
    keys, next_mm_idx = _stock(request, start_token_idx, end_token_idx, start_mm_idx)
    position = activation_position(request.sampling_params)
    if keys is None or position is None or end_token_idx > position:
        return keys, next_mm_idx
    return tuple(key for key in keys if key[0] != "lora") or None, next_mm_idx


def _binding(module: Any) -> Any:
    """What a module binds the name to; read from its dict, because asking a lazy module would import what it offers."""
    return getattr(module, "__dict__", {}).get(_NAME)


def apply() -> None:
    """Rebind the function wherever a loaded module took it by name; modules loaded later take ours."""
    for module in list(sys.modules.values()):
        if _binding(module) is _stock:
            setattr(module, _NAME, _generate_block_hash_extra_keys)


def inactive_because() -> str | None:
    """Hash keys around a position: shared up to it, the adapter's own from it on, salted either way."""
    stale = [m.__name__ for m in list(sys.modules.values()) if _binding(m) is _stock]
    if stale:
        return f"{', '.join(stale)} still uses the stock function"
    request = SimpleNamespace(
        sampling_params=SimpleNamespace(extra_args={POSITION_KEY: 32}),
        lora_request=SimpleNamespace(lora_name="a", lora_path="/a"),
        cache_salt="salt", mm_features=[], prompt_embeds=None,
    )  # fmt: skip
    before = kv_cache_utils.generate_block_hash_extra_keys(request, 0, 32, 0)[0]
    across = kv_cache_utils.generate_block_hash_extra_keys(request, 16, 48, 0)[0]
    if before != (("cache_salt", "salt"),) or across != (("lora", "a", "/a"),):
        return f"keys are {before} before the position and {across} across it"
    return None
