"""The interface between classifying and computing. Knows neither gRPC nor vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from service.domain import Adapter, AdapterKind, Classifier, TokenUsage


@dataclass(frozen=True, slots=True)
class EngineAdapter:
    """An adapter as the engine knows it. `name`: `classifier@digest`, so that new weights never meet old KV."""

    name: str
    adapter: Adapter


def engine_adapter(classifier: Classifier) -> EngineAdapter | None:
    """The classifier's adapter under its engine name; None when the base model answers."""
    adapter = classifier.adapter
    return EngineAdapter(f"{classifier.name}@{adapter.digest[:16]}", adapter) if adapter else None


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """One prompt to score at its last token.

    `token_ids`: the whole prompt; `label_ids`: tokens whose logprobs are wanted; `adapter`: None for the base model;
    `activation_index`: first token an activated adapter changes, None for a plain one or none; `priority`: the lowest
    is computed first; `cache_salt`: requests share KV only with those that have the same; `trace_headers`: W3C trace
    context to join the engine's spans to.
    """

    token_ids: tuple[int, ...]
    label_ids: tuple[int, ...]
    adapter: EngineAdapter | None
    activation_index: int | None
    priority: int = 0
    cache_salt: str = ""
    trace_headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        activated = self.adapter is not None and self.adapter.adapter.kind is AdapterKind.ACTIVATED
        assert activated == (self.activation_index is not None), "exactly activated adapters have an activation index"
        assert self.activation_index is None or 0 <= self.activation_index < len(self.token_ids)


@dataclass(frozen=True, slots=True)
class LabelLogprobs:
    """`logprobs`: natural log over the whole vocabulary, in the order of `label_ids`; `usage`: as the engine counts."""

    logprobs: tuple[float, ...]
    usage: TokenUsage


@dataclass(frozen=True, slots=True)
class AdapterPlace:
    """An adapter in the engine. `slot`: where it can be computed with, None while it is only kept in memory;
    `slot_loads`: how often it was put into a slot."""

    slot: int | None
    slot_loads: int


@dataclass(frozen=True, slots=True)
class EngineCounters:
    """The engine's own counts: requests being computed, their tokens done, requests waiting, KV blocks used and in all,
    tokens of a block, and steps begun that compute something, in each of which it reads all weights once."""

    running: int
    computed_tokens: int
    waiting: int
    kv_blocks_used: int
    kv_blocks: int
    block_tokens: int
    steps: int


class ScoringEngine(Protocol):
    """Scores prompts. Whoever starts one closes it; both are the business of its own context manager."""

    async def score(self, request: ScoringRequest) -> LabelLogprobs:
        """Score one prompt. Cancelling the task frees what the engine holds for it.

        Raises EngineDeadError when the engine is gone, EngineError when it failed on this prompt.
        """

    async def check(self) -> None:
        """Raise EngineDeadError when the engine cannot serve."""

    async def load(self, adapter: EngineAdapter) -> None:
        """Make an adapter resident; nothing happens when it is. Raises EngineError when it has no room or is unfit."""

    async def unload(self, name: str) -> None:
        """Free an adapter that no request uses any more; nothing happens when it is not there. Raises EngineError."""

    async def places(self) -> Mapping[str, AdapterPlace]:
        """Every resident adapter by name. Raises EngineDeadError."""

    async def counters(self) -> EngineCounters:
        """What the engine is doing. Raises EngineDeadError."""
