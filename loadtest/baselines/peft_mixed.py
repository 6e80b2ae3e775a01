"""Hugging Face PEFT, float32: sixteen prompts in one forward pass, a row and an adapter for each (`adapter_names`).

Settings: as one by one. Shorter prompts are filled up at their end, where a causal model's earlier positions do not
look, with their own last token, which begins no invocation: so no attention mask is needed, and PyTorch's fast causal
attention stays in use.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from loadtest.baselines.peft_sequential import with_adapters
from loadtest.baselines.prompts import Prompts
from loadtest.baselines.worker import Baseline, run_worker


def start(model: Path, classifiers: Path) -> Baseline:
    prompts = Prompts(model, classifiers)
    peft = with_adapters(model, prompts.tasks)
    names = [task.name for task in prompts.tasks]
    longest = max(len(task.tail) for task in prompts.tasks)
    kept = longest - min(len(task.tail) for task in prompts.tasks) + 1

    @torch.inference_mode()
    def classify(turns: Sequence[Sequence[str]]) -> list[list[float]]:
        prefix = prompts.prefix(turns)
        rows = [prefix + task.tail + task.tail[-1:] * (longest - len(task.tail)) for task in prompts.tasks]
        ids = torch.tensor(rows)
        logits = peft(input_ids=ids, adapter_names=names, logits_to_keep=kept, use_cache=False).logits
        return [
            row[len(task.tail) - longest - 1, task.label_ids].softmax(-1).tolist()
            for row, task in zip(logits, prompts.tasks, strict=True)
        ]

    return Baseline(classify)


if __name__ == "__main__":
    run_worker(start)
