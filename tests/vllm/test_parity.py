"""Served probabilities equal PEFT's (float32, adapter alone, same prompt ids) however the engine computes them."""

from __future__ import annotations

import asyncio

import pytest

from service.engine.base import ScoringRequest
from service.engine.vllm_engine import VllmEngine
from service.start import Prompting
from tests.vllm.comparing import cold, conversation_of
from tests.vllm.parity import Expected, assert_parity

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]


async def test_every_adapter_answers_as_peft_does_in_concurrent_fan_outs(
    variant_engine: VllmEngine, crowd: Expected
) -> None:
    await assert_parity(variant_engine, crowd)


async def test_and_in_one_fan_out_after_the_other_when_asked_again(
    variant_engine: VllmEngine, fan_outs: list[Expected], request: pytest.FixtureRequest
) -> None:
    # Without a cache nothing is known of what was asked before: all but the shortest would be the same work again.
    asked = fan_outs[:3] if "prefix cache off" in request.node.name else fan_outs
    for fan_out in asked:
        await assert_parity(variant_engine, fan_out)


@pytest.mark.parametrize("variant_engine", ["chunked prefill"], indirect=True)
async def test_what_matters_more_overtakes_what_waits_already(variant_engine: VllmEngine, prompting: Prompting) -> None:
    done: list[int] = []

    async def score(priority: int, opening: str) -> None:
        prefix = prompting.builder.prefix(cold(conversation_of(prompting.builder, 300), opening))
        await variant_engine.score(ScoringRequest(prefix.token_ids, (5, 6), None, None, priority))
        done.append(priority)

    before = [asyncio.create_task(score(2, f"{number} comes first")) for number in range(3)]
    await asyncio.sleep(0)  # they are handed to the engine
    after = asyncio.create_task(score(0, "this one comes last"))
    await asyncio.gather(*before, after)
    assert done.index(0) < 2, "at most the one that was being computed is done before it"
