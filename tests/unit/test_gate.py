"""Which classifiers the gate withholds, and what it says of each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from service.asking import scoring_request
from service.domain import Adapter, AdapterKind, Classifier, Label, Probe
from service.engine.base import LabelLogprobs, ScoringRequest
from service.errors import EngineDeadError, EngineError
from service.gate import Gate
from service.prompt.builder import PromptBuilder
from tests.support import talk
from tests.unit.shifting_engine import ADAPTED, ShiftingEngine, Situation, asked_as

TOLERANCE = 0.01
EPSILON = 1e-6
NAMES = ("fraud", "refund", "topic")
DOES_NOTHING = "on every probe the engine answers as the base model; the adapter does nothing"

WITHIN, BEYOND = TOLERANCE - EPSILON, TOLERANCE + EPSILON
LIMITS = pytest.mark.parametrize(
    ("shift", "passes"),
    [
        pytest.param(WITHIN, True, id="tolerance-eps"),
        pytest.param(BEYOND, False, id="tolerance+eps"),
        pytest.param(-WITHIN, True, id="-(tolerance-eps)"),
        pytest.param(-BEYOND, False, id="-(tolerance+eps)"),
    ],
)

Fault = Callable[[ScoringRequest], Exception | None]


def probe(text: str = "where is my refund??", probabilities: tuple[float, ...] = ADAPTED) -> Probe:
    return Probe(talk(text), probabilities)


@pytest.fixture
def engine() -> ShiftingEngine:
    return ShiftingEngine()


@pytest.fixture
def gate(builder: PromptBuilder, engine: ShiftingEngine) -> Gate:
    return Gate(builder, engine, TOLERANCE)


@pytest.fixture
def make(builder: PromptBuilder) -> Callable[..., Classifier]:
    """A classifier with an activated adapter and one probe that the engine fits; call with a name."""

    def classifier(name: str, kind: AdapterKind | None = AdapterKind.ACTIVATED, *probes: Probe) -> Classifier:
        return Classifier(
            name=name,
            description="Decides.",
            labels=(Label("yes", 11), Label("no", 12)),
            tail_ids=builder.tail(f"{name}?"),
            adapter=Adapter(Path("nowhere"), kind, 4, ("q_proj",), name * 16) if kind else None,
            revision="0" * 16,
            min_label_mass=0.5,
            probes=probes or (probe(),),
        )

    return classifier


@pytest.fixture
def three(make: Callable[..., Classifier]) -> list[Classifier]:
    return [make(name) for name in NAMES]


@pytest.mark.parametrize("kind", AdapterKind)
async def test_an_engine_that_gives_pefts_answers_passes(
    gate: Gate, make: Callable[..., Classifier], kind: AdapterKind
) -> None:
    assert await gate.check([make(name, kind) for name in NAMES]) == {}


async def test_nothing_to_check_passes(gate: Gate) -> None:
    assert await gate.check([]) == {}


async def test_the_base_is_asked_the_very_prompt_of_each_probe_alone_and_beside(
    gate: Gate, engine: ShiftingEngine, three: list[Classifier]
) -> None:
    await gate.check(three)
    adapted = [request.token_ids for request in engine.requests if request.adapter]
    bare = [request.token_ids for request in engine.requests if not request.adapter]
    assert sorted(adapted) == sorted(bare)
    assert len(adapted) == 3 * len(three)


async def test_only_the_first_probe_of_each_classifier_is_asked_alone(
    gate: Gate, engine: ShiftingEngine, make: Callable[..., Classifier]
) -> None:
    probes = [probe("one"), probe("two"), probe("three")]
    asked: list[Situation] = []
    engine.shift = lambda situation: float(asked.append(situation) or 0)
    assert await gate.check([make(name, AdapterKind.ACTIVATED, *probes) for name in NAMES]) == {}
    of_refund = [situation.beside for situation in asked if situation.adapter == "refund"]
    assert sorted(of_refund) == [0, *[2] * 6]
    assert sum(situation.adapter == "base" for situation in asked) == 3 * len(NAMES) * len(probes)
    assert sum(situation == Situation("base", 0) for situation in asked) == len(NAMES) * len(probes)


async def test_an_answer_off_from_pefts_is_withheld(gate: Gate, make: Callable[..., Classifier]) -> None:
    assert await gate.check([make("refund", AdapterKind.ACTIVATED, probe(probabilities=(0.62, 0.18)))]) == {
        "refund": "probe 1: the engine's log probabilities are 0.150 from PEFT's, tolerance 0.01; "
        "was the adapter or a label replaced without `fantail probes`?"
    }


async def test_labels_that_were_swapped_are_withheld(gate: Gate, make: Callable[..., Classifier]) -> None:
    failures = await gate.check([make("refund", AdapterKind.ACTIVATED, probe(probabilities=ADAPTED[::-1]))])
    assert failures["refund"].startswith("probe 1: the engine's log probabilities are 1.386 from PEFT's")


async def test_an_answer_that_is_the_base_models_is_withheld(
    gate: Gate, engine: ShiftingEngine, three: list[Classifier]
) -> None:
    engine.favour = lambda request: 0
    assert await gate.check(three) == dict.fromkeys(NAMES, DOES_NOTHING)


@pytest.mark.parametrize("same", [(), (0,), (2,), (0, 1), (0, 1, 2)], ids=str)
async def test_an_adapter_does_nothing_only_when_it_is_so_on_every_probe(
    gate: Gate, engine: ShiftingEngine, make: Callable[..., Classifier], same: tuple[int, ...]
) -> None:
    texts = ("one", "two", "three")
    one = make("refund", AdapterKind.ACTIVATED, *map(probe, texts))
    alike = {scoring_request(gate.builder.prefix(one.probes[i].conversation), one).token_ids for i in same}
    engine.favour = lambda request: int(request.adapter is None and request.token_ids not in alike)
    assert await gate.check([one]) == ({"refund": DOES_NOTHING} if len(same) == len(texts) else {})


@pytest.mark.parametrize("spoilt", [ADAPTED, (0.62, 0.18)], ids=["itself right", "itself wrong"])
async def test_a_base_that_answers_otherwise_beside_adapters_withholds_those_without_adapter_too(
    gate: Gate, engine: ShiftingEngine, make: Callable[..., Classifier], spoilt: tuple[float, ...]
) -> None:
    engine.shift = lambda asked: 0.05 if asked.adapter == "base" and asked.beside else 0.0
    failures = await gate.check(
        [make("refund", AdapterKind.ACTIVATED, probe(probabilities=spoilt)), make("bare", None)]
    )
    says = "beside adapters the base model answers otherwise"
    assert failures["bare"] == says
    assert (failures["refund"] == f"probe 1: {says}") == (spoilt == ADAPTED)


async def test_a_base_that_fails_beside_adapters_answers_otherwise(
    gate: Gate, engine: ShiftingEngine, make: Callable[..., Classifier]
) -> None:
    fail(engine, lambda engine, request: not request.adapter and len(engine.requests) > 2, EngineError("No."))
    says = "beside adapters the base model answers otherwise"
    assert await gate.check([make("refund"), make("bare", None)]) == {"refund": f"probe 1: {says}", "bare": says}


@LIMITS
async def test_a_base_beside_adapters_is_met_within_the_tolerance(
    gate: Gate, engine: ShiftingEngine, make: Callable[..., Classifier], shift: float, passes: bool
) -> None:
    engine.shift = lambda asked: shift if asked.adapter == "base" and asked.beside else 0.0
    assert (await gate.check([make("refund"), make("bare", None)]) == {}) == passes


async def test_an_answer_that_changes_beside_other_adapters_is_withheld(
    gate: Gate, engine: ShiftingEngine, three: list[Classifier]
) -> None:
    engine.shift = lambda asked: 0.05 * asked.beside
    says = "probe 1: beside other adapters the answer changes by 0.100"
    assert await gate.check(three) == dict.fromkeys(NAMES, says)


async def test_a_classifier_without_probes_is_withheld(gate: Gate, make: Callable[..., Classifier]) -> None:
    bare = replace(make("refund"), probes=())
    assert await gate.check([bare]) == {"refund": "it has no probes; run `fantail probes NAME`"}


async def test_a_classifier_without_adapter_needs_no_probes(
    gate: Gate, engine: ShiftingEngine, make: Callable[..., Classifier]
) -> None:
    assert await gate.check([replace(make("refund", None), probes=())]) == {}
    assert len(engine.requests) == 1


async def test_a_probe_too_long_for_the_context_is_withheld(gate: Gate, make: Callable[..., Classifier]) -> None:
    failures = await gate.check([make("refund", AdapterKind.ACTIVATED, probe("word " * 9000))])
    assert failures["refund"].startswith("probe 1: Turn 0 has ")


FAULTY_WHEN = {
    "alone": lambda engine, request: len(engine.requests) == 1,
    "of the base": lambda engine, request: request.adapter is None,
    "beside others": lambda engine, request: len(engine.requests) > 2,
}
BY_STAGE = pytest.mark.parametrize("faulty", FAULTY_WHEN.values(), ids=FAULTY_WHEN)
"""The three times that a classifier with one probe is asked."""


def fail(engine: ShiftingEngine, faulty: Callable[[ShiftingEngine, ScoringRequest], bool], error: Exception) -> None:
    engine.fault = lambda request: error if faulty(engine, request) else None


@BY_STAGE
async def test_an_engine_that_fails_on_a_probe_withholds_with_its_message(
    gate: Gate, engine: ShiftingEngine, make: Callable[..., Classifier], faulty: Callable[..., bool]
) -> None:
    fail(engine, faulty, EngineError("The engine lost this prompt."))
    assert await gate.check([make("refund")]) == {"refund": "probe 1: The engine lost this prompt."}


@BY_STAGE
async def test_a_dead_engine_ends_the_check(
    gate: Gate, engine: ShiftingEngine, make: Callable[..., Classifier], faulty: Callable[..., bool]
) -> None:
    fail(engine, faulty, EngineDeadError("The engine is not running."))
    with pytest.raises(EngineDeadError):
        await gate.check([make("refund")])


NONSENSE = {
    "one NaN": (math.nan, -1.0),
    "all NaN": (math.nan, math.nan),
    "infinite": (math.inf, -1.0),
    "a logit": (1000.0, -1.0),
    "one too few": (-1.0,),
    "none": (),
}


@BY_STAGE
@pytest.mark.parametrize("logprobs", NONSENSE.values(), ids=NONSENSE)
async def test_numbers_that_are_no_log_probabilities_are_withheld(
    builder: PromptBuilder, make: Callable[..., Classifier], logprobs: tuple[float, ...], faulty: Callable[..., bool]
) -> None:
    class Babbling(ShiftingEngine):
        async def score(self, request: ScoringRequest) -> LabelLogprobs:
            answer = await super().score(request)
            return replace(answer, logprobs=logprobs) if faulty(self, request) else answer

    failures = await Gate(builder, Babbling(), TOLERANCE).check([make("refund")])
    assert failures == {"refund": "probe 1: the engine gives no usable probabilities"}


@LIMITS
async def test_pefts_answers_are_met_within_the_tolerance(
    gate: Gate, engine: ShiftingEngine, make: Callable[..., Classifier], shift: float, passes: bool
) -> None:
    engine.shift = lambda asked: shift
    assert (await gate.check([make("refund")]) == {}) == passes


@LIMITS
async def test_answers_beside_others_are_met_within_the_tolerance(
    gate: Gate, engine: ShiftingEngine, three: list[Classifier], shift: float, passes: bool
) -> None:
    engine.shift = lambda asked: shift if asked.beside else 0.0
    assert (await gate.check(three) == {}) == passes


@LIMITS
async def test_the_adapter_must_take_the_base_models_answer_beyond_the_tolerance(
    gate: Gate, engine: ShiftingEngine, make: Callable[..., Classifier], shift: float, passes: bool
) -> None:
    engine.favour = lambda request: 0
    engine.shift = lambda asked: shift if asked.adapter == "base" else 0.0
    assert (await gate.check([make("refund")]) == {}) != passes


async def test_every_probe_is_asked_and_the_first_to_fail_is_named(gate: Gate, make: Callable[..., Classifier]) -> None:
    probes = [probe("one"), probe("two", (0.62, 0.18)), probe("three", (0.52, 0.18))]
    failures = await gate.check([make("refund", AdapterKind.ACTIVATED, *probes)])
    assert failures["refund"].startswith("probe 2: the engine's log probabilities are 0.150 from PEFT's")


SPOILT: dict[str, tuple[Callable[[Situation], float], Fault]] = {
    "off": (lambda asked: 0.1 if asked.adapter == "refund" else 0.0, lambda request: None),
    "disturbed": (lambda asked: 0.1 if asked.adapter == "refund" and asked.beside else 0.0, lambda request: None),
    "failing": (lambda asked: 0.0, lambda request: EngineError("No.") if asked_as(request) == "refund" else None),
}


@pytest.mark.parametrize(("shift", "fault"), SPOILT.values(), ids=SPOILT)
async def test_one_that_fails_leaves_the_others_served(
    gate: Gate, engine: ShiftingEngine, three: list[Classifier], shift: Callable[[Situation], float], fault: Fault
) -> None:
    engine.shift, engine.fault = shift, fault
    assert list(await gate.check(three)) == ["refund"]
