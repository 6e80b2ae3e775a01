"""What the tests of the workbench share: an undecided engine, plans, and data that they change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from service import workbench
from service.engine.base import LabelLogprobs, ScoringRequest
from service.engine.fake_engine import FakeEngine
from service.settings import Settings
from service.training.records import split_of

QUIET = Console(quiet=True)
NAMES = ("fraud", "refund")
RECORDS = 60


class Undecided(FakeEngine):
    """Favours one label or the other by the parity of the prompt's tokens."""

    async def score(self, request: ScoringRequest) -> LabelLogprobs:
        self.favour = lambda asked: sum(asked.token_ids) % 2
        return await super().score(request)


@dataclass
class Starts:
    """What the fake gate withholds, and how often an engine was started."""

    withheld: dict[str, str] = field(default_factory=dict)
    count: int = 0


def in_split(split: str) -> int:
    return sum(split_of(f"r-{number}") == split for number in range(RECORDS))


def plan(data: Path, output: Path, **changes: object) -> workbench.EvaluationPlan:
    options = {"split": "test", "names": (), "baselines": (), "beside": {}, "cards": False} | changes
    return workbench.EvaluationPlan(files=[data], output=output, **options)  # type: ignore[arg-type]


def relabel(data: Path, keep: Sequence[str]) -> None:
    """Take every label away but those of `keep`."""
    records = [json.loads(line) for line in data.read_text().splitlines()]
    for record in records:
        record["labels"] = {name: label for name, label in record["labels"].items() if name in keep}
    data.write_text("".join(json.dumps(record) + "\n" for record in records))


def ship(settings: Settings, data: Path) -> None:
    """Lay the same records and one more, `shipped`, beside the classifiers."""
    folder = settings.classifiers / "data"
    folder.mkdir()
    lines = data.read_text().splitlines()
    (folder / "more.jsonl").write_text("\n".join([*lines, lines[0].replace("r-0", "shipped")]) + "\n")
