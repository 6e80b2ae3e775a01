"""PEFT's own answers in float32, each adapter alone: what the served ones are held against."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from service.base_model import BaseModel
from service.engine.base import EngineAdapter, ScoringRequest


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
