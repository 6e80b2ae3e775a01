"""Makes the material of the load generator's tests: profiles of traffic, and what became of calls."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtest.outcome import GOOD, STAGES, Outcome
from loadtest.profile import Length, Profile
from tests.support import changed

SMALL = (Length(40, 1),)


def profile(**changes: Any) -> Profile:
    """Short conversations, all classifiers asked, at regular moments, counted from the first on."""
    usual = {"lengths": SMALL, "arrivals": "constant", "warm_up_s": 0.0, "steady_s": 2.0}
    return Profile(name="test", **usual | changes)


def profile_toml(**changes: Any) -> str:
    """`profile` as a file says it; `ABSENT` leaves a key out."""
    value = {name: each for name, each in asdict(profile()).items() if name != "name"}
    return "".join(f"{name} = {_toml(each)}\n" for name, each in changed(value, changes).items())


def write_profile(folder: Path, **changes: Any) -> Path:
    path = folder / "test.toml"
    path.write_text(profile_toml(**changes), encoding="utf-8")
    return path


def _toml(value: Any) -> str:
    match value:
        case Mapping():
            return f"{{ {', '.join(f'{name} = {_toml(each)}' for name, each in value.items())} }}"
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case float():
            return str(value)
        case _:
            return json.dumps(value)


def outcome(
    latency_s: float = 0.1, steady_s: float = 10.0, late: int = 0, length: int = 40, **by_status: int
) -> Outcome:
    """Of a run with so many calls of each status; those that were answered took `latency_s`, all in the engine."""
    made = Outcome(steady_s=steady_s)
    for status, count in by_status.items():
        for _ in range(count):
            made.ended(length, status, is_late=made.sent < late)
            if status in (GOOD, "PARTLY"):
                made.answered(length, latency_s, dict.fromkeys(STAGES, latency_s), computed=40, reused=60)
    return made
