"""Resident memory of a process and all that descend from it, read from /proc."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

PROC = Path("/proc")

ALL = ("Pss:",)
"""Of a process's memory: a page that several share counts in each of them by its part."""

OF_NO_FILE = ("Pss_Anon:", "Pss_Shmem:")
"""Without the pages of files, such as libraries, which count for more as soon as another process that has them ends:
what a leak makes grow."""


def resident_bytes(root: int, kinds: Sequence[str] = ALL) -> int:
    """Sum of what each process of the tree holds; where the kernel does not tell kinds, all of it in full (RSS)."""
    total = 0
    for pid in tree(root, parents()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended since
            total += held_bytes(PROC / str(pid), kinds)
    return total


def held_bytes(process: Path, kinds: Sequence[str]) -> int:
    with contextlib.suppress(FileNotFoundError, PermissionError):
        lines = (process / "smaps_rollup").read_text(encoding="utf-8").splitlines()
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(tuple(kinds)))
    return int((process / "statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


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
