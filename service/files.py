"""Files that are there wholly or not at all."""

from __future__ import annotations

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Replace `path` with `text`; whoever reads meanwhile finds the old file or the new one."""
    scratch = path.with_name(f".{path.name}")
    scratch.write_bytes(text.encode())
    scratch.replace(path)
