"""A plain LoRA on a frozen model: every token of the prompt is under the adapter, so nothing is shared or cached.

Costs a whole reading of the conversation per classifier and step, where `fan.py` pays one for all of them for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from service.training.fan import Fan


@dataclass(frozen=True, slots=True)
class PlainPrefix:
    """A conversation that has to be read with the adapter on."""

    token_ids: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.token_ids)


class PlainFan(Fan):
    """A fan of one tail whose adapter is active from the first token on."""

    at_once = 1  # nothing is padded, and memory just given back is used again: two thirds of the time

    def __init__(self, model: Any, tail: Sequence[int], *settings: Any) -> None:
        super().__init__(model, [tail], *settings)
        self.tail = tuple(tail)
        self._activate(True)

    def kv_bytes_per_token(self) -> int:
        return 0

    def read(self, prefix: Sequence[int]) -> PlainPrefix:  # type: ignore[override]  # there is nothing to read ahead
        return PlainPrefix(tuple(prefix))

    def forward(self, prefixes: Sequence[PlainPrefix]) -> Tensor:  # type: ignore[override]
        """Logits at the answer position: [prefixes, 1, vocabulary]."""
        answers = [
            self.model(input_ids=torch.tensor([prefix.token_ids + self.tail]), use_cache=False, logits_to_keep=1).logits
            for prefix in prefixes
        ]
        return torch.cat(answers).float()
