"""`fantail train`: folders and data in, adapters out. Wires records, prompts, fan and loop together."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from transformers import AutoModelForCausalLM

from service.base_model import BaseModel, cache_folder
from service.domain import Label
from service.errors import ConfigurationError, RegistryError
from service.prompt.builder import PromptBuilder
from service.prompt.labels import prove_labels
from service.prompt.tokenizer import PromptTokenizer
from service.registry.manifest import Manifest, load_manifest
from service.training.export import export_adapter
from service.training.fan import Fan
from service.training.loop import UNKNOWN, EpochScores, Example, Trainer, TrainingConfig
from service.training.records import Record, read_records


@dataclass(frozen=True, slots=True)
class Task:
    """A classifier to train: its folder, manifest and proven labels."""

    folder: Path
    manifest: Manifest
    labels: tuple[Label, ...]

    @property
    def name(self) -> str:
        return self.folder.name

    def target(self, record: Record) -> int:
        """Token id of the record's label, or UNKNOWN."""
        wanted = record.labels.get(self.name)
        return next((label.token_id for label in self.labels if label.name == wanted), UNKNOWN)


@dataclass(frozen=True, slots=True)
class Training:
    """What a training run is made of; `run` does it."""

    base: BaseModel
    tokenizer: PromptTokenizer
    builder: PromptBuilder
    tasks: tuple[Task, ...]
    data: tuple[Path, ...]
    config: TrainingConfig
    console: Console

    def run(self) -> None:
        """Train every task at once and replace its adapter. Resumes a run with the same data and settings."""
        records = read_records(self.data, {task.name: list(task.manifest.labels) for task in self.tasks})
        self._require_labels(records)
        torch.manual_seed(self.config.seed)
        tails = [self.builder.tail(task.manifest.words) for task in self.tasks]
        model = AutoModelForCausalLM.from_pretrained(self.base.path, dtype=torch.float32)
        fan = Fan(model, tails, self.config.target_modules, self.config.rank, self.config.alpha, self.config.dropout)
        checkpoint = cache_folder() / "train" / self._digest() / "checkpoint.pt"
        trainer = Trainer(
            fan, [[label.token_id for label in task.labels] for task in self.tasks], self.config, checkpoint
        )
        with progress(self.console) as bars:
            reading = bars.add_task("reading with the base model", total=len(records))
            examples: dict[str, list[Example]] = {"train": [], "dev": []}
            for record in records:
                targets = torch.tensor([task.target(record) for task in self.tasks])
                prefix = fan.read(self.builder.prefix(record.conversation).token_ids)
                examples[record.split].append(Example(prefix, targets))
                bars.advance(reading)
            training = bars.add_task("training", total=self.config.epochs * len(examples["train"]))
            trainer.run(examples["train"], examples["dev"], lambda done: bars.advance(training, done), self._report)
        self._export(fan, trainer, {split: len(of) for split, of in examples.items()})
        checkpoint.unlink(missing_ok=True)

    def _require_labels(self, records: Sequence[Record]) -> None:
        """Every classifier needs labelled records in both splits, or there is nothing to learn from or to choose by."""
        problems = [
            f"{task.name}: no labelled record in the {split} split"
            for task in self.tasks
            for split in ("train", "dev")
            if not any(record.split == split and task.name in record.labels for record in records)
        ]
        if problems:
            raise ConfigurationError("the data are too few:\n" + "\n".join(problems))

    def _report(self, scores: EpochScores) -> None:
        train, dev, accuracy = (
            sum(each) / len(each) for each in (scores.train_loss, scores.dev_loss, scores.dev_accuracy)
        )
        self.console.print(
            f"mean of {len(self.tasks)}: training loss {train:.3f}, dev loss {dev:.3f}, dev accuracy {accuracy:.3f}"
        )

    def _export(self, fan: Fan, trainer: Trainer, counts: dict[str, int]) -> None:
        table = Table(title="trained adapters, each at its best epoch")
        for column in ("classifier", "best epoch", "dev loss", "dev accuracy"):
            table.add_column(column, justify="left" if column == "classifier" else "right")
        for index, task in enumerate(self.tasks):
            curve = [{name: values[index] for name, values in asdict(scores).items()} for scores in trainer.curve]
            best = min(range(len(curve)), key=lambda epoch: curve[epoch]["dev_loss"])
            record = {
                "config": asdict(self.config),
                "data": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in self.data},
                "records": counts,
                "base": {"name": self.base.name, "identity": self.base.identity},
                "versions": {name: version(name) for name in ("torch", "transformers", "peft")}
                | {"python": platform.python_version()},
                "best_epoch": best + 1,
                "curve": curve,
            }
            export_adapter(fan, index, task.folder, self.config, self.base.name, self.builder.invocation_ids, record)
            table.add_row(
                task.name, str(best + 1), f"{curve[best]['dev_loss']:.3f}", f"{curve[best]['dev_accuracy']:.3f}"
            )
        self.console.print(table)

    def _digest(self) -> str:
        """Names the checkpoint of this run: same tasks, prompts, data, base and settings, or another checkpoint."""
        facts: list[Any] = [asdict(self.config), self.base.identity, self.builder.prompt_digest]
        facts += [[task.name, task.manifest.model_dump(mode="json")] for task in self.tasks]
        facts += [hashlib.sha256(path.read_bytes()).hexdigest() for path in self.data]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def load_tasks(directory: Path, names: Sequence[str], tokenizer: PromptTokenizer) -> tuple[Task, ...]:
    """The named classifiers, or all that want an activated adapter. Raises RegistryError with all problems."""
    folders = [directory / name for name in names] or sorted(p.parent for p in directory.glob("*/classifier.toml"))
    tasks, problems = [], []
    for folder in folders:
        manifest, found = load_manifest(folder)
        if manifest is not None and manifest.adapter.value == "activated":
            labels, label_problems = prove_labels(tokenizer, manifest.words, manifest.labels)
            found = label_problems
            tasks.append(Task(folder, manifest, labels))
        elif manifest is not None and names:
            found = [f"the manifest says adapter = {manifest.adapter.value!r}; only activated adapters are trained"]
        problems += [f"{folder.name}: {problem}" for problem in found]
    if problems or not tasks:
        raise RegistryError(problems or [f"{directory} has no classifier that wants an activated adapter"])
    return tuple(tasks)


def progress(console: Console) -> Progress:
    """The bars of a long run."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
