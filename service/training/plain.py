"""A plain LoRA on a frozen model: every token of the prompt is under the adapter, so nothing is shared or cached.

Costs a whole reading of the conversation per classifier and step, where `fan.py` pays one for all of them for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from service.training.fan import PAD_ID, Fan


@dataclass(frozen=True, slots=True)
class PlainPrefix:
    """A conversation that has to be read with the adapter on."""

    token_ids: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return len(self.token_ids)


class PlainFan(Fan):
    """A fan of one tail whose adapter is active from the first token on."""

    def __init__(self, model: Any, tail: Sequence[int], *settings: Any) -> None:
        super().__init__(model, [tail], *settings)
        self.tail = tuple(tail)
        self._activate(True)

    def read(self, prefix: Sequence[int]) -> PlainPrefix:  # type: ignore[override]  # there is nothing to read ahead
        return PlainPrefix(tuple(prefix))

    def forward(self, prefixes: Sequence[PlainPrefix]) -> Tensor:  # type: ignore[override]
        """Logits at the answer position: [prefixes, 1, vocabulary]."""
        prompts = [prefix.token_ids + self.tail for prefix in prefixes]
        longest = max(map(len, prompts))
        ids = torch.tensor([[*prompt, *[PAD_ID] * (longest - len(prompt))] for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        mask = (torch.arange(longest)[None, :] < lengths[:, None]).long()
        hidden = self.model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        logits: Tensor = self.model.lm_head(hidden[torch.arange(len(prompts)), lengths - 1])
        return logits.float()[:, None]
