"""A classifier's card: the figures of its evaluation, for whoever wonders whether to trust it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from service.evaluation.card import CARD_FILE, card, write_cards
from service.evaluation.predictions import Predictions
from service.evaluation.report import OURS, classifier_reports, summary
from tests.predicting import FOUR, GOOD, POOR
from tests.support import manifest_toml

HOSTILE = "<script>alert(1)</script>"


def evaluation(name: str = "refund", **systems: Mapping[str, Predictions]) -> dict[str, Any]:
    """What `evaluation.json` holds."""
    found = summary(classifier_reports({OURS: {name: GOOD}, **systems}, FOUR))
    return found | {"base": "small", "date": "2026-01-02", "records": "4 test records", "data": "d1", "secret": HOSTILE}


def card_text(**systems: Mapping[str, Predictions]) -> str:
    found = evaluation(**systems)
    return card("refund", "Whether money is wanted back.", found["classifiers"]["refund"], found)


def test_a_card_says_what_was_measured_and_on_what() -> None:
    text = card_text()
    for each in (
        "# refund\n",
        "Whether money is wanted back.",
        "0123456789abcdef",
        "2026-01-02 on the 4 labelled ones among 4 test records",
    ):
        assert each in text


@pytest.mark.parametrize(
    "row",
    [
        pytest.param("| fantail | 0.750 (0.250 to 1.000) | 0.733 (", id="ours"),
        pytest.param("| other | 0.250 (", id="another system"),
        pytest.param("| no | 1 | 1 |", id="confusion"),
        pytest.param("| 3 to 10 turns | 2 | 0.500 | – |", id="a slice of one class"),
    ],
)
def test_a_card_holds_the_figures(row: str) -> None:
    assert f"\n{row}" in card_text(other={"refund": POOR})


def test_the_rows_of_each_table_of_a_card_are_equally_long() -> None:
    tables = re.findall(r"(?:^\|.*\n)+", card_text(other={"refund": POOR}), re.MULTILINE)
    widths = [{line.count("|") for line in table.splitlines()} for table in tables]
    assert [len(each) for each in widths] == [1, 1, 1]


def test_a_card_leaves_sources_out() -> None:
    assert "invented" not in card_text()


def test_a_card_is_written_into_each_classifiers_folder(tmp_path: Path) -> None:
    (tmp_path / "refund").mkdir()
    (tmp_path / "refund" / "classifier.toml").write_text(manifest_toml(), encoding="utf-8")
    write_cards(tmp_path, evaluation())
    assert (tmp_path / "refund" / CARD_FILE).read_text(encoding="utf-8").startswith("# refund\n\nWhether the customer")
