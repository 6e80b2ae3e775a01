"""Calibration: probabilities are bent towards the truth, and what is fitted reaches its targets."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from service.evaluation.calibrate import FOLDS, cross_fitted, fit_calibration
from service.evaluation.predictions import Predictions
from service.registry.manifest import Target
from service.scoring.calibration import (
    FLOOR,
    MIN_SCALE,
    PRIOR_RECORDS,
    calibrate,
    fit,
)
from service.scoring.decision import decide

Probabilities = NDArray[np.float64]
Gold = NDArray[np.int64]


def loss(scale: float, bias: NDArray[np.float64], probabilities: Probabilities, gold: Gold) -> float:
    """The slow reference: log loss summed over records, and the weight of leaving everything as it is."""
    logs = np.maximum([[math.log(p) if p else -math.inf for p in row] for row in probabilities], FLOOR)
    found = log_softmax(scale * logs + bias, axis=1)
    summed = -sum(found[record, label] for record, label in enumerate(gold))
    return float(summed + PRIOR_RECORDS / 2 * ((scale - 1) ** 2 + np.square(bias).sum()))


def least_loss(probabilities: Probabilities, gold: Gold) -> float:
    """The least loss that a general minimiser finds among the allowed scales."""
    labels = probabilities.shape[1]
    found = minimize(
        lambda x: loss(x[0], x[1:], probabilities, gold),
        [1.0] + [0.0] * labels,
        method="L-BFGS-B",
        bounds=[(MIN_SCALE, None)] + [(None, None)] * labels,
    )
    return float(found.fun)


def drawn(seed: int, records: int, labels: int, sharpness: float = 1.0) -> tuple[Probabilities, Gold]:
    """Labels drawn from distributions that are then given `sharpness` times as sharp as they are."""
    numbers = np.random.default_rng(seed)
    logits = numbers.normal(0, 1.5, (records, labels))
    gold = np.asarray([numbers.choice(labels, p=row) for row in softmax(logits, axis=1)], dtype=np.int64)
    return softmax(sharpness * logits, axis=1), gold


def backwards() -> tuple[Probabilities, Gold]:
    """The first label is right just where it gets less of the little that it gets."""
    first = np.linspace(0.01, 0.2, 100)
    return np.stack([first, 1 - first], axis=1), (first > 0.1).astype(np.int64)


AWKWARD = [
    pytest.param(*drawn(1, 1, 2), id="a single record"),
    pytest.param(drawn(2, 30, 3)[0], np.zeros(30, dtype=np.int64), id="one class"),
    pytest.param(np.full((20, 4), 0.25), drawn(3, 20, 4)[1], id="uniform"),
    pytest.param(np.tile([[1.0, 0.0]], (10, 1)), np.ones(10, dtype=np.int64), id="certain and wrong"),
    pytest.param(np.eye(3)[drawn(4, 25, 3)[1]], drawn(4, 25, 3)[1], id="certain and right"),
    pytest.param(*backwards(), id="backwards"),
]


@pytest.mark.parametrize(
    "probabilities",
    [(0.3, 0.7), (0.2, 0.5, 0.3), (1.0, 0.0), (1 - 1e-9, 1e-9)],
    ids=["two labels", "three labels", "certainty", "nearly certain"],
)
def test_scale_one_and_no_bias_leave_it_as_it_is(probabilities: tuple[float, ...]) -> None:
    # e^FLOOR, which stands for 0, is 1e-13.
    assert calibrate(probabilities, 1.0, (0.0,) * len(probabilities)) == pytest.approx(probabilities, abs=1e-12)


@pytest.mark.parametrize("seed", range(10))
def test_a_distribution_is_raised_to_the_scale_and_weighed_by_the_bias(seed: int) -> None:
    numbers = np.random.default_rng(seed)
    probabilities, bias = numbers.dirichlet(np.ones(4)), numbers.normal(0, 1, 4)
    weights = [p**0.7 * math.exp(b) for p, b in zip(probabilities, bias, strict=True)]
    expected = [weight / sum(weights) for weight in weights]
    assert calibrate(probabilities.tolist(), 0.7, bias.tolist()) == pytest.approx(expected)


@pytest.mark.parametrize("scale", [0.05, 1.0, 50.0])
def test_probability_zero_stays_a_distribution(scale: float) -> None:
    found = calibrate((0.0, 1.0, 0.0), scale, (0.5, -1.0, 0.0))
    assert all(0 <= each <= 1 for each in found)
    assert sum(found) == pytest.approx(1)


def test_a_calibrated_distribution_holds_python_numbers() -> None:
    assert {type(each) for each in calibrate((0.3, 0.7), 0.5, (0.1, -0.1))} == {float}


@pytest.mark.parametrize("labels", [2, 3, 6])
@pytest.mark.parametrize("seed", range(4))
def test_a_fit_has_the_least_loss(seed: int, labels: int) -> None:
    probabilities, gold = drawn(seed, 60, labels, sharpness=0.5 + seed)
    scale, bias = fit(probabilities, gold)
    # L-BFGS-B stops a little above the minimum.
    assert loss(scale, np.asarray(bias), probabilities, gold) <= least_loss(probabilities, gold) + 1e-6


@pytest.mark.parametrize(("probabilities", "gold"), AWKWARD)
def test_an_awkward_fit_has_the_least_loss(probabilities: Probabilities, gold: Gold) -> None:
    scale, bias = fit(probabilities, gold)
    assert loss(scale, np.asarray(bias), probabilities, gold) <= least_loss(probabilities, gold) + 1e-6


@pytest.mark.parametrize(("probabilities", "gold"), AWKWARD)
def test_the_biases_of_a_fit_cancel_out(probabilities: Probabilities, gold: Gold) -> None:
    assert sum(fit(probabilities, gold)[1]) == pytest.approx(0, abs=1e-9)


def test_a_model_twice_as_sure_as_it_should_be_gets_half_the_scale() -> None:
    scale, _ = fit(*drawn(5, 3000, 3, sharpness=2.0))
    assert scale == pytest.approx(0.5, abs=0.05)


def test_a_model_that_prefers_a_label_gets_a_bias_against_it() -> None:
    probabilities, gold = drawn(6, 3000, 2)
    tilted = probabilities * [math.e, 1.0]
    _, bias = fit(tilted / tilted.sum(axis=1, keepdims=True), gold)
    assert bias == pytest.approx((-0.5, 0.5), abs=0.1)


def test_a_backwards_model_keeps_the_least_scale() -> None:
    assert fit(*backwards())[0] == MIN_SCALE


def test_nothing_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match="nothing to fit on"):
        fit(np.empty((0, 2)), np.empty(0, dtype=np.int64))


def test_a_record_is_cross_fitted_without_its_own_fold() -> None:
    raw, gold = drawn(7, 40, 2, sharpness=3.0)
    other = np.where(np.arange(40) % FOLDS == 2, 1 - gold, gold)
    unmoved = np.isclose(cross_fitted(raw, gold), cross_fitted(raw, other), rtol=0, atol=1e-12).all(axis=1)
    assert unmoved.tolist() == [place % FOLDS == 2 for place in range(40)]


def test_a_lone_record_is_cross_fitted_to_itself() -> None:
    raw = np.asarray([[0.2, 0.8]])
    assert cross_fitted(raw, np.asarray([0])) == pytest.approx(raw)


@pytest.mark.parametrize("records", [2, FOLDS - 1, FOLDS, FOLDS + 1])
def test_few_records_are_cross_fitted_to_distributions(records: int) -> None:
    assert cross_fitted(*drawn(8, records, 3)).sum(axis=1) == pytest.approx(np.ones(records))


def predictions(raw: Probabilities, gold: Gold) -> Predictions:
    size = len(gold)
    names = tuple(f"label{index}" for index in range(raw.shape[1]))
    ids, sources = tuple(map(str, range(size))), ("",) * size
    return Predictions(names, "", ids, ids, sources, gold, raw, raw, np.ones(size), np.zeros(size, dtype=np.bool_))


SURE = predictions(*drawn(9, 400, 2, sharpness=3.0))


def test_labels_without_a_target_have_no_threshold() -> None:
    found = fit_calibration(SURE, {})
    assert (found.calibration.thresholds, found.missed) == ((0.0, 0.0), ())


def test_a_calibration_is_fitted_on_all_records() -> None:
    found = fit_calibration(SURE, {}).calibration
    assert (found.scale, found.bias) == fit(SURE.raw, SURE.gold)


@pytest.mark.parametrize("measure", ["ece", "brier"])
def test_the_errors_of_a_model_too_sure_of_itself_shrink(measure: str) -> None:
    errors = fit_calibration(SURE, {}).facts[measure]
    assert errors["calibrated"] < errors["raw"]


def test_drift_is_measured_from_what_is_answered_on_records_that_the_fit_had_not_seen() -> None:
    raw, gold = drawn(11, 250, 3, sharpness=2.0)
    answered = cross_fitted(raw, gold)
    counts = [sum(int(row.argmax() == label) for row in answered) for label in range(3)]
    assert len(set(counts)) == 3
    reference = fit_calibration(predictions(raw, gold), {}).calibration.reference
    assert reference is not None
    assert reference.shares == pytest.approx([count / 250 for count in counts], abs=1e-4)
    assert reference.confidence == pytest.approx(sum(max(row) for row in answered.tolist()) / 250, abs=1e-4)


def test_a_precision_target_is_reached_on_records_that_the_fit_had_not_seen() -> None:
    threshold = fit_calibration(SURE, {"label1": Target(precision=0.9)}).calibration.thresholds[1]
    unseen = cross_fitted(SURE.raw, SURE.gold)
    acted = (unseen.argmax(axis=1) == 1) & (unseen[:, 1] >= threshold)
    assert 0.9 <= (SURE.gold[acted] == 1).mean() < 0.92


def test_a_recall_target_is_reached_on_records_that_the_fit_had_not_seen() -> None:
    threshold = fit_calibration(SURE, {"label1": Target(recall=0.6)}).calibration.thresholds[1]
    unseen = cross_fitted(SURE.raw, SURE.gold)
    acted = (unseen.argmax(axis=1) == 1) & (unseen[:, 1] >= threshold)
    assert 0.6 <= acted[SURE.gold == 1].mean() < 0.62


@pytest.mark.parametrize(
    ("target", "threshold"),
    [pytest.param(Target(precision=0.9), 1.0, id="never acted on"), pytest.param(Target(recall=0.9), 0.0, id="always")],
)
def test_a_target_out_of_reach_is_missed_on_the_careful_side(target: Target, threshold: float) -> None:
    never = predictions(np.tile([[0.9, 0.1]], (10, 1)), np.asarray([0] * 9 + [1]))
    found = fit_calibration(never, {"label1": target})
    assert (found.calibration.thresholds, found.missed) == ((0.0, threshold), ("label1",))


def test_answers_of_too_little_label_mass_reach_no_target() -> None:
    unlikely = replace(SURE, abstained=np.arange(len(SURE.gold)) % 2 == 0)
    found = fit_calibration(unlikely, {"label1": Target(recall=0.6)})
    assert (found.calibration.thresholds[1], found.missed) == (0.0, ("label1",))


def test_a_target_that_is_reached_at_certainty_is_acted_on() -> None:
    """60 answers as good as certain and 40 less so, all right, of either label."""
    raw = np.asarray([[1e-13, 1 - 1e-13]] * 60 + [[0.2, 0.8]] * 40 + [[1 - 1e-13, 1e-13]] * 60 + [[0.8, 0.2]] * 140)
    found = fit_calibration(predictions(raw, np.asarray([1] * 100 + [0] * 200)), {"label1": Target(recall=0.5)})
    threshold = found.calibration.thresholds[1]
    assert 0.99 < threshold < 1.0
    assert decide((0.0, 1.0), 1.0, 0.5, found.calibration.thresholds).abstain_reason is None
