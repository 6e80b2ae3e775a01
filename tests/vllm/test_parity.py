"""Served probabilities equal PEFT's (float32, adapter alone, same prompt ids) however the engine computes them."""

from __future__ import annotations

import pytest

from service.engine.vllm_engine import VllmEngine
from tests.vllm.parity import Expected, assert_parity

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]


async def test_every_adapter_answers_as_peft_does_and_again_when_asked_twice(
    variant_engine: VllmEngine, fan_outs: list[Expected], request: pytest.FixtureRequest
) -> None:
    times = 1 if "prefix cache off" in request.node.name else 2  # without a cache the second time is the first again
    for _ in range(times):
        for fan_out in fan_outs:
            await assert_parity(variant_engine, fan_out)


async def test_concurrent_fan_outs_do_not_disturb_each_other(variant_engine: VllmEngine, crowd: Expected) -> None:
    await assert_parity(variant_engine, crowd)
