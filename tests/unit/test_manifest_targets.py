"""What a manifest may ask of a label's threshold."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.registry.manifest import MANIFEST_FILE, Target, load_manifest
from tests.support import manifest_toml


def write(folder: Path, targets: str) -> None:
    (folder / MANIFEST_FILE).write_text(f"{manifest_toml()}[targets]\n{targets}\n", encoding="utf-8")


def test_a_manifest_need_not_have_targets(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_text(manifest_toml(), encoding="utf-8")
    manifest, _ = load_manifest(tmp_path)
    assert manifest is not None
    assert manifest.targets == {}


def test_targets_are_read_by_label(tmp_path: Path) -> None:
    write(tmp_path, "yes = {precision = 0.9}\nno = {recall = 0.75}")
    manifest, _ = load_manifest(tmp_path)
    assert manifest is not None
    assert manifest.targets == {"yes": Target(precision=0.9), "no": Target(recall=0.75)}


@pytest.mark.parametrize("share", [0.001, 0.999])
@pytest.mark.parametrize("measure", ["precision", "recall"])
def test_shares_between_0_and_1_are_read(tmp_path: Path, measure: str, share: float) -> None:
    write(tmp_path, f"yes = {{{measure} = {share}}}")
    assert load_manifest(tmp_path)[1] == []


@pytest.mark.parametrize(
    ("targets", "says"),
    [
        pytest.param("maybe = {recall = 0.9}", "targets for ['maybe'], which are no labels", id="unknown label"),
        pytest.param("yes = {}", "targets.yes: give either precision or recall", id="neither"),
        pytest.param(
            "yes = {precision = 0.9, recall = 0.9}", "targets.yes: give either precision or recall", id="both"
        ),
        pytest.param(
            "yes = {f1 = 0.9}", "targets.yes.f1: unknown key (known keys: precision, recall)", id="another measure"
        ),
        pytest.param("yes = 0.9", "targets.yes: Input should be a valid dictionary", id="a mere number"),
        pytest.param("no = {precision = 0}", "targets.no.precision: Input should be greater than 0", id="precision 0"),
        pytest.param("no = {precision = 1}", "targets.no.precision: Input should be less than 1", id="precision 1"),
        pytest.param("no = {recall = 0}", "targets.no.recall: Input should be greater than 0", id="recall 0"),
        pytest.param("no = {recall = 1}", "targets.no.recall: Input should be less than 1", id="recall 1"),
        pytest.param("no = {recall = nan}", "targets.no.recall: Input should be", id="not a number"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(tmp_path: Path, targets: str, says: str) -> None:
    write(tmp_path, targets)
    manifest, (problem,) = load_manifest(tmp_path)
    assert manifest is None
    assert problem.startswith(f"classifier.toml: {says}")


def test_all_targets_that_make_no_sense_are_reported_together(tmp_path: Path) -> None:
    write(tmp_path, "yes = {}\nno = {recall = 2}")
    assert len(load_manifest(tmp_path)[1]) == 2
