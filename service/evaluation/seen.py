"""Whether what is asked may have been learnt from, so that answers to it flatter. Sentences for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from service.registry.folders import RECORD_FILE
from service.training.records import Record, repeated


def learnt_by_heart(records: Sequence[Record], asked: Sequence[Record], split: str) -> str | None:
    """Says when some of `asked` stand in another split as well, word for word."""
    known = repeated(records, asked)
    if not known:
        return None
    what = "records" if split == "all" else f"{split} records"
    have = f"{len(known)} of {len(asked)} {what} have the very turns of a record of another split"
    return f"{have}, {known[0].conversation.id!r} for one: what was learnt by heart counts as right there"


def maybe_trained_on(folders: Sequence[Path], asked: Sequence[Record]) -> str | None:
    """Says when records of the train split are asked, of classifiers that were trained.

    A file's name and bytes change when it grows and is renamed; the split of a record does not.
    """
    learnt = sum(record.split == "train" for record in asked)
    if not learnt or not any((folder / RECORD_FILE).exists() for folder in folders):
        return None
    return (
        f"{learnt} of {len(asked)} records are of the train split by their id's hash: if adapters were trained on them "
        "under whatever file name, every figure is too good; `--split test` asks only those that no training sees"
    )
