"""Copies of classifier folders, so that what is served cannot change under it: whoever edits a folder edits no answer.

An engine reads an adapter again whenever it has to, after a restart or when slots are few, and must find the bytes that
were proven.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from service.errors import StartError
from service.files import cannot_write_to

LOCK = "in-use"
PREFIX = "serving-"


class Snapshots:
    """Folders under one scratch folder. Made by `snapshots`."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        self._numbers = itertools.count()
        self._copying = threading.Lock()
        self._closed = False

    def take(self, folder: Path) -> Path:
        """Copy a folder as it is now, with what its links lead to. Raises OSError, and leaves no half copy then."""
        copy = self._scratch / str(next(self._numbers)) / folder.name
        with self._copying:
            if self._closed:
                raise OSError(errno.ESHUTDOWN, "the server is stopping")
            try:
                shutil.copytree(folder, copy, ignore=shutil.ignore_patterns(".*"))
            except OSError:
                self.drop(copy)
                raise
        return copy

    def close(self) -> None:
        """Wait for the copy that a thread may be making; no other is made."""
        with self._copying:
            self._closed = True

    def drop(self, copy: Path) -> None:
        """Remove a copy that is served no longer; anything else is left alone."""
        if self._scratch in copy.parents:
            shutil.rmtree(copy.parent, ignore_errors=True)


@contextlib.contextmanager
def snapshots(cache: Path) -> Iterator[Snapshots]:
    """A scratch folder under `cache`, removed at the end; those that killed processes left behind go now.

    Raises StartError where none can be made.
    """
    with contextlib.ExitStack() as held:
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with _locked(cache):  # or another process would find the new one not locked yet, and take it for abandoned
                for left in cache.glob(f"{PREFIX}*"):
                    if _is_abandoned(left):
                        shutil.rmtree(left, ignore_errors=True)
                scratch = Path(held.enter_context(tempfile.TemporaryDirectory(dir=cache, prefix=PREFIX)))
                held.enter_context(_locked(scratch))
        except OSError as error:
            raise StartError(cannot_write_to(cache, error)) from error
        made = Snapshots(scratch)
        held.callback(made.close)  # a change that its caller gave up may still be under way, and is not waited for
        yield made


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path, wherever its links lead, is a place in `root`."""
    return _real(root) in _real(path).parents


def leading_outside(folder: Path, root: Path) -> list[str]:
    """Names of what in `folder`, itself included, a link takes out of `root`, or back to a folder that holds it."""
    if not is_inside(folder, root):
        return [str(folder.relative_to(root))]
    found: list[Path] = []
    for place, folders, files in os.walk(folder, followlinks=True):
        here = Path(place)
        holders = {_real(each) for each in (here, *here.parents)}
        strays = {
            each for each in (*folders, *files) if not is_inside(here / each, root) or _real(here / each) in holders
        }
        found += [here / each for each in strays]
        folders[:] = [each for each in folders if each not in strays]
    return sorted(str(each.relative_to(root)) for each in found)


def _real(path: Path) -> Path:
    """Where links lead. Unlike `Path.resolve` it raises nothing for links in a circle, which lead nowhere."""
    return Path(os.path.realpath(path))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which the death of the process releases too."""
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_abandoned(scratch: Path) -> bool:
    """Whether no process holds the scratch folder's lock."""
    try:
        with (scratch / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return False  # it never was one of ours
    return True
