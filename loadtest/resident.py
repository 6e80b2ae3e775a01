"""Resident memory of a process and all that descend from it, read from /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

PROC = Path("/proc")


def resident_bytes(root: int) -> int:
    """Sum of what each process of the tree holds; pages that several share count in each of them."""
    total = 0
    for pid in tree(root, parents()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
            total += int((PROC / str(pid) / "statm").read_text(encoding="ascii").split()[1])
    return total * os.sysconf("SC_PAGE_SIZE")


def parents() -> dict[int, int]:
    """The parent of every process."""
    found = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                # The second field is the program's name in brackets, and may hold anything.
                fields = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
                found[int(entry.name)] = int(fields[1])
    return found


def tree(root: int, parents: Mapping[int, int]) -> set[int]:
    """`root` and its descendants."""
    found, young = {root}, {root}
    while young:
        young = {pid for pid, parent in parents.items() if parent in young} - found
        found |= young
    return found
