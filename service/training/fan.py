"""Many activated adapters on one frozen model, computed side by side on one reading of each conversation.

The tails of all classifiers stand in one sequence behind the conversation's cached KV: a block-diagonal mask keeps
each tail to the prefix and itself, positions start anew for each, and every linear layer adds to each tail the
product of its own adapter (activated LoRA, arXiv 2504.12397). Nothing of the conversation is computed twice.
Knows nothing of records, labels' names or files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

PAD_ID = 0
"""Stands behind short tails; masked everywhere, its value never matters."""


@dataclass(frozen=True, slots=True)
class PrefixKV:
    """Base-model KV of one prefix. `keys`, `values`: [layers, kv heads, tokens, head size], half precision."""

    keys: Tensor
    values: Tensor

    @property
    def tokens(self) -> int:
        return int(self.keys.shape[2])


class FanLora(nn.Module):
    """A frozen linear layer with one low-rank update per tail.

    `a`: [tails, rank, inputs], `b`: [tails, outputs, rank]. While `active` is False it is the base layer.
    The product with the frozen weight is computed in `base_dtype`; the update and the sum are float32, because an
    update of a young adapter is smaller than bfloat16's rounding of what it is added to.
    """

    def __init__(
        self, base: nn.Linear, tails: int, rank: int, scale: float, dropout: float, base_dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.base, self.tails, self.scale, self.active = base.to(base_dtype), tails, scale, False
        self.dropout = nn.Dropout(dropout)
        bound = 1 / math.sqrt(base.in_features)
        self.a = nn.Parameter(torch.empty(tails, rank, base.in_features).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.zeros(tails, base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x.to(self.base.weight.dtype)).to(x.dtype)
        if not self.active:
            return y
        batch, width, size = x.shape
        rows = x.view(batch, self.tails, width // self.tails, size).transpose(0, 1).reshape(self.tails, -1, size)
        # Dropout between the two factors: PEFT drops inputs, whose random numbers cost a third of a step on a CPU.
        inner = self.dropout(torch.bmm(rows, self.a.mT))
        update = torch.bmm(inner, self.b.mT) * self.scale
        update = update.view(self.tails, batch, width // self.tails, -1).transpose(0, 1).reshape(batch, width, -1)
        return y + update


class Fan(nn.Module):
    """A frozen Hugging Face causal LM with `len(tails)` activated adapters.

    `model`: any float32 decoder whose layers use named `nn.Linear`; it is changed in place.
    `tails`: token ids of each classifier's tail, invocation first; the answer is read at the last token.
    """

    at_once = 8
    """Conversations whose activations are held at once, between forward and backward."""

    def __init__(
        self,
        model: Any,
        tails: Sequence[Sequence[int]],
        target_modules: Sequence[str],
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        base_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.model = model.requires_grad_(False)
        self.width = max(map(len, tails))
        self.lengths = torch.tensor([len(tail) for tail in tails])
        self.ids = torch.tensor([[*tail, *[PAD_ID] * (self.width - len(tail))] for tail in tails])
        self.layers: dict[str, FanLora] = {}
        for name, linear in list(model.named_modules()):
            if isinstance(linear, nn.Linear) and name.rsplit(".", 1)[-1] in target_modules:
                layer = FanLora(linear, len(tails), rank, alpha / rank, dropout, base_dtype)
                model.set_submodule(name, layer)
                self.layers[name] = layer

    def adapter_parameters(self) -> list[nn.Parameter]:
        """Parameters that learn; dimension 0 of each is the tail."""
        return [parameter for layer in self.layers.values() for parameter in (layer.a, layer.b)]

    def kv_bytes_per_token(self) -> int:
        """What `read` keeps of each token."""
        config = self.model.config
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * config.num_key_value_heads * head) * torch.half.itemsize

    @torch.no_grad()
    def read(self, prefix: Sequence[int]) -> PrefixKV:
        """Read a conversation once with the base model."""
        self._activate(False)
        cache = self.model(input_ids=torch.tensor([prefix]), use_cache=True, logits_to_keep=1).past_key_values
        layers = [(layer.keys[0], layer.values[0]) for layer in cache.layers]
        return PrefixKV(torch.stack([k for k, _ in layers]).half(), torch.stack([v for _, v in layers]).half())

    def forward(self, prefixes: Sequence[PrefixKV]) -> Tensor:
        """Logits at every tail's answer position: [prefixes, tails, vocabulary]."""
        self._activate(True)
        batch, tails = len(prefixes), len(self.lengths)
        longest = max(prefix.tokens for prefix in prefixes)
        hidden = self.model.model(
            input_ids=self.ids.view(1, -1).expand(batch, -1),
            past_key_values=self._cache(prefixes, longest),
            attention_mask=self._mask(prefixes, longest),
            position_ids=torch.stack([prefix.tokens + torch.arange(self.width).repeat(tails) for prefix in prefixes]),
            use_cache=True,
        ).last_hidden_state
        answers = hidden.view(batch, tails, self.width, -1)[:, torch.arange(tails), self.lengths - 1]
        logits: Tensor = self.model.lm_head(answers)
        return logits.float()

    def _activate(self, active: bool) -> None:
        for layer in self.layers.values():
            layer.active = active

    def _cache(self, prefixes: Sequence[PrefixKV], longest: int) -> DynamicCache:
        """Prefix KV of a batch, padded at the right to `longest`; the mask hides the padding."""
        dtype = self.model.dtype
        cache = DynamicCache()
        for layer in range(prefixes[0].keys.shape[0]):
            keys, values = (
                torch.stack(
                    [nn.functional.pad(each[layer].to(dtype), (0, 0, 0, longest - each.shape[2])) for each in kv]
                )
                for kv in ([p.keys for p in prefixes], [p.values for p in prefixes])
            )
            cache.update(keys, values, layer)
        return cache

    def _mask(self, prefixes: Sequence[PrefixKV], longest: int) -> Tensor:
        """Additive mask [batch, 1, tails × width, longest + tails × width]: own prefix, own tail, causal."""
        tails = len(self.lengths)
        causal = torch.ones(self.width, self.width, dtype=torch.bool).tril()
        own = torch.kron(torch.eye(tails), causal.float()).bool()
        prefix = torch.arange(longest)[None, :] < torch.tensor([p.tokens for p in prefixes])[:, None]
        seen = torch.cat([prefix[:, None, :].expand(-1, len(own), -1), own.expand(len(prefixes), -1, -1)], dim=2)
        mask = torch.zeros(seen.shape, dtype=self.model.dtype).masked_fill(~seen, torch.finfo(self.model.dtype).min)
        return mask[:, None]
