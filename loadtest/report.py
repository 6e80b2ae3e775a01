"""Runs of a sweep to JSON and one self-contained HTML page with plots."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtest.outcome import PERCENTILES, STAGES, Outcome, milliseconds, seconds
from loadtest.output import write_whole
from loadtest.run import is_generator_the_limit, knee, pool

Runs = Sequence[tuple[float, Outcome]]


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
        rows=[_row(rate, outcome) for rate, outcome in runs],
        percentiles=[f"p{percentile:g}" for percentile in PERCENTILES],
        knee=None if found is None else f"{found[0]:.2f}",
        plots=[_svg(plot) for plot in (_latency(runs), _goodput(runs), _distribution(runs), _stages(runs))],
    )


def _row(rate: float, outcome: Outcome) -> dict[str, Any]:
    return {
        "rate": f"{rate:.2f}",
        "sent": outcome.sent,
        "goodput": f"{outcome.goodput:.2f}",
        "classified": f"{outcome.classification_rate:.1f}",
        "latency": [milliseconds(outcome.latency, percentile) for percentile in PERCENTILES],
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


def _goodput(runs: Runs) -> Any:
    figure, axes = _axes("goodput", "calls offered a second", "calls a second")
    rates = [rate for rate, _ in runs]
    axes.plot(rates, rates, color="grey", linewidth=0.8, label="offered")
    axes.plot(rates, [outcome.goodput for _, outcome in runs], "o-", label="answered in time")
    axes.plot(rates, [outcome.shed_share * outcome.offered_rate for _, outcome in runs], "o--", label="turned away")
    axes.legend()
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
