"""Lets vLLM load adapters whose config sets `alora_invocation_tokens`."""

from __future__ import annotations

from vllm.lora.peft_helper import PEFTHelper

_stock = PEFTHelper._validate_features
_REFUSAL = "(aLoRA)"


def _validate_features(self: PEFTHelper) -> list[str]:
    return [problem for problem in _stock(self) if _REFUSAL not in problem]


def apply() -> None:
    PEFTHelper._validate_features = _validate_features


def inactive_because() -> str | None:
    """Ask the helper about an activated adapter, and about a DoRA one, which must still be refused."""
    plain = {"r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]}
    if PEFTHelper(**plain, alora_invocation_tokens=[1])._validate_features():
        return "activated adapters are refused"
    if not PEFTHelper(**plain, use_dora=True)._validate_features():
        return "unsupported adapters are let through"
    return None
