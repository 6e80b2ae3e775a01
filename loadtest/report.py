"""Runs of a sweep to JSON and one self-contained HTML page with plots."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.outcome import PERCENTILES, STAGES, OfLength, Outcome, milliseconds, ratio, seconds
from loadtest.output import write_whole
from loadtest.run import is_generator_the_limit, knee, pool, unloaded

Runs = Sequence[tuple[float, Outcome]]

OF_LENGTHS = ("offered / s", "length", "sent", "answered", "share", "p50 ms", "p99 ms", "p50 / lowest", "p99 / lowest")
"""Columns of `length_rows`; the last two are against the same length at the lowest rate, which stands for no load."""


def write_report(folder: Path, facts: Mapping[str, Any], runs: Runs) -> None:
    """Write `loadtest.json` with every run and `report.html` with each rate's pooled, as a whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    rates = pool(runs)
    found = knee(rates)
    value = dict(facts) | {
        "knee": None if found is None else found[0],
        "runs": [{"rate": rate, **outcome.to_json()} for rate, outcome in runs],
    }
    write_whole(folder / "loadtest.json", json.dumps(value, indent=1) + "\n")
    write_whole(folder / "report.html", html(facts, rates))


def html(facts: Mapping[str, Any], runs: Runs) -> str:
    """One page with everything in it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("loadtest"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found = knee(runs)
    return environment.get_template("report.html").render(
        facts=facts,
        rows=[_row(rate, outcome, unloaded(runs)) for rate, outcome in runs],
        of_lengths=OF_LENGTHS,
        length_rows=length_rows(runs),
        percentiles=[f"p{percentile:g}" for percentile in PERCENTILES],
        knee=None if found is None else f"{found[0]:.2f}",
        plots=[_svg(plot) for plot in (_latency(runs), goodput_plot(runs), _distribution(runs), _stages(runs))],
    )


def length_rows(rates: Runs) -> list[tuple[str, ...]]:
    """By rate and length of conversation: what was sent, what of it wholly answered in time, and how fast."""
    return [
        (f"{rate:.2f}", f"{length:,}", *_length_cells(of_length, unloaded(rates).lengths.get(length, OfLength())))
        for rate, outcome in rates
        for length, of_length in sorted(outcome.lengths.items())
    ]


def _length_cells(each: OfLength, lowest: OfLength) -> tuple[str, ...]:
    percentiles = [milliseconds(each.latency, percentile) for percentile in (50.0, 99.0)]
    ratios = [ratio(each.latency, lowest.latency, percentile) for percentile in (50.0, 99.0)]
    return (str(each.sent), str(each.good), f"{each.good / each.sent:.1%}", *percentiles, *ratios)


def _row(rate: float, outcome: Outcome, lowest: Outcome) -> dict[str, Any]:
    return {
        "rate": f"{rate:.2f}",
        "sent": outcome.sent,
        "goodput": f"{outcome.goodput:.2f}",
        "classified": f"{outcome.classification_rate:.1f}",
        "read": f"{outcome.read_rate:,.0f}",
        "latency": [milliseconds(outcome.latency, percentile) for percentile in PERCENTILES],
        "ratio": ratio(outcome.latency, lowest.latency, 99.0),
        "shed": f"{outcome.shed_share:.1%}",
        "reused": f"{outcome.reused_share:.1%}",
        "statuses": ", ".join(f"{count} {status}" for status, count in outcome.by_status.most_common()),
        "late": f"{outcome.late_sends} late sends" if is_generator_the_limit(outcome) else "",
    }


def _axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return figure, axes


def _latency(runs: Runs) -> Any:
    figure, axes = _axes("latency of answered calls", "calls offered a second", "milliseconds from when they were due")
    for percentile in (50.0, 95.0, 99.0):
        values = [1000 * seconds(outcome.latency, percentile) for _, outcome in runs]
        axes.plot([rate for rate, _ in runs], values, "o-", label=f"p{percentile:g}")
    axes.set_yscale("log")
    axes.legend()
    return figure


def goodput_plot(runs: Runs) -> Any:
    figure, axes = _axes("goodput; and share turned away", "calls offered a second", "calls a second")
    rates = [rate for rate, _ in runs]
    axes.plot(rates, rates, color="grey", linewidth=0.8, label="offered")
    axes.plot(rates, [outcome.goodput for _, outcome in runs], "o-", label="answered in time")
    axes.legend(loc="upper left")
    share = axes.twinx()
    share.plot(rates, [outcome.shed_share for _, outcome in runs], "k:", label="share turned away")
    share.set_ylim(0, 1)
    share.legend(loc="lower right")
    return figure


def _distribution(runs: Runs) -> Any:
    figure, axes = _axes("latency by percentile", "percentile", "milliseconds")
    places = [1.0, 5, 10, 25, 50, 75, 90, 95, 99, 99.9]
    for rate, outcome in runs:
        values = [1000 * seconds(outcome.latency, place) for place in places]
        axes.plot(range(len(places)), values, label=f"{rate:.1f} a second")
    axes.set_yscale("log")  # before the ticks, or matplotlib refuses to draw where nothing was answered
    axes.set_xticks(range(len(places)), [f"{place:g}" for place in places])
    axes.legend(fontsize=7)
    return figure


def _stages(runs: Runs) -> Any:
    figure, axes = _axes("the server's own stages, p50; and tokens reused", "calls offered a second", "milliseconds")
    rates = [rate for rate, _ in runs]
    for stage in STAGES:
        axes.plot(rates, [1000 * seconds(outcome.stages[stage], 50) for _, outcome in runs], "o-", label=stage)
    axes.set_yscale("log")
    axes.legend(loc="upper left")
    share = axes.twinx()
    share.plot(rates, [outcome.reused_share for _, outcome in runs], "k:", label="share of tokens reused")
    share.set_ylim(0, 1)
    share.legend(loc="lower right")
    return figure


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]
