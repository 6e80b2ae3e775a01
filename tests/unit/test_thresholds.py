"""Thresholds are chosen where they reach their target, and decide what is acted on."""

from __future__ import annotations

import numpy as np
import pytest

from service.scoring.calibration import MIN_PRECISION_RECORDS, precision_threshold, recall_threshold
from service.scoring.decision import BELOW_THRESHOLD, LABEL_MASS_TOO_LOW, decide


def slow_precision_threshold(chosen: list[float], right: list[bool], target: float) -> float | None:
    for bound in sorted(chosen):
        answered = [good for confidence, good in zip(chosen, right, strict=True) if confidence >= bound]
        if len(answered) >= MIN_PRECISION_RECORDS and sum(answered) / len(answered) >= target:
            return bound
    return None


def slow_recall_threshold(deserving: list[float], target: float) -> float | None:
    for bound in sorted(deserving, reverse=True):
        if bound > 0 and sum(confidence >= bound for confidence in deserving) / len(deserving) >= target:
            return bound
    return None


@pytest.mark.parametrize("digits", [1, 6], ids=["many ties", "hardly a tie"])
@pytest.mark.parametrize("seed", range(10))
def test_a_precision_threshold_is_the_least_that_reaches_its_target(seed: int, digits: int) -> None:
    numbers = np.random.default_rng(seed)
    chosen = numbers.uniform(0.4, 1, numbers.integers(15, 80)).round(digits)
    right = numbers.uniform(0, 1, len(chosen)) < chosen
    for target in (0.5, 0.75, 0.9, 0.99):
        expected = slow_precision_threshold(chosen.tolist(), right.tolist(), target)
        assert precision_threshold(chosen, right, target) == expected


@pytest.mark.parametrize("digits", [1, 6], ids=["many ties", "hardly a tie"])
@pytest.mark.parametrize("seed", range(10))
def test_a_recall_threshold_is_the_greatest_that_reaches_its_target(seed: int, digits: int) -> None:
    numbers = np.random.default_rng(seed)
    deserving = numbers.uniform(0.4, 1, numbers.integers(1, 40)).round(digits)
    deserving[numbers.uniform(0, 1, len(deserving)) < 0.2] = 0.0
    for target in (0.1, 0.5, 0.8, 0.95):
        assert recall_threshold(deserving, target) == slow_recall_threshold(deserving.tolist(), target)


@pytest.mark.parametrize(
    ("chosen", "right"),
    [
        pytest.param([], [], id="never chosen"),
        pytest.param([0.9, 0.8] * 20, [False, False] * 20, id="never right"),
        pytest.param([0.9, 0.9] * 20, [True, False] * 20, id="right on one of two equals"),
        pytest.param([0.9, 0.8] * 20, [False, True] * 20, id="the surest is wrong"),
        pytest.param([0.9] * 19, [True] * 19, id="right, but too seldom to know"),
    ],
)
def test_a_precision_out_of_reach_has_no_threshold(chosen: list[float], right: list[bool]) -> None:
    assert precision_threshold(np.asarray(chosen), np.asarray(right, dtype=np.bool_), 0.9) is None


@pytest.mark.parametrize(
    "deserving", [[], [0.0, 0.0], [0.9, 0.0]], ids=["no record of the label", "never chosen", "chosen too seldom"]
)
def test_a_recall_out_of_reach_has_no_threshold(deserving: list[float]) -> None:
    assert recall_threshold(np.asarray(deserving), 0.9) is None


@pytest.mark.parametrize(
    ("confidence", "reason"), [(0.599, BELOW_THRESHOLD), (0.6, None), (0.601, None)], ids=["below", "at it", "above"]
)
def test_a_confidence_below_its_labels_threshold_abstains(confidence: float, reason: str | None) -> None:
    assert decide((1 - confidence, confidence), 1.0, 0.5, (0.0, 0.6)).abstain_reason == reason


def test_the_threshold_of_another_label_does_not_matter() -> None:
    assert decide((0.3, 0.7), 1.0, 0.5, (1.0, 0.0)).abstain_reason is None


def test_a_low_mass_is_said_before_a_low_confidence() -> None:
    assert decide((0.4, 0.6), 0.1, 0.5, (1.0, 1.0)).abstain_reason == LABEL_MASS_TOO_LOW
