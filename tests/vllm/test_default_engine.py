"""The engine with default settings: it answers as PEFT does, in batches of every kind, and no planted fault gets past.

Requests of every kind in one batch answer as alone, and none meets another's KV: stock vLLM's faults are gone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from service import workbench
from service.asking import scoring_request
from service.call import Call
from service.classify import Classify
from service.domain import Classification, Classifier
from service.engine.base import EngineAdapter, ScoringRequest
from service.engine.vllm_engine import VllmEngine, adapter_id
from service.evaluation.predictions import read_predictions
from service.evaluation.report import OURS
from service.gate import Gate
from service.registry.registry import Registry
from service.settings import Settings
from service.start import GATE_TOLERANCE, Prompting, load_registry
from service.training.records import read_records
from service.training.reference import Reference
from tests.support import classify_with
from tests.vllm.comparing import assert_same, cold, conversation_of
from tests.vllm.conftest import ROOT, Strangers
from tests.vllm.faults import FAULTS
from tests.vllm.parity import Expected, assert_parity
from tests.vllm.recorded import Recorded

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def mixed(prompting: Prompting, classifiers: tuple[Classifier, ...], strangers: Strangers) -> list[ScoringRequest]:
    """Base, plain and activated requests on two conversations."""
    requests = []
    for length in (90, 333):
        prefix = prompting.builder.prefix(conversation_of(prompting.builder, length))
        shipped = [scoring_request(prefix, classifier) for classifier in classifiers[:4]]
        activated = replace(shipped[0], adapter=strangers.activated)
        plain = replace(shipped[0], adapter=strangers.plain, activation_index=None)
        base = replace(shipped[0], adapter=None, activation_index=None)
        requests += [base, *shipped, plain, base, activated]
    return requests


async def test_plain_activated_and_base_requests_share_a_batch(
    engine: VllmEngine, mixed: list[ScoringRequest], recorded: Recorded
) -> None:
    wanted = recorded.probabilities(mixed)
    for _ in range(2):
        assert_same(await asyncio.gather(*map(engine.score, mixed)), wanted)


async def test_a_base_request_beside_adapters_answers_as_alone(engine: VllmEngine, mixed: list[ScoringRequest]) -> None:
    base = replace(mixed[0], token_ids=(*mixed[0].token_ids[:-40], *mixed[0].token_ids[-39:]))
    beside, *_ = await asyncio.gather(*map(engine.score, [base, *mixed[1:]]))
    alone = await engine.score(base)
    assert beside.logprobs == pytest.approx(alone.logprobs, abs=1e-4)


async def test_an_adapter_replaced_by_other_weights_never_meets_old_kv(
    engine: VllmEngine, mixed: list[ScoringRequest], strangers: Strangers, reference: Reference
) -> None:
    assert strangers.plain.name.split("@")[0] == strangers.replacement.name.split("@")[0]
    prompts = {each.token_ids: each for each in mixed}
    olds = [replace(each, adapter=strangers.plain, activation_index=None) for each in prompts.values()]
    news = [replace(each, adapter=strangers.replacement) for each in olds]
    wanted = list(zip(reference.probabilities(olds), reference.probabilities(news), strict=True))
    apart = [max(abs(a - b) for a, b in zip(*each, strict=True)) for each in wanted]
    place = apart.index(max(apart))
    assert apart[place] > 5e-3, "the weights must matter much more than rounding"
    old, new, (wanted_old, wanted_new) = olds[place], news[place], wanted[place]
    for request, wanted in ((old, wanted_old), (new, wanted_new), (old, wanted_old)):
        answers = [await engine.score(request) for _ in range(2)]
        assert answers[1].usage.reused > 0, "the second time its own KV is there"
        assert_same(answers, [wanted, wanted])


async def test_an_isolated_caller_meets_nobody_elses_kv_and_gets_the_same_answer(
    engine: VllmEngine, mixed: list[ScoringRequest], recorded: Recorded
) -> None:
    mixed = mixed[: len(mixed) // 2]
    wanted = recorded.probabilities(mixed)
    await asyncio.gather(*map(engine.score, mixed))
    for salt in ("one", "other"):
        isolated = [replace(request, cache_salt=salt) for request in mixed]
        first = await engine.score(isolated[0])
        assert first.usage.reused == 0, "what anybody else has asked is not there"
        answers = await asyncio.gather(*map(engine.score, isolated))
        assert answers[0].usage.reused > 0, "what it has asked itself is"
        assert_same(answers, wanted)


async def test_every_adapter_is_in_its_slot_before_it_is_asked(
    engine: VllmEngine, adapters: tuple[EngineAdapter, ...], mixed: list[ScoringRequest]
) -> None:
    assert set(await engine._engine.list_loras()) >= set(map(adapter_id, adapters))
    before = await engine.places()
    assert all(before[each.name].slot is not None for each in adapters)
    await asyncio.gather(*map(engine.score, mixed))
    assert await engine.places() == before, "no request has put an adapter into a slot"


async def test_a_cold_fan_out_computes_the_prefix_once(
    engine: VllmEngine, prompting: Prompting, classifiers: tuple[Classifier, ...]
) -> None:
    conversation = cold(conversation_of(prompting.builder, 500), "good evening from Lisbon")
    prefix = prompting.builder.prefix(conversation)
    requests = [scoring_request(prefix, classifier) for classifier in classifiers]
    answers = await asyncio.gather(*map(engine.score, requests))
    tails = sum(len(request.token_ids) - len(prefix.token_ids) for request in requests)
    computed = sum(answer.usage.computed for answer in answers)
    assert len(prefix.token_ids) <= computed <= len(prefix.token_ids) + tails + 32


@pytest.mark.parametrize("tokens", [320, 1000])
async def test_a_fan_out_takes_as_many_steps_as_one_classification(
    engine: VllmEngine, prompting: Prompting, classifiers: tuple[Classifier, ...], tokens: int
) -> None:
    taken = []
    for asked in (classifiers[:1], classifiers):
        conversation = cold(conversation_of(prompting.builder, tokens), f"good morning from {len(asked)} of us")
        prefix = prompting.builder.prefix(conversation)
        before = (await engine.counters()).steps
        await asyncio.gather(*(engine.score(scoring_request(prefix, each)) for each in asked))
        taken.append((await engine.counters()).steps - before)
    assert taken == [1, 1], "each step reads all weights once more"


async def test_a_following_turn_computes_only_what_is_new(
    engine: VllmEngine, prompting: Prompting, classifiers: tuple[Classifier, ...]
) -> None:
    conversation = conversation_of(prompting.builder, 640)
    earlier = replace(conversation, turns=conversation.turns[:-1])
    for each in (earlier, conversation):
        requests = [scoring_request(prompting.builder.prefix(each), classifier) for classifier in classifiers]
        answers = await asyncio.gather(*map(engine.score, requests))
    whole, before = (len(prompting.builder.prefix(each).token_ids) for each in (conversation, earlier))
    tails = sum(len(classifier.tail_ids) for classifier in classifiers)
    assert sum(answer.usage.computed for answer in answers) <= whole - before + 64 + tails


async def test_every_adapter_answers_as_peft_does_in_concurrent_fan_outs(engine: VllmEngine, crowd: Expected) -> None:
    await assert_parity(engine, crowd)


async def test_and_in_one_fan_out_after_the_other_when_asked_again(
    engine: VllmEngine, fan_outs: list[Expected]
) -> None:
    for fan_out in fan_outs:
        await assert_parity(engine, fan_out)


async def test_the_shipped_classifiers_pass_their_gate(
    engine: VllmEngine, prompting: Prompting, classifiers: tuple[Classifier, ...]
) -> None:
    assert await Gate(prompting.builder, engine, GATE_TOLERANCE["float32"]).check(classifiers) == {}


async def test_every_planted_fault_is_withheld_and_the_sound_classifier_is_served(
    engine: VllmEngine, prompting: Prompting, faulty: Registry
) -> None:
    failures = await Gate(prompting.builder, engine, GATE_TOLERANCE["float32"]).check(faulty.select(()))
    assert sorted(failures) == sorted(FAULTS)
    for name, (_, says) in FAULTS.items():
        assert says in failures[name], failures


async def test_what_is_evaluated_is_what_is_served(
    engine: VllmEngine, settings: Settings, prompting: Prompting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def serving(*ignore: str) -> Classify:
        return classify_with(load_registry(settings, prompting, *ignore), prompting.builder, engine)

    @contextlib.asynccontextmanager
    async def start(settings: Settings, *ignore: str) -> AsyncIterator[Classify]:
        yield serving(*ignore)

    monkeypatch.setattr(workbench, "start_classify", start)
    bank, data, console = ROOT / "classifiers" / "data" / "bank.jsonl", tmp_path / "some.jsonl", Console(quiet=True)
    data.write_text("".join(bank.read_text(encoding="utf-8").splitlines(keepends=True)[:8]), encoding="utf-8")
    plan = workbench.EvaluationPlan([data], "all", [], tmp_path, (), {}, cards=False)
    await workbench.evaluate(settings, plan, console)
    written = read_predictions(tmp_path / "predictions.json")[OURS]
    served = serving()
    names = served.catalogue.current.serving_names
    assert (sorted(written), len(names)) == (sorted(names), 16)
    for record in read_records([data], {name: written[name].labels for name in names}):
        answered = await served.fan_out(record.conversation, (), Call())
        for _, answer in answered.results:
            assert isinstance(answer, Classification)
            found = written[answer.classifier]
            place = found.ids.index(record.conversation.id)
            assert found.probabilities[place] == pytest.approx(answer.probabilities, abs=1e-4)
            assert found.raw[place] == pytest.approx(answer.raw_probabilities, abs=1e-4)
    held = [tmp_path / "predictions.json", settings.classifiers]
    for compared in await workbench.compare_revisions(settings, *held, [data], "all", console):
        assert (compared.mended, compared.broken, compared.changed) == ((), (), ())
