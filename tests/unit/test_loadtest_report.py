"""A load test's report: whole or not at all, one page that needs nothing else; and what the command prints."""

from __future__ import annotations

import io
import json
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loadtest.__main__ import main, show
from loadtest.outcome import Outcome, seconds
from loadtest.report import html, write_report
from tests.traffic import outcome, write_profile

FACTS = {"profile": "short", "machine": "2 cores <of> a & b", "commit": "c0ffee"}
BORNE, OVERLOADED = (2.0, outcome(0.1, OK=20)), (4.0, outcome(2.0, OK=18, PARTLY=2, RESOURCE_EXHAUSTED=20))
GENERATOR_LIMITED, SILENT = (8.0, outcome(OK=80, late=2)), (9.0, outcome(UNAVAILABLE=90))
RUNS = [BORNE, OVERLOADED, GENERATOR_LIMITED, SILENT]


@pytest.fixture(scope="module")
def page() -> str:
    return html(FACTS, RUNS)


def rows(page: str) -> list[list[str]]:
    """The cells of each run."""
    found = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>.*?</tr>", page, re.DOTALL)]
    return [cells for cells in found if len(cells) > 5]


def test_a_page_has_its_plots_drawn_into_it(page: str) -> None:
    titles = ("latency of answered calls", "goodput", "latency by percentile", "the server's own stages")
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) == len(titles)
    for title, plot in zip(titles, plots, strict=True):
        assert f"<!-- {title}" in plot
        assert "<path" in plot


def test_a_page_loads_nothing(page: str) -> None:
    loads = re.findall(r'\s(?:src|srcset|href|xlink:href|data|action)\s*=\s*"([^"]*)"', page)
    assert loads
    assert {each[:1] for each in loads} == {"#"}
    assert set(re.findall(r"url\((.)", page)) <= {"#"}
    assert not re.search(r"<(script|link|img|iframe|object)\b|@import", page)


def test_a_page_shows_the_facts_as_they_are(page: str) -> None:
    assert "2 cores &lt;of&gt; a &amp; b" in page


def test_a_page_names_the_knee(page: str) -> None:
    assert "8.00 calls a second: the highest rate" in page


def test_a_page_says_when_no_rate_was_borne() -> None:
    assert "below the lowest rate" in html(FACTS, [OVERLOADED])


def test_a_page_has_a_row_of_figures_for_each_run(page: str) -> None:
    borne, overloaded, *_ = rows(page)
    assert borne[:4] == ["2.00", "20", "2.00", "2.0"]
    assert overloaded[:4] == ["4.00", "40", "1.80", "2.0"]
    assert overloaded[-4:] == ["50.0%", "60.0%", "20 RESOURCE_EXHAUSTED, 18 OK, 2 PARTLY", ""]


def test_a_page_says_where_the_generator_was_the_limit(page: str) -> None:
    assert [cells[-1] for cells in rows(page)] == ["", "", "2 late sends", ""]


def test_a_page_says_nothing_of_a_late_send_among_many() -> None:
    assert rows(html(FACTS, [(20.0, outcome(OK=200, late=2))]))[0][-1] == ""


def test_a_run_without_answers_has_dashes_for_latencies(page: str) -> None:
    assert rows(page)[-1][4:9] == ["–"] * 5
    assert not any("nan" in cell for row in rows(page) for cell in row)


