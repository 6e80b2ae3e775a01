"""Validation errors as sentences for people. Never echoes a value, which may be a secret or somebody's text."""

from __future__ import annotations

from pydantic import ValidationError


def sentences(error: ValidationError) -> list[str]:
    """One 'path.of.key: what is wrong' for each problem; without a path where the whole is wrong."""
    found = []
    for problem in error.errors():
        what = "unknown key" if problem["type"] == "extra_forbidden" else problem["msg"].removeprefix("Value error, ")
        found.append(": ".join(filter(None, (".".join(map(str, problem["loc"])), what))))
    return found
