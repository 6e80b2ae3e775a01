"""A load test's report: whole or not at all, one page that needs nothing else; and what the command prints."""

from __future__ import annotations

import argparse
import io
import json
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loadtest.__main__ import COLUMNS, facts_of, main, show
from loadtest.outcome import Outcome, pooled, seconds
from loadtest.report import OF_LENGTHS, goodput_plot, html, write_report
from tests.traffic import outcome, profile, write_profile

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
    titles = (
        "latency of answered calls",
        "goodput; and share turned away",
        "latency by percentile",
        "the server's own stages",
    )
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


def test_a_page_names_the_knee_and_takes_it_from_no_run_that_the_generator_limited(page: str) -> None:
    assert "2.00 calls a second: the highest rate" in page


def test_a_page_says_when_no_rate_was_borne() -> None:
    assert "no rate was borne" in html(FACTS, [OVERLOADED, GENERATOR_LIMITED])


def test_the_share_that_is_turned_away_is_drawn_as_a_share() -> None:
    _, share = goodput_plot(RUNS).axes
    (line,) = share.get_lines()
    assert list(line.get_ydata()) == [0.0, 0.5, 0.0, 0.0]
    assert share.get_ylim() == (0.0, 1.0)


def test_a_page_has_a_row_of_figures_for_each_run(page: str) -> None:
    borne, overloaded, *_ = rows(page)
    assert borne[:5] == ["2.00", "20", "2.00", "2.0", "80"]
    assert overloaded[:5] == ["4.00", "40", "1.80", "2.0", "80"]
    assert overloaded[-4:] == ["50.0%", "60.0%", "20 RESOURCE_EXHAUSTED, 18 OK, 2 PARTLY", ""]


def test_a_page_says_where_the_generator_was_the_limit(page: str) -> None:
    assert [cells[-1] for cells in rows(page)] == ["", "", "2 late sends", ""]


def test_a_page_says_nothing_of_a_late_send_among_many() -> None:
    assert rows(html(FACTS, [(20.0, outcome(OK=200, late=2))]))[0][-1] == ""


def test_a_run_without_answers_has_dashes_for_latencies(page: str) -> None:
    assert rows(page)[-1][5:11] == ["–"] * 6
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
    assert value["knee"] == 2.0
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


def shown(*runs: tuple[float, Outcome], facts: Mapping[str, str] = FACTS) -> str:
    console = Console(file=io.StringIO(), width=160)
    show(facts, list(runs), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def tables(printed: str) -> tuple[list[list[str]], list[list[str]]]:
    """The cells of each rate, and of each length at each rate."""
    lines = [re.findall(r"[\d.,%–]+", line) for line in printed.splitlines() if line.startswith("│")]
    return [cells for cells in lines if len(cells) == len(COLUMNS)], [c for c in lines if len(c) == len(OF_LENGTHS)]


def test_the_command_prints_a_row_for_each_run() -> None:
    cells, _ = tables(shown(BORNE, OVERLOADED, SILENT))
    assert cells == [
        ["2.00", "20", "2.00", "2.0", "80", "100", "100", "–", "–", "0.0%", "60.0%"],
        ["4.00", "40", "1.80", "2.0", "80", "2001", "2001", "–", "–", "50.0%", "60.0%"],
        ["9.00", "90", "0.00", "0.0", "0", "–", "–", "–", "–", "0.0%", "0.0%"],
    ]


MANY = 200
LIGHT = [outcome(0.1, length=100, OK=MANY), outcome(0.5, length=1000, OK=MANY)]
HEAVY = [outcome(0.2, length=100, OK=150, PARTLY=50), outcome(0.6, length=1000, OK=20, RESOURCE_EXHAUSTED=180)]
BY_LENGTH = [(1.0, pooled(LIGHT)), (9.0, pooled(HEAVY))]
OF_EACH_LENGTH = [
    ["1.00", "100", "200", "200", "100.0%", "100", "100", "–", "–"],
    ["1.00", "1,000", "200", "200", "100.0%", "500", "500", "–", "–"],
    ["9.00", "100", "200", "150", "75.0%", "200", "200", "2.00", "2.00"],
    ["9.00", "1,000", "200", "20", "10.0%", "600", "–", "1.20", "–"],
]


def test_the_command_shows_when_only_short_conversations_get_through() -> None:
    _, cells = tables(shown(*BY_LENGTH))
    assert cells == OF_EACH_LENGTH


def test_a_page_shows_when_only_short_conversations_get_through() -> None:
    lengths = re.findall(r'<tr class="length">.*?</tr>', html(FACTS, BY_LENGTH), re.DOTALL)
    assert [re.findall(r"<td>(.*?)</td>", row) for row in lengths] == OF_EACH_LENGTH


def test_the_99th_percentile_is_told_as_a_multiple_of_the_lowest_rates() -> None:
    runs = [(9.0, outcome(0.3, OK=100)), (1.0, outcome(0.2, OK=100))]
    assert [cells[8] for cells in tables(shown(*runs))[0]] == ["1.50", "–"]
    assert [row[10] for row in rows(html(FACTS, runs))] == ["1.50", "–"]


def test_the_rounds_of_a_rate_are_one_row_of_medians_and_of_all_latencies() -> None:
    few, some, many = (2.0, outcome(0.1, OK=10)), (2.0, outcome(0.1, OK=12)), (2.0, outcome(0.3, OK=19, UNAVAILABLE=1))
    (row,), _ = tables(shown(few, many, some))
    assert row == ["2.00", "42", "1.20", "1.2", "48", "100", "300", "–", "–", "0.0%", "60.0%"]


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
    assert "knee: 2.00" in shown(BORNE, GENERATOR_LIMITED)
    assert said not in shown(BORNE, OVERLOADED)


def told(address: str | None) -> dict[str, str]:
    return facts_of(profile(), argparse.Namespace(address=address, processes=1, seed=1, rounds=1))


def test_of_a_server_that_ran_already_the_report_claims_to_know_nothing() -> None:
    there, here = told("elsewhere:50051"), told(None)
    for name in ("machine", "commit", "versions"):
        assert name not in there
        assert (there[f"generator {name}"], there[f"server {name}"]) == (here[name], "unknown")
    assert (there["server"], there["date"]) == ("elsewhere:50051", here["date"])


def test_the_command_does_not_print_the_generators_machine_as_the_servers() -> None:
    printed, mine = shown(BORNE, facts=told("elsewhere:50051")), told(None)
    assert "elsewhere:50051 · machine and commit of the server unknown" in printed
    assert mine["machine"] not in printed
    assert mine["machine"] in shown(BORNE, facts=mine)


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
