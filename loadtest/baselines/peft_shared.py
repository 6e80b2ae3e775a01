"""Hugging Face PEFT, float32: the conversation read once by the base model, then each tail on its cached KV.

What somebody can write around PEFT who knows that activated adapters may share what was read before them: PEFT itself
offers no such call. Settings: all cores, the activated adapters as they are, `set_adapter` for each tail, logits of the
last position only; the cache is cropped back to the conversation in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import DynamicCache

from loadtest.baselines.peft_sequential import with_adapters
from loadtest.baselines.prompts import Prompts
from loadtest.baselines.worker import Baseline, run_worker


def start(model: Path, classifiers: Path) -> Baseline:
    prompts = Prompts(model, classifiers)
    peft = with_adapters(model, prompts.tasks)

    @torch.inference_mode()
    def classify(turns: Sequence[Sequence[str]]) -> list[list[float]]:
        prefix, cache = prompts.prefix(turns), DynamicCache(config=peft.config)
        with peft.disable_adapter():
            peft(input_ids=torch.tensor([prefix]), past_key_values=cache, logits_to_keep=1)
        answers = []
        for task in prompts.tasks:
            peft.set_adapter(task.name)
            logits = peft(input_ids=torch.tensor([task.tail]), past_key_values=cache, logits_to_keep=1).logits[0, -1]
            cache.crop(len(prefix))
            answers.append(logits[task.label_ids].softmax(-1).tolist())
        return answers

    return Baseline(classify)


if __name__ == "__main__":
    run_worker(start)
