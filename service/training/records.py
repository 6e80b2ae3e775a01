"""Labelled conversations in JSON lines: read, validated as a whole, split by a hash of the id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from service.domain import Conversation, Role, Turn
from service.errors import ConfigurationError
from service.problems import sentences

Split = Literal["train", "dev", "calibration", "test"]
SHARES: tuple[tuple[Split, int], ...] = (("train", 55), ("dev", 10), ("calibration", 15), ("test", 20))
"""Per cent of the records. Adapters learn from train and pick their epoch on dev; calibration and thresholds are fitted
on calibration; test is for reports alone."""


@dataclass(frozen=True, slots=True)
class Record:
    """A conversation and what is known of it; a classifier absent from `labels` is unknown, not 'no'.

    `source`: where the record comes from, its own word for it or the name of its file.
    """

    conversation: Conversation
    labels: Mapping[str, str]
    source: str = ""

    @property
    def split(self) -> Split:
        return split_of(self.conversation.id)


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Role
    text: str


class _Line(BaseModel):
    model_config = ConfigDict(extra="ignore")
    id: str
    turns: list[_Turn]
    labels: dict[str, str]
    source: str = ""


def split_of(record_id: str) -> Split:
    """The split of a record, decided by its id alone, so that it never changes as data grows."""
    bucket = int.from_bytes(hashlib.sha256(record_id.encode()).digest()[:4], "big") % 100
    for split, share in SHARES:
        if bucket < share:
            return split
        bucket -= share
    raise AssertionError("the shares add up to 100")


def read_records(paths: Iterable[Path], labels: Mapping[str, Sequence[str]]) -> list[Record]:
    """All records of the files. `labels`: classifier name to its labels.

    Raises ConfigurationError with every problem: malformed lines, unknown labels, ids used twice.
    Labels of classifiers that are not in `labels` are left out.
    """
    records: list[Record] = []
    problems: list[str] = []
    seen: set[str] = set()
    for path in paths:
        for number, line in enumerate(_lines(path, problems), 1):
            record, found = _read_line(line, labels, path.stem)
            if record is not None and record.conversation.id in seen:
                found = [f"id {record.conversation.id!r} is used twice"]
            problems += [f"{path.name}:{number}: {problem}" for problem in found]
            if record is not None:
                seen.add(record.conversation.id)
                records.append(record)
    if problems:
        raise ConfigurationError(f"{len(problems)} problem(s) in the data:\n" + "\n".join(problems[:50]))
    return records


def in_split(records: Sequence[Record], split: str) -> list[Record]:
    """Records of a split, or all. Raises ConfigurationError for another word, or when none is left."""
    if split != "all" and split not in {name for name, _ in SHARES}:
        raise ConfigurationError(f"{split!r} is no split; say {', '.join(name for name, _ in SHARES)} or all")
    chosen = [record for record in records if split in ("all", record.split)]
    if not chosen:
        raise ConfigurationError(f"the data have no records in the {split} split")
    return chosen


def repeated(records: Iterable[Record], asked: Iterable[Record]) -> list[Record]:
    """Those of `asked` whose very turns some of `records` has under another id in another split."""
    splits: dict[tuple[Turn, ...], set[Split]] = {}
    for record in records:
        splits.setdefault(record.conversation.turns, set()).add(record.split)
    return [record for record in asked if splits.get(record.conversation.turns, set()) - {record.split}]


def _lines(path: Path, problems: list[str]) -> list[str]:
    """The lines of a file; what is wrong with it as a whole is added to `problems`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"{path.name} cannot be read: {type(error).__name__}")
        return []
    if not text.strip():
        problems.append(f"{path.name} is empty")
        return []
    return text.removesuffix("\n").split("\n")


def _read_line(line: str, labels: Mapping[str, Sequence[str]], stem: str) -> tuple[Record | None, list[str]]:
    try:
        parsed = _Line.model_validate(json.loads(line, object_pairs_hook=_once))
    except ValidationError as error:
        return None, sentences(error)
    except (ValueError, RecursionError) as error:
        return None, [f"not JSON: {error}"]
    known = {name: value for name, value in parsed.labels.items() if name in labels}
    problems = [
        f"{name}: label {value!r} is not one of {list(labels[name])}"
        for name, value in known.items()
        if value not in labels[name]
    ]
    if not parsed.turns or any(not turn.text.strip() for turn in parsed.turns):
        problems.append("a conversation needs turns, and each turn text")
    try:
        "".join((parsed.id, parsed.source, *(turn.text for turn in parsed.turns))).encode()
    except UnicodeEncodeError:
        problems.append("half of a character that UTF-16 writes in two, as if cut between them; JSON wrote it as \\ud…")
    conversation = Conversation(parsed.id, tuple(Turn(turn.role, turn.text) for turn in parsed.turns))
    return (None, problems) if problems else (Record(conversation, known, parsed.source or stem), [])


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which no name stands twice: json itself would take the last and forget the others."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"a name stands twice among {', '.join(name for name, _ in pairs)}")
    return found
