"""What traffic looks like: a TOML file to a value. Unknown keys are refused."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

ARRIVALS = ("poisson", "constant", "trace")


class ProfileError(ValueError):
    """A profile says something that cannot be meant."""


@dataclass(frozen=True, slots=True)
class Length:
    """How often conversations of about so many tokens come, beside the others."""

    tokens: int
    weight: float


@dataclass(frozen=True, slots=True)
class Profile:
    """Traffic of one kind.

    `arrivals`: poisson, constant, or trace (the times of `trace`, a file with one number of seconds a line, sped up to
    the wanted rate); `lengths`: of conversations; `follow_ups`: share of calls that go on with an earlier
    conversation; `fan_out`: share of calls that ask all classifiers, the others ask one; `skew`: exponent of Zipf's law
    by which single classifiers are chosen, 0 for all alike; `deadline_s`: of each call; `warm_up_s`, `steady_s`: how
    long calls are sent before and while they are counted.
    """

    name: str
    lengths: tuple[Length, ...]
    arrivals: str = "poisson"
    trace: str = ""
    follow_ups: float = 0.0
    fan_out: float = 1.0
    skew: float = 1.0
    deadline_s: float = 10.0
    warm_up_s: float = 5.0
    steady_s: float = 20.0


def load_profile(path: Path) -> Profile:
    """Read a profile. Raises ProfileError with what is wrong."""
    try:
        value = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProfileError(f"{path}: {error}") from error
    known = {field.name for field in fields(Profile)} - {"name"}
    if unknown := sorted(set(value) - known):
        raise ProfileError(f"{path}: unknown keys {unknown}; known: {', '.join(sorted(known))}")
    try:
        lengths = tuple(Length(**each) for each in value.pop("lengths"))
        profile = Profile(path.stem, lengths, **value)
        _require_sense(profile, path)
    except (KeyError, TypeError) as error:
        shape = "lengths are tables of tokens and weight, arrivals and trace are texts, every other key is a number"
        raise ProfileError(f"{path}: {shape}") from error
    return profile


def _require_sense(profile: Profile, path: Path) -> None:
    problems: list[str] = []
    if profile.arrivals not in ARRIVALS:
        problems.append(f"arrivals is one of {', '.join(ARRIVALS)}")
    if (profile.arrivals == "trace") != bool(profile.trace):
        problems.append("a trace file is given for arrivals = 'trace', and only then")
    if profile.trace and not Path(profile.trace).is_file():
        problems.append(f"there is no trace file {profile.trace}")
    if not profile.lengths or not all(map(_is_length, profile.lengths)):
        problems.append("each length has a whole number of tokens, one at least, and a positive weight")
    problems += [f"{name} is a share from 0 to 1" for name in ("follow_ups", "fan_out") if not _is_share(profile, name)]
    problems += [
        f"{name} is above 0" for name in ("deadline_s", "steady_s") if not 0 < getattr(profile, name) < math.inf
    ]
    problems += [
        f"{name} is not below 0" for name in ("warm_up_s", "skew") if not 0 <= getattr(profile, name) < math.inf
    ]
    if problems:
        raise ProfileError(f"{path}: {'; '.join(problems)}")


def _is_length(length: Length) -> bool:
    return isinstance(length.tokens, int) and length.tokens >= 1 and 0 < length.weight < math.inf


def _is_share(profile: Profile, name: str) -> bool:
    value: Any = getattr(profile, name)
    return isinstance(value, int | float) and 0 <= value <= 1
