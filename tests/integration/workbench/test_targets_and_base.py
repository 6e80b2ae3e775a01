"""What an evaluation holds of labels with a target, and of the base model asked in plain words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from service import workbench
from service.evaluation.predictions import Predictions, read_predictions
from service.registry.manifest import MANIFEST_FILE
from service.scoring.calibration import calibrate, fit
from service.settings import Settings
from service.training.records import split_of
from tests.integration.workbench.bench import NAMES, QUIET, RECORDS, in_split, plan, ship


async def test_a_card_and_the_measures_hold_labels_with_a_target(
    settings: Settings, data: Path, tmp_path: Path
) -> None:
    folder = settings.classifiers / "refund"
    with (folder / MANIFEST_FILE).open("a") as manifest:
        manifest.write("[targets]\nyes = {recall = 0.5}\n")
    fitted = await workbench.calibrate(settings, ["refund"], [data], QUIET)
    measures = await workbench.evaluate(settings, plan(data, tmp_path / "out", cards=True), QUIET)
    (yes,) = measures["classifiers"]["refund"]["acted_on"]
    assert (yes["label"], yes["target"]) == ("yes", "recall 0.5")
    assert yes["threshold"] == round(fitted["refund"].calibration.thresholds[0], 4)
    found = read_predictions(tmp_path / "out" / "predictions.json")["fantail"]["refund"]
    assert yes["acted_on"] == int(((found.chosen == 0) & ~found.abstained).sum())
    assert yes["deserved"] == int((found.gold == 0).sum())
    assert "| yes | recall 0.5 | " in (folder / "CARD.md").read_text()
    assert measures["classifiers"]["fraud"]["acted_on"] == []
    assert "with a target" not in (settings.classifiers / "fraud" / "CARD.md").read_text()


async def zero_shot(settings: Settings, data: Path, output: Path, **changes: object) -> dict[str, Predictions]:
    await workbench.evaluate(settings, plan(data, output, baselines=("zero-shot",), **changes), QUIET)
    return read_predictions(output / "predictions.json")["zero-shot"]


async def test_the_base_model_is_calibrated_on_the_calibration_split(
    settings: Settings, data: Path, tmp_path: Path
) -> None:
    found = await zero_shot(settings, data, tmp_path / "out")
    known = await zero_shot(settings, data, tmp_path / "known", split="calibration")
    assert sorted(found) == sorted(NAMES)
    for name, answers in found.items():
        assert len(answers.ids) == in_split("test")
        assert {split_of(each) for each in answers.ids} == {"test"}
        scale, bias = fit(known[name].raw, known[name].gold)
        expected = np.asarray([calibrate(row, scale, bias) for row in answers.raw.tolist()])
        assert answers.probabilities == pytest.approx(expected, abs=1e-5)
        assert not np.allclose(answers.probabilities, answers.raw)


async def test_a_calibration_split_that_is_asked_calibrates_nothing(
    settings: Settings, data: Path, tmp_path: Path
) -> None:
    found = await zero_shot(settings, data, tmp_path / "out", split="calibration")
    assert all(np.array_equal(each.probabilities, each.raw) for each in found.values())


async def test_the_shipped_records_calibrate_where_all_are_asked(
    settings: Settings, data: Path, tmp_path: Path
) -> None:
    ship(settings, data)
    shipped = settings.classifiers / "data" / "more.jsonl"
    shipped.write_text(shipped.read_text().replace('"id": "r-', '"id": "s-'))
    assert any(split_of(f"s-{number}") == "calibration" for number in range(RECORDS))
    found = await zero_shot(settings, data, tmp_path / "out", split="all")
    assert not any(np.allclose(each.probabilities, each.raw) for each in found.values())


async def test_the_base_model_is_asked_about_the_chosen_classifiers_alone(
    settings: Settings, data: Path, tmp_path: Path
) -> None:
    assert list(await zero_shot(settings, data, tmp_path / "out", names=("fraud",))) == ["fraud"]
