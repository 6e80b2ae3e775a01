"""The files of an evaluation as its report tells them: their names for people, and a digest of their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

MANY_FILES = 8
"""More files than this are counted, not named."""


def named(files: Sequence[Path]) -> str:
    """Their names, or how many there are in which folders."""
    if len(files) <= MANY_FILES:
        return ", ".join(path.name for path in files)
    return f"{len(files)} files in {', '.join(sorted({path.parent.name for path in files}))}/"


def digest_of(files: Sequence[Path]) -> str:
    """sha256, hex, over the files' bytes in order."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
