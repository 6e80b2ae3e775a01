"""PEFT's own answers in float32, each adapter alone: what the served ones are held against."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from service.base_model import BaseModel
from service.domain import Conversation, Role, Turn
from service.engine.base import EngineAdapter, LabelLogprobs, ScoringRequest
from service.prompt.builder import PromptBuilder

DATA = Path(__file__).parents[2] / "classifiers" / "data"


class Reference:
    """A float32 base with adapters loaded by PEFT, asked for label probabilities."""

    def __init__(self, base: BaseModel, adapters: Sequence[EngineAdapter]) -> None:
        first, *rest = adapters
        model = AutoModelForCausalLM.from_pretrained(base.path, dtype=torch.float32)
        self._model = PeftModel.from_pretrained(model, first.adapter.path, adapter_name=key(first)).eval()
        for adapter in rest:
            self._model.load_adapter(adapter.adapter.path, adapter_name=key(adapter))

    @torch.no_grad()
    def probabilities(self, requests: Sequence[ScoringRequest]) -> list[list[float]]:
        """Unconstrained label probabilities of each request; those of one adapter and length are computed together."""
        found: dict[int, list[float]] = {}
        groups: dict[tuple[str, int], list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault((key(request.adapter), len(request.token_ids)), []).append(index)
        for (adapter, _), members in groups.items():
            ids = torch.tensor([requests[index].token_ids for index in members])
            if adapter == "base":
                with self._model.disable_adapter():
                    logits = self._model(input_ids=ids, logits_to_keep=1).logits
            else:
                self._model.set_adapter(adapter)
                logits = self._model(input_ids=ids, logits_to_keep=1).logits
            for index, row in zip(members, logits[:, -1].float().softmax(-1), strict=True):
                found[index] = row[list(requests[index].label_ids)].tolist()
        return [found[index] for index in range(len(requests))]


def key(adapter: EngineAdapter | None) -> str:
    """A name that PEFT accepts as module name."""
    return adapter.name.replace("@", "_") if adapter else "base"


def assert_same(served: Sequence[LabelLogprobs], expected: Sequence[Sequence[float]], tolerance: float = 1e-3) -> None:
    """Every label's probability within the tolerance, and the same label on top unless two tie within it."""
    assert len(served) == len(expected)
    for answer, wanted in zip(served, expected, strict=True):
        got = [math.exp(logprob) for logprob in answer.logprobs]
        assert max(abs(a - b) for a, b in zip(got, wanted, strict=True)) <= tolerance, (got, wanted)
        best = max(range(len(wanted)), key=wanted.__getitem__)
        assert got[best] >= max(got) - tolerance / 10, (got, wanted)


def conversation_of(builder: PromptBuilder, tokens: int) -> Conversation:
    """A conversation of ours whose turns have about `tokens` tokens, at least one."""
    turns: list[Turn] = []
    lines = (line for path in sorted(DATA.glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines())
    for line in lines:
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
