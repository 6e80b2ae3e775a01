"""One adapter merged into its own copy of the base: what each of sixteen such models would hold and take.

Settings: float32, all cores, no KV made or kept, logits of the last position only. The first classifier's weights are
merged as a plain LoRA, because an activated adapter cannot be merged: it leaves the tokens before its invocation to the
base, and merged weights act on every token. So the answer is another one than the adapter's own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loadtest.baselines.prompts import Prompts, plain_copy
from loadtest.baselines.worker import Baseline, run_worker


def start(model: Path, classifiers: Path) -> Baseline:
    prompts = Prompts(model, classifiers)
    task = prompts.tasks[0]
    merged = merge(model, task.adapter)
    weight_mb = sum(each.numel() * each.element_size() for each in merged.parameters()) / 1e6

    @torch.inference_mode()
    def classify(turns: Sequence[Sequence[str]]) -> list[list[float]]:
        ids = torch.tensor([prompts.prefix(turns) + task.tail])
        logits = merged(input_ids=ids, logits_to_keep=1, use_cache=False).logits[0, -1]
        return [logits[task.label_ids].softmax(-1).tolist()]

    return Baseline(classify, f"merged: {task.name}; {weight_mb:.0f} MB of its memory are weights")


def merge(model: Path, adapter: Path) -> Any:
    """The base with the adapter added into its weights, and nothing of PEFT left in it."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with tempfile.TemporaryDirectory(prefix="plain-adapter-") as scratch:
        plain = plain_copy(adapter, Path(scratch) / "adapter")
        return PeftModel.from_pretrained(base, plain).merge_and_unload().eval()


if __name__ == "__main__":
    run_worker(start)
