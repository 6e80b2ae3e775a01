"""`tools/data.py`: which conversations of two splits are nearly the same, and what its table tells."""

from __future__ import annotations

import json

import pytest

from service.training.records import Record, split_of
from tests.support import CLASSIFIERS, talk
from tools.data import SHORT_WORDS, main, near_duplicates

DATA = CLASSIFIERS / "data"
LONG = " ".join(f"word{number}" for number in range(SHORT_WORDS + 1))


def record(text: str, id: str) -> Record:
    return Record(talk(text, id=id), {})


def ids_of(split: str) -> list[str]:
    return [id for id in (f"r-{number}" for number in range(99)) if split_of(id) == split]


(TRAIN, ALSO_TRAIN, *_), (TEST, *_) = ids_of("train"), ids_of("test")


def changed(text: str, *places: int) -> str:
    words = text.split()
    return " ".join("other" if place in places else word for place, word in enumerate(words))


CANCEL = "can you please cancel my order before it ships today"
SHORTEST = "cancel my order please"
LONGEST_SHORT = " ".join(LONG.split()[:SHORT_WORDS])


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        pytest.param(CANCEL, CANCEL.replace("order", "booking"), True, id="one word of ten"),
        pytest.param(CANCEL, CANCEL.replace("order", "booking").replace("today", "now"), True, id="two words of ten"),
        pytest.param(CANCEL, "could somebody call off my order before it ships", False, id="said otherwise"),
        pytest.param(SHORTEST, SHORTEST.replace("order", "booking"), True, id="one word of four"),
        pytest.param(SHORTEST, "where is my order", False, id="two words in common"),
        pytest.param("🙂", "👍", True, id="no word at all"),
        pytest.param(LONGEST_SHORT, changed(LONGEST_SHORT, 5, 10, 15), True, id="three words of the longest short one"),
        pytest.param(LONG, changed(LONG, 5), True, id="one word of a long one"),
        pytest.param(LONG, changed(LONG, 5, 10), True, id="two words of a long one"),
        pytest.param(LONG, " ".join(reversed(LONG.split())), False, id="a long one's words in another order"),
        pytest.param(LONG, SHORTEST, False, id="a long and a short one"),
    ],
)
def test_nearly_the_same_is_seen_across_splits(one: str, other: str, alike: bool) -> None:
    found = near_duplicates([record(one, TRAIN), record(other, TEST)])
    assert [set(pair[:2]) for pair in found] == ([{TRAIN, TEST}] if alike else [])


def test_within_a_split_records_may_be_alike() -> None:
    assert near_duplicates([record(CANCEL, TRAIN), record(CANCEL, ALSO_TRAIN)]) == []


def test_the_table_tells_the_lengths_of_every_label(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    rows = [line.split("│") for line in capsys.readouterr().out.splitlines() if "%" in line]
    found = {(row[1].strip(), row[2].strip()): row[5].strip() for row in rows}
    records = [json.loads(line) for path in DATA.glob("*.jsonl") for line in path.read_text().splitlines()]
    for (name, label), lengths in found.items():
        turns = [len(each["turns"]) for each in records if each["labels"][name] == label]
        assert lengths == f"{min(turns)}–{max(turns)}"
    assert len(found) > 2 * 16
