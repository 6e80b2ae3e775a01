"""Served probabilities equal PEFT's (float32, adapter alone, same prompt ids) however the engine computes them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from service.call import Call
from service.deadline import Deadline
from service.domain import Classification, Classifier, Priority
from service.engine.base import ScoringRequest
from service.engine.vllm_engine import VllmEngine
from service.errors import DeadlineExceededError
from service.registry.registry import Registry
from service.start import Prompting
from tests.support import classify_with
from tests.vllm.adapters import asked_like
from tests.vllm.comparing import cold, conversation_of
from tests.vllm.conftest import CACHE_OFF, CRAMPED, Strangers
from tests.vllm.parity import Expected, assert_parity, every_fourth

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]

IN_CRAMPED_ROOM = pytest.mark.parametrize("variant_engine", [CRAMPED], indirect=True)


@IN_CRAMPED_ROOM
async def test_every_adapter_answers_as_peft_does_in_concurrent_fan_outs(
    variant_engine: VllmEngine, crowd: Expected
) -> None:
    await assert_parity(variant_engine, crowd)


@IN_CRAMPED_ROOM
async def test_more_adapters_than_slots_take_turns_and_each_turn_is_counted(
    variant_engine: VllmEngine, fan_outs: list[Expected]
) -> None:
    before = await variant_engine.places()
    for request in fan_outs[0].requests[:16]:
        await variant_engine.score(request)
    after = await variant_engine.places()
    asked = {request.adapter.name for request in fan_outs[0].requests[:16] if request.adapter}
    assert len(asked) > 5
    assert sum(place.slot is not None for place in after.values()) <= 5
    swaps = sum(after[name].slot_loads - before[name].slot_loads for name in after)
    assert len(asked) - 5 <= swaps <= len(fan_outs[0].requests)


@IN_CRAMPED_ROOM
async def test_and_in_one_fan_out_after_the_other(variant_engine: VllmEngine, fan_outs: list[Expected]) -> None:
    """Everything is asked again."""
    for fan_out in fan_outs:
        await assert_parity(variant_engine, fan_out)


@pytest.mark.parametrize("variant_engine", [CACHE_OFF], indirect=True)
async def test_and_where_each_reads_the_conversation_itself(
    variant_engine: VllmEngine, fan_outs: list[Expected]
) -> None:
    """Which takes so long that of the adapters every fourth reads the two longest, the plain one among them."""
    for fan_out in (*fan_outs[:-2], *map(every_fourth, fan_outs[-2:])):
        await assert_parity(variant_engine, fan_out)


@IN_CRAMPED_ROOM
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


@IN_CRAMPED_ROOM
@pytest.mark.parametrize("is_plain_critical", [False, True], ids=["the plain one is low", "the plain one is critical"])
async def test_near_the_deadline_what_matters_most_is_answered_and_the_rest_is_given_up(
    variant_engine: VllmEngine,
    prompting: Prompting,
    classifiers: tuple[Classifier, ...],
    strangers: Strangers,
    is_plain_critical: bool,
) -> None:
    """A plain adapter reads the conversation again: half of the time there is nothing of it, or of the others."""
    plain, others = [asked_like(strangers.plain, classifiers[0])], classifiers[:3]
    critical, low = (plain, others) if is_plain_critical else (others, plain)
    ranked = [replace(each, priority=Priority.CRITICAL) for each in critical]
    ranked += [replace(each, priority=Priority.LOW) for each in low]
    asked = sorted(ranked, key=lambda each: each.adapter == plain[0].adapter)  # the plain one last, whatever matters
    classify = classify_with(Registry({each.name: each for each in asked}), prompting.builder, variant_engine)
    conversation, seconds = conversation_of(prompting.builder, 600), 60.0
    for attempt in range(12):  # the machine may be busy with something else
        began = time.monotonic()
        call = Call(deadline=Deadline.after(seconds))
        try:
            answers = await classify.fan_out(cold(conversation, f"{attempt}, {is_plain_critical}"), [], call)
        except DeadlineExceededError:
            seconds *= 1.2
            continue
        outcomes = dict(answers.results)
        answered = {name for name, outcome in outcomes.items() if isinstance(outcome, Classification)}
        if answered == names_of(critical):
            break
        assert answered <= names_of(critical) or answered >= names_of(critical), "what matters less came first"
        seconds = 0.75 * (time.monotonic() - began) if answered > names_of(critical) else 1.2 * seconds
    assert answered == names_of(critical)
    assert all(isinstance(outcomes[each.name], DeadlineExceededError) for each in low)
    for _ in range(600):
        counters = await variant_engine.counters()
        if not counters.running + counters.waiting:
            break
        await asyncio.sleep(0.05)
    assert counters.running + counters.waiting == 0, "it is not computed for nobody"


def names_of(classifiers: Sequence[Classifier]) -> set[str]:
    return {each.name for each in classifiers}
