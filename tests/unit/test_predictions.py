"""Predictions: asked through the serving path, kept as arrays, written as JSON and read back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from service.catalogue import Catalogue
from service.classify import Classify
from service.domain import Calibration, Conversation, Role
from service.engine.fake_engine import FakeEngine
from service.errors import ConfigurationError, EngineDeadError, EngineError
from service.evaluation.predictions import (
    AT_ONCE,
    Predictions,
    of_probabilities,
    predict,
    read_predictions,
    text_digest,
    write_predictions,
)
from service.prompt.builder import PromptBuilder
from service.registry.registry import Registry
from service.training.records import Record
from tests.integration.harness import ACTIVATED, LABELS, PLAIN, WITHOUT_ADAPTER, asks, small_registry
from tests.support import classify_with, talk

FIELDS = ("gold", "raw", "probabilities", "mass", "abstained")


def made(records: int = 3, labels: int = 2, seed: int = 7) -> Predictions:
    numbers = np.random.default_rng(seed)
    return Predictions(
        tuple(f"label{index}" for index in range(labels)),
        "0123456789abcdef",
        tuple(f"talk-{index}" for index in range(records)),
        tuple(f"text {index} of {seed}" for index in range(records)),
        tuple("ab"[index % 2] for index in range(records)),
        numbers.integers(0, labels, records),
        numbers.dirichlet(np.ones(labels), records).reshape(records, labels),
        numbers.dirichlet(np.ones(labels), records).reshape(records, labels),
        numbers.uniform(0, 1, records),
        numbers.uniform(0, 1, records) < 0.5,
    )


def same(one: Predictions, other: Predictions) -> bool:
    plain = [(each.labels, each.revision, each.ids, each.texts, each.sources) for each in (one, other)]
    # JSON keeps six digits after the point.
    arrays = [np.allclose(getattr(one, name), getattr(other, name), rtol=0, atol=1e-6) for name in FIELDS]
    return plain[0] == plain[1] and all(arrays)


@pytest.mark.parametrize(
    ("records", "labels"), [(3, 2), (20, 6), (1, 3), (0, 2)], ids=["few", "many", "a single record", "no records"]
)
def test_json_and_back_changes_nothing(records: int, labels: int) -> None:
    original = made(records, labels)
    assert same(Predictions.from_json(json.loads(json.dumps(original.to_json()))), original)


@pytest.mark.parametrize("name", FIELDS)
def test_json_and_back_keeps_the_type_of_numbers(name: str) -> None:
    original = made()
    assert getattr(Predictions.from_json(original.to_json()), name).dtype == getattr(original, name).dtype


def test_the_first_of_equals_is_chosen() -> None:
    tied = replace(made(labels=3), probabilities=np.asarray([[0.2, 0.4, 0.4], [0.5, 0.5, 0.0], [1 / 3] * 3]))
    assert tied.chosen.tolist() == [1, 0, 0]


def test_an_answer_is_right_when_it_names_the_label() -> None:
    answers = replace(made(), probabilities=np.asarray([[0.9, 0.1]] * 3), gold=np.asarray([0, 1, 0]))
    assert answers.right.tolist() == [True, False, True]


@pytest.mark.parametrize("kept", [[0, 2], [1], [], [0, 1, 2]], ids=["two", "one", "none", "all"])
def test_some_records_are_taken_with_all_that_is_known_of_them(kept: list[int]) -> None:
    original = made()
    some = original.where(np.isin(np.arange(3), kept))
    expected = [[getattr(original, name)[place].tolist() for place in kept] for name in FIELDS]
    assert [getattr(some, name).tolist() for name in FIELDS] == expected
    assert (some.ids, some.texts, some.sources) == tuple(
        tuple(each[i] for i in kept) for each in (original.ids, original.texts, original.sources)
    )


def test_predictions_are_read_back_as_written(tmp_path: Path) -> None:
    systems = {"fantail": {"refund": made(), "topic": made(5, 4)}, "TF-IDF": {"refund": made(seed=8)}}
    write_predictions(tmp_path / "runs" / "today.json", systems, {"date": "today"})
    found = read_predictions(tmp_path / "runs" / "today.json")
    assert {system: list(each) for system, each in found.items()} == {
        system: list(each) for system, each in systems.items()
    }
    assert all(same(found[system][name], each) for system, those in systems.items() for name, each in those.items())


def test_what_is_known_of_their_making_is_written_beside_them(tmp_path: Path) -> None:
    write_predictions(tmp_path / "today.json", {}, {"date": "today"})
    assert json.loads((tmp_path / "today.json").read_text()) == {"date": "today", "systems": {}}


def test_writing_leaves_nothing_else_behind(tmp_path: Path) -> None:
    for _ in range(2):
        write_predictions(tmp_path / "today.json", {}, {})
    assert [path.name for path in tmp_path.iterdir()] == ["today.json"]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("{", id="not JSON"),
        pytest.param("[]", id="a list"),
        pytest.param("{}", id="no systems"),
        pytest.param('{"systems": []}', id="a list of systems"),
        pytest.param('{"systems": {"fantail": {"refund": {}}}}', id="empty predictions"),
        pytest.param(
            json.dumps({"systems": {"fantail": {"refund": made().to_json() | {"raw": [[1]]}}}}), id="numbers missing"
        ),
    ],
)
def test_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "today.json").write_text(text)
    with pytest.raises(ConfigurationError, match=r"today\.json holds no predictions"):
        read_predictions(tmp_path / "today.json")


@pytest.mark.parametrize("change", ["texts absent", "a text less"])
def test_predictions_that_do_not_tell_all_texts_are_refused(tmp_path: Path, change: str) -> None:
    value = made().to_json()
    texts = value.pop("texts")
    if change == "a text less":
        value["texts"] = texts[1:]
    (tmp_path / "old.json").write_text(json.dumps({"systems": {"fantail": {"refund": value}}}))
    with pytest.raises(ConfigurationError, match=r"old\.json is an older one that does not tell which texts"):
        read_predictions(tmp_path / "old.json")


SAID = talk("where is it?", "on its way")


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(talk("where is it!", "on its way"), id="another word"),
        pytest.param(talk("where is it?", "on its", "way"), id="other turns"),
        pytest.param(talk("where is it?on its way"), id="one turn of two"),
        pytest.param(replace(SAID, turns=SAID.turns[::-1]), id="another order"),
        pytest.param(replace(SAID, turns=(replace(SAID.turns[0], role=Role.SYSTEM), SAID.turns[1])), id="another role"),
    ],
)
def test_texts_differ_by_every_word_and_role(other: Conversation) -> None:
    assert text_digest(other) != text_digest(SAID)


def test_a_text_is_the_same_under_another_id() -> None:
    assert text_digest(replace(SAID, id="other")) == text_digest(SAID)
    assert len(text_digest(SAID)) == 16


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"today\.json holds no predictions"):
        read_predictions(tmp_path / "today.json")


def record(id: str, source: str = "invented", **labels: str) -> Record:
    return Record(talk("where is my refund??", id=id), labels, source)


def test_a_system_of_probabilities_alone_never_abstains() -> None:
    found = of_probabilities(("yes", "no"), [record("a", refund="no")], "refund", np.asarray([[0.4, 0.6]]))
    assert (found.gold.tolist(), found.mass.tolist(), found.abstained.tolist()) == ([1], [1.0], [False])
    assert (found.ids, found.sources) == (("a",), ("invented",))
    assert found.texts == (text_digest(record("b").conversation),)


@pytest.fixture(scope="module")
def registry(builder: PromptBuilder) -> Registry:
    return small_registry(builder)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def classify(registry: Registry, builder: PromptBuilder, engine: FakeEngine) -> Classify:
    return classify_with(registry, builder, engine)


async def answers(classify: Classify, records: Sequence[Record]) -> dict[str, Predictions]:
    return await predict(classify, records, lambda: None)


BOTH = [record("a", **{ACTIVATED: "yes", PLAIN: "delivery"}), record("b", "phone", **{ACTIVATED: "no"})]


async def test_every_classifier_answers_the_records_that_carry_its_label(classify: Classify) -> None:
    found = await answers(classify, BOTH)
    assert {name: each.ids for name, each in found.items()} == {ACTIVATED: ("a", "b"), PLAIN: ("a",)}


async def test_nothing_is_asked_that_no_label_answers(classify: Classify, engine: FakeEngine) -> None:
    await answers(classify, [*BOTH, record("c"), record("d", unknown="yes")])
    assert len(engine.requests) == 3


async def test_answers_keep_the_order_of_the_records(classify: Classify) -> None:
    ids = tuple(f"talk-{index}" for index in range(3 * AT_ONCE))
    found = await answers(classify, [record(each, **{ACTIVATED: "yes"}) for each in ids])
    assert found[ACTIVATED].ids == ids


async def test_gold_is_the_place_of_the_records_label(classify: Classify) -> None:
    found = await answers(classify, [record(label, **{PLAIN: label}) for label in LABELS[PLAIN]])
    assert found[PLAIN].gold.tolist() == [0, 1, 2, 3]


async def test_what_the_classifier_says_is_kept(classify: Classify, engine: FakeEngine) -> None:
    engine.favour = lambda request: 1
    found = (await answers(classify, BOTH))[ACTIVATED]
    assert (found.labels, found.revision) == (LABELS[ACTIVATED], classify.catalogue.current.get(ACTIVATED).revision)
    assert found.sources == ("invented", "phone")
    assert found.texts == tuple(text_digest(each.conversation) for each in BOTH)
    assert found.probabilities == pytest.approx(np.asarray([[0.2, 0.8]] * 2))
    assert found.mass == pytest.approx(np.asarray([0.9] * 2))


@pytest.mark.parametrize(("mass", "abstained"), [(0.6, False), (0.4, True)], ids=["enough", "too little"])
async def test_answers_that_abstain_are_marked(
    classify: Classify, engine: FakeEngine, mass: float, abstained: bool
) -> None:
    engine.mass = mass
    assert (await answers(classify, BOTH))[ACTIVATED].abstained.tolist() == [abstained] * 2


async def test_probabilities_are_kept_before_and_after_calibration(classify: Classify) -> None:
    calibrated = replace(
        classify.catalogue.current.get(ACTIVATED), calibration=Calibration(0.0, (0.0, 0.0), (0.0, 0.0))
    )
    found = await answers(replace(classify, catalogue=Catalogue(Registry({ACTIVATED: calibrated}))), BOTH)
    assert found[ACTIVATED].raw == pytest.approx(np.asarray([[0.8, 0.2]] * 2))
    assert found[ACTIVATED].probabilities == pytest.approx(np.asarray([[0.5, 0.5]] * 2))


async def test_a_withheld_classifier_is_not_asked(classify: Classify) -> None:
    withheld = classify.catalogue.current.without(MappingProxyType({ACTIVATED: "its gate says no"}))
    assert set(await answers(replace(classify, catalogue=Catalogue(withheld)), BOTH)) == {PLAIN}


async def test_each_record_that_is_asked_about_is_reported_once(classify: Classify) -> None:
    reported: list[str] = []
    await predict(classify, [*BOTH, record("unlabelled")], lambda: reported.append("one"))
    assert len(reported) == 2


@pytest.mark.parametrize("failing", [ACTIVATED, PLAIN])
async def test_a_classifier_that_fails_once_fails_the_evaluation(
    classify: Classify, engine: FakeEngine, failing: str
) -> None:
    fails = asks(failing, classify.catalogue.current)
    engine.fault = lambda request: EngineError("out of order") if fails(request) else None
    with pytest.raises(EngineError, match="out of order"):
        await answers(classify, BOTH)


async def test_a_failure_of_a_classifier_that_is_not_asked_does_not_matter(
    classify: Classify, engine: FakeEngine
) -> None:
    fails = asks(WITHOUT_ADAPTER, classify.catalogue.current)
    engine.fault = lambda request: EngineError("out of order") if fails(request) else None
    assert set(await answers(classify, BOTH)) == {ACTIVATED, PLAIN}


async def test_a_dead_engine_fails_the_evaluation(classify: Classify, engine: FakeEngine) -> None:
    engine.dead = True
    with pytest.raises(EngineDeadError):
        await answers(classify, BOTH)


async def test_no_records_have_no_answers(classify: Classify) -> None:
    assert await answers(classify, []) == {}


async def test_a_record_too_long_for_the_context_is_named(classify: Classify) -> None:
    long = Record(talk("word " * 9000, id="talk-7"), {ACTIVATED: "yes"})
    with pytest.raises(ConfigurationError, match=r"^record talk-7: Turn 0 has "):
        await answers(classify, [*BOTH, long])
