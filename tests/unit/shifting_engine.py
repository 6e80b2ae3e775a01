"""A fake engine whose answers depend on the adapter and on what else it is answering."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from service.engine.base import LabelLogprobs, ScoringRequest
from service.engine.fake_engine import FakeEngine

ADAPTED = (0.72, 0.18)
"""What the engine answers with an adapter, label by label; without one it is the other way round."""


@dataclass(frozen=True)
class Situation:
    """How an engine is asked: `adapter` is the classifier's name or "base"; `beside`: other adapters under way."""

    adapter: str
    beside: int


@dataclass
class ShiftingEngine(FakeEngine):
    """A fake engine that answers with the first label where there is an adapter, with the second where there is none.

    `shift`: added to the first label's log probability.
    """

    shift: Callable[[Situation], float] = lambda situation: 0.0
    _under_way: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.favour = lambda request: int(request.adapter is None)

    async def score(self, request: ScoringRequest) -> LabelLogprobs:
        name = asked_as(request)
        self._under_way.append(name)
        before = set(self._under_way)
        try:
            answer = await super().score(request)
            situation = Situation(name, len({*before, *self._under_way} - {name, "base"}))
        finally:
            self._under_way.remove(name)
        first, *others = answer.logprobs
        return replace(answer, logprobs=(first + self.shift(situation), *others))


def asked_as(request: ScoringRequest) -> str:
    return request.adapter.name.split("@")[0] if request.adapter else "base"
