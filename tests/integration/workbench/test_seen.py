"""An evaluation says aloud when what it asks may have been learnt from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from service import workbench
from service.cli import app
from service.files import sha256
from service.registry.folders import RECORD_FILE
from service.settings import Settings
from tests.integration.workbench.bench import RECORDS, in_split, plan

CAUTION = f"{in_split('train') + 1} of {RECORDS + 1} records are of the train split by their id's hash"
MORE = "r-60"
"""Id of the record that is added; its split is train."""


@pytest.fixture
def grown(settings: Settings, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `refund` was trained on, with one record more and under another name."""
    monkeypatch.setenv("FANTAIL_CLASSIFIERS", str(settings.classifiers))
    (settings.classifiers / "refund" / RECORD_FILE).write_text(json.dumps({"data": {data.name: sha256(data)}}))
    copy = tmp_path / "talks-v2.jsonl"
    shutil.copy(data, copy)
    with copy.open("a") as file:
        record = json.loads(data.read_text().splitlines()[0])
        record["turns"][0]["text"] = "one more"
        file.write(json.dumps(record | {"id": MORE}) + "\n")
    return copy


def evaluated(grown: Path, output: Path, *options: str) -> str:
    """What `fantail evaluate` prints, in one line."""
    done = CliRunner().invoke(app, ["evaluate", str(grown), "--output", str(output), *options])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_training_data_that_grew_under_another_name_are_warned_of(grown: Path, tmp_path: Path) -> None:
    said = evaluated(grown, tmp_path / "out")
    assert CAUTION in said
    assert "`--split test` asks only those that no training sees" in said
    for name in ("report.html", "evaluation.json", "predictions.json"):
        written = (tmp_path / "out" / name).read_text()
        assert CAUTION in written.replace("&#39;", "'"), name


def test_the_card_repeats_the_warning(grown: Path, settings: Settings, tmp_path: Path) -> None:
    evaluated(grown, tmp_path / "out", "--cards")
    assert f"**Caution:** {CAUTION}" in (settings.classifiers / "refund" / "CARD.md").read_text()


def test_the_test_split_needs_no_warning(grown: Path, tmp_path: Path) -> None:
    assert "train split" not in evaluated(grown, tmp_path / "out", "--split", "test")
    assert "caution" not in json.loads((tmp_path / "out" / "evaluation.json").read_text())


@pytest.mark.parametrize("asked", ["fraud", "refund"])
def test_only_a_classifier_that_was_trained_is_warned_of(grown: Path, tmp_path: Path, asked: str) -> None:
    assert ("train split" in evaluated(grown, tmp_path / "out", "--classifier", asked)) == (asked == "refund")


@pytest.fixture
def repeating(data: Path) -> Path:
    """The same records; one of the test split has the turns of one of train."""
    data.write_text(data.read_text().replace("message 1 ", "message 0 "))
    return data


async def test_records_that_stand_in_two_splits_are_counted_when_all_are_asked(
    settings: Settings, repeating: Path, tmp_path: Path
) -> None:
    said = Console(record=True, width=200)
    await workbench.evaluate(settings, plan(repeating, tmp_path / "out", split="all"), said)
    counted = f"2 of {RECORDS} records have the very turns of a record of another split, 'r-0' for one"
    assert counted in said.export_text()
