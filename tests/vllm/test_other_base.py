"""Another base than the bundled one: a Qwen2 of random weights, whose layers and biases are those of a larger one."""

from __future__ import annotations

import asyncio
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from service.domain import AdapterKind
from service.engine.base import ScoringRequest
from service.engine.vllm_engine import VllmConfig, start_vllm
from service.settings import Settings
from service.start import Prompting, load_prompting
from service.training.reference import Reference
from tests.vllm.adapters import random_adapter
from tests.vllm.comparing import conversation_of
from tests.vllm.conftest import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]

LABELS = (5, 6, 7)


@pytest.fixture(scope="module")
def other(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Prompting:
    folder = tmp_path_factory.mktemp("base") / "qwen2-of-chance"
    config = Qwen2Config(
        vocab_size=49152, hidden_size=128, intermediate_size=256, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.1, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base_folder / name, folder)
    return load_prompting(Settings(model=str(folder), classifiers=ROOT / "classifiers"))


async def test_its_adapters_answer_as_in_peft_and_its_prefix_is_computed_once(
    other: Prompting, engine_config: VllmConfig, tmp_path: Path
) -> None:
    invocation = other.builder.invocation_ids
    activated, plain = (
        random_adapter(tmp_path / kind.value, other.base, invocation, kind, seed)
        for seed, kind in enumerate((AdapterKind.ACTIVATED, AdapterKind.PLAIN))
    )
    prefix = other.builder.prefix(conversation_of(other.builder, 300))
    asked = ScoringRequest((*prefix.token_ids, *other.builder.tail(" resolved?")), LABELS, None, None)
    requests = [
        asked,
        replace(asked, adapter=activated, activation_index=len(prefix.token_ids)),
        replace(asked, adapter=plain),
    ]
    wanted = [
        [math.log(each) for each in row] for row in Reference(other.base, (activated, plain)).probabilities(requests)
    ]
    config = replace(
        engine_config, model=other.base.path, adapters=(activated, plain), context_tokens=other.context_tokens
    )
    async with start_vllm(config) as engine:
        for _ in range(2):
            answers = await asyncio.gather(*map(engine.score, requests))
            for answer, expected in zip(answers, wanted, strict=True):
                assert answer.logprobs == pytest.approx(expected, abs=5e-3)
        computed = [answer.usage.computed for answer in answers[:2]]
    apart = [max(abs(a - b) for a, b in zip(row, wanted[0], strict=True)) for row in wanted[1:]]
    assert min(apart) > 0.1, "the adapters matter much more than rounding"
    assert max(computed) < 64, "the second time all but the tail is there"
