"""The prompts of the sixteen classifiers, built from the files in `classifiers/` and nothing of the service."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

PREFIX_MULTIPLE = 32


@dataclass(frozen=True, slots=True)
class Task:
    """A classifier with an adapter: its folder and rank, its tail, its labels and their tokens."""

    name: str
    adapter: Path
    rank: int
    tail: list[int]
    labels: tuple[str, ...]
    label_ids: list[int]


class Prompts:
    """Builds the token ids that the adapters were trained on."""

    def __init__(self, model: Path, classifiers: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
        self._format = tomllib.loads((classifiers / "prompt.toml").read_text(encoding="utf-8"))
        self.tasks = [self._task(path.parent) for path in sorted(classifiers.glob("*/classifier.toml"))]

    def prefix(self, turns: Sequence[Sequence[str]]) -> list[int]:
        """Token ids of (role, text) turns up to the invocation."""
        pieces = [self._format["preamble"]]
        pieces += [
            piece
            for role, text in turns
            for piece in (self._format["turn_start"][role], text, self._format["turn_end"])
        ]
        ids = [token for piece in pieces for token in self._encode(piece)]
        return ids + self._encode(self._format["filler"]) * (-len(ids) % PREFIX_MULTIPLE)

    def _task(self, folder: Path) -> Task:
        manifest = tomllib.loads((folder / "classifier.toml").read_text(encoding="utf-8"))
        adapter = folder / "adapter"
        return Task(
            name=folder.name,
            adapter=adapter,
            rank=json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["r"],
            tail=self._encode(self._format["invocation"]) + self._encode(manifest["words"]),
            labels=tuple(manifest["labels"]),
            label_ids=[self._encode(text)[0] for text in manifest["labels"].values()],
        )

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)


def plain_copy(adapter: Path, target: Path) -> Path:
    """The same weights as a plain LoRA: stock vLLM accepts nothing else, and nothing else can be merged into a base."""
    shutil.copytree(adapter, target)
    path = target / "adapter_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) | {"alora_invocation_tokens": None}
    path.write_text(json.dumps(config), encoding="utf-8")
    return target
