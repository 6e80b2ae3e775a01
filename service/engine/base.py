"""The interface between classifying and computing. Knows neither gRPC nor vLLM."""

from __future__ import annotations

from dataclasses import dataclass
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
    `activation_index`: first token an activated adapter changes, None for a plain one or none.
    """

    token_ids: tuple[int, ...]
    label_ids: tuple[int, ...]
    adapter: EngineAdapter | None
    activation_index: int | None

    def __post_init__(self) -> None:
        activated = self.adapter is not None and self.adapter.adapter.kind is AdapterKind.ACTIVATED
        assert activated == (self.activation_index is not None), "exactly activated adapters have an activation index"
        assert self.activation_index is None or 0 <= self.activation_index < len(self.token_ids)


@dataclass(frozen=True, slots=True)
class LabelLogprobs:
    """`logprobs`: natural log over the whole vocabulary, in the order of `label_ids`; `usage`: as the engine counts."""

    logprobs: tuple[float, ...]
    usage: TokenUsage


class ScoringEngine(Protocol):
    """Scores prompts. Whoever starts one closes it; both are the business of its own context manager."""

    async def score(self, request: ScoringRequest) -> LabelLogprobs:
        """Score one prompt. Cancelling the task frees what the engine holds for it.

        Raises EngineDeadError when the engine is gone, EngineError when it failed on this prompt.
        """
        ...

    async def check(self) -> None:
        """Raise EngineDeadError when the engine cannot serve."""
        ...
