"""Files that are there wholly or not at all, their digests, and what to say of a cache that takes none."""

from __future__ import annotations

import hashlib
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Replace `path` with `text`; whoever reads meanwhile finds the old file or the new one."""
    scratch = path.with_name(f".{path.name}")
    scratch.write_bytes(text.encode())
    scratch.replace(path)


def sha256(path: Path) -> str:
    """Of a file's bytes, hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cannot_write_to(cache: Path, error: OSError) -> str:
    """What is wrong with the cache folder, and what to do."""
    return f"{cache} cannot be written to ({error.strerror}); set XDG_CACHE_HOME to a folder that can"
