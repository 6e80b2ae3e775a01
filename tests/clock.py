"""A clock that the test turns, for modules that look at the time."""

from __future__ import annotations

from dataclasses import dataclass

import pytest


@dataclass
class HandTurned:
    """Stands for the module `time`. `now`: what every clock of it says, in seconds."""

    now: float = 1000.0

    def monotonic(self) -> float:
        return self.now

    def perf_counter(self) -> float:
        return self.now


def hand_turned(monkeypatch: pytest.MonkeyPatch, *modules: str) -> HandTurned:
    """Give the modules, named in full, one clock that stands still until the test turns it."""
    clock = HandTurned()
    for module in modules:
        monkeypatch.setattr(f"{module}.time", clock)
    return clock
