"""What a baseline may learn from, beside whom and what it is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import ConfigurationError
from service.evaluation.learnable import learnable, require_train
from service.training.records import Record, read_records, split_of

IN_TRAIN = [each for each in map(str, range(99)) if split_of(each) == "train"]
IN_TEST = [each for each in map(str, range(99)) if split_of(each) == "test"]
LABELS = {"refund": ["yes", "no"], "churn": ["yes", "no"]}

Write = Callable[..., list[Record]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes records with both labels into a file; returns them as read."""

    def written(name: str, *ids: str) -> list[Record]:
        turns = [{"role": "customer", "text": "hello"}]
        lines = [json.dumps({"id": id, "turns": turns, "labels": dict.fromkeys(LABELS, "yes")}) for id in ids]
        (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
        return read_records([tmp_path / name], LABELS)

    return written


def folders(directory: Path, **trained_on: list[str] | None) -> list[Path]:
    """Classifier folders with what their training records name, None for no record."""
    for name, files in trained_on.items():
        (directory / name).mkdir()
        if files is not None:
            record = {"data": dict.fromkeys(files, "0" * 64)}
            (directory / name / "training.json").write_text(json.dumps(record), encoding="utf-8")
    return [directory / name for name in trained_on]


@pytest.mark.parametrize(
    ("churn", "labels"),
    [
        pytest.param(["shipped.jsonl"], {"refund", "churn"}, id="the same data"),
        pytest.param(["own.jsonl"], {"refund"}, id="data of its own"),
        pytest.param(None, {"refund", "churn"}, id="nobody knows which"),
    ],
)
def test_of_the_shipped_records_only_those_are_learnt_from_that_the_adapter_learnt_from(
    tmp_path: Path, write: Write, churn: list[str] | None, labels: set[str]
) -> None:
    write("shipped.jsonl", IN_TRAIN[0])
    own = write("own.jsonl", IN_TRAIN[1], IN_TEST[0])
    known = folders(tmp_path, refund=["shipped.jsonl"], churn=churn)
    found = learnable(known, own, own[1:], [tmp_path / "shipped.jsonl"], LABELS)
    assert {each.conversation.id: set(each.labels) for each in found} == {
        IN_TRAIN[1]: {"refund", "churn"},
        IN_TRAIN[0]: labels,
    }


def test_nothing_that_is_asked_is_learnt_from_and_nothing_twice(tmp_path: Path, write: Write) -> None:
    shipped = write("shipped.jsonl", *IN_TRAIN[:3])
    found = learnable(folders(tmp_path, refund=None), shipped, shipped[:1], [tmp_path / "shipped.jsonl"], LABELS)
    assert sorted(each.conversation.id for each in found) == sorted(IN_TRAIN[1:3])


def test_where_nothing_is_left_to_learn_from_that_is_said(tmp_path: Path, write: Write) -> None:
    own = write("own.jsonl", IN_TRAIN[0], IN_TEST[0])
    found = learnable(folders(tmp_path, refund=None), own, own[:1], [], LABELS)
    assert [each.conversation.id for each in found] == [IN_TEST[0]]
    with pytest.raises(ConfigurationError, match="no record of the train split is left"):
        require_train(found)
    require_train(own)
