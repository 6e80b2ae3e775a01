"""The fake engine keeps the promises of the real one's interface, and what every engine is handed is well formed."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from service.domain import Adapter, AdapterKind, Classifier, Label, TokenUsage
from service.engine.base import EngineAdapter, ScoringEngine, ScoringRequest, engine_adapter
from service.engine.fake_engine import FakeEngine
from service.errors import EngineDeadError, EngineError

FOREVER_S = 3600.0


def adapter(kind: AdapterKind) -> EngineAdapter:
    return EngineAdapter("refund@0", Adapter(Path("adapter"), kind, 2, ("q_proj",), "0" * 64))


ACTIVATED, PLAIN = adapter(AdapterKind.ACTIVATED), adapter(AdapterKind.PLAIN)


def request(*ids: int, tail: int = 2, labels: int = 2) -> ScoringRequest:
    """A request of an activated adapter: prefix `ids`, then a tail."""
    return ScoringRequest(ids + (9,) * tail, tuple(range(labels)), ACTIVATED, len(ids))


def test_it_is_a_scoring_engine() -> None:
    engine: ScoringEngine = FakeEngine()
    assert isinstance(engine, FakeEngine)


@pytest.mark.parametrize("labels", [2, 3, 6])
@pytest.mark.parametrize("mass", [0.9, 0.1])
async def test_the_labels_share_the_mass_and_the_favoured_gets_most(labels: int, mass: float) -> None:
    answer = await FakeEngine(mass=mass, favour=lambda each: 1).score(request(1, labels=labels))
    shares = [math.exp(logprob) for logprob in answer.logprobs]
    assert len(shares) == labels
    assert sum(shares) == pytest.approx(mass)
    assert shares[1] == pytest.approx(0.8 * mass)


async def test_a_prefix_is_reused_from_the_second_time_on() -> None:
    engine = FakeEngine()
    usages = [(await engine.score(each)).usage for each in (request(1, 2, 3), request(1, 2, 3, tail=4))]
    assert usages == [TokenUsage(5, 0), TokenUsage(4, 3)]


async def test_another_prefix_is_not_reused() -> None:
    engine = FakeEngine()
    await engine.score(request(1, 2, 3))
    assert (await engine.score(request(1, 2, 4))).usage == TokenUsage(5, 0)


@pytest.mark.parametrize("which", [PLAIN, None], ids=["plain", "base"])
async def test_nothing_is_reused_without_an_activated_adapter(which: EngineAdapter | None) -> None:
    engine, asked = FakeEngine(), ScoringRequest((1, 2, 3), (0, 1), which, None)
    await engine.score(asked)
    assert (await engine.score(asked)).usage == TokenUsage(3, 0)


async def test_every_request_is_remembered() -> None:
    engine, asked = FakeEngine(), [request(1), request(2)]
    for each in asked:
        await engine.score(each)
    assert engine.requests == asked


async def test_a_fault_takes_the_place_of_one_answer() -> None:
    faulty = request(1)
    engine = FakeEngine(fault=lambda each: EngineError("no") if each == faulty else None)
    with pytest.raises(EngineError):
        await engine.score(faulty)
    assert (await engine.score(request(2))).usage == TokenUsage(3, 0)


async def test_a_dead_engine_neither_answers_nor_passes_its_check() -> None:
    engine = FakeEngine(dead=True)
    with pytest.raises(EngineDeadError):
        await engine.score(request(1))
    with pytest.raises(EngineDeadError):
        await engine.check()
    assert engine.requests == []


async def test_a_living_engine_passes_its_check() -> None:
    await FakeEngine().check()


async def test_cancelling_is_counted_and_passed_on() -> None:
    engine = FakeEngine(latency_s=FOREVER_S)
    task = asyncio.create_task(engine.score(request(1)))
    await asyncio.sleep(0)  # lets the task run until it waits for its answer
    assert engine.requests == [request(1)]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.cancelled == 1


@pytest.mark.parametrize(
    ("which", "index"),
    [
        pytest.param(ACTIVATED, None, id="activated without"),
        pytest.param(PLAIN, 1, id="plain with"),
        pytest.param(None, 1, id="base with"),
        pytest.param(ACTIVATED, -1, id="before the prompt"),
        pytest.param(ACTIVATED, 3, id="behind the prompt"),
    ],
)
def test_a_request_with_a_wrong_activation_index_is_our_own_defect(
    which: EngineAdapter | None, index: int | None
) -> None:
    with pytest.raises(AssertionError):
        ScoringRequest((1, 2, 3), (0, 1), which, index)


@pytest.mark.parametrize("index", [0, 2], ids=["first token", "last token"])
def test_an_adapter_may_be_activated_at_any_token_of_the_prompt(index: int) -> None:
    assert ScoringRequest((1, 2, 3), (0, 1), ACTIVATED, index).activation_index == index


def test_an_adapter_is_named_by_classifier_and_digest() -> None:
    each = Adapter(Path("adapter"), AdapterKind.PLAIN, 2, ("q_proj",), "0123456789abcdef" * 4)
    labels = (Label("yes", 1), Label("no", 2))
    named = engine_adapter(Classifier("refund", "", labels, (1,), each, "r", 0.5))
    assert named == EngineAdapter("refund@0123456789abcdef", each)


def test_the_base_model_has_no_adapter_name() -> None:
    assert engine_adapter(Classifier("refund", "", (Label("yes", 1),), (1,), None, "r", 0.5)) is None
