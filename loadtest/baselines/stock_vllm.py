"""vLLM without Fantail's plugin: the same weights as plain LoRA, sixteen prompts in one `generate` call.

Settings: float32, prefix caching on, vLLM's own CPU block size, every adapter resident, the same OpenMP set-up as
Fantail's server. The answers differ from ours, because a plain adapter also changes how the conversation is read.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.lora.request import LoRARequest

from loadtest.baselines.prompts import Prompts, plain_copy
from loadtest.baselines.worker import run_worker

KV_BYTES = 4 << 30


def start(model: Path, classifiers: Path) -> Callable[[Sequence[Sequence[str]]], list[list[float]]]:
    prompts = Prompts(model, classifiers)
    scratch = Path(tempfile.mkdtemp(prefix="plain-adapters-"))
    loras = [
        LoRARequest(task.name, number, str(plain_copy(task.adapter, scratch / task.name)))
        for number, task in enumerate(prompts.tasks, 1)
    ]
    llm = LLM(
        str(model),
        dtype="float32",
        max_model_len=8192,
        enable_lora=True,
        max_loras=len(loras),
        max_lora_rank=8,
        kv_cache_memory_bytes=KV_BYTES,
        enable_prefix_caching=True,
        skip_tokenizer_init=True,
        generation_config="vllm",
    )
    params = [
        SamplingParams(max_tokens=1, temperature=0, logprob_token_ids=task.label_ids, detokenize=False)
        for task in prompts.tasks
    ]

    def classify(turns: Sequence[Sequence[str]]) -> list[list[float]]:
        prefix = prompts.prefix(turns)
        inputs = [TokensPrompt(prompt_token_ids=prefix + task.tail) for task in prompts.tasks]
        outputs = llm.generate(inputs, params, lora_request=loras, use_tqdm=False)
        answers = []
        for task, output in zip(prompts.tasks, outputs, strict=True):
            weights = [math.exp(output.outputs[0].logprobs[0][token].logprob) for token in task.label_ids]
            answers.append([weight / sum(weights) for weight in weights])
        return answers

    return classify


if __name__ == "__main__":
    run_worker(start)
