"""Two classifiers, records of both, and a fake engine in the place of each real one."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service import workbench
from service.classify import Classify
from service.settings import Settings
from service.start import load_prompting, load_registry
from tests.integration.workbench.bench import RECORDS, Starts, Undecided
from tests.support import CLASSIFIERS, classify_with


@pytest.fixture
def settings(tmp_path: Path, make_classifier_folder: Callable[..., Path]) -> Settings:
    directory = tmp_path / "classifiers"
    directory.mkdir()
    shutil.copy(CLASSIFIERS / "prompt.toml", directory)
    make_classifier_folder(directory, "refund")
    make_classifier_folder(directory, "fraud", words="fraud?")
    return Settings(classifiers=directory)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Every third record is a refund, every second a fraud."""
    lines = []
    for number in range(RECORDS):
        labels = {"refund": "yes" if number % 3 == 0 else "no", "fraud": "yes" if number % 2 == 0 else "no"}
        turns = [{"role": "customer", "text": f"message {number} about my order"}]
        lines.append(json.dumps({"id": f"r-{number}", "turns": turns, "labels": labels}))
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(autouse=True)
def starts(monkeypatch: pytest.MonkeyPatch) -> Starts:
    """Every start of a real engine is one of a fake."""
    starts = Starts()

    @contextlib.asynccontextmanager
    async def start(settings: Settings, *ignore: str) -> AsyncIterator[Classify]:
        starts.count += 1
        prompting = load_prompting(settings)
        registry = load_registry(settings, prompting, *ignore).without(starts.withheld)
        yield classify_with(registry, prompting.builder, Undecided())

    monkeypatch.setattr(workbench, "start_classify", start)
    return starts
