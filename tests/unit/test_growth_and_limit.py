"""What `loadtest.growth` and `loadtest.limit` make of their measurements: fits, quantiles, shares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from loadtest import limit
from loadtest.growth.curve import Curve, draw, quantile, read, show, write


@pytest.fixture
def curve() -> Curve:
    """Three measurements at each of four places, whose medians lie on 0.1 + 0.02 x."""
    made = Curve("Classifiers", "classifier", "s")
    for x in (1, 2, 8, 16):
        for off in (-0.01, 0.0, 0.5):
            made.add("fan-out", x, 0.1 + 0.02 * x + off)
    return made


def test_a_line_goes_through_the_medians_not_through_what_was_slow_once(curve: Curve) -> None:
    assert curve.line("fan-out") == pytest.approx((0.1, 0.02))


def test_a_curve_is_shown_with_its_fit_and_notes(curve: Curve) -> None:
    console = Console(record=True, width=200)
    curve.notes.append("measured while it rained")
    show(curve, console)
    text = console.export_text()
    assert "0.1000 + 0.020000" in text
    assert "0.420" in text
    assert "measured while it rained" in text


def test_a_curve_of_many_places_is_shown_with_some_and_the_last() -> None:
    many, console = Curve("Tokens", "token", "s"), Console(record=True, width=300)
    for x in range(1, 65):
        many.add("one", x, float(x))
    show(many, console)
    header = console.export_text().splitlines()[2]
    assert " 64 " in header
    assert len(header.split("┃")) < 20


def test_curves_are_drawn_side_by_side(curve: Curve, tmp_path: Path) -> None:
    draw([curve, curve], tmp_path / "growth.svg")
    assert (tmp_path / "growth.svg").read_text().count("Classifiers") >= 2


def test_an_interrupted_run_goes_on_with_the_curves_that_it_has_written(curve: Curve, tmp_path: Path) -> None:
    facts = {"commit": "abc", "rounds": 3, "date": "2026-11-28"}
    assert read(tmp_path / "growth.json", facts) == {}
    write(tmp_path / "growth.json", facts, {"classifiers": curve})
    tomorrow = facts | {"date": "2026-11-29"}
    assert read(tmp_path / "growth.json", tomorrow) == {"classifiers": curve}
    assert (tmp_path / "growth.svg").is_file()


def test_curves_of_other_code_are_not_mixed_with_todays(curve: Curve, tmp_path: Path) -> None:
    write(tmp_path / "growth.json", {"commit": "abc", "rounds": 3}, {"classifiers": curve})
    with pytest.raises(ValueError, match="of another commit and another rounds; name another file"):
        read(tmp_path / "growth.json", {"commit": "def", "rounds": 5})


@pytest.mark.parametrize(("share", "expected"), [(0.5, 3.0), (0.51, 4.0), (0.95, 6.0), (1.0, 6.0), (0.0, 1.0)])
def test_a_quantile_is_one_of_the_values(share: float, expected: float) -> None:
    assert quantile([6.0, 1.0, 2.0, 5.0, 3.0, 4.0], share) == expected


def test_what_is_reached_is_what_was_counted_over_what_the_engine_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = {"prefix": 60e9, "tails": 8e9, "adapters": 1e9, "attention": 5e9, "head": 1e9, "memory_bytes": 2e9}
    monkeypatch.setattr(limit, "counted", lambda prefix, tail: work)
    taken = limit.Taken([320] * 3, [0.2] * 3, [0.26, 0.25, 9.0], [0.25, 0.2, 8.0], [0.1] * 3, [600e9] * 3)
    console = Console(record=True, width=200)
    limit.tell({320: taken}, 3, tmp_path / "limit.json", console)
    cells = [line.split("│") for line in console.export_text().splitlines()]
    rows = {each[1].strip(): each[2].strip() for each in cells if len(each) > 3}
    assert rows["GFLOP/s reached"] == "300.00"  # 75 GFLOP in a median of 0.25 s
    assert rows["reached, % of these"] == "50.00"
    assert rows["fan-out / one"] == "1.30"
    assert rows["service and gRPC, % of the fan-out"] == "3.85"
    written = json.loads((tmp_path / "limit.json").read_text(encoding="utf-8"))
    assert written["medians"]["320"]["GFLOP/s reached"] == pytest.approx(300)
    assert written["measured"]["320"]["fan_out"] == [0.26, 0.25, 9.0]
    assert {"machine", "commit", "date"} <= set(written)
