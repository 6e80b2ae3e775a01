"""Where results go: a console as wide as tables want, and files that are there wholly or not at all."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console

WIDTH = 120
"""Of the output where it goes to no terminal."""


def wide_console(width: int = WIDTH) -> Console:
    return Console(width=None if sys.stdout.isatty() else width)


def positive(text: str) -> int:
    """A number of times, as an option has it. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def write_whole(path: Path, text: str) -> None:
    """Replace `path` with `text`; whoever reads meanwhile, or after an interruption, finds the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
