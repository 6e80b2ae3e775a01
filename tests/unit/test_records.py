"""Labelled conversations: what is read, what is refused, and to which split a record belongs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.domain import Role, Turn
from service.errors import ConfigurationError
from service.training.records import SHARES, read_records, repeated, split_of

LABELS = {"refund": ["yes", "no"], "topic": ["billing", "other"]}


def line(id: str = "a-1", **changes: Any) -> str:
    record = {"id": id, "turns": [{"role": "customer", "text": "money back"}], "labels": {"refund": "yes"}}
    return json.dumps(record | changes, ensure_ascii=False)


def turn(text: str, role: str = "customer") -> dict[str, str]:
    return {"role": role, "text": text}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "bank.jsonl"


def problems(file: Path, *lines: str) -> list[str]:
    """The lines of the refusal after its heading."""
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        read_records([file], LABELS)
    heading, *rest = str(caught.value).splitlines()
    assert heading == f"{len(rest)} problem(s) in the data:"
    return rest


def test_a_record_is_read(file: Path) -> None:
    file.write_text(line(turns=[turn("hello"), turn("good day", "agent"), turn("note", "system")]))
    (record,) = read_records([file], LABELS)
    assert record.conversation.id == "a-1"
    assert record.conversation.turns == (
        Turn(Role.CUSTOMER, "hello"),
        Turn(Role.AGENT, "good day"),
        Turn(Role.SYSTEM, "note"),
    )
    assert record.labels == {"refund": "yes"}


def test_records_keep_the_order_of_files_and_lines(tmp_path: Path) -> None:
    files = [tmp_path / "b.jsonl", tmp_path / "a.jsonl"]
    files[0].write_text(f"{line('1')}\n{line('2')}\n")
    files[1].write_text(line("3"))
    assert [record.conversation.id for record in read_records(files, LABELS)] == ["1", "2", "3"]


def test_a_label_that_is_not_given_stays_unknown(file: Path) -> None:
    file.write_text(line(labels={"topic": "other"}))
    assert read_records([file], LABELS)[0].labels == {"topic": "other"}


def test_a_record_may_have_no_labels(file: Path) -> None:
    file.write_text(line(labels={}))
    assert read_records([file], LABELS)[0].labels == {}


@pytest.mark.parametrize(
    ("changes", "source"),
    [
        pytest.param({}, "bank", id="not said"),
        pytest.param({"source": ""}, "bank", id="empty"),
        pytest.param({"source": "phone calls"}, "phone calls", id="its own word"),
    ],
)
def test_a_record_says_its_source_or_its_files_name(file: Path, changes: dict[str, str], source: str) -> None:
    file.write_text(line(**changes))
    assert read_records([file], LABELS)[0].source == source


def test_labels_of_other_classifiers_are_left_out(file: Path) -> None:
    file.write_text(line(labels={"refund": "no", "urgency": "sky-high"}))
    assert read_records([file], LABELS)[0].labels == {"refund": "no"}


@pytest.mark.parametrize(
    ("faulty", "says"),
    [
        pytest.param("{", "not JSON: ", id="not JSON"),
        pytest.param("", "not JSON: ", id="empty line"),
        pytest.param("[]", "Input should be a valid dictionary", id="not an object"),
        pytest.param(line(turns=[{"role": "bot", "text": "x"}]), "turns.0.role: Input should be", id="unknown role"),
        pytest.param(line(turns=[{"role": "agent"}]), "turns.0.text: Field required", id="text missing"),
        pytest.param(line(turns=[{**turn("x"), "at": 1}]), "turns.0.at: unknown key", id="unknown key in a turn"),
        pytest.param(line(turns=[]), "a conversation needs turns, and each turn text", id="no turns"),
        pytest.param(line(turns=[turn(" \n")]), "a conversation needs turns, and each turn text", id="blank text"),
        pytest.param(line(labels={"refund": "maybe"}), "refund: label 'maybe' is not one of", id="unknown label"),
        pytest.param(line(labels={"refund": 1}), "labels.refund: Input should be a valid string", id="label a number"),
        pytest.param('{"turns": [], "labels": {}}', "id: Field required", id="id missing"),
        pytest.param(line(turns=[turn("thanks ?")]).replace("?", r"\ud83d"), "half of a character", id="half an emoji"),
        pytest.param(line("?").replace("?", r"\udc00"), "half of a character", id="half a character in the id"),
        pytest.param("[" * 100_000, "not JSON: ", id="deeper than can be read"),
        pytest.param(line().replace('"labels": {', '"labels": {"refund": "no", '), "stands twice", id="a name twice"),
    ],
)
def test_a_faulty_line_is_refused_by_file_and_number(file: Path, faulty: str, says: str) -> None:
    (problem,) = problems(file, line("first"), faulty, line("last"))
    assert problem.startswith("bank.jsonl:2: ")
    assert says in problem


def test_an_id_used_twice_is_refused_across_files(tmp_path: Path) -> None:
    files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for each in files:
        each.write_text(line("same"))
    with pytest.raises(ConfigurationError, match=r"b\.jsonl:1: id 'same' is used twice"):
        read_records(files, LABELS)


def test_all_faulty_lines_are_reported_together(file: Path) -> None:
    several = line("x", labels={"refund": "maybe", "topic": "sport"}, turns=[])
    found = problems(file, "{", line("ok"), several, line("ok"))
    assert [problem.split(": ")[0] for problem in found] == ["bank.jsonl:1", *["bank.jsonl:3"] * 3, "bank.jsonl:4"]


def test_no_more_than_fifty_problems_are_printed_and_all_are_counted(file: Path) -> None:
    file.write_text("{\n" * 51)
    with pytest.raises(ConfigurationError) as caught:
        read_records([file], LABELS)
    heading, *rest = str(caught.value).splitlines()
    assert (heading, len(rest)) == ("51 problem(s) in the data:", 50)


@pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\u0085"], ids=lambda each: f"U+{ord(each):04X}")
def test_only_a_newline_ends_a_line(file: Path, separator: str) -> None:
    file.write_text(line(turns=[turn(f"one{separator}two")]), encoding="utf-8")
    assert read_records([file], LABELS)[0].conversation.turns[0].text == f"one{separator}two"


def test_a_refusal_does_not_repeat_the_conversation(file: Path) -> None:
    assert "secret" not in "\n".join(problems(file, line(turns=[{"role": "bot", "text": "secret"}])))


@pytest.mark.parametrize(
    ("record_id", "split"),
    [("assist-010", "dev"), ("assist-014", "calibration"), ("assist-004", "test"), ("", "train")],
)
def test_the_split_of_an_id_never_changes(record_id: str, split: str) -> None:
    assert split_of(record_id) == split


@pytest.mark.parametrize(("split", "share"), [("train", 55), ("dev", 10), ("calibration", 15), ("test", 20)])
def test_each_split_gets_about_its_share(split: str, share: int) -> None:
    found = sum(split_of(f"record-{number}") == split for number in range(10_000))
    assert found / 100 == pytest.approx(share, abs=1)


def test_the_shares_add_up() -> None:
    assert sum(share for _, share in SHARES) == 100


def test_the_split_of_a_record_does_not_depend_on_its_text_or_neighbours(file: Path) -> None:
    ids = [f"r-{number}" for number in range(40)]
    file.write_text("\n".join(line(each) for each in ids))
    alone = {record.conversation.id: record.split for record in read_records([file], LABELS)}
    file.write_text("\n".join(line(each, turns=[turn("other words")], labels={}) for each in ids[::3]))
    assert {r.conversation.id: r.split for r in read_records([file], LABELS)} == {i: alone[i] for i in ids[::3]}
    assert set(alone.values()) == {"train", "dev", "calibration", "test"}


def test_what_stands_in_another_split_too_is_found(file: Path) -> None:
    in_train, in_test, in_dev = (
        [id for id in map(str, range(99)) if split_of(id) == split] for split in ("train", "test", "dev")
    )
    lines = [line(in_train[0]), line(in_test[0]), line(in_test[1]), line(in_dev[0], turns=[turn("else")])]
    lines += [line(id, turns=[turn("twice in one split")]) for id in in_test[2:4]]
    file.write_text("\n".join(lines), encoding="utf-8")
    records = read_records([file], LABELS)
    asked = [record for record in records if record.split == "test"]
    assert [record.conversation.id for record in repeated(records, asked)] == in_test[:2]
