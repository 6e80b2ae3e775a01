"""Hugging Face PEFT, float32: `set_adapter` and one forward pass over the whole prompt, classifier after classifier.

Settings: all cores, the activated adapters as they are, no KV made or kept, logits of the last position only.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from loadtest.baselines.prompts import Prompts, Task
from loadtest.baselines.worker import Baseline, Classify, run_worker


def start(model: Path, classifiers: Path) -> Baseline:
    prompts = Prompts(model, classifiers)
    return Baseline(one_by_one(prompts, with_adapters(model, prompts.tasks)))


def one_by_one(prompts: Prompts, peft: Any) -> Classify:
    """All adapters of `peft`, each on the whole prompt."""

    @torch.inference_mode()
    def classify(turns: Sequence[Sequence[str]]) -> list[list[float]]:
        prefix = prompts.prefix(turns)
        answers = []
        for task in prompts.tasks:
            peft.set_adapter(task.name)
            logits = peft(input_ids=torch.tensor([prefix + task.tail]), logits_to_keep=1, use_cache=False).logits[0, -1]
            answers.append(logits[task.label_ids].softmax(-1).tolist())
        return answers

    return classify


def with_adapters(model: Path, tasks: Sequence[Task]) -> Any:
    """The base in float32 with every task's adapter loaded under its name."""
    first, *rest = tasks
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, first.adapter, adapter_name=first.name).eval()
    for task in rest:
        peft.load_adapter(task.adapter, adapter_name=task.name)
    return peft


if __name__ == "__main__":
    run_worker(start)
