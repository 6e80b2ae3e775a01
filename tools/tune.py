"""What was tried: trains all classifiers under one change after another and measures each on the dev split.

`python tools/tune.py [GROUP|KEY…]` tries all, or some groups or keys, and goes on where it was interrupted. Results
gather in `classifiers/tuning.json`, from which the table in `classifiers/TUNING.md` is written. Nothing here replaces a
shipped adapter. Two of these on different groups, one core and one thread each, do more than one on two cores.
"""

from __future__ import annotations

import hashlib
import json
import sys
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
from service.training.fan import Fan, PrefixKV
from service.training.loop import Example, Trainer, TrainingConfig
from service.training.plain import PlainFan, PlainPrefix
from service.training.records import Record, read_records
from service.training.train import Task, load_tasks, progress

HAS_BFLOAT16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
REFERENCE = TrainingConfig(learning_rate=1e-3, base_dtype="bfloat16" if HAS_BFLOAT16 else "float32")
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
QUARTER = "a quarter of the records"
NEWER = {"everyday", "firstline", "guide", "plainline", "planner", "policydesk", "roleplay", "shoptalk"}
"""Files of records that are left out."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One change to the reference.

    `config`: changed fields of the training configuration; `words`: of the manifests, or others by their name in
    `words_of`; `invocation`, `filler`: another one; `share`: of the training records, the first by id; `plain`: the
    one classifier to train, as a plain LoRA.
    """

    group: str
    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    words: str = "manifest"
    invocation: str | None = None
    filler: str | None = None
    share: float = 1.0
    plain: str | None = None

    @property
    def key(self) -> str:
        return f"{self.group}: {self.name}"


VARIANTS = (
    Variant("reference", "seed 7"),
    Variant("tail", "start token, one word", words="one word"),
    Variant("tail", "assistant's turn, one word, question mark", words="bare", invocation="<|im_start|>assistant\n"),
    *(Variant("training records", f"{share:.0%}", share=share) for share in (0.125, 0.25, 0.5)),
    *(Variant(QUARTER, f"rank {rank}", {"rank": rank, "alpha": 2.0 * rank}, share=0.25) for rank in (1, 16)),
    *(Variant(QUARTER, f"learning rate {rate:g}", {"learning_rate": rate}, share=0.25) for rate in (5e-4, 2e-3)),
    Variant(QUARTER, "seed 8", {"seed": 8}, share=0.25),
    Variant(QUARTER, "MLP only", {"target_modules": MLP}, share=0.25),
    Variant(QUARTER, "attention only, rank 12", {"target_modules": ATTENTION, "rank": 12, "alpha": 24.0}, share=0.25),
    Variant(QUARTER, "dropout 0.2", {"dropout": 0.2}, share=0.25),
    Variant(QUARTER, "filler a full stop", filler=".", share=0.25),
)
PLAIN = tuple(
    Variant("plain LoRA", name, share=0.25, plain=name)
    for name in ("sentiment", "issue_resolved", "topic", "fraud_attempt", "urgency", "refund_request")
)
BESIDE_PLAIN = "training records: 25%"
"""Key of the variant with the plain ones' records."""


