"""Agreement of two readings: Cohen's kappa, and how much of the shipped records was read twice."""

from __future__ import annotations

import sys

import pytest

from service.registry.manifest import load_manifest
from tests.support import CLASSIFIERS
from tools.agreement import DATA, kappa, labels_of, main

SECOND = DATA / "second_reading" / "labels.jsonl"
LEAST_READ_TWICE = 150


def pairs(yes_yes: int, yes_no: int, no_yes: int, no_no: int) -> tuple[list[str], list[str]]:
    first = ["yes"] * (yes_yes + yes_no) + ["no"] * (no_yes + no_no)
    second = ["yes"] * yes_yes + ["no"] * yes_no + ["yes"] * no_yes + ["no"] * no_no
    return first, second


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        pytest.param((20, 5, 10, 15), 0.4, id="fifty grant proposals, a textbook's case"),
        pytest.param((45, 15, 25, 15), 0.1304, id="equal agreement, more of it by chance"),
        pytest.param((25, 35, 5, 35), 0.2593, id="equal agreement, less of it by chance"),
        pytest.param((10, 0, 0, 30), 1.0, id="perfect"),
        pytest.param((40, 0, 0, 0), 1.0, id="perfect, of one label alone"),
        pytest.param((9, 3, 3, 1), 0.0, id="what chance gives"),
        pytest.param((0, 20, 20, 0), -1.0, id="none"),
        pytest.param((0, 40, 0, 0), 0.0, id="none, each with one label"),
    ],
)
def test_kappa_is_agreement_beyond_chance(counts: tuple[int, int, int, int], expected: float) -> None:
    assert kappa(*pairs(*counts)) == pytest.approx(expected, abs=1e-4)


def test_kappa_knows_more_than_two_labels() -> None:
    assert kappa(["a", "b", "c", "c"], ["a", "b", "c", "a"]) == pytest.approx((0.75 - 0.3125) / (1 - 0.3125))


def test_enough_shipped_records_were_read_twice_and_wholly() -> None:
    first, second = labels_of(sorted(DATA.glob("*.jsonl"))), labels_of([SECOND])
    assert len(second) >= LEAST_READ_TWICE
    assert second.keys() <= first.keys()
    names = {path.parent.name for path in CLASSIFIERS.glob("*/classifier.toml")}
    assert all(labels.keys() == names for labels in second.values())
    for name in names:
        manifest, _ = load_manifest(CLASSIFIERS / name)
        assert manifest is not None
        assert {labels[name] for labels in second.values()} <= manifest.labels.keys()


def test_the_command_prints_every_classifier_as_the_guide_has_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["agreement.py", str(SECOND)])
    main()
    printed = capsys.readouterr().out
    assert printed.strip() in (CLASSIFIERS / "LABELLING.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in printed.splitlines()[2:]]
    assert len(rows) == len(list(CLASSIFIERS.glob("*/classifier.toml")))
    assert {int(row[1]) for row in rows} == {len(labels_of([SECOND]))}
    assert all(float(row[3]) <= float(row[2]) <= 1 for row in rows)
