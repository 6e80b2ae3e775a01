"""The same engine interface on a GPU, in bfloat16: positions, shared prefixes and mixed batches hold there too.

vLLM's own Triton kernels compute the adapters there, so only the plugin's position and hash patches are at work.
Answers are held against PEFT in float32; bfloat16 keeps 8 bits of each product, hence the wider tolerance.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import pytest_asyncio
import torch

from service.asking import scoring_request
from service.domain import Classifier
from service.engine.hardware import choose, detect_hardware
from service.engine.vllm_engine import VllmConfig, VllmEngine, start_vllm
from service.start import Prompting
from service.training.reference import Reference
from tests.vllm.comparing import assert_same, cold, conversation_of
from tests.vllm.conftest import *  # noqa: F403  (the fixtures of the CPU engine's tests)
from tests.vllm.parity import Expected, assert_parity

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]

BFLOAT16_TOLERANCE = 5e-2


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gpu_engine(engine_config: VllmConfig) -> AsyncIterator[VllmEngine]:
    choice = choose(detect_hardware(), "auto", None, None)
    assert (choice.dtype in ("bfloat16", "float16"), choice.block_tokens, choice.on_cpu) == (True, 16, False)
    async with start_vllm(replace(engine_config, choice=choice, gpu_memory_share=0.5)) as engine:
        yield engine


async def test_adapters_answer_as_peft_does(gpu_engine: VllmEngine, fan_outs: list[Expected]) -> None:
    for fan_out in fan_outs:
        await assert_parity(gpu_engine, fan_out, BFLOAT16_TOLERANCE)


async def test_base_plain_and_activated_requests_share_a_batch(
    gpu_engine: VllmEngine, prompting: Prompting, classifiers: tuple[Classifier, ...], strangers, reference: Reference
) -> None:
    first = scoring_request(prompting.builder.prefix(conversation_of(prompting.builder, 150)), classifiers[0])
    mixed = [
        replace(first, adapter=None, activation_index=None),
        first,
        replace(first, adapter=strangers.plain, activation_index=None),
        replace(first, adapter=strangers.activated),
    ]
    answers = await asyncio.gather(*map(gpu_engine.score, mixed))
    assert_same(answers, reference.probabilities(mixed), BFLOAT16_TOLERANCE)


async def test_a_cold_fan_out_computes_the_prefix_once(
    gpu_engine: VllmEngine, prompting: Prompting, classifiers: tuple[Classifier, ...]
) -> None:
    conversation = cold(conversation_of(prompting.builder, 500), "good evening from Lisbon")
    prefix = prompting.builder.prefix(conversation)
    requests = [scoring_request(prefix, classifier) for classifier in classifiers]
    answers = await asyncio.gather(*map(gpu_engine.score, requests))
    tails = sum(len(request.token_ids) - len(prefix.token_ids) for request in requests)
    assert sum(answer.usage.computed for answer in answers) <= len(prefix.token_ids) + tails + 16
