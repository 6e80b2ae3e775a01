"""A second revision of the bench's classifiers, and a third label, so that one wrong answer can become another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from service.registry.manifest import MANIFEST_FILE

WORDS, OTHER_WORDS = "refund?", "return?"
"""Of `refund` before and after; the sums of their tokens differ in parity, by which `Undecided` answers."""


def reworded(classifiers: Path, folder: Path) -> Path:
    """The same classifiers in `folder`; `refund` is asked in other words."""
    shutil.copytree(classifiers, folder)
    manifest = folder / "refund" / MANIFEST_FILE
    manifest.write_text(manifest.read_text().replace(f'words = "{WORDS}"', f'words = "{OTHER_WORDS}"'))
    return folder


def three_labels(classifiers: Path, data: Path) -> None:
    """Let `refund` know a third label, which the fake engine never chooses and every fourth record deserves."""
    with (classifiers / "refund" / MANIFEST_FILE).open("a") as manifest:
        manifest.write('maybe = " maybe"\n')
    records = [json.loads(line) for line in data.read_text().splitlines()]
    for record in records[::4]:
        record["labels"]["refund"] = "maybe"
    data.write_text("".join(json.dumps(record) + "\n" for record in records))
