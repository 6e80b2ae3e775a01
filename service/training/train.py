"""`fantail train`: folders and data in, adapters out. Wires records, prompts, fan and loop together."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from transformers import AutoModelForCausalLM

from service.base_model import BaseModel, cache_folder
from service.domain import AdapterKind, Label
from service.engine.hardware import GIB, detect_hardware
from service.errors import ConfigurationError, InvalidRequestError, RegistryError
from service.files import sha256
from service.prompt.builder import PromptBuilder
from service.prompt.labels import prove_labels
from service.prompt.tokenizer import PromptTokenizer
from service.registry.calibration import CALIBRATION_FILE
from service.registry.folders import say_activated
from service.registry.loader import builder_of
from service.registry.manifest import AdapterChoice, Manifest, load_manifest
from service.training.export import export_adapter
from service.training.fan import Fan
from service.training.loop import UNKNOWN, EpochScores, Example, Trainer, TrainingConfig
from service.training.plain import PlainFan
from service.training.proof import PROVEN_WITH, TOLERANCE, Exported, require_as_trained
from service.training.records import Record, read_records

Read = tuple[Record, tuple[int, ...]]
"""A record, and the token ids of its prompt's shared part."""


@dataclass(frozen=True, slots=True)
class Task:
    """A classifier to train: its folder, manifest, proven labels and what makes its prompts."""

    folder: Path
    manifest: Manifest
    labels: tuple[Label, ...]
    builder: PromptBuilder

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def is_plain(self) -> bool:
        return self.manifest.adapter is AdapterChoice.PLAIN

    def exported(self, tail: tuple[int, ...]) -> Exported:
        kind = AdapterKind.PLAIN if self.is_plain else AdapterKind.ACTIVATED
        return Exported(self.name, self.folder, kind, tail, self.labels)

    def target(self, record: Record) -> int:
        """Token id of the record's label, or UNKNOWN."""
        wanted = record.labels.get(self.name)
        return next((label.token_id for label in self.labels if label.name == wanted), UNKNOWN)


