"""`fantail gate OLD NEW` on two folders, each asked through a fake engine: what is printed, and how it ends."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.evaluation.compare import mcnemar
from service.settings import Settings
from tests.integration.workbench.bench import in_split
from tests.integration.workbench.revisions import reworded


@pytest.fixture
def new(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A revision that answers `refund` the other way round."""
    monkeypatch.setenv("FANTAIL_CLASSIFIERS", str(settings.classifiers))
    return reworded(settings.classifiers, tmp_path / "new")


def gate(old: Path, new: Path, data: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["gate", str(old), str(new), "--data", str(data), *options])


def refund_row(done: Result) -> list[str]:
    (row,) = (line for line in done.output.splitlines() if re.match(r"\W*refund\W", line) and "│" in line)
    return [cell.strip() for cell in row.strip("│").split("│")]


@pytest.mark.parametrize("back", [False, True], ids=["there", "and back"])
def test_what_changed_and_its_chance_are_printed(
    settings: Settings, data: Path, new: Path, tmp_path: Path, back: bool
) -> None:
    folders = (new, settings.classifiers) if back else (settings.classifiers, new)
    done = gate(*folders, data, "--changes", str(tmp_path / "changes.json"))
    changes = json.loads((tmp_path / "changes.json").read_text())["refund"]
    mended, broken = len(changes["mended"]), len(changes["broken"])
    assert mended + broken == in_split("test")
    row = refund_row(done)
    assert row[:2] == ["refund", str(in_split("test"))]
    assert row[4:8] == [str(mended), str(broken), "0", f"{mcnemar(mended, broken):.3f}"]
    assert row[8] == ("worse" if broken > mended else "")
    assert done.exit_code == (broken > mended)


@pytest.mark.parametrize(("share", "code"), [(-0.001, 1), (0.0, 0), (0.001, 0)], ids=["above", "at", "below"])
def test_only_a_fall_above_the_tolerance_fails(
    settings: Settings, data: Path, new: Path, tmp_path: Path, share: float, code: int
) -> None:
    gate(settings.classifiers, new, data, "--changes", str(tmp_path / "changes.json"))
    changes = json.loads((tmp_path / "changes.json").read_text())["refund"]
    fall = (len(changes["broken"]) - len(changes["mended"])) / in_split("test")
    worse = (settings.classifiers, new) if fall > 0 else (new, settings.classifiers)
    assert gate(*worse, data, "--tolerance", repr(abs(fall) + share)).exit_code == code
