"""`probes.jsonl` to values, and back: conversations with PEFT's float32 answers. Knows not how they were made."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.domain import Conversation, Probe, Role, Turn
from service.files import write_whole
from service.problems import sentences

PROBES_FILE = "probes.jsonl"


class _Turn(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Role
    text: Annotated[str, Field(pattern=r"\S")]


class _Line(BaseModel):
    """`probabilities`: by label, of the whole vocabulary, as PEFT computes them in float32."""

    model_config = ConfigDict(extra="forbid")
    turns: Annotated[list[_Turn], Field(min_length=1)]
    probabilities: dict[str, Annotated[float, Field(ge=0.0, le=1.0)]]


def load_probes(folder: Path, labels: tuple[str, ...]) -> tuple[tuple[Probe, ...], list[str]]:
    """The probes in `folder`, none without a file, and every problem of the file."""
    path = folder / PROBES_FILE
    if not path.exists():
        return (), []
    probes, problems = [], []
    for number, line in enumerate(path.read_bytes().removesuffix(b"\n").split(b"\n"), 1):
        try:
            parsed = _Line.model_validate_json(line)
        except ValidationError as error:
            problems += [f"{PROBES_FILE}:{number}: {problem}" for problem in sentences(error)]
            continue
        if set(parsed.probabilities) != set(labels):
            problems.append(
                f"{PROBES_FILE}:{number}: probabilities are of {sorted(parsed.probabilities)}, "
                f"the labels are {sorted(labels)}"
            )
            continue
        conversation = Conversation("", tuple(Turn(turn.role, turn.text) for turn in parsed.turns))
        probes.append(Probe(conversation, tuple(parsed.probabilities[label] for label in labels)))
    return tuple(probes), problems


def probe_conversations(folder: Path) -> list[Conversation]:
    """The conversations of the probes in `folder`, whatever is wrong with their probabilities; none when unreadable."""
    try:
        lines = (folder / PROBES_FILE).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        turns = [[_Turn.model_validate(turn) for turn in json.loads(line)["turns"]] for line in lines]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return []
    return [Conversation("", tuple(Turn(turn.role, turn.text) for turn in each)) for each in turns if each]


def write_probes(folder: Path, labels: tuple[str, ...], probes: Iterable[Probe]) -> None:
    """Write `probes.jsonl` as a whole or not at all."""
    lines = [
        _Line(
            turns=[_Turn(role=turn.role, text=turn.text) for turn in probe.conversation.turns],
            probabilities=dict(zip(labels, probe.probabilities, strict=True)),
        ).model_dump_json()
        for probe in probes
    ]
    write_whole(folder / PROBES_FILE, "\n".join(lines) + "\n")
