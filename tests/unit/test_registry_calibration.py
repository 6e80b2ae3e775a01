"""`calibration.json`: what of it is read, refused, found stale, and written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.domain import Calibration, Reference
from service.errors import ClassifierWithheldError, RegistryError
from service.registry.calibration import CALIBRATION_FILE, load_calibration, write_calibration
from service.registry.loader import RegistryLoader
from service.registry.manifest import load_manifest
from tests.support import ABSENT, changed, manifest_toml

LABELS = ("yes", "no")
FITTED = Calibration(scale=1.25, bias=(0.5, -0.5), thresholds=(0.7, 0.0), reference=Reference((0.6, 0.4), 0.85))
ANSWERED = {"shares": {"yes": 0.6, "no": 0.4}, "confidence": 0.85}
STALE = "calibration.json was fitted for another adapter, words, labels or targets; run `fantail calibrate refund`"
NEEDED = "its targets need a calibration.json; run `fantail calibrate refund`"


@pytest.fixture
def directory(tmp_path: Path, make_classifier_folder: Callable[..., Path]) -> Path:
    """Two classifiers, `refund` and `topic`, the second without adapter."""
    make_classifier_folder(tmp_path, "refund")
    make_classifier_folder(tmp_path, "topic", adapter="none", words="topic?")
    return tmp_path


def calibration_digest(loader: RegistryLoader, folder: Path) -> str:
    (manifest, _), (classifier, _) = load_manifest(folder), loader.load_one(folder)
    assert manifest is not None
    assert classifier is not None
    return loader.calibration_digest(manifest, classifier.adapter, loader.builder)


def content(loader: RegistryLoader, folder: Path, **changes: Any) -> dict[str, Any]:
    """A file that fits the folder, with `changes`; `ABSENT` leaves a key out."""
    file = {
        "fitted_for": calibration_digest(loader, folder),
        "scale": 1.25,
        "bias": {"yes": 0.5, "no": -0.5},
        "thresholds": {"yes": 0.7},
        "reference": ANSWERED,
        "fitted_on": {"records": 200},
    }
    return changed(file, changes)


def write(loader: RegistryLoader, folder: Path, **changes: Any) -> None:
    file = content(loader, folder, **changes)
    (folder / CALIBRATION_FILE).write_text(json.dumps(file), encoding="utf-8")


def problems_of(loader: RegistryLoader, directory: Path) -> tuple[str, ...]:
    with pytest.raises(RegistryError) as caught:
        loader.load(directory)
    return caught.value.problems


def test_a_classifier_without_the_file_is_served_uncalibrated(loader: RegistryLoader, directory: Path) -> None:
    assert loader.load(directory).serving("refund").calibration is None


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="as written"),
        pytest.param({"bias": {"no": -0.5, "yes": 0.5}}, id="labels in another order"),
        pytest.param({"reference": ANSWERED | {"shares": {"no": 0.4, "yes": 0.6}}}, id="shares in another order"),
        pytest.param({"thresholds": {"no": 0.0, "yes": 0.7}}, id="a threshold of 0"),
        pytest.param({"fitted_on": ABSENT}, id="not said on what"),
        pytest.param({"fitted_on": {"anything": [1, {"for": "people"}]}}, id="anything said of what"),
    ],
)
def test_a_calibration_is_read_in_the_order_of_the_labels(
    loader: RegistryLoader, directory: Path, changes: dict[str, Any]
) -> None:
    write(loader, directory / "refund", **changes)
    assert loader.load(directory).serving("refund").calibration == FITTED


def test_labels_without_threshold_have_zero(loader: RegistryLoader, directory: Path) -> None:
    write(loader, directory / "refund", thresholds=ABSENT)
    calibration = loader.load(directory).serving("refund").calibration
    assert calibration is not None
    assert calibration.thresholds == (0.0, 0.0)


@pytest.mark.parametrize("threshold", [0, 1e-9, 0.999, 1])
def test_thresholds_from_0_to_1_are_read(loader: RegistryLoader, directory: Path, threshold: float) -> None:
    write(loader, directory / "refund", thresholds={"no": threshold})
    calibration = loader.load(directory).serving("refund").calibration
    assert calibration is not None
    assert calibration.thresholds == (0.0, threshold)


BROKEN = {
    "unknown key": ({"bais": {}}, "bais: unknown key"),
    "fitted_for missing": ({"fitted_for": ABSENT}, "fitted_for: Field required"),
    "scale missing": ({"scale": ABSENT}, "scale: Field required"),
    "bias missing": ({"bias": ABSENT}, "bias: Field required"),
    "scale 0": ({"scale": 0}, "scale: Input should be greater than 0"),
    "scale negative": ({"scale": -0.01}, "scale: Input should be greater than 0"),
    "scale infinite": ({"scale": float("inf")}, "scale: Input should be a finite number"),
    "scale not a number": ({"scale": float("nan")}, "scale: "),
    "scale a text": ({"scale": "big"}, "scale: Input should be a valid number"),
    "bias infinite": ({"bias": {"yes": float("-inf"), "no": 0}}, "bias.yes: Input should be a finite number"),
    "bias not a number": ({"bias": {"yes": 0, "no": float("nan")}}, "bias.no: Input should be a finite number"),
    "bias without a label": ({"bias": {"yes": 0.5}}, "bias is for ['yes'], the labels are ['no', 'yes']"),
    "bias of another label": (
        {"bias": {"yes": 0, "no": 0, "maybe": 0}},
        "bias is for ['maybe', 'no', 'yes'], the labels are ['no', 'yes']",
    ),
    "threshold below 0": (
        {"thresholds": {"yes": -0.001}},
        "thresholds.yes: Input should be greater than or eq",
    ),
    "threshold above 1": ({"thresholds": {"yes": 1.001}}, "thresholds.yes: Input should be less than or equal to 1"),
    "threshold not a number": ({"thresholds": {"yes": float("nan")}}, "thresholds.yes: "),
    "threshold of another label": ({"thresholds": {"maybe": 0.5}}, "thresholds for unknown labels ['maybe']"),
    "share of another label": (
        {"reference": ANSWERED | {"shares": {"yes": 0.7, "no ": 0.3}}},
        "shares are of ['no ', 'yes'], not",
    ),
    "shares of more than all": (
        {"reference": ANSWERED | {"shares": {"yes": 0.7, "no": 0.7}}},
        "shares sum to 1.4, not to 1",
    ),
    "confidence above 1": ({"reference": ANSWERED | {"confidence": 1.1}}, "reference.confidence: Input should be less"),
}


@pytest.mark.parametrize(("changes", "says"), BROKEN.values(), ids=BROKEN)
def test_a_broken_calibration_is_refused_with_what_is_wrong(
    loader: RegistryLoader, directory: Path, changes: dict[str, Any], says: str
) -> None:
    write(loader, directory / "refund", **changes)
    (problem,) = problems_of(loader, directory)
    assert problem.startswith(f"refund: calibration.json: {says}")


@pytest.mark.parametrize(
    ("written", "says"),
    [
        pytest.param(b"", "calibration.json is not valid JSON: ", id="empty"),
        pytest.param(b'{"scale": 1', "calibration.json is not valid JSON: ", id="cut short"),
        pytest.param(b'{"fitted_for": "\xff"}', "calibration.json is not valid JSON: ", id="not UTF-8"),
        pytest.param(b"[]", "calibration.json: Input should be a valid dictionary", id="a list"),
    ],
)
def test_a_file_that_is_no_json_object_is_refused(
    loader: RegistryLoader, directory: Path, written: bytes, says: str
) -> None:
    (directory / "refund" / CALIBRATION_FILE).write_bytes(written)
    (problem,) = problems_of(loader, directory)
    assert problem.startswith(f"refund: {says}")


def test_all_faults_of_a_calibration_are_reported_together(loader: RegistryLoader, directory: Path) -> None:
    write(loader, directory / "refund", bias={"yes": 0}, thresholds={"maybe": 1})
    assert len(problems_of(loader, directory)) == 2


def new_words(folder: Path) -> None:
    (folder / "classifier.toml").write_text(manifest_toml(words="money back?"), encoding="utf-8")


def new_token(folder: Path) -> None:
    (folder / "classifier.toml").write_text(manifest_toml(labels={"yes": " Yes", "no": " no"}), encoding="utf-8")


def new_description(folder: Path) -> None:
    (folder / "classifier.toml").write_text(manifest_toml(description="Else.", min_label_mass=0.1), encoding="utf-8")


def new_weights(folder: Path) -> None:
    path = folder / "adapter/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def new_targets(folder: Path) -> None:
    (folder / "classifier.toml").write_text(f"{manifest_toml()}[targets]\nyes = {{recall = 0.9}}\n", encoding="utf-8")


def other_digest(folder: Path) -> None:
    path = folder / CALIBRATION_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fitted_for": "0" * 64}), encoding="utf-8")


@pytest.mark.parametrize(
    "change", [new_words, new_token, new_weights, new_targets, other_digest], ids=lambda each: each.__name__
)
def test_a_calibration_fitted_for_something_else_withholds_its_classifier_alone(
    loader: RegistryLoader, directory: Path, change: Callable[[Path], None]
) -> None:
    write(loader, directory / "refund")
    change(directory / "refund")
    registry = loader.load(directory)
    assert registry.withheld == {"refund": STALE}
    with pytest.raises(ClassifierWithheldError):
        registry.serving("refund")
    assert registry.serving("topic").name == "topic"


def test_what_does_not_decide_probabilities_leaves_a_calibration_fresh(loader: RegistryLoader, directory: Path) -> None:
    write(loader, directory / "refund")
    new_description(directory / "refund")
    assert loader.load(directory).withheld == {}


def test_another_base_withholds_what_it_answers_itself_and_leaves_adapters_to_their_gate(
    loader: RegistryLoader, directory: Path
) -> None:
    for name in ("refund", "topic"):
        write(loader, directory / name)
    other = replace(loader, base=replace(loader.base, identity="another"))
    assert list(other.load(directory).withheld) == ["topic"]


def test_thresholds_are_fitted_for_the_label_mass_that_an_answer_needs(loader: RegistryLoader, directory: Path) -> None:
    new_targets(directory / "refund")
    write(loader, directory / "refund")
    manifest = directory / "refund/classifier.toml"
    assert loader.load(directory).withheld == {}
    manifest.write_text(f"min_label_mass = 0.1\n{manifest.read_text()}", encoding="utf-8")
    assert loader.load(directory).withheld == {"refund": STALE}


def test_targets_without_calibration_withhold_their_classifier(loader: RegistryLoader, directory: Path) -> None:
    new_targets(directory / "refund")
    assert loader.load(directory).withheld == {"refund": NEEDED}


def test_targets_with_their_calibration_are_served(loader: RegistryLoader, directory: Path) -> None:
    new_targets(directory / "refund")
    write(loader, directory / "refund")
    assert loader.load(directory).withheld == {}


@pytest.mark.parametrize("written", [None, "{", json.dumps({"scale": 1})], ids=["missing", "no JSON", "incomplete"])
def test_an_ignored_calibration_neither_counts_nor_withholds(
    loader: RegistryLoader, directory: Path, written: str | None
) -> None:
    new_targets(directory / "refund")
    if written is not None:
        (directory / "refund" / CALIBRATION_FILE).write_text(written, encoding="utf-8")
    registry = replace(loader, ignore=frozenset({CALIBRATION_FILE})).load(directory)
    assert registry.serving("refund").calibration is None


def test_names_are_served_that_are_not_withheld(loader: RegistryLoader, directory: Path) -> None:
    assert loader.load(directory).serving_names == ("refund", "topic")
    new_targets(directory / "refund")
    assert loader.load(directory).serving_names == ("topic",)


def test_a_problem_elsewhere_is_told_though_a_calibration_is_stale(loader: RegistryLoader, directory: Path) -> None:
    write(loader, directory / "refund", fitted_for="0" * 64)
    (directory / "topic" / CALIBRATION_FILE).write_text("{", encoding="utf-8")
    (problem,) = problems_of(loader, directory)
    assert problem.startswith("topic: ")


@pytest.mark.parametrize(
    "calibration",
    [
        pytest.param(FITTED, id="one threshold"),
        pytest.param(Calibration(1.0, (0.0, 0.0), (0.0, 0.0)), id="no threshold"),
        pytest.param(Calibration(0.05, (1 / 3, -1e-17), (0.1 + 0.2, 1.0)), id="numbers that print long"),
    ],
)
def test_what_is_written_is_read_back(tmp_path: Path, calibration: Calibration) -> None:
    write_calibration(tmp_path, LABELS, calibration, "digest", {"records": 200})
    assert load_calibration(tmp_path, LABELS, "digest") == (calibration, None, [])


def test_no_threshold_is_written_for_labels_without_one(tmp_path: Path) -> None:
    write_calibration(tmp_path, LABELS, FITTED, "digest", {})
    assert json.loads((tmp_path / CALIBRATION_FILE).read_text())["thresholds"] == {"yes": 0.7}


def test_writing_again_replaces_the_file_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for scale in (1.0, 2.0):
        write_calibration(tmp_path, LABELS, Calibration(scale, (0.0, 0.0), (0.0, 0.0)), "digest", {})
    assert json.loads((tmp_path / CALIBRATION_FILE).read_text())["scale"] == 2.0
    assert [path.name for path in tmp_path.iterdir()] == [CALIBRATION_FILE]


def test_a_calibration_that_could_not_be_read_back_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        write_calibration(tmp_path, LABELS, Calibration(0.0, (0.0, 0.0), (0.0, 0.0)), "digest", {})
    assert list(tmp_path.iterdir()) == []
