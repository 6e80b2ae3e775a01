"""A classifier with a calibration: what its answers say before and after, and when it abstains."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest

from service.client import FantailClient
from service.domain import Calibration
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1 import classifier_pb2
from service.prompt.builder import PromptBuilder
from service.registry.registry import Registry
from service.scoring.calibration import calibrate
from tests.integration.harness import (
    ACTIVATED,
    DEADLINE_S,
    HELLO,
    LABELS,
    NAMES,
    PLAIN,
    SECOND_ACTIVATED,
    WatchedEngine,
    small_registry,
)

FLATTENED, TURNED = ACTIVATED, SECOND_ACTIVATED
"""One whose certainty is taken back, with a threshold for its first label; one whose bias turns its answers round."""

RAW = {FLATTENED: (0.8, 0.2), TURNED: (0.8, 0.1, 0.1)}
"""What the engine says when it favours the first label."""

CALIBRATIONS = {
    FLATTENED: Calibration(scale=0.5, bias=(0.0, 0.0), thresholds=(0.9, 0.0)),
    TURNED: Calibration(scale=1.0, bias=(-2.0, 0.0, 2.0), thresholds=(0.0, 0.0, 0.0)),
}


@pytest.fixture(scope="session")
def registry(builder: PromptBuilder) -> Registry:
    made = small_registry(builder).classifiers
    calibrated = {name: replace(made[name], calibration=each) for name, each in CALIBRATIONS.items()}
    return Registry(MappingProxyType({**made, **calibrated}))


async def _answer(client: FantailClient, name: str) -> pb.Classification:
    return (await client.classify(HELLO, name, timeout=DEADLINE_S)).classification


@pytest.mark.parametrize("name", CALIBRATIONS)
async def test_scores_hold_the_calibrated_probabilities(client: FantailClient, name: str) -> None:
    calibration = CALIBRATIONS[name]
    probabilities = [score.probability for score in (await _answer(client, name)).scores]
    assert probabilities == pytest.approx(calibrate(RAW[name], calibration.scale, calibration.bias))
    assert probabilities != pytest.approx(RAW[name])
    assert sum(probabilities) == pytest.approx(1)


@pytest.mark.parametrize("name", CALIBRATIONS)
async def test_scores_hold_the_models_own_probabilities_too(client: FantailClient, name: str) -> None:
    assert [each.raw_probability for each in (await _answer(client, name)).scores] == pytest.approx(RAW[name])


async def test_without_calibration_both_are_the_models_own(client: FantailClient) -> None:
    scores = (await _answer(client, PLAIN)).scores
    assert [score.probability for score in scores] == [score.raw_probability for score in scores]


@pytest.mark.parametrize(
    ("name", "label", "confidence"),
    [
        # 0.8 and 0.2 are 4 to 1, their roots 2 to 1; 0.8 / e², 0.1 and 0.1 e² are 0.108, 0.1 and 0.739.
        pytest.param(FLATTENED, "yes", 2 / 3, id="a flattened one"),
        pytest.param(TURNED, "negative", 0.780, id="one whose bias outweighs the model"),
    ],
)
async def test_label_and_confidence_are_those_of_the_calibrated_probabilities(
    client: FantailClient, name: str, label: str, confidence: float
) -> None:
    answer = await _answer(client, name)
    assert (answer.label, answer.confidence) == (label, pytest.approx(confidence, abs=1e-3))
    assert answer.confidence == max(score.probability for score in answer.scores)


@pytest.mark.parametrize(
    ("favoured", "mass", "reason"),
    [
        pytest.param(0, 0.9, pb.ABSTAIN_REASON_BELOW_THRESHOLD, id="a label below its threshold"),
        pytest.param(1, 0.9, pb.ABSTAIN_REASON_UNSPECIFIED, id="a label without threshold"),
        pytest.param(0, 0.4, pb.ABSTAIN_REASON_LABEL_MASS_TOO_LOW, id="too little mass besides"),
    ],
)
async def test_an_answer_below_its_labels_threshold_abstains_and_keeps_the_label(
    client: FantailClient, engine: WatchedEngine, favoured: int, mass: float, reason: pb.AbstainReason
) -> None:
    engine.favour, engine.mass = (lambda request: favoured), mass
    answer = await _answer(client, FLATTENED)
    assert (answer.label, answer.abstain_reason) == (LABELS[FLATTENED][favoured], reason)
    assert answer.abstained == (reason != pb.ABSTAIN_REASON_UNSPECIFIED)


async def test_the_label_mass_is_the_models_own(client: FantailClient, engine: WatchedEngine) -> None:
    engine.mass = 0.7
    assert (await _answer(client, TURNED)).label_mass == pytest.approx(0.7)


async def test_the_list_says_who_is_calibrated(client: FantailClient) -> None:
    listed = await client.list_classifiers(timeout=DEADLINE_S)
    assert {each.name for each in listed if each.calibrated} == set(CALIBRATIONS)


async def test_the_list_gives_the_thresholds_that_there_are(client: FantailClient) -> None:
    listed = {each.name: list(each.thresholds) for each in await client.list_classifiers(timeout=DEADLINE_S)}
    threshold = classifier_pb2.LabelThreshold(label="yes", probability=0.9)
    assert listed == {name: [threshold] if name == FLATTENED else [] for name in NAMES}
