"""Golden probes: chooses conversations and asks PEFT in float32. What the gate holds the engine against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from service.asking import scoring_request
from service.base_model import BaseModel
from service.domain import Classifier, Conversation, Probe
from service.engine.base import engine_adapter
from service.errors import ConfigurationError
from service.prompt.builder import PromptBuilder
from service.training.records import Record
from service.training.reference import Reference

PROBES = 4
"""Conversations a classifier is probed with. All classifiers of a run share them, so that a start reads them once."""

MAX_CHARACTERS = 700
"""Longer conversations are no good probes: they cost every start."""


def choose_probes(records: Sequence[Record]) -> list[Conversation]:
    """Short conversations that show as many labels of as many classifiers as `PROBES` of them can.

    Where too few are short, the shortest; where none is labelled, some of every length, since one word tells little.
    Raises ConfigurationError when there are no records.
    """
    if not records:
        raise ConfigurationError("there are no conversations to probe with; name the data")
    by_length = sorted(records, key=_characters)
    short = [each for each in by_length if _characters(each) <= MAX_CHARACTERS]
    short = short if len(short) >= PROBES else by_length[:PROBES]
    if not any(each.labels for each in short):
        quarters = (len(short) * (place + 1) // PROBES - 1 for place in range(PROBES))
        return [short[place].conversation for place in sorted({max(0, each) for each in quarters})]
    chosen: list[Record] = []
    shown: set[tuple[str, str]] = set()
    for _ in range(min(PROBES, len(short))):
        best = max(
            (each for each in short if each not in chosen), key=lambda each: len(set(each.labels.items()) - shown)
        )
        chosen.append(best)
        shown |= set(best.labels.items())
    return [each.conversation for each in chosen]


def _characters(record: Record) -> int:
    return sum(len(turn.text) for turn in record.conversation.turns)


def make_probes(
    base: BaseModel,
    builder: PromptBuilder,
    conversations: Mapping[str, Sequence[Conversation]],
    classifiers: Sequence[Classifier],
) -> dict[str, list[Probe]]:
    """Probes by classifier: PEFT's answers, in float32, to the classifier's own conversations."""
    adapters = [adapter for each in classifiers if (adapter := engine_adapter(each)) is not None]
    reference = Reference(base, adapters)
    made: dict[str, list[Probe]] = {}
    for classifier in classifiers:
        asked = conversations[classifier.name]
        prompt = classifier.own_prompt or builder
        requests = [scoring_request(prompt.prefix(conversation), classifier) for conversation in asked]
        answers = reference.probabilities(requests)
        made[classifier.name] = [Probe(c, tuple(p)) for c, p in zip(asked, answers, strict=True)]
    return made
