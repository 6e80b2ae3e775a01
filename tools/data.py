"""Checks the labelled conversations: `python tools/data.py` prints the shares of every class and near-duplicates.

Exits 1 when a class is rarer than it should be, or when two splits share what is nearly the same conversation.
"""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from service.registry.manifest import load_manifest
from service.training.records import Record, read_records

CLASSIFIERS = Path(__file__).resolve().parent.parent / "classifiers"

SHINGLE_WORDS = 4
NEAR = 0.3
"""Jaccard similarity of word 4-grams from which two conversations count as nearly the same; unrelated ones have 0."""

LEAST_SHARE = 0.20
LEAST_SHARE_OF_TOPICS = 0.10


def least_share(labels: Sequence[str]) -> float:
    """How rare a label may be, as a share of the records; with many labels, rarer."""
    return LEAST_SHARE if len(labels) <= 3 else LEAST_SHARE_OF_TOPICS


def near_duplicates(records: Sequence[Record], near: float = NEAR) -> list[tuple[str, str, float]]:
    """Ids of records of different splits that are nearly the same, with their similarity."""
    shingles = {record.conversation.id: _shingles(record) for record in records}
    splits = {record.conversation.id: record.split for record in records}
    owners: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for record, found in shingles.items():
        for shingle in found:
            owners[shingle].append(record)
    shared: Counter[tuple[str, str]] = Counter()
    for together in owners.values():
        for place, one in enumerate(together):
            shared.update((one, other) for other in together[place + 1 :] if splits[one] != splits[other])
    pairs = [
        (one, other, count / (len(shingles[one]) + len(shingles[other]) - count))
        for (one, other), count in shared.items()
    ]
    return sorted((pair for pair in pairs if pair[2] >= near), key=lambda pair: -pair[2])


def _shingles(record: Record) -> set[tuple[str, ...]]:
    """Runs of words of all turns; a text with fewer words is one run."""
    words = [word for turn in record.conversation.turns for word in re.findall(r"\w+", turn.text.lower())]
    return {tuple(words[i : i + SHINGLE_WORDS]) for i in range(max(1, len(words) - SHINGLE_WORDS + 1))}


def main() -> None:
    manifests = {
        path.parent.name: load_manifest(path.parent)[0] for path in sorted(CLASSIFIERS.glob("*/classifier.toml"))
    }
    labels: Mapping[str, list[str]] = {name: list(m.labels) for name, m in manifests.items() if m is not None}
    records = read_records(sorted((CLASSIFIERS / "data").glob("*.jsonl")), labels)
    console, problems = Console(), 0
    splits = Counter(record.split for record in records)
    console.print(f"{len(records)} records: " + ", ".join(f"{count} {split}" for split, count in splits.items()))
    table = Table()
    for column in ("classifier", "label", "records", "share"):
        table.add_column(column)
    for name, names in labels.items():
        counts = Counter(record.labels.get(name) for record in records)
        for label in names:
            share = counts[label] / counts.total()
            rare = share < least_share(names)
            problems += rare
            table.add_row(name, label, str(counts[label]), f"{share:.1%}" + (" [red]too rare[/]" if rare else ""))
    console.print(table)
    for one, other, similarity in near_duplicates(records):
        problems += 1
        console.print(f"[red]nearly the same across splits[/]: {one} and {other} ({similarity:.2f})")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
