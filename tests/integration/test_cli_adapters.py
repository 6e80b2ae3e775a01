"""Commands of those who make classifiers, as far as they need neither an engine nor weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from service import workbench
from service.cli import app
from service.errors import ConfigurationError, FantailError, RegistryError
from service.evaluation.predictions import Predictions, write_predictions
from service.registry.loader import RegistryLoader
from service.settings import Settings
from tests.support import CLASSIFIERS


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of classifiers with a prompt format and no classifier."""
    made = tmp_path / "classifiers"
    made.mkdir()
    shutil.copy(CLASSIFIERS / "prompt.toml", made)
    monkeypatch.setenv("FANTAIL_CLASSIFIERS", str(made))
    return made


def fantail(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


def predictions(right: list[bool]) -> Predictions:
    """One classifier's answers; label 0 is always deserved."""
    rows = np.asarray([[0.9, 0.1] if each else [0.2, 0.8] for each in right])
    records = tuple(f"r-{number}" for number in range(len(right)))
    none = np.zeros(len(right), dtype=np.int64)
    return Predictions(
        ("yes", "no"), "", records, records, records, none, rows, rows, np.ones(len(right)), none.astype(bool)
    )


def written(path: Path, right: list[bool]) -> Path:
    write_predictions(path, {"fantail": {"refund": predictions(right)}}, {})
    return path


def test_a_new_classifier_is_servable_at_once(directory: Path, loader: RegistryLoader) -> None:
    done = fantail("new", "churn_risk", "--words", "leaving?", "--label", "yes", "--label", "no")
    assert done.exit_code == 0, done.output
    classifier = loader.load(directory).get("churn_risk")
    assert classifier.adapter is None
    assert [label.name for label in classifier.labels] == ["yes", "no"]


def test_a_label_may_name_its_token(directory: Path, loader: RegistryLoader) -> None:
    assert fantail("new", "size", "--label", "small= small", "--label", "large= big").exit_code == 0
    labels = loader.load(directory).get("size").labels
    assert labels[1].token_id == loader.tokenizer.encode_text(" big")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(("churn", "--label", "yes", "--label", "nooooo"), "not a single token", id="label of many tokens"),
        pytest.param(("churn", "--label", "yes"), "labels", id="one label"),
        pytest.param(("Churn-Risk",), "folder name", id="name"),
    ],
)
def test_a_new_classifier_that_could_not_be_served_leaves_nothing_behind(
    directory: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = fantail("new", *arguments)
    assert isinstance(done.exception, RegistryError)
    assert message in done.exception.message
    assert [path.name for path in directory.iterdir()] == ["prompt.toml"]


def test_a_classifier_that_is_there_is_not_made_anew(directory: Path) -> None:
    assert fantail("new", "churn").exit_code == 0
    done = fantail("new", "churn")
    assert isinstance(done.exception, RegistryError)
    assert "is there already" in done.exception.message


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [
        pytest.param([True] * 200, [True] * 199 + [False], 0, id="half a per cent worse"),
        pytest.param([True] * 200, [True] * 198 + [False] * 2, 1, id="one per cent worse"),
        pytest.param([False, True], [True, True], 0, id="better"),
    ],
)
def test_the_gate_between_revisions_fails_above_its_tolerance(
    tmp_path: Path, directory: Path, old: list[bool], new: list[bool], code: int
) -> None:
    files = written(tmp_path / "old.json", old), written(tmp_path / "new.json", new)
    data = CLASSIFIERS / "data" / "bank.jsonl"
    done = fantail("gate", *files, "--data", data, "--changes", tmp_path / "changes.json")
    assert done.exit_code == code, done.output
    broken = [f"r-{n}" for n, (was, now) in enumerate(zip(old, new, strict=True)) if was and not now]
    assert json.loads((tmp_path / "changes.json").read_text())["refund"]["broken"] == broken
    assert ("now wrong or abstained on r-" in done.output) == (code == 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        pytest.param(("evaluate",), ConfigurationError, "name the data", id="no data"),
        pytest.param(("evaluate", "nowhere"), ConfigurationError, "no such file: nowhere", id="no such file"),
        pytest.param(("calibrate", "nobody"), ConfigurationError, "name the data", id="nothing to calibrate on"),
    ],
)
def test_what_is_missing_is_named(
    directory: Path, arguments: tuple[str, ...], error: type[FantailError], message: str
) -> None:
    done = fantail(*arguments)
    assert isinstance(done.exception, error)
    assert message in done.exception.message


def test_an_unknown_baseline_is_refused_with_those_there_are(directory: Path) -> None:
    done = fantail("evaluate", CLASSIFIERS / "data" / "bank.jsonl", "--baseline", "GPT")
    assert done.exit_code == 2
    assert "TF-IDF" in done.output


def labelled(path: Path, labels: list[dict[str, str]]) -> Path:
    """Conversations with these labels, over and over, enough of them for every split."""
    turns = [{"role": "customer", "text": "where is it?"}]
    records = [{"id": f"r-{n}", "turns": turns, "labels": labels[n % len(labels)]} for n in range(60)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_what_cannot_be_trained_is_refused_before_anything_is(directory: Path, tmp_path: Path) -> None:
    for name in ("good", "poor"):
        assert fantail("new", name).exit_code == 0
    manifest = directory / "poor" / "classifier.toml"
    manifest.write_text(manifest.read_text().replace('adapter = "none"', 'adapter = "plain"'))
    data = labelled(tmp_path / "own.jsonl", [{"good": "yes", "poor": "no"}, {"good": "no", "poor": "no"}])
    done = fantail("train", "good", "poor", "--data", data)
    assert isinstance(done.exception, ConfigurationError)
    assert done.exception.message == "the data are too few:\npoor: no record in the train split is labelled yes"
    assert not (directory / "good" / "adapter").exists()


@pytest.mark.parametrize(
    ("digest_of", "named", "options", "split"),
    [
        pytest.param("own", "renamed.jsonl", [], "test", id="trained on"),
        pytest.param("own", "renamed.jsonl", ["--split", "all"], "all", id="trained on, and all asked for"),
        pytest.param("other", "own.jsonl", [], "test", id="trained on before it grew"),
        pytest.param("other", "other.jsonl", [], "all", id="not trained on"),
    ],
)
def test_data_that_were_trained_on_are_not_asked_unless_told(
    directory: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    digest_of: str,
    named: str,
    options: list[str],
    split: str,
) -> None:
    assert fantail("new", "churn").exit_code == 0
    files = {name: labelled(tmp_path / f"{name}.jsonl", [{name: "yes"}]) for name in ("own", "other")}
    digest = hashlib.sha256(files[digest_of].read_bytes()).hexdigest()
    (directory / "churn" / "training.json").write_text(json.dumps({"data": {named: digest}}))
    plans = []

    async def evaluate(settings: Settings, plan: workbench.EvaluationPlan, console: Console) -> dict[str, Any]:
        plans.append(plan)
        return {"means": {}}

    monkeypatch.setattr(workbench, "evaluate", evaluate)
    done = fantail("evaluate", files["own"], *options)
    assert done.exit_code == 0, done.output
    assert [plan.split for plan in plans] == [split]
    assert ("only the test split is asked" in done.output) == (split == "test")