@dataclass(slots=True)
class Tuning:
    """Trains variants on one reading of the records, kept for all variants in a row with the same prompt format."""

    prompting: Prompting
    prompt_format: PromptFormat
    tasks: Sequence[Task]
    records: Sequence[Record]
    scratch: Path
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
        trainer.checkpoint.unlink(missing_ok=True)
        f1 = [
            float(macro_f1s(place.numpy(), scores.argmax(-1).numpy(), scores.shape[1])[0]) for scores, place in answers
        ]
        best = [min(losses) for losses in zip(*(epoch.dev_loss for epoch in trainer.curve), strict=True)]
        right = [float((scores.argmax(-1) == place).float().mean()) for scores, place in answers]
        return {
            "records": len(train),
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
        return PromptBuilder(self.prompting.tokenizer, changed, self.prompting.context_tokens)

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


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The results as Markdown, in the order in which the variants are defined."""
    lines = [
        "| what is changed | to | records | tail tokens | parameters | dev loss | dev accuracy | dev macro-F1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant in VARIANTS:
        if (found := results.get(variant.key)) is not None:
            lines.append(
                f"| {variant.group} | {variant.name} | {found['records']} | {found['tail_tokens']} | "
                f"{found['parameters'] / 1000:.0f} k | {found['dev_loss']:.3f} | {found['dev_accuracy']:.3f} | "
                f"{found['dev_macro_f1']:.3f} |"
            )
    return "\n".join(lines)


def plain_section(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Plain beside activated adapters on the same records, as Markdown; empty where the one or the other is missing."""
    activated = results.get(BESIDE_PLAIN, {}).get("by_classifier", {})
    pairs = {v.name: results[v.key]["dev_macro_f1"] for v in PLAIN if v.key in results}
    rows = [(name, activated[name], plain) for name, plain in pairs.items() if name in activated]
    if not rows:
        return ""
    rows.append(("mean", mean([row[1] for row in rows]), mean([row[2] for row in rows])))
    lines = [ON_PLAIN, "| classifier | activated | plain | difference |", "|---|---|---|---|"]
    lines += [f"| {name} | {ours:.3f} | {plain:.3f} | {ours - plain:+.3f} |" for name, ours, plain in rows]
    return "\n".join(["", *lines, ""])


def results_in(path: Path) -> dict[str, Any]:
    """What has been measured so far, by group and name of the variant."""
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found


INTRODUCTION = """\
# What was tried

All sixteen classifiers are trained under one change at a time and measured on the dev split (means over the sixteen,
each adapter at its epoch of least dev loss). The reference: rank {rank} on all linear layers, learning rate
{learning_rate:g}, {epochs} epochs, dropout {dropout:g}, a tail of start token, word and question mark, a line break as
filler. Rows under "a quarter of the records" are to be read beside "training records, 25%". Records that were written
after the table was begun are left out, so that its rows stay comparable. The base was multiplied in what the CPU at
hand is faster in: bfloat16 for the first six rows, float32 for those on a quarter of the records. Written by
`python tools/tune.py`.

What it decided: the tail, and a line break as its filler; that more records were written; rank 4 rather than 1 (16
would be better still but makes 157 MB of adapters); and, since the fourth set, a learning rate of 0.0015, between the
reference and the 0.002 that is better on a quarter of the records, where there is a fifth of the steps. All linear
layers stayed: the MLPs alone are worse, and attention alone at rank 12, of 13 % more numbers, is ahead in dev loss and
not in macro-F1. Another seed moves the mean macro-F1 by 0.005 and the dev loss by less than 0.001.
"""
ON_PLAIN = """## Plain beside activated LoRA

The same rank, modules, words, schedule and quarter of the records; macro-F1 on the dev split. A plain LoRA also acts
while the conversation is read, so each classifier reads every conversation again at every step: an hour for one of
them on a core of 2.5 GHz, where all sixteen activated ones take some fifteen minutes. Hence some of them, chosen
beforehand, and a quarter of the records. On 185 dev records a macro-F1 is known to 2 or 3 points (one standard error),
so these compare the mean, not a single classifier. The base of the activated ones was multiplied in bfloat16, that of
the plain ones in float32.
"""


def main() -> None:
    wanted = set(sys.argv[1:])
    settings = load_settings()
    prompting = load_prompting(settings)
    tasks = load_tasks(settings.classifiers, [], prompting.tokenizer)
    labels = {task.name: list(task.manifest.labels) for task in tasks}
    files = [each for each in sorted((settings.classifiers / "data").glob("*.jsonl")) if each.stem not in NEWER]
    records = read_records(files, labels)
    used = [record for record in records if record.split in ("train", "dev")]
    path, console = settings.classifiers / "tuning.json", Console()
    results = results_in(path)
    prompt_format = load_prompt_format(settings.classifiers)
    tuning = Tuning(prompting, prompt_format, tasks, used, cache_folder() / "tune", console)
    for variant in (*VARIANTS, *PLAIN):
        if variant.key not in results and (not wanted or {variant.group, variant.key} & wanted):
            found = tuning.measure(variant)
            results = results_in(path) | {variant.key: found}  # another run may have added to it meanwhile
            write_whole(path, json.dumps(results, indent=1) + "\n")
    facts = {name: getattr(REFERENCE, name) for name in ("rank", "learning_rate", "epochs", "dropout")}
    text = f"{INTRODUCTION.format(**facts)}\n{table(results)}\n{plain_section(results)}"
    write_whole(settings.classifiers / "TUNING.md", text)
    console.print(table(results))


if __name__ == "__main__":
    main()
