"""Served probabilities equal PEFT's (float32, adapter alone, same prompt ids) however the engine computes them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from service.engine.base import LabelLogprobs, ScoringRequest
from service.engine.vllm_engine import VllmEngine
from tests.vllm.reference import assert_same

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]


async def score_all(engine: VllmEngine, requests: Sequence[ScoringRequest]) -> list[LabelLogprobs]:
    """All requests at once, as a fan-out sends them."""
    return list(await asyncio.gather(*map(engine.score, requests)))


async def test_every_adapter_answers_as_peft_does_and_again_when_asked_twice(
    variant_engine: VllmEngine,
    fan_outs: list[list[ScoringRequest]],
    expected: list[list[list[float]]],
    request: pytest.FixtureRequest,
) -> None:
    times = 1 if "prefix cache off" in request.node.name else 2  # without a cache the second time is the first again
    for _ in range(times):
        for requests, wanted in zip(fan_outs, expected, strict=True):
            assert_same(await score_all(variant_engine, requests), wanted)


async def test_concurrent_fan_outs_do_not_disturb_each_other(
    variant_engine: VllmEngine, crowd: list[ScoringRequest], crowd_expected: list[list[float]]
) -> None:
    assert_same(await score_all(variant_engine, crowd), crowd_expected)
