"""Two revisions held against each other: each of them asked, or read where it was asked before."""

from __future__ import annotations

from pathlib import Path

import pytest

from service import workbench
from service.errors import ConfigurationError
from service.evaluation.predictions import read_predictions
from service.settings import Settings
from tests.integration.workbench.bench import NAMES, QUIET, Starts, plan, relabel
from tests.integration.workbench.revisions import reworded, three_labels


async def test_a_folder_is_compared_with_predictions(settings: Settings, data: Path, tmp_path: Path) -> None:
    await workbench.evaluate(settings, plan(data, tmp_path / "out"), QUIET)
    predictions = tmp_path / "out" / "predictions.json"
    found = await workbench.compare_revisions(settings, predictions, settings.classifiers, [data], "test", QUIET)
    assert [(each.classifier, each.regression, each.broken) for each in found] == [(name, 0, ()) for name in NAMES]


async def test_a_classifier_that_no_record_asks_is_not_passed_in_silence(settings: Settings, data: Path) -> None:
    relabel(data, ["refund"])
    folder = settings.classifiers
    with pytest.raises(ConfigurationError, match="no test record asked fraud; give more --data, or choose by --class"):
        await workbench.compare_revisions(settings, folder, folder, [data], "test", QUIET)
    (found,) = await workbench.compare_revisions(settings, folder, folder, [data], "test", QUIET, ["refund"])
    assert (found.classifier, found.regression) == ("refund", 0)


async def test_a_chosen_classifier_must_be_among_the_predictions(
    settings: Settings, data: Path, tmp_path: Path
) -> None:
    await workbench.evaluate(settings, plan(data, tmp_path / "out", names=["refund"]), QUIET)
    predictions = tmp_path / "out" / "predictions.json"
    with pytest.raises(ConfigurationError, match=r"predictions\.json: no test record asked fraud"):
        await workbench.compare_revisions(settings, predictions, predictions, [data], "test", QUIET, ["fraud"])


async def test_a_folder_that_withholds_is_not_compared(
    settings: Settings, data: Path, tmp_path: Path, starts: Starts
) -> None:
    await workbench.evaluate(settings, plan(data, tmp_path / "out"), QUIET)
    starts.withheld = {"fraud": "its gate says no"}
    with pytest.raises(ConfigurationError, match="withholds classifiers:\nfraud: its gate says no"):
        await workbench.compare_revisions(
            settings, tmp_path / "out" / "predictions.json", settings.classifiers, [data], "test", QUIET
        )


async def test_each_folder_is_asked_by_itself(settings: Settings, data: Path, tmp_path: Path) -> None:
    """Other words turn the fake engine's every answer to `refund`, and no answer to `fraud`, which keeps its words."""
    three_labels(settings.classifiers, data)
    new = reworded(settings.classifiers, tmp_path / "new")
    await workbench.evaluate(settings, plan(data, tmp_path / "out"), QUIET)
    was = read_predictions(tmp_path / "out" / "predictions.json")["fantail"]["refund"]
    third = [id for id, gold in zip(was.ids, was.gold, strict=True) if was.labels[gold] == "maybe"]
    right = [id for id, so in zip(was.ids, was.right, strict=True) if so]

    fraud, refund = await workbench.compare_revisions(settings, settings.classifiers, new, [data], "test", QUIET)

    assert (fraud.classifier, fraud.mended, fraud.broken, fraud.changed) == ("fraud", (), (), ())
    assert list(refund.broken) == right
    assert list(refund.changed) == third
    assert list(refund.mended) == [id for id in was.ids if id not in (*right, *third)]
    assert all((refund.mended, refund.broken, refund.changed))


async def test_the_folder_in_the_settings_is_not_asked(settings: Settings, data: Path, tmp_path: Path) -> None:
    new = reworded(settings.classifiers, tmp_path / "new")
    empty = settings.model_copy(update={"classifiers": tmp_path / "nowhere"})
    there = await workbench.compare_revisions(empty, settings.classifiers, new, [data], "test", QUIET)
    back = await workbench.compare_revisions(empty, new, settings.classifiers, [data], "test", QUIET)
    assert [(one.mended, one.broken) for one in there] == [(other.broken, other.mended) for other in back]
    assert any(one.mended != one.broken for one in there)
