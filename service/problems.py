"""Validation errors as sentences for people. Never echoes a value, which may be a secret or somebody's text."""

from __future__ import annotations

from pydantic import ValidationError


def sentences(error: ValidationError) -> list[str]:
    """One 'path.of.key: what is wrong' for each problem."""
    return [
        f"{'.'.join(str(part) for part in problem['loc'])}: "
        + ("unknown key" if problem["type"] == "extra_forbidden" else problem["msg"])
        for problem in error.errors()
    ]
