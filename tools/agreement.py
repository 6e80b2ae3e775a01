"""Agreement of two readings of the same records: `python tools/agreement.py SECOND.jsonl` prints Cohen's kappa.

SECOND.jsonl holds one JSON object a line, `{"id": …, "labels": {…}}`, by a reader who never saw the first labels.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

DATA = Path(__file__).resolve().parent.parent / "classifiers" / "data"


def kappa(first: Sequence[str], second: Sequence[str]) -> float:
    """Cohen's kappa: agreement beyond what the two readers' label frequencies give by chance."""
    records = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / records
    chance = sum(first.count(label) * second.count(label) for label in set(first)) / records**2
    return 1.0 if chance == 1 else (observed - chance) / (1 - chance)


def labels_of(paths: Sequence[Path]) -> dict[str, dict[str, str]]:
    """Labels by record id."""
    lines = (line for path in paths for line in path.read_text(encoding="utf-8").splitlines())
    return {record["id"]: record["labels"] for record in map(json.loads, lines)}


def main() -> None:
    first = labels_of(sorted(DATA.glob("*.jsonl")))
    second = labels_of([Path(sys.argv[1])])
    names = sorted(next(iter(second.values())))
    print("| classifier | records | agreement | kappa |\n|---|---|---|---|")
    for name in names:
        pairs = [(first[record][name], labels[name]) for record, labels in second.items()]
        agreed = sum(a == b for a, b in pairs) / len(pairs)
        print(f"| `{name}` | {len(pairs)} | {agreed:.3f} | {kappa(*map(list, zip(*pairs, strict=True))):.2f} |")


if __name__ == "__main__":
    main()
