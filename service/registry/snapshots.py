"""Copies of classifier folders, so that what is served cannot change under it: whoever edits a folder edits no answer.

An engine reads an adapter again whenever it has to, after a restart or when slots are few, and must find the bytes that
were proven.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

LOCK = "in-use"
PREFIX = "serving-"


class Snapshots:
    """Folders under one scratch folder. Made by `snapshots`."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._numbers = itertools.count()

    def take(self, folder: Path) -> Path:
        """Copy a folder as it is now, with what its links lead to."""
        copy = self._scratch / str(next(self._numbers)) / folder.name
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".*"))
        return copy

    def drop(self, copy: Path) -> None:
        """Remove a copy that is served no longer; anything else is left alone."""
        if self._scratch in copy.parents:
            shutil.rmtree(copy.parent, ignore_errors=True)


@contextlib.contextmanager
def snapshots(cache: Path) -> Iterator[Snapshots]:
    """A scratch folder under `cache`, removed at the end; those that killed processes left behind go now."""
    cache.mkdir(parents=True, exist_ok=True)
    for left in cache.glob(f"{PREFIX}*"):
        if _is_abandoned(left):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=PREFIX) as scratch, (Path(scratch) / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Snapshots(Path(scratch))


def leading_outside(folder: Path, root: Path) -> list[str]:
    """Names of what in `folder`, itself included, a link takes out of `root`."""
    inside = root.resolve()
    return [
        str(path.relative_to(root))
        for path in (folder, *sorted(folder.rglob("*")))
        if inside not in path.resolve().parents
    ]


def _is_abandoned(scratch: Path) -> bool:
    """Whether no process holds the scratch folder's lock."""
    try:
        with (scratch / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return False  # just made and not locked yet, or somebody else's
    return True
