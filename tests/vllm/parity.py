"""The two comparisons with PEFT that every way of running the engine has to pass."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from service.engine.base import ScoringRequest
from service.engine.vllm_engine import VllmEngine
from tests.vllm.comparing import assert_same


@dataclass(frozen=True, slots=True)
class Expected:
    """Requests that are sent at once, and PEFT's probabilities for those of them that are compared, by place."""

    requests: Sequence[ScoringRequest]
    probabilities: dict[int, list[float]]


def every_fourth(expected: Expected) -> Expected:
    """Of the requests every fourth, where all are compared."""
    kept = range(0, len(expected.requests), 4)
    requests = [expected.requests[place] for place in kept]
    return Expected(requests, {new: expected.probabilities[place] for new, place in enumerate(kept)})


async def assert_parity(engine: VllmEngine, expected: Expected, tolerance: float = 1e-3) -> None:
    """Send all requests at once, as fan-outs do, and compare."""
    answers = await asyncio.gather(*map(engine.score, expected.requests))
    served = [answers[place] for place in expected.probabilities]
    assert_same(served, list(expected.probabilities.values()), tolerance)
