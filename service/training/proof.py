"""An exported adapter is what was trained: PEFT, which knows its files alone, gives the answers that training saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from service.base_model import BaseModel
from service.domain import AdapterKind, Label
from service.engine.base import EngineAdapter, ScoringRequest
from service.errors import RegistryError
from service.registry.adapter import load_adapter
from service.training.fan import Fan
from service.training.reference import Reference

TOLERANCE = {"float32": 0.25, "bfloat16": 1.0}
"""By which a label's log probability may differ, by the dtype of the training's products. The export rounds to half
precision, which moves it by hundredths; a scale that is wrong by two moves it by whole numbers."""

PROVEN_WITH = 2
"""Conversations asked about."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A classifier whose adapter was just written to `folder/adapter`."""

    name: str
    folder: Path
    kind: AdapterKind
    tail: tuple[int, ...]
    labels: tuple[Label, ...]


@torch.no_grad()
def require_as_trained(
    fan: Fan,
    exported: Sequence[Exported],
    conversations: Sequence[Sequence[int]],
    base: BaseModel,
    invocation_ids: Sequence[int],
    tolerance: float,
) -> None:
    """Raise RegistryError, naming every classifier whose files do not answer as the fan does.

    `conversations`: token ids of their prompts' shared part.
    """
    fan.eval()
    seen = fan([fan.read(prefix) for prefix in conversations])
    requests, expected, problems = [], [], []
    for index, each in enumerate(exported):
        adapter, found = load_adapter(each.folder / "adapter", each.kind, base, tuple(invocation_ids))
        problems += [f"{each.name}: {problem}" for problem in found]
        if adapter is None:
            continue
        label_ids = tuple(label.token_id for label in each.labels)
        for row, prefix in enumerate(conversations):
            tokens = (*prefix, *each.tail)
            at = len(prefix) if each.kind is AdapterKind.ACTIVATED else None
            requests.append((each, ScoringRequest(tokens, label_ids, EngineAdapter(each.name, adapter), at)))
            expected.append(seen[row, index, list(label_ids)].log_softmax(-1))
    if problems:
        raise RegistryError(problems)
    adapters = {request.adapter.name: request.adapter for _, request in requests if request.adapter}
    answers = Reference(base, list(adapters.values())).probabilities([request for _, request in requests])
    off: dict[str, float] = {}
    for (each, _), probabilities, wanted in zip(requests, answers, expected, strict=True):
        answered = (torch.tensor(probabilities) / sum(probabilities)).log()
        off[each.name] = max(off.get(each.name, 0.0), float((answered - wanted).abs().max()))
    if wrong := {name: distance for name, distance in off.items() if not distance <= tolerance}:
        raise RegistryError(
            [
                f"{name}: PEFT answers otherwise from the exported adapter than it did in training: "
                f"a log probability differs by {distance:.2f}"
                for name, distance in wrong.items()
            ]
        )