@dataclass(frozen=True, slots=True)
class Training:
    """What a training run is made of; `run` does it. `tasks`: some that `together` puts together.

    `digests`: of the data's files as they were at first, by name; who edits one meanwhile changes nothing of that.
    """

    base: BaseModel
    tasks: tuple[Task, ...]
    data: tuple[Path, ...]
    digests: Mapping[str, str]
    config: TrainingConfig
    console: Console

    @property
    def builder(self) -> PromptBuilder:
        return self.tasks[0].builder

    def records(self) -> list[Read]:
        """What is trained on. Raises ConfigurationError when it will not do."""
        records = read_records(self.data, {task.name: list(task.manifest.labels) for task in self.tasks})
        self._require_labels(records)
        # One that carries no label would only be decayed on.
        wanted = [record for record in records if record.split in ("train", "dev") and record.labels]
        return [(record, self._prefix(record)) for record in wanted]

    def run(self, wanted: Sequence[Read]) -> None:
        """Train every task at once on what `records` gave and replace its adapter.

        Resumes a run with the same data and settings. Raises RegistryError for an adapter that PEFT reads otherwise.
        """
        began = time.monotonic()
        torch.manual_seed(self.config.seed)
        tails = [self.builder.tail(task.manifest.words) for task in self.tasks]
        model = AutoModelForCausalLM.from_pretrained(self.base.path, dtype=torch.float32)
        base_dtype: torch.dtype = getattr(torch, self.config.base_dtype)
        lora = (self.config.target_modules, self.config.rank, self.config.alpha, self.config.dropout, base_dtype)
        fan = PlainFan(model, *tails, *lora) if self.tasks[0].is_plain else Fan(model, tails, *lora)
        require_memory(sum(len(prefix) for _, prefix in wanted) * fan.kv_bytes_per_token())
        label_ids = [[label.token_id for label in task.labels] for task in self.tasks]
        trainer = Trainer(fan, label_ids, self.config, self._checkpoint())
        with progress(self.console) as bars:
            examples: dict[str, list[Example]] = {"train": [], "dev": []}
            reading = bars.add_task("reading with the base model", total=len(wanted))
            for record, prefix in wanted:
                targets = torch.tensor([task.target(record) for task in self.tasks])
                examples[record.split].append(Example(fan.read(prefix), targets))
                bars.advance(reading)
            training = bars.add_task("training", total=self.config.epochs * len(examples["train"]))
            trainer.run(examples["train"], examples["dev"], lambda done: bars.advance(training, done), self._report)
        self._export(fan, trainer, [record for record, _ in wanted], time.monotonic() - began)
        asked = [prefix for record, prefix in wanted if record.split == "dev"][:PROVEN_WITH]
        exported = [task.exported(tail) for task, tail in zip(self.tasks, tails, strict=True)]
        tolerance = TOLERANCE[self.config.base_dtype]
        require_as_trained(fan, exported, asked, self.base, self.builder.invocation_ids, tolerance)

    def forget(self) -> None:
        """Delete what an interrupted run goes on from, once all that belongs to the adapters is written."""
        self._checkpoint().unlink(missing_ok=True)

    def _prefix(self, record: Record) -> tuple[int, ...]:
        """Token ids of a record's conversation. Raises ConfigurationError that names it when it does not fit."""
        try:
            return self.builder.prefix(record.conversation).token_ids
        except InvalidRequestError as error:
            raise ConfigurationError(f"record {record.conversation.id}: {error.message}") from error

    def _require_labels(self, records: Sequence[Record]) -> None:
        """Every label has to be learnt from records, and something to choose the epoch by."""
        found = {(record.split, name, label) for record in records for name, label in record.labels.items()}
        problems = [
            f"{task.name}: no record in the train split is labelled {label}"
            for task in self.tasks
            for label in task.manifest.labels
            if ("train", task.name, label) not in found
        ]
        problems += [
            f"{task.name}: no labelled record in the dev split"
            for task in self.tasks
            if not any(("dev", task.name, label) in found for label in task.manifest.labels)
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

    def _export(self, fan: Fan, trainer: Trainer, records: Sequence[Record], seconds: float) -> None:
        if lost := [task.name for index, task in enumerate(self.tasks) if not trainer.best_loss[index] < float("inf")]:
            raise ConfigurationError(f"no epoch has a finite dev loss: {', '.join(lost)}; lower --learning-rate")
        table = Table(title="trained adapters, each at its best epoch")
        for column in ("classifier", "best epoch", "dev loss", "dev accuracy"):
            table.add_column(column, justify="left" if column == "classifier" else "right")
        for index, task in enumerate(self.tasks):
            curve = [{name: values[index] for name, values in asdict(scores).items()} for scores in trainer.curve]
            best = min(range(len(curve)), key=lambda epoch: np.nan_to_num(curve[epoch]["dev_loss"], nan=np.inf))
            record = {
                "config": asdict(self.config),
                "data": dict(self.digests),
                "records": {
                    split: sum(record.split == split and task.name in record.labels for record in records)
                    for split in ("train", "dev")
                },
                "base": {"name": self.base.name, "identity": self.base.identity},
                "versions": {name: version(name) for name in ("torch", "transformers", "peft")}
                | {"python": platform.python_version()},
                "took": {"seconds": round(seconds), "cores": torch.get_num_threads()},
                "best_epoch": best + 1,
                "curve": curve,
            }
            invocation = None if task.is_plain else self.builder.invocation_ids
            export_adapter(fan, index, task.folder, self.config, self.base.name, invocation, record)
            say_activated(task.folder)
            (task.folder / CALIBRATION_FILE).unlink(missing_ok=True)  # it was fitted for the adapter just replaced
            table.add_row(
                task.name, str(best + 1), f"{curve[best]['dev_loss']:.3f}", f"{curve[best]['dev_accuracy']:.3f}"
            )
        self.console.print(table)

    def _checkpoint(self) -> Path:
        """Of this run: same tasks, prompts, data, base and settings, or another checkpoint."""
        facts: list[Any] = [asdict(self.config), self.base.identity, self.builder.prompt_digest]
        facts.append(self.builder.max_prefix_tokens)
        facts += [[t.name, t.is_plain, t.manifest.words, t.manifest.labels] for t in self.tasks]
        facts += list(self.digests.values())
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
        return cache_folder() / "train" / digest / "checkpoint.pt"


def require_memory(kv_bytes: int) -> None:
    """Raise ConfigurationError when the KV of everything that is read does not fit: the system would kill the run."""
    free = detect_hardware().free_bytes
    if kv_bytes > free:
        raise ConfigurationError(
            f"the KV of what is read takes {kv_bytes / GIB:.1f} GiB and {free / GIB:.1f} are free: train on fewer or "
            "shorter conversations, or with a smaller FANTAIL_CONTEXT_TOKENS"
        )


def digests_of(data: Sequence[Path]) -> dict[str, str]:
    """sha256 of each file, by name. Raises ConfigurationError for two of one name: the training record tells them apart
    by it."""
    names = [path.name for path in data]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigurationError(f"two data files are called {', '.join(twice)}; rename one")
    return {path.name: sha256(path) for path in data}


def together(tasks: Sequence[Task]) -> list[tuple[Task, ...]]:
    """Tasks that are trained at once: all activated ones of one prompt, and each plain one alone: it shares nothing."""
    by_prompt: dict[str, list[Task]] = {}
    for task in (each for each in tasks if not each.is_plain):
        by_prompt.setdefault(task.builder.prompt_digest, []).append(task)
    return [tuple(each) for each in by_prompt.values()] + [(task,) for task in tasks if task.is_plain]


def load_tasks(
    directory: Path, names: Sequence[str], tokenizer: PromptTokenizer, builder: PromptBuilder
) -> tuple[Task, ...]:
    """The named classifiers, or all that want an adapter. Raises RegistryError with all problems.

    A named one without an adapter gets an activated one.
    """
    folders = [directory / name for name in names] or sorted(p.parent for p in directory.glob("*/classifier.toml"))
    tasks, problems = [], []
    for folder in folders:
        manifest, found = load_manifest(folder)
        if manifest is not None and (names or manifest.adapter is not AdapterChoice.NONE):
            labels, label_problems = prove_labels(tokenizer, manifest.words, manifest.labels)
            found = label_problems
            try:
                tasks.append(Task(folder, manifest, labels, builder_of(folder, builder)))
            except RegistryError as error:
                found += error.problems
        problems += [f"{folder.name}: {problem}" for problem in found]
    if problems or not tasks:
        raise RegistryError(problems or [f"{directory} has no classifier that wants an adapter"])
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
