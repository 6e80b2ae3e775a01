"""Label logprobs to a distribution and a decision."""

from __future__ import annotations

import math

import numpy as np
import pytest

from service.scoring.decision import BELOW_THRESHOLD, LABEL_MASS_TOO_LOW, Decision, decide
from service.scoring.distribution import label_distribution

INF = math.inf


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) if p else -INF for p in probabilities]


@pytest.mark.parametrize(
    ("probabilities", "expected", "mass"),
    [
        pytest.param([0.6, 0.3], [2 / 3, 1 / 3], 0.9, id="two labels"),
        pytest.param([0.5, 0.25, 0.25], [0.5, 0.25, 0.25], 1.0, id="all of the vocabulary"),
        pytest.param([0.01, 0.01], [0.5, 0.5], 0.02, id="the model wanted something else"),
        pytest.param([0.4, 0.0], [1.0, 0.0], 0.4, id="an impossible label"),
        pytest.param([1.0, 0.0], [1.0, 0.0], 1.0, id="certainty"),
        pytest.param([0.3], [1.0], 0.3, id="one label"),
    ],
)
def test_probabilities_are_renormalised_and_the_mass_is_kept(
    probabilities: list[float], expected: list[float], mass: float
) -> None:
    distribution = label_distribution(logs(*probabilities))
    assert distribution.probabilities == pytest.approx(expected, abs=1e-12)
    assert distribution.mass == pytest.approx(mass, abs=1e-12)


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        pytest.param([-800.0, -801.0], [1 / (1 + math.exp(-1)), 1 / (1 + math.e)], id="below the smallest double"),
        pytest.param([-1e6, -1e6], [0.5, 0.5], id="far below it"),
        pytest.param([0.0, -1000.0], [1.0, 0.0], id="far apart"),
    ],
)
def test_probabilities_too_small_for_a_double_still_compare(logprobs: list[float], expected: list[float]) -> None:
    assert label_distribution(logprobs).probabilities == pytest.approx(expected, abs=1e-12)


def test_a_mass_above_one_by_rounding_is_one() -> None:
    assert label_distribution([1e-4, -12.0]).mass == 1.0


@pytest.mark.parametrize("rounding", [0.0, 9e-4, 1e-3])
def test_rounding_above_zero_is_accepted(rounding: float) -> None:
    assert label_distribution([rounding, -9.0]).probabilities[0] > 0.999


@pytest.mark.parametrize(
    "logprobs",
    [
        pytest.param([], id="none"),
        pytest.param([math.nan, -1.0], id="not a number"),
        pytest.param([1.1e-3, -1.0], id="above rounding of 0"),
        pytest.param([INF, -1.0], id="infinite"),
        pytest.param([2.5, -1.0], id="a logit"),
    ],
)
def test_numbers_that_are_no_log_probabilities_are_refused(logprobs: list[float]) -> None:
    with pytest.raises(ValueError, match="not log probabilities"):
        label_distribution(logprobs)


def test_labels_that_are_all_impossible_are_refused() -> None:
    with pytest.raises(ValueError, match="every label has probability 0"):
        label_distribution([-INF, -INF])


def test_the_result_holds_python_numbers() -> None:
    distribution = label_distribution(np.log(np.array([0.6, 0.3], dtype=np.float32)))
    assert {type(each) for each in (*distribution.probabilities, distribution.mass)} == {float}


@pytest.mark.parametrize(
    ("probabilities", "index"),
    [
        pytest.param((0.2, 0.8), 1, id="the last"),
        pytest.param((0.8, 0.2), 0, id="the first"),
        pytest.param((0.2, 0.5, 0.3), 1, id="in the middle"),
        pytest.param((0.5, 0.5), 0, id="the first of equals"),
        pytest.param((0.2, 0.4, 0.4), 1, id="the first of the best"),
    ],
)
def test_the_most_probable_label_is_chosen(probabilities: tuple[float, ...], index: int) -> None:
    assert decide(probabilities, 0.9, 0.5) == Decision(index, probabilities[index], None)


@pytest.mark.parametrize(
    ("mass", "least", "reason"),
    [
        pytest.param(0.499, 0.5, LABEL_MASS_TOO_LOW, id="below"),
        pytest.param(0.5, 0.5, None, id="at the bound"),
        pytest.param(0.501, 0.5, None, id="above"),
        pytest.param(0.0, 0.0, None, id="no bound"),
        pytest.param(0.999, 1.0, LABEL_MASS_TOO_LOW, id="the highest bound"),
        pytest.param(1.0, 1.0, None, id="the highest bound met"),
    ],
)
def test_a_low_mass_abstains_and_still_names_the_label(mass: float, least: float, reason: str | None) -> None:
    assert decide((0.3, 0.7), mass, least) == Decision(1, 0.7, reason)


@pytest.mark.parametrize(
    ("confidence", "threshold", "reason"),
    [
        pytest.param(0.6, 0.601, BELOW_THRESHOLD, id="below"),
        pytest.param(0.6, 0.6, None, id="at the threshold"),
        pytest.param(0.6, 0.599, None, id="above"),
        pytest.param(1.0, 0.999999, None, id="sure, and less than 1 asked"),
        pytest.param(1.0, 1.0, BELOW_THRESHOLD, id="sure, and never to be acted on"),
        pytest.param(0.999, 1.0, BELOW_THRESHOLD, id="nearly sure, and never to be acted on"),
    ],
)
def test_the_chosen_labels_threshold_decides_and_1_means_never(
    confidence: float, threshold: float, reason: str | None
) -> None:
    assert decide((1 - confidence, confidence), 0.9, 0.5, (0.0, threshold)) == Decision(1, confidence, reason)


def test_a_threshold_of_1_binds_only_its_own_label() -> None:
    assert decide((0.0, 1.0), 0.9, 0.5, (1.0, 0.0)).abstain_reason is None
