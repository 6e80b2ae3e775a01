"""Adapters with random weights and a strong effect, saved by PEFT itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from service.base_model import BaseModel
from service.domain import AdapterKind, Classifier
from service.engine.base import EngineAdapter
from service.registry.adapter import load_adapter

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def random_adapter(
    folder: Path, base: BaseModel, invocation_ids: tuple[int, ...], kind: AdapterKind, seed: int, rank: int = 8
) -> EngineAdapter:
    """An adapter that nothing else would answer like; two seeds under one name are two sets of weights."""
    model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
    torch.manual_seed(seed)
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=MODULES,
        task_type="CAUSAL_LM",
        init_lora_weights=False,
        base_model_name_or_path=base.name,
        alora_invocation_tokens=list(invocation_ids) if kind is AdapterKind.ACTIVATED else None,
    )
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.mul_(0.3)
    adapted.peft_config["default"].base_model_name_or_path = base.name
    adapted.save_pretrained(folder)
    adapter, problems = load_adapter(folder, kind, base, invocation_ids)
    assert adapter is not None, problems
    return EngineAdapter(f"random_{kind.value}@{adapter.digest[:16]}", adapter)


def asked_like(adapter: EngineAdapter, shipped: Classifier) -> Classifier:
    """A classifier of its own name that asks what a shipped one does, under this adapter."""
    name, _, _ = adapter.name.partition("@")
    return replace(shipped, name=name, adapter=adapter.adapter, calibration=None, probes=())