@pytest.mark.parametrize(
    "runs", [[SILENT], [SILENT, SILENT], [BORNE, SILENT], [(0.1, outcome())]],
    ids=["no answers", "never any answers", "no more answers", "no calls"],
)  # fmt: skip
def test_a_page_is_made_where_nothing_was_answered(runs: Sequence[tuple[float, Outcome]]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert html(FACTS, runs).count("<svg") == 4


def test_a_report_is_a_page_and_the_outcomes_as_they_were_recorded(tmp_path: Path) -> None:
    write_report(tmp_path / "new" / "folder", FACTS, RUNS)
    assert sorted(each.name for each in (tmp_path / "new" / "folder").iterdir()) == ["loadtest.json", "report.html"]
    value = json.loads((tmp_path / "new" / "folder" / "loadtest.json").read_text(encoding="utf-8"))
    assert {name: value[name] for name in FACTS} == FACTS
    assert [each["rate"] for each in value["runs"]] == [2.0, 4.0, 8.0, 9.0]
    assert value["knee"] == 8.0
    again = [Outcome.from_json(each) for each in value["runs"]]
    assert [each.to_json() for each in again] == [run.to_json() for _, run in RUNS]
    assert seconds(again[0].latency, 50) == seconds(BORNE[1].latency, 50)


def test_a_report_without_knee_says_null(tmp_path: Path) -> None:
    write_report(tmp_path, FACTS, [OVERLOADED])
    assert json.loads((tmp_path / "loadtest.json").read_text(encoding="utf-8"))["knee"] is None


def test_a_later_report_takes_the_place_of_the_earlier(tmp_path: Path) -> None:
    write_report(tmp_path, FACTS, [BORNE])
    write_report(tmp_path, FACTS, [BORNE, OVERLOADED])
    assert len(rows((tmp_path / "report.html").read_text(encoding="utf-8"))) == 2


@pytest.mark.parametrize("name", ["loadtest.json", "report.html"])
def test_a_report_that_cannot_be_written_leaves_the_earlier_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    write_report(tmp_path, FACTS, [BORNE])
    before = (tmp_path / name).read_text(encoding="utf-8")
    write = Path.write_text

    def write_half(path: Path, text: str, **options: Any) -> int:
        write(path, text[: len(text) // 2], **options)
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_text", write_half)
    with pytest.raises(OSError, match="full"):
        write_report(tmp_path, FACTS, [OVERLOADED])
    assert (tmp_path / name).read_text(encoding="utf-8") == before


def shown(*runs: tuple[float, Outcome]) -> str:
    console = Console(file=io.StringIO(), width=160)
    show(FACTS, list(runs), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_command_prints_a_row_for_each_run() -> None:
    lines = shown(BORNE, OVERLOADED, SILENT).splitlines()
    cells = [re.findall(r"[\d.%–]+", line) for line in lines if line.startswith("│")]
    assert cells == [
        ["2.00", "2.00", "2.0", "100", "100", "100", "0.0%", "60.0%"],
        ["4.00", "1.80", "2.0", "2001", "2001", "2001", "50.0%", "60.0%"],
        ["9.00", "0.00", "0.0", "–", "–", "–", "0.0%", "0.0%"],
    ]


def test_the_rounds_of_a_rate_are_one_row_of_medians_and_of_all_latencies() -> None:
    few, some, many = (2.0, outcome(0.1, OK=10)), (2.0, outcome(0.1, OK=12)), (2.0, outcome(0.3, OK=19, UNAVAILABLE=1))
    (row,) = (line for line in shown(few, many, some).splitlines() if line.startswith("│"))
    assert re.findall(r"[\d.%–]+", row) == ["2.00", "1.20", "1.2", "100", "300", "300", "0.0%", "60.0%"]


def test_a_report_of_rounds_has_a_row_for_each_rate_and_keeps_every_run(tmp_path: Path) -> None:
    write_report(tmp_path, FACTS, [BORNE, OVERLOADED] * 2)
    value = json.loads((tmp_path / "loadtest.json").read_text(encoding="utf-8"))
    assert [run["rate"] for run in value["runs"]] == [2.0, 4.0, 2.0, 4.0]
    assert value["knee"] == 2.0
    assert [row[:2] for row in rows((tmp_path / "report.html").read_text(encoding="utf-8"))] == [
        ["2.00", "40"],
        ["4.00", "80"],
    ]


def test_the_command_prints_the_knee() -> None:
    assert "knee: 2.00 calls a second" in shown(BORNE, OVERLOADED)


def test_the_command_says_when_no_rate_was_borne() -> None:
    assert "no rate was borne" in shown(OVERLOADED)


def test_the_command_says_where_the_generator_was_the_limit() -> None:
    said = "the generator was the limit: 2 late sends"
    assert f"at 8.00 a second {said}" in shown(BORNE, GENERATOR_LIMITED)
    assert said not in shown(BORNE, OVERLOADED)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        pytest.param(["nothing-like-it"], "nothing-like-it.toml", id="unknown profile"),
        pytest.param(["short", "--rate", "0"], "positive", id="no calls at all"),
        pytest.param(["short", "--rate", "1", "-2"], "positive", id="a negative rate"),
        pytest.param(["short", "--rate", "inf"], "positive", id="an endless rate"),
        pytest.param(["short", "--rate", "nan"], "positive", id="a rate that is no number"),
        pytest.param(["short", "--processes", "0"], "not a number of 1 or more", id="no generator"),
        pytest.param(["short", "--rate", "1", "--rounds", "0"], "not a number of 1 or more", id="no rounds"),
        pytest.param(["short", "--rounds", "5"], "of given rates", id="rounds of a sweep"),
    ],
)
def test_a_wrong_command_ends_before_a_server_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["loadtest", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code not in (None, 0)
    assert said in f"{ended.value.code}{capsys.readouterr().err}"


def test_a_profile_that_makes_no_sense_ends_the_command_with_what_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["loadtest", str(write_profile(tmp_path, fan_out=2))])
    with pytest.raises(SystemExit, match="fan_out is a share from 0 to 1"):
        main()
