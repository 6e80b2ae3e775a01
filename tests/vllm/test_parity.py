"""Served probabilities equal PEFT's (float32, adapter alone, same prompt ids) however the engine computes them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from service.classify import scoring_request
from service.domain import Classifier, Conversation, Role, Turn
from service.engine.base import LabelLogprobs, ScoringRequest
from service.engine.vllm_engine import VllmEngine
from service.start import Prompting
from tests.vllm.reference import Reference, assert_same

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
    variant_engine: VllmEngine, prompting: Prompting, classifiers: tuple[Classifier, ...], reference: Reference
) -> None:
    conversations = [
        Conversation("", (Turn(Role.CUSTOMER, f"hello, order {n} is late, can you tell me where my {thing} is?"),))
        for n, thing in enumerate(["parcel", "lamp", "sofa", "phone", "ticket", "refund", "book", "card"] * 4)
    ]
    requests = [
        scoring_request(prompting.builder.prefix(conversation), classifier)
        for conversation in conversations
        for classifier in classifiers
    ]
    assert len({request.token_ids for request in requests}) == 32 * len(classifiers)
    assert_same(await score_all(variant_engine, requests), reference.probabilities(requests))
