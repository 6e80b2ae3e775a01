"""Measures of predictions agree with scikit-learn and with slow references, on awkward records too."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score

from service.evaluation.measures import aucs, briers, confusion, eces, macro_f1s, measure, reliability
from service.evaluation.predictions import Predictions

Probabilities = NDArray[np.float64]
Gold = NDArray[np.int64]


def drawn(seed: int, records: int, labels: int, digits: int = 6) -> tuple[Probabilities, Gold]:
    """Distributions and labels that mostly follow them; few `digits` make ties."""
    numbers = np.random.default_rng(seed)
    probabilities = numbers.dirichlet(np.full(labels, 0.7), records)
    gold = [numbers.choice(labels, p=row) for row in probabilities]
    return probabilities.round(digits), np.asarray(gold, dtype=np.int64)


CASES = [
    *(pytest.param(*drawn(seed, 50, 2 + seed), id=f"{2 + seed} labels") for seed in range(4)),
    pytest.param(*drawn(4, 60, 3, digits=1), id="many ties"),
    pytest.param(np.full((20, 3), 1 / 3), drawn(5, 20, 3)[1], id="all alike"),
    pytest.param(np.eye(3)[drawn(6, 20, 3)[1]], drawn(7, 20, 3)[1], id="probabilities 0 and 1"),
    pytest.param(*drawn(8, 12, 10), id="hardly more records than labels"),
    pytest.param(drawn(9, 30, 4)[0], drawn(9, 30, 2)[1], id="labels that do not occur"),
    pytest.param(drawn(10, 30, 3)[0], np.ones(30, dtype=np.int64), id="one class"),
    pytest.param(*drawn(11, 1, 3), id="a single record"),
]
EVERY_CASE = pytest.mark.parametrize(("probabilities", "gold"), CASES)


def predictions(probabilities: Probabilities, gold: Gold, abstained: list[bool] | None = None) -> Predictions:
    size = len(gold)
    return Predictions(
        tuple(f"label{index}" for index in range(probabilities.shape[1])),
        "",
        tuple(map(str, range(size))),
        ("",) * size,
        ("",) * size,
        gold,
        probabilities,
        probabilities,
        np.ones(size),
        np.asarray(abstained or [False] * size),
    )


def agrees(value: float, expected: float) -> bool:
    return value == pytest.approx(expected, nan_ok=True)


@EVERY_CASE
def test_macro_f1_is_that_of_scikit_learn(probabilities: Probabilities, gold: Gold) -> None:
    chosen, occurring = probabilities.argmax(axis=1), sorted(set(gold.tolist()))
    expected = f1_score(gold, chosen, labels=occurring, average="macro", zero_division=0)
    found = macro_f1s(gold, chosen, probabilities.shape[1])
    assert agrees(found[0], expected if len(occurring) > 1 else math.nan)


@EVERY_CASE
def test_a_record_of_weight_two_counts_as_if_it_stood_there_twice(probabilities: Probabilities, gold: Gold) -> None:
    records, labels = probabilities.shape
    draws = np.random.default_rng(7).integers(0, records, (8, records))
    weights = np.stack([np.bincount(draw, minlength=records) for draw in draws]).astype(np.float64)
    chosen = probabilities.argmax(axis=1)
    rows = [
        (macro_f1s(gold[d], chosen[d], labels), aucs(gold[d], p), eces(p, gold[d]), briers(p, gold[d]))
        for d in draws
        for p in [probabilities[d]]
    ]
    found = (
        macro_f1s(gold, chosen, labels, weights),
        aucs(gold, probabilities, weights),
        eces(probabilities, gold, weights),
        briers(probabilities, gold, weights),
    )
    for together, alone in zip(found, zip(*rows, strict=True), strict=True):
        assert together == pytest.approx(np.concatenate(alone), nan_ok=True)


@EVERY_CASE
def test_auc_is_that_of_scikit_learn(probabilities: Probabilities, gold: Gold) -> None:
    occurring = sorted(set(gold.tolist()))
    areas = [roc_auc_score(gold == label, probabilities[:, label]) for label in occurring if len(occurring) > 1]
    assert agrees(aucs(gold, probabilities)[0], np.mean(areas) if areas else math.nan)


def slow_ece(probabilities: Probabilities, gold: Gold, bins: int) -> float:
    total = 0.0
    for low, high in pairwise(place / bins for place in range(bins + 1)):
        inside = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probabilities, gold, strict=True)
            if low <= row.max() < high or row.max() == high == 1
        ]
        total += abs(sum(right for _, right in inside) - sum(confidence for confidence, _ in inside))
    return total / len(gold)


@pytest.mark.parametrize("bins", [1, 4, 16])
@EVERY_CASE
def test_ece_is_that_of_a_slow_reference(probabilities: Probabilities, gold: Gold, bins: int) -> None:
    # Bounds of these bins have no rounding error.
    assert agrees(eces(probabilities, gold, bins=bins)[0], slow_ece(probabilities, gold, bins))


@pytest.mark.parametrize(
    ("probabilities", "gold", "error"),
    [
        pytest.param([[0.0, 1.0]], [1], 0.0, id="certain and right"),
        pytest.param([[0.0, 1.0]], [0], 1.0, id="certain and wrong"),
        pytest.param([[0.5, 0.5]], [0], 0.5, id="the first of equals and right"),
        pytest.param([[0.5, 0.5]], [1], 0.5, id="the first of equals and wrong"),
        pytest.param([[0.25, 0.75]] * 4, [1, 1, 1, 0], 0.0, id="as sure as it is right"),
    ],
)
def test_ece_is_the_distance_of_confidence_from_accuracy(
    probabilities: list[list[float]], gold: list[int], error: float
) -> None:
    assert eces(np.asarray(probabilities), np.asarray(gold))[0] == pytest.approx(error)


@EVERY_CASE
def test_the_shares_of_a_reliability_diagram_sum_to_one(probabilities: Probabilities, gold: Gold) -> None:
    assert sum(each.share for each in reliability(probabilities, gold)) == pytest.approx(1)


@EVERY_CASE
def test_the_bins_of_a_reliability_diagram_are_in_order(probabilities: Probabilities, gold: Gold) -> None:
    confidences = [each.confidence for each in reliability(probabilities, gold)]
    assert confidences == sorted(confidences)


@EVERY_CASE
def test_brier_is_that_of_a_slow_reference(probabilities: Probabilities, gold: Gold) -> None:
    summed = sum(
        (p - (place == label)) ** 2
        for row, label in zip(probabilities.tolist(), gold, strict=True)
        for place, p in enumerate(row)
    )
    assert agrees(briers(probabilities, gold)[0], summed / len(gold))


@EVERY_CASE
def test_confusion_is_that_of_scikit_learn(probabilities: Probabilities, gold: Gold) -> None:
    found = confusion(predictions(probabilities, gold))
    expected = confusion_matrix(gold, probabilities.argmax(axis=1), labels=range(probabilities.shape[1]))
    assert found.tolist() == expected.tolist()


@EVERY_CASE
def test_intervals_enclose_what_was_measured(probabilities: Probabilities, gold: Gold) -> None:
    found = measure(predictions(probabilities, gold), resamples=200)
    for name in ("accuracy", "brier"):
        low, high = getattr(found, f"{name}_interval")
        assert low <= getattr(found, name) + 1e-12
        assert getattr(found, name) <= high + 1e-12


def test_an_interval_is_that_of_the_binomial_distribution() -> None:
    gold = np.arange(400) % 2
    low, high = measure(predictions(np.tile([[0.8, 0.2]], (400, 1)), gold)).accuracy_interval
    width = 1.96 * math.sqrt(0.25 / 400)
    # The bounds of 1000 resamples scatter by about a tenth of the width.
    assert (low, high) == pytest.approx((0.5 - width, 0.5 + width), abs=0.01)


def test_a_measure_is_the_same_every_time() -> None:
    found = predictions(*drawn(12, 40, 3))
    assert measure(found) == measure(found)


@EVERY_CASE
def test_one_class_alone_has_neither_macro_f1_nor_auc(probabilities: Probabilities, gold: Gold) -> None:
    found = measure(predictions(probabilities, gold), resamples=20)
    unknown = [math.isnan(each) for each in (found.macro_f1, found.auc)]
    assert unknown == [len(set(gold.tolist())) == 1] * 2


def test_the_macro_f1_interval_of_one_class_is_unknown() -> None:
    found = measure(predictions(drawn(13, 10, 2)[0], np.zeros(10, dtype=np.int64)), resamples=20)
    assert all(map(math.isnan, found.macro_f1_interval))


def test_the_macro_f1_interval_leaves_out_resamples_of_one_class() -> None:
    gold = np.asarray([0, 0, 1])
    found = measure(predictions(np.eye(2)[gold], gold), resamples=100)
    assert found.macro_f1_interval == (1.0, 1.0)


@pytest.mark.parametrize(
    ("abstained", "share", "accuracy"),
    [
        pytest.param([False, False, False, False], 1.0, 0.5, id="all answered"),
        pytest.param([False, False, True, False], 0.75, 2 / 3, id="a wrong one abstained"),
        pytest.param([True, False, False, True], 0.5, 0.5, id="one of each abstained"),
        pytest.param([True, True, True, True], 0.0, math.nan, id="none answered"),
    ],
)
def test_answers_that_abstain_do_not_count_as_answered(abstained: list[bool], share: float, accuracy: float) -> None:
    certain_of_the_first = np.tile([[1.0, 0.0]], (4, 1))
    found = measure(predictions(certain_of_the_first, np.asarray([0, 0, 1, 1]), abstained), resamples=2)
    assert agrees(found.answered, share)
    assert agrees(found.answered_accuracy, accuracy)


def test_an_answer_that_abstains_still_counts_for_accuracy() -> None:
    found = measure(predictions(np.asarray([[1.0, 0.0]]), np.asarray([0]), [True]), resamples=2)
    assert found.accuracy == 1.0
