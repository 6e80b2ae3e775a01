"""Checks the labelled conversations: `python tools/data.py` prints each class's share and lengths, and near-duplicates.

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

SHORT_WORDS = 20
NEAR_WORDS = 0.6
"""The same of two short conversations' words. A changed word breaks four 4-grams: of less than eleven words one is
enough to fall below `NEAR`, of less than eighteen two are."""

LEAST_SHARE = 0.20
LEAST_SHARE_OF_TOPICS = 0.10


def least_share(labels: Sequence[str]) -> float:
    """How rare a label may be, as a share of the records; with many labels, rarer."""
    return LEAST_SHARE if len(labels) <= 3 else LEAST_SHARE_OF_TOPICS


def near_duplicates(records: Sequence[Record]) -> list[tuple[str, str, float]]:
    """Ids of records of different splits that are nearly the same, with their similarity."""
    short = [record for record in records if len(_words(record)) <= SHORT_WORDS]
    alike = _alike(records, SHINGLE_WORDS, NEAR) | _alike(short, 1, NEAR_WORDS)
    return sorted(((*pair, similarity) for pair, similarity in alike.items()), key=lambda found: -found[2])


def _alike(records: Sequence[Record], size: int, near: float) -> dict[tuple[str, str], float]:
    """Pairs of different splits whose runs of `size` words are at least so similar."""
    shingles = {record.conversation.id: _shingles(_words(record), size) for record in records}
    splits = {record.conversation.id: record.split for record in records}
    owners: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for record, found in shingles.items():
        for shingle in found:
            owners[shingle].append(record)
    shared: Counter[tuple[str, str]] = Counter()
    for together in owners.values():
        for place, one in enumerate(together):
            shared.update((one, other) for other in together[place + 1 :] if splits[one] != splits[other])
    pairs = {
        (one, other): count / (len(shingles[one]) + len(shingles[other]) - count)
        for (one, other), count in shared.items()
    }
    return {pair: similarity for pair, similarity in pairs.items() if similarity >= near}


def _words(record: Record) -> list[str]:
    return [word for turn in record.conversation.turns for word in re.findall(r"\w+", turn.text.lower())]


def _shingles(words: Sequence[str], size: int) -> set[tuple[str, ...]]:
    """Runs of words of all turns; a text with fewer words is one run."""
    return {tuple(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}


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
    for column in ("classifier", "label", "records", "share", "turns"):
        table.add_column(column)
    for name, names in labels.items():
        counts = Counter(record.labels.get(name) for record in records)
        for label in names:
            share = counts[label] / counts.total()
            rare = share < least_share(names)
            problems += rare
            turns = [len(record.conversation.turns) for record in records if record.labels.get(name) == label]
            said = f"{share:.1%}" + (" [red]too rare[/]" if rare else "")
            table.add_row(name, label, str(counts[label]), said, f"{min(turns, default=0)}–{max(turns, default=0)}")
    console.print(table)
    for one, other, similarity in near_duplicates(records):
        problems += 1
        console.print(f"[red]nearly the same across splits[/]: {one} and {other} ({similarity:.2f})")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
