"""What the engine's answers are compared with and asked about."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from service.domain import Conversation, Role, Turn
from service.engine.base import LabelLogprobs
from service.prompt.builder import PromptBuilder

DATA = Path(__file__).parents[2] / "classifiers" / "data"


def assert_same(served: Sequence[LabelLogprobs], expected: Sequence[Sequence[float]], tolerance: float = 1e-3) -> None:
    """Every label's probability within the tolerance, of the whole vocabulary and, where the labels hold most of it, of
    the labels alone, as it is served; and the same label on top unless two tie within a tenth of it."""
    assert len(served) == len(expected)
    for answer, wanted in zip(served, expected, strict=True):
        got = [math.exp(logprob) for logprob in answer.logprobs]
        assert max(abs(a - b) for a, b in zip(got, wanted, strict=True)) <= tolerance, (got, wanted)
        if sum(wanted) > 0.5:
            ours, theirs = sum(got), sum(wanted)
            assert max(abs(a / ours - b / theirs) for a, b in zip(got, wanted, strict=True)) <= tolerance, (got, wanted)
        best = max(range(len(wanted)), key=wanted.__getitem__)
        assert got[best] >= max(got) - tolerance / 10, (got, wanted)


def conversation_of(builder: PromptBuilder, tokens: int, first: int = 0) -> Conversation:
    """Turns of our records, from the `first` one on, as one conversation of about `tokens` tokens, at least one."""
    turns: list[Turn] = []
    lines = (line for path in sorted(DATA.glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines())
    for line in itertools.islice(lines, first, None):
        for turn in json.loads(line)["turns"]:
            room = tokens - sum(text_tokens(builder, each.text) for each in turns)
            words = turn["text"].split(" ")
            while words and text_tokens(builder, " ".join(words)) > room:
                words.pop()
            if words:
                turns.append(Turn(Role(turn["role"]), " ".join(words)))
            elif turns or tokens <= 1:
                return Conversation("", tuple(turns) or (Turn(Role.CUSTOMER, "hi"),))
    raise AssertionError("not enough text")


def cold(conversation: Conversation, opening: str) -> Conversation:
    """The conversation behind an opening that no other test uses, so that no block of it is in any cache."""
    return replace(conversation, turns=(Turn(Role.CUSTOMER, opening), *conversation.turns))


def text_tokens(builder: PromptBuilder, text: str) -> int:
    return len(builder.tail(text)) - len(builder.invocation_ids)
