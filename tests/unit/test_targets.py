"""Labels that are acted on with care: how many of their answers are, and how right those are."""

from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binomtest

from service.domain import Calibration
from service.evaluation.card import card
from service.evaluation.measures import wilson
from service.evaluation.report import OURS, classifier_reports, html, summary
from service.evaluation.targets import ActedOn, acted_on
from service.registry.manifest import Target
from tests.support import talk
from tests.unit.test_evaluation_report import predictions, talks

CALIBRATION = Calibration(1.0, (0.0, 0.0), (0.7, 0.0))
CAREFUL = {"yes": Target(precision=0.9)}
SURE, UNSURE, NO = 0.8, 0.6, 0.2
ANSWERS = replace(
    predictions([SURE, SURE, SURE, UNSURE, UNSURE, NO, NO, NO], gold=[0, 0, 1, 0, 1, 0, 1, 1]),
    abstained=np.asarray([False, False, False, True, True, False, False, False]),
)
"""`yes` five times, of which three are acted on, two of those rightly; four records deserve it."""


def found(targets: dict[str, Target] = CAREFUL, calibration: Calibration = CALIBRATION) -> ActedOn:
    (only,) = acted_on(ANSWERS, targets, calibration)
    return only


def test_precision_and_recall_are_of_the_answers_acted_on() -> None:
    yes = found()
    assert (yes.given, yes.acted_on, yes.right, yes.deserved) == (5, 3, 2, 4)
    assert (yes.precision, yes.recall) == (2 / 3, 2 / 4)


def test_intervals_are_of_the_same_counts() -> None:
    yes = found()
    assert (yes.precision_interval, yes.recall_interval) == (wilson(2, 3), wilson(2, 4))


@pytest.mark.parametrize(
    ("target", "words"), [(Target(precision=0.9), "precision 0.9"), (Target(recall=0.95), "recall 0.95")], ids=str
)
def test_target_and_threshold_are_those_of_the_label(target: Target, words: str) -> None:
    calibration = replace(CALIBRATION, thresholds=(0.1, 0.4))
    no = found({"no": target}, calibration)
    assert (no.label, no.target, no.threshold) == ("no", words, 0.4)


def test_a_label_that_is_never_acted_on_has_no_precision() -> None:
    never = replace(ANSWERS, abstained=ANSWERS.chosen == 0)
    (yes,) = acted_on(never, CAREFUL, replace(CALIBRATION, thresholds=(1.0, 0.0)))
    assert math.isnan(yes.precision)
    assert (yes.acted_on, yes.recall) == (0, 0)


def test_a_classifier_without_targets_has_none() -> None:
    assert acted_on(ANSWERS, {}, None) == ()


@pytest.mark.parametrize(("hits", "of"), [(0, 1), (1, 1), (0, 20), (20, 20), (7, 9), (450, 500)], ids=str)
def test_wilsons_interval_is_that_of_scipy(hits: int, of: int) -> None:
    expected = binomtest(hits, of).proportion_ci(0.95, "wilson")
    assert wilson(hits, of) == pytest.approx((expected.low, expected.high))


def test_nothing_has_no_interval() -> None:
    assert all(map(math.isnan, wilson(0, 0)))


def written(*labels: ActedOn) -> str:
    reports = classifier_reports({OURS: {"fraud": ANSWERS}}, talks(*[talk("hi")] * 8), {"fraud": labels})
    measured = summary(reports) | {"base": "small", "date": "today", "records": "8 records", "data": "d1"}
    return card("fraud", "Whether it is fraud.", measured["classifiers"]["fraud"], measured)


def test_a_card_holds_a_row_for_every_label_with_a_target() -> None:
    low, high = wilson(2, 3)
    row = f"| yes | precision 0.9 | 0.700 | 0.667 ({low:.3f} to {high:.3f}), 2 of 3 | 0.500 ("
    text = written(found())
    assert f"\n{row}" in text
    assert ", 2 of 4 | 0.400, 2 of 5 |\n" in text


def test_a_card_says_never_for_a_target_out_of_reach() -> None:
    (never,) = acted_on(
        replace(ANSWERS, abstained=ANSWERS.chosen == 0), CAREFUL, replace(CALIBRATION, thresholds=(1.0, 0.0))
    )
    assert "| yes | precision 0.9 | never acted on | – (– to –), 0 of 0 | 0.000 (0.000 to " in written(never)


def test_a_card_of_no_targets_does_not_mention_any() -> None:
    assert "target" not in written()


def test_the_rows_of_the_cards_table_are_equally_long() -> None:
    tables = re.findall(r"(?:^\|.*\n)+", written(found()), re.MULTILINE)
    assert len(tables) == 4
    assert all(len({line.count("|") for line in table.splitlines()}) == 1 for table in tables)


def test_a_page_shows_labels_with_a_target_and_only_those() -> None:
    asked = {OURS: {"fraud": ANSWERS}}
    said = talks(*[talk("hi")] * 8)
    with_target = html(classifier_reports(asked, said, {"fraud": [found()]}), "title", {})
    assert re.search(
        r"<td>yes</td><td>precision 0\.9</td><td>0\.700</td>\s*<td>5</td><td>3</td><td>2</td>", with_target
    )
    assert "label with a target" not in html(classifier_reports(asked, said), "title", {})
