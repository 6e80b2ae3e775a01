"""What the gate makes of classifiers that serve already, beside which new ones are proven."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from service.domain import Adapter, AdapterKind, Classifier, Label, Probe
from service.errors import EngineDeadError, EngineError
from service.gate import Gate
from service.prompt.builder import PromptBuilder
from tests.support import talk
from tests.unit.shifting_engine import ADAPTED, ShiftingEngine, Situation, asked_as

TOLERANCE = 0.01
EPSILON = 1e-6
NEW, OTHER_NEW, SERVING, ALSO_SERVING = "refund", "spam", "fraud", "topic"

Make = Callable[..., Classifier]


@pytest.fixture
def engine() -> ShiftingEngine:
    return ShiftingEngine()


@pytest.fixture
def gate(builder: PromptBuilder, engine: ShiftingEngine) -> Gate:
    return Gate(builder, engine, TOLERANCE)


@pytest.fixture
def make(builder: PromptBuilder) -> Make:
    """A classifier with an adapter and a probe for each text; call with a name and texts."""

    def classifier(name: str, *texts: str, adapted: bool = True, digest: str = "0") -> Classifier:
        adapter = Adapter(Path("nowhere"), AdapterKind.ACTIVATED, 4, ("q_proj",), digest * 64)
        return Classifier(
            name=name,
            description="Decides.",
            labels=(Label("yes", 11), Label("no", 12)),
            tail_ids=builder.tail(f"{name}?"),
            adapter=adapter if adapted else None,
            revision=digest * 16,
            min_label_mass=0.5,
            probes=tuple(Probe(talk(text), ADAPTED) for text in texts),
        )

    return classifier


def spoil(engine: ShiftingEngine, name: str, shift: float) -> None:
    """Let one classifier answer otherwise by so much as soon as another is asked beside it."""
    engine.shift = lambda asked: shift if asked.adapter == name and asked.beside else 0.0


@pytest.mark.parametrize("serving", [(), (SERVING,), (SERVING, ALSO_SERVING)], ids=["none", "one", "two"])
async def test_one_that_leaves_its_neighbours_answers_alone_passes(
    gate: Gate, make: Make, serving: tuple[str, ...]
) -> None:
    assert await gate.check([make(NEW, "hi")], beside=[make(name, "hi") for name in serving]) == {}


async def test_one_beside_which_another_answers_otherwise_is_withheld(
    gate: Gate, engine: ShiftingEngine, make: Make
) -> None:
    spoil(engine, SERVING, 0.15)
    failures = await gate.check([make(NEW, "hi")], beside=[make(SERVING, "hi"), make(ALSO_SERVING, "hi")])
    assert list(failures) == [NEW]
    assert failures[NEW].startswith("beside it fraud goes wrong: the engine's log probabilities are 0.150 from PEFT's")


@pytest.mark.parametrize(
    ("shift", "passes"),
    [(TOLERANCE - EPSILON, True), (TOLERANCE + EPSILON, False), (EPSILON - TOLERANCE, True)],
    ids=["tolerance-eps", "tolerance+eps", "-(tolerance-eps)"],
)
async def test_a_neighbour_may_answer_otherwise_within_the_tolerance(
    gate: Gate, engine: ShiftingEngine, make: Make, shift: float, passes: bool
) -> None:
    spoil(engine, SERVING, shift)
    assert (await gate.check([make(NEW, "hi")], beside=[make(SERVING, "hi")]) == {}) == passes


async def test_a_neighbour_that_fails_is_held_against_the_new_one(
    gate: Gate, engine: ShiftingEngine, make: Make
) -> None:
    engine.fault = lambda request: EngineError("The engine lost it.") if asked_as(request) == SERVING else None
    failures = await gate.check([make(NEW, "hi")], beside=[make(SERVING, "hi")])
    assert failures == {NEW: "beside it fraud goes wrong: The engine lost it."}


async def test_an_engine_that_dies_on_a_neighbour_ends_the_check(
    gate: Gate, engine: ShiftingEngine, make: Make
) -> None:
    engine.fault = lambda request: EngineDeadError("It is gone.") if asked_as(request) == SERVING else None
    with pytest.raises(EngineDeadError):
        await gate.check([make(NEW, "hi")], beside=[make(SERVING, "hi")])


async def test_of_several_new_ones_all_are_withheld_that_have_an_adapter(
    gate: Gate, engine: ShiftingEngine, make: Make
) -> None:
    spoil(engine, SERVING, 0.15)
    new = [make(NEW, "hi"), make(OTHER_NEW, "hi"), make("bare", adapted=False)]
    assert list(await gate.check(new, beside=[make(SERVING, "hi")])) == [NEW, OTHER_NEW]


async def test_one_without_adapter_disturbs_nobody(gate: Gate, engine: ShiftingEngine, make: Make) -> None:
    engine.shift = lambda asked: 0.15
    assert await gate.check([make(NEW, adapted=False)], beside=[make(SERVING, "hi")]) == {}


async def test_a_new_one_that_answers_otherwise_beside_a_neighbour_is_withheld(
    gate: Gate, engine: ShiftingEngine, make: Make
) -> None:
    spoil(engine, NEW, 0.05)
    assert await gate.check([make(NEW, "hi")]) == {}
    failures = await gate.check([make(NEW, "hi")], beside=[make(SERVING, "hi")])
    assert failures == {NEW: "probe 1: beside other adapters the answer changes by 0.050"}


async def test_a_neighbour_is_asked_its_first_probe_while_all_others_are_under_way(
    gate: Gate, engine: ShiftingEngine, make: Make
) -> None:
    asked: list[Situation] = []
    engine.shift = lambda situation: float(asked.append(situation) or 0)
    serving = [make(SERVING, "one", "two"), make(ALSO_SERVING, "one", "two")]
    await gate.check([make(NEW, "hi"), make(OTHER_NEW, "hi")], beside=serving)
    assert [each for each in asked if each.adapter == SERVING] == [Situation(SERVING, 3)] * 2
    prefix = gate.builder.prefix(talk("one")).token_ids
    assert [each.token_ids for each in engine.requests if asked_as(each) == SERVING] == [
        prefix + serving[0].tail_ids
    ] * 2


async def test_together_they_are_asked_on_the_kv_that_is_there_and_on_none(
    gate: Gate, engine: ShiftingEngine, make: Make
) -> None:
    new, beside = [make(NEW, "hi"), make(OTHER_NEW, "hi")], [make(SERVING, "hi")]
    for _ in range(2):
        assert await gate.check(new, beside) == {}
    by_salt = Counter(request.cache_salt for request in engine.requests)
    together = 2 * len(new) + len(beside)
    assert by_salt.pop("") == 2 * (2 * len(new) + together)
    assert list(by_salt.values()) == [together] * 2  # another one each time, so that no KV of before is met
    engine.fault = lambda request: EngineError("Read anew, it is wrong.") if request.cache_salt else None
    assert await gate.check(new) == dict.fromkeys([NEW, OTHER_NEW], "probe 1: Read anew, it is wrong.")


async def test_one_without_adapter_that_gives_no_answer_is_withheld_alone(
    gate: Gate, engine: ShiftingEngine, make: Make
) -> None:
    mute = make("mute", adapted=False)
    engine.fault = lambda request: (
        EngineError("Too many labels.") if request.token_ids[-len(mute.tail_ids) :] == mute.tail_ids else None
    )
    assert await gate.check([make(NEW, "hi"), mute, make("bare", adapted=False)]) == {"mute": "Too many labels."}


async def test_a_neighbour_without_probes_is_not_asked(gate: Gate, engine: ShiftingEngine, make: Make) -> None:
    assert await gate.check([make(NEW, "hi")], beside=[make(SERVING)]) == {}
    assert SERVING not in map(asked_as, engine.requests)


async def test_its_own_predecessor_is_a_neighbour_like_any_other(
    gate: Gate, engine: ShiftingEngine, make: Make
) -> None:
    old, new = (make(NEW, "hi", digest=digest) for digest in "01")
    engine.fault = lambda request: (
        EngineError("No.") if request.adapter and request.adapter.adapter == old.adapter else None
    )
    assert await gate.check([new], beside=[old]) == {NEW: "beside it refund goes wrong: No."}
