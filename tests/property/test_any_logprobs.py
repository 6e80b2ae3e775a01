"""What holds for a distribution and its decision, whatever the engine's numbers."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.scoring.decision import decide
from service.scoring.distribution import label_distribution

LOGPROBS = st.lists(st.floats(-2000.0, 0.0) | st.just(-math.inf), min_size=2, max_size=12).filter(
    lambda values: max(values) > -math.inf
)


@given(logprobs=LOGPROBS)
def test_probabilities_sum_to_one(logprobs: list[float]) -> None:
    probabilities = label_distribution(logprobs).probabilities
    assert len(probabilities) == len(logprobs)
    assert math.fsum(probabilities) == pytest.approx(1.0, abs=1e-12)
    assert all(0.0 <= each <= 1.0 for each in probabilities)


@given(logprobs=LOGPROBS)
def test_the_order_of_the_labels_is_kept(logprobs: list[float]) -> None:
    probabilities = label_distribution(logprobs).probabilities
    assert probabilities[logprobs.index(max(logprobs))] == max(probabilities)
    pairs = sorted(zip(logprobs, probabilities, strict=True))
    assert [p for _, p in pairs] == sorted(probabilities)


@given(logprobs=LOGPROBS)
def test_the_mass_is_a_probability_and_never_below_the_best_label(logprobs: list[float]) -> None:
    mass = label_distribution(logprobs).mass
    assert 0.0 <= mass <= 1.0
    assert mass >= math.exp(max(logprobs)) * (1 - 1e-12)


@given(logprobs=LOGPROBS, shift=st.floats(-500.0, 0.0))
def test_the_distribution_does_not_depend_on_the_mass(logprobs: list[float], shift: float) -> None:
    shifted = label_distribution([value + shift for value in logprobs])
    assert shifted.probabilities == pytest.approx(label_distribution(logprobs).probabilities, abs=1e-9)


@given(logprobs=LOGPROBS, least=st.floats(0.0, 1.0))
def test_the_decision_is_the_most_probable_label(logprobs: list[float], least: float) -> None:
    distribution = label_distribution(logprobs)
    decision = decide(distribution.probabilities, distribution.mass, least)
    assert decision.confidence == max(distribution.probabilities) == distribution.probabilities[decision.index]
    assert decision.confidence >= 1 / len(logprobs) - 1e-12
    assert (decision.abstain_reason is not None) == (distribution.mass < least)
