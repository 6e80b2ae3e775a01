"""Drift of labels and of confidence, held against weights that are written out, one for each answer there ever was."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence

import pytest

from service.metrics import DRIFT_AFTER
from service.scoring.drift import FLOOR, MEMORY, LabelDrift

Answers = Sequence[tuple[int, float]]


def followed(shares: tuple[float, ...], answers: Answers, confidence: float = 0.9) -> LabelDrift:
    drift = LabelDrift(shares, confidence)
    for label, sure in answers:
        drift.add(label, sure)
    return drift


def weights(answers: Answers) -> list[float]:
    """How much each answer counts: e times less for every `MEMORY` answers after it."""
    return [math.exp(-after / MEMORY) for after in reversed(range(len(answers)))]


def slow_index(shares: tuple[float, ...], answers: Answers) -> float:
    """The population stability index by its definition, over label shares with a floor."""
    weighed = list(zip(weights(answers), answers, strict=True))
    total, index = sum(weight for weight, _ in weighed), 0.0
    for label, share in enumerate(shares):
        now = max(sum(weight for weight, (chosen, _) in weighed if chosen == label) / total, FLOOR)
        before = max(share, FLOOR)
        index += (now - before) * math.log(now / before)
    return index


def slow_shift(confidence: float, answers: Answers) -> float:
    weighed = list(zip(weights(answers), answers, strict=True))
    return sum(weight * sure for weight, (_, sure) in weighed) / sum(weight for weight, _ in weighed) - confidence


def some_answers(numbers: random.Random, shares: Sequence[float], count: int) -> Answers:
    return [(label, numbers.random()) for label in numbers.choices(range(len(shares)), shares, k=count)]


@pytest.mark.parametrize("labels", [1, 2, 3, 6, 20])
@pytest.mark.parametrize("count", [1, 2, 49, 500, 3000])
def test_both_measures_are_those_of_a_slow_reference(labels: int, count: int) -> None:
    numbers = random.Random(100 * labels + count)
    parts = [numbers.random() for _ in range(labels)]
    shares = tuple(part / sum(parts) for part in parts)
    answers = some_answers(numbers, [numbers.random() for _ in range(labels)], count)
    drift = followed(shares, answers, confidence=0.7)
    assert drift.answers == count
    # Sums of up to 3,000 terms in another order: rounding alone.
    assert drift.stability_index == pytest.approx(slow_index(shares, answers), rel=1e-9, abs=1e-12)
    assert drift.confidence_shift == pytest.approx(slow_shift(0.7, answers), rel=1e-9, abs=1e-12)


def test_a_textbook_index_comes_out() -> None:
    drift = LabelDrift((0.5, 0.5), 0.9, 100, [30.0, 70.0])
    assert drift.stability_index == pytest.approx(-0.2 * math.log(0.6) + 0.2 * math.log(1.4))


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.12, 0.27, 0.17, 0.19, 0.12, 0.13)], ids=str)
def test_answers_as_on_the_calibration_split_are_calm_once_they_are_reported(shares: tuple[float, ...]) -> None:
    numbers = random.Random(7)
    found = [followed(shares, some_answers(numbers, shares, DRIFT_AFTER)).stability_index for _ in range(300)]
    assert statistics.mean(found) < 0.05
    assert max(found) < 0.25


def test_a_share_that_doubles_is_seen() -> None:
    numbers = random.Random(7)
    assert followed((0.8, 0.2), some_answers(numbers, (0.6, 0.4), 2000)).stability_index > 0.1


def test_a_label_that_never_occurs_does_not_weigh_infinitely() -> None:
    assert followed((0.5, 0.5), [(0, 0.9)]).stability_index == pytest.approx(
        0.5 * math.log(2) + (FLOOR - 0.5) * math.log(FLOOR / 0.5)
    )


def test_a_label_that_never_occurred_does_not_weigh_infinitely() -> None:
    assert followed((1.0, 0.0), [(1, 0.9)]).stability_index == pytest.approx(2 * (1 - FLOOR) * -math.log(FLOOR))


@pytest.mark.parametrize(
    ("share", "counted"),
    [(FLOOR / 2, FLOOR), (FLOOR, FLOOR), (FLOOR * 2, FLOOR * 2)],
    ids=["below", "at the floor", "above"],
)
def test_a_share_counts_as_the_floor_only_below_it(share: float, counted: float) -> None:
    assert followed((1 - share, share), [(0, 0.9)]).stability_index == pytest.approx(
        share * -math.log(1 - share) + (FLOOR - counted) * math.log(FLOOR / counted), abs=1e-15
    )


def test_what_was_long_ago_is_forgotten() -> None:
    drift = followed((0.5, 0.5), [*[(0, 0.2)] * 5000, *[(0, 0.9), (1, 0.9)] * 5000])
    assert drift.stability_index < 1e-3
    assert drift.confidence_shift == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("sure", "shift"), [(0.7, -0.2), (0.9, 0.0), (1.0, 0.1)], ids=["less", "as sure", "more"])
def test_confidence_is_held_against_the_calibration_splits(sure: float, shift: float) -> None:
    assert followed((0.5, 0.5), [(0, sure)] * 300).confidence_shift == pytest.approx(shift, abs=1e-12)
