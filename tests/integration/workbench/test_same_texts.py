"""Another run's predictions are held against today's only where the very same texts were answered."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from service import workbench
from service.cli import app
from service.errors import ConfigurationError
from service.settings import Settings
from service.training.records import split_of
from tests.integration.workbench.bench import QUIET, RECORDS, Starts, plan

EDITED = next(f"r-{number}" for number in range(RECORDS) if split_of(f"r-{number}") == "test")


@pytest.fixture
async def before(settings: Settings, data: Path, tmp_path: Path) -> Path:
    """Predictions of the data as they were."""
    await workbench.evaluate(settings, plan(data, tmp_path / "first"), QUIET)
    return tmp_path / "first" / "predictions.json"


def edit(data: Path, id: str) -> None:
    """Change one record's text."""
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    for record in lines:
        if record["id"] == id:
            record["turns"][0]["text"] += ", please"
    data.write_text("".join(json.dumps(record) + "\n" for record in lines))


@pytest.fixture
def edited(before: Path, data: Path) -> Path:
    """The same ids and labels; one text of the test split has changed since."""
    edit(data, EDITED)
    return data


@pytest.fixture
def undated(before: Path) -> Path:
    """The same predictions as an older version wrote them."""
    value = json.loads(before.read_text())
    for each in value["systems"]["fantail"].values():
        del each["texts"]
    before.write_text(json.dumps(value))
    return before


OTHER_TEXTS = f"(fraud|refund) was evaluated on other texts of 1 records, '{EDITED}' for one"


async def test_predictions_of_other_texts_do_not_stand_beside_ours(
    settings: Settings, before: Path, edited: Path, tmp_path: Path, starts: Starts
) -> None:
    with pytest.raises(ConfigurationError, match=OTHER_TEXTS):
        await workbench.evaluate(settings, plan(edited, tmp_path / "second", beside={"before": before}), QUIET)
    assert starts.count == 1


async def test_the_gate_does_not_compare_answers_to_other_texts(settings: Settings, before: Path, edited: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"fraud: the texts of 1 records were changed .*'{EDITED}' for one"):
        await workbench.compare_revisions(settings, before, settings.classifiers, [edited], "test", QUIET)


async def test_an_edit_in_another_split_changes_nothing(settings: Settings, before: Path, data: Path) -> None:
    edit(data, next(f"r-{number}" for number in range(RECORDS) if split_of(f"r-{number}") == "train"))
    found = await workbench.compare_revisions(settings, before, settings.classifiers, [data], "test", QUIET)
    assert [each.regression for each in found] == [0, 0]


def test_predictions_that_do_not_tell_their_texts_are_refused_by_the_command(
    settings: Settings, undated: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FANTAIL_CLASSIFIERS", str(settings.classifiers))
    done = CliRunner().invoke(app, ["gate", str(undated), str(settings.classifiers), "--data", str(data)])
    assert isinstance(done.exception, ConfigurationError)
    assert done.exception.message.endswith("an older one that does not tell which texts were answered; evaluate again")
