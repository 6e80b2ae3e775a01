"""A trained fan to PEFT adapter folders, each written as a whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from service.registry.adapter import CONFIG_FILE, WEIGHT_PREFIX, WEIGHTS_FILE
from service.registry.folders import RECORD_FILE
from service.training.fan import Fan
from service.training.loop import TrainingConfig


def export_adapter(
    fan: Fan,
    index: int,
    folder: Path,
    config: TrainingConfig,
    base_name: str,
    invocation_ids: Sequence[int] | None,
    record: Mapping[str, Any],
) -> None:
    """Write classifier `index` of the fan to `folder/adapter` and its training record beside it.

    `invocation_ids`: where an activated adapter begins to act; None for a plain one.
    Weights are stored as float16, which holds them to 3 digits in half the bytes; whoever loads them casts them.
    """
    tensors = {}
    for name, layer in fan.layers.items():
        tensors[f"{WEIGHT_PREFIX}{name}.lora_A.weight"] = layer.a[index].detach().to(torch.float16).contiguous()
        tensors[f"{WEIGHT_PREFIX}{name}.lora_B.weight"] = layer.b[index].detach().to(torch.float16).contiguous()
    peft_config = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=sorted(config.target_modules),
        base_model_name_or_path=base_name,
        task_type="CAUSAL_LM",
        inference_mode=True,
        alora_invocation_tokens=None if invocation_ids is None else list(invocation_ids),
    )
    with tempfile.TemporaryDirectory(dir=folder, prefix=".adapter-") as scratch:
        made = Path(scratch) / "adapter"
        made.mkdir()
        peft_config.save_pretrained(str(made))
        _sort_modules(made / CONFIG_FILE)
        save_file(tensors, made / WEIGHTS_FILE, metadata={"format": "pt"})
        (Path(scratch) / RECORD_FILE).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if (folder / "adapter").exists():
            shutil.move(folder / "adapter", Path(scratch) / "old")
        made.rename(folder / "adapter")
        (Path(scratch) / RECORD_FILE).replace(folder / RECORD_FILE)


def _sort_modules(path: Path) -> None:
    """PEFT writes `target_modules` in the order of a set; sorted, equal training gives equal bytes and revisions."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"].sort()
    path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
