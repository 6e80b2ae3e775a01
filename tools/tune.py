"""What was tried: trains all classifiers under one change after another and measures each on the dev split.

`python -m tools.tune [GROUP|KEY…]` tries all, or some groups or keys, and goes on where it was interrupted. Results
gather in `classifiers/tuning.json`, from which the table in `classifiers/TUNING.md` is written. Nothing here replaces a
shipped adapter; `--adapters FOLDER` keeps what is trained as PEFT folders, `FOLDER/KEY/NAME/adapter`, for `fantail
import`. What has a result is not trained again: to have its adapters, take its key out of `tuning.json` in a copy.
Two of these on different groups, one core and one thread each, do more than one on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM

from service.base_model import cache_folder
from service.evaluation.measures import macro_f1s
from service.files import write_whole
from service.prompt.builder import PromptBuilder
from service.prompt.format import PromptFormat, load_prompt_format
from service.settings import load_settings
from service.start import Prompting, load_prompting
from service.training.export import export_adapter
from service.training.fan import Fan, PrefixKV
from service.training.loop import Example, Trainer, TrainingConfig
from service.training.plain import PlainFan, PlainPrefix
from service.training.records import Record, read_records
from service.training.train import Task, load_tasks, progress
from tools.tuning import PLAIN, VARIANTS, Variant, mean, page, table

HAS_BFLOAT16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
REFERENCE = TrainingConfig(learning_rate=1e-3, base_dtype="bfloat16" if HAS_BFLOAT16 else "float32")
NEWER = {"everyday", "firstline", "guide", "plainline", "planner", "policydesk", "roleplay", "shoptalk"}
"""Files of records that are left out."""


@dataclass(slots=True)
class Tuning:
    """Trains variants on one reading of the records, kept for all variants in a row with the same prompt format."""

    prompting: Prompting
    prompt_format: PromptFormat
    tasks: Sequence[Task]
    records: Sequence[Record]
    scratch: Path
    adapters: Path | None
    console: Console
    _read: dict[str, PrefixKV | PlainPrefix] = field(default_factory=dict)
    _read_as: tuple[Any, ...] = ()

    def measure(self, variant: Variant) -> dict[str, Any]:
        """Train one variant and say what it answers on the dev split, each adapter at its best epoch."""
        began = time.monotonic()
        config = replace(REFERENCE, **variant.config)
        builder = self._builder(variant)
        tasks = [task for task in self.tasks if variant.plain in (None, task.name)]
        tails = [builder.tail(words_of(task, variant)) for task in tasks]
        torch.manual_seed(config.seed)
        model = AutoModelForCausalLM.from_pretrained(self.prompting.base.path, dtype=torch.float32)
        dtype: torch.dtype = getattr(torch, config.base_dtype)
        lora = (config.target_modules, config.rank, config.alpha, config.dropout, dtype)
        fan = PlainFan(model, *tails, *lora) if variant.plain else Fan(model, tails, *lora)
        train = sorted((r for r in self.records if r.split == "train"), key=lambda r: r.conversation.id)
        train = train[: round(variant.share * len(train))]
        dev = [record for record in self.records if record.split == "dev"]
        prefixes = self._prefixes([*train, *dev], builder, fan)
        label_ids = [[label.token_id for label in task.labels] for task in tasks]
        asked = [(words_of(task, variant), ids) for task, ids in zip(tasks, label_ids, strict=True)]
        digest = run_digest(config, self.prompting.base.identity, builder.prompt_digest, asked, [*train, *dev])
        trainer = Trainer(
            fan,
            label_ids,
            config,
            self.scratch / f"{variant.group} {variant.name} {digest}.pt".replace("/", " "),
        )
        examples = {
            name: [
                Example(prefixes[r.conversation.id], torch.tensor([task.target(r) for task in tasks])) for r in split
            ]
            for name, split in (("train", train), ("dev", dev))
        }
        with progress(self.console) as bars:
            bar = bars.add_task(f"{variant.group}: {variant.name}", total=config.epochs * len(train))
            trainer.run(examples["train"], examples["dev"], lambda done: bars.advance(bar, done), lambda scores: None)
        answers = trainer.answers(examples["dev"])
        if self.adapters is not None:
            invocation = None if variant.plain else builder.invocation_ids
            for index, task in enumerate(tasks):
                folder = self.adapters / variant.key / task.name
                folder.mkdir(parents=True, exist_ok=True)
                export_adapter(fan, index, folder, config, self.prompting.base.name, invocation, asdict(variant))
        trainer.checkpoint.unlink(missing_ok=True)
        f1 = [
            float(macro_f1s(place.numpy(), scores.argmax(-1).numpy(), scores.shape[1])[0]) for scores, place in answers
        ]
        best = [min(losses) for losses in zip(*(epoch.dev_loss for epoch in trainer.curve), strict=True)]
        right = [float((scores.argmax(-1) == place).float().mean()) for scores, place in answers]
        return {
            "records": len(train),
            "base_dtype": config.base_dtype,
            "tail_tokens": round(mean([len(tail) for tail in tails]), 1),
            "parameters": sum(each[0].numel() for each in trainer.parameters),
            "dev_loss": round(mean(best), 4),
            "dev_accuracy": round(mean(right), 4),
            "dev_macro_f1": round(mean(f1), 4),
            "by_classifier": {task.name: round(each, 4) for task, each in zip(tasks, f1, strict=True)},
            "minutes": round((time.monotonic() - began) / 60, 1),
        }

    def _builder(self, variant: Variant) -> PromptBuilder:
        changes = {"filler": variant.filler, "invocation": variant.invocation}
        changed = self.prompt_format.model_copy(update={key: each for key, each in changes.items() if each})
        return self.prompting.builder.in_format(changed)

    def _prefixes(
        self, records: Sequence[Record], builder: PromptBuilder, fan: Fan
    ) -> Mapping[str, PrefixKV | PlainPrefix]:
        read_as = (type(fan), builder.prefix(self.records[0].conversation).token_ids)  # whatever the invocation is
        if read_as != self._read_as:
            self._read.clear()  # some gigabytes
            self._read_as = read_as
        with progress(self.console) as bars:
            for record in bars.track(records, description="reading with the base model"):
                if (name := record.conversation.id) not in self._read:
                    self._read[name] = fan.read(builder.prefix(record.conversation).token_ids)
        return self._read


def run_digest(
    config: TrainingConfig,
    base: str,
    prompt_format: str,
    asked: Sequence[tuple[str, Sequence[int]]],
    records: Sequence[Record],
) -> str:
    """What a run is made of, in eight hex digits: an interrupted one is gone on with only where all is the same.

    `asked`: every classifier's words and its labels' token ids.
    """
    read = [(asdict(record.conversation), dict(record.labels)) for record in records]
    return hashlib.sha256(json.dumps([asdict(config), base, prompt_format, asked, read]).encode()).hexdigest()[:8]


BARE = {
    "asking_for_agent": "human?", "cancellation_intent": "cancel?", "contains_personal_data": "private?",
    "conversation_ended": "ended?", "customer_not_understanding": "confused?", "escalation_risk": "threat?",
    "fraud_attempt": "fraud?", "issue_resolved": "resolved?", "phone_claim": "claim?", "refund_request": "refund?",
    "requires_external_access": "lookup?", "sentiment": "mood?", "suspicious_message": "spam?", "topic": "topic?",
    "topic_switch": "switch?", "urgency": "urgent?",
}  # fmt: skip
"""Without a blank before them, as suits the begin of a line: two or three tokens each. Others keep their own words."""


def words_of(task: Task, variant: Variant) -> str:
    words = task.manifest.words
    bare = BARE.get(task.name, words.lstrip())
    return {"manifest": words, "one word": words.removesuffix("?"), "bare": bare}[variant.words]


def results_in(path: Path) -> dict[str, Any]:
    """What has been measured so far, by group and name of the variant."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.tune", description="Measure what is not measured yet.")
    parser.add_argument("wanted", nargs="*", metavar="GROUP|KEY")
    parser.add_argument("--adapters", type=Path, metavar="FOLDER", help="where to keep what this run trains")
    arguments = parser.parse_args()
    wanted = set(arguments.wanted)
    settings = load_settings()
    prompting = load_prompting(settings)
    tasks = load_tasks(settings.classifiers, [], prompting.tokenizer, prompting.builder)
    labels = {task.name: list(task.manifest.labels) for task in tasks}
    files = [each for each in sorted((settings.classifiers / "data").glob("*.jsonl")) if each.stem not in NEWER]
    records = read_records(files, labels)
    used = [record for record in records if record.split in ("train", "dev")]
    path, console = settings.classifiers / "tuning.json", Console()
    results = results_in(path)
    prompt_format = load_prompt_format(settings.classifiers)
    tuning = Tuning(prompting, prompt_format, tasks, used, cache_folder() / "tune", arguments.adapters, console)
    for variant in (*VARIANTS, *PLAIN):
        if variant.key not in results and (not wanted or {variant.group, variant.key} & wanted):
            found = tuning.measure(variant)
            results = results_in(path) | {variant.key: found}  # another run may have added to it meanwhile
            write_whole(path, json.dumps(results, indent=1) + "\n")
    write_whole(settings.classifiers / "TUNING.md", page(results, REFERENCE))
    console.print(table(results))


if __name__ == "__main__":
    main()
