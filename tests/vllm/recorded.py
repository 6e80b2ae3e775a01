"""PEFT's answers as they were recorded: to compute all of them anew takes longer than what is held against them.

`pytest -m engine --record-peft` computes and records them, when prompts or adapters are others. Every other run
computes one in eight anew and compares it with the record, and computes the random adapters' answers, which are never
recorded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from service.engine.base import ScoringRequest
from service.files import write_whole
from service.training.reference import Reference

RECORD = Path(__file__).with_name("recorded.json")
ANEW = 8
"""Of so many answers one is computed anew."""

SAME = 2e-5
"""Two machines' float32 sums over a thousand tokens differ by less; the tests allow fifty times that."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """Answers like the reference it is made of.

    `base`: identity of the base model; `lasting`: names of the adapters that are the same in every run; `anew`: compute
    everything.
    """

    reference: Reference
    base: str
    lasting: frozenset[str]
    anew: bool = False
    answers: Mapping[str, list[float]] = field(default_factory=lambda: json.loads(RECORD.read_text(encoding="utf-8")))
    asked: dict[str, list[float]] = field(default_factory=dict)

    def probabilities(self, requests: Sequence[ScoringRequest]) -> list[list[float]]:
        """As `Reference.probabilities`."""
        names = [self._name(request) for request in requests]
        known = {} if self.anew else {name: self.answers[name] for name in names if name in self.answers}
        lasting = [request.adapter is None or request.adapter.name in self.lasting for request in requests]
        if not self.anew and any(lasts and name not in known for lasts, name in zip(lasting, names, strict=True)):
            pytest.fail("not all of PEFT's answers are recorded; do it by `python -m pytest -m engine --record-peft`")
        live = [place for place, name in enumerate(names) if name not in known or int(name, 16) % ANEW == 0]
        for place, found in zip(live, self.reference.probabilities([requests[p] for p in live]), strict=True):
            recorded = known.get(names[place], found)
            assert found == pytest.approx(recorded, abs=SAME), "PEFT answers otherwise than recorded"
            known.setdefault(names[place], found)
        self.asked.update({name: known[name] for lasts, name in zip(lasting, names, strict=True) if lasts})
        return [known[name] for name in names]

    def write(self) -> None:
        """Record what was asked, and nothing else."""
        lines = (f" {json.dumps(name)}: {json.dumps(found)}" for name, found in sorted(self.asked.items()))
        write_whole(RECORD, "{\n" + ",\n".join(lines) + "\n}\n")

    def _name(self, request: ScoringRequest) -> str:
        adapter = request.adapter.name if request.adapter else ""
        facts = [self.base, adapter, request.token_ids, request.label_ids]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
