"""A curve: what was measured at each place, the line through it, and how both are shown."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from loadtest.output import write_whole

MOST_COLUMNS = 10


@dataclass(slots=True)
class Curve:
    """What is measured over `x`, by series: all measurements of each place, in `unit`."""

    title: str
    x: str
    unit: str
    values: dict[str, dict[float, list[float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, series: str, x: float, value: float) -> None:
        self.values.setdefault(series, {}).setdefault(x, []).append(value)

    def medians(self, series: str) -> dict[float, float]:
        return {x: statistics.median(each) for x, each in self.values[series].items()}

    def line(self, series: str) -> tuple[float, float]:
        """Value at x = 0 and per unit of x, by least squares over the medians."""
        points = self.medians(series)
        slope, start = np.polyfit(list(points), list(points.values()), 1)
        return float(start), float(slope)


def write(path: Path, facts: Mapping[str, object], curves: Mapping[str, Curve]) -> None:
    """The curves so far with the `facts` of their run, as a whole; beside them, drawn."""
    found = {name: asdict(each) for name, each in curves.items()}
    write_whole(path, json.dumps({**facts, "curves": found}, indent=1) + "\n")
    draw(list(curves.values()), path.with_suffix(".svg"))


def read(path: Path, facts: Mapping[str, object]) -> dict[str, Curve]:
    """The curves that a run which was interrupted has written; none where there is no file.

    Raises ValueError when that run was of other `facts`: its figures and today's do not belong into one table.
    """
    if not path.is_file():
        return {}
    written = json.loads(path.read_text(encoding="utf-8"))
    if other := [name for name, value in facts.items() if name != "date" and written.get(name) != value]:
        raise ValueError(f"{path} is of another {' and another '.join(other)}; name another file, or measure all anew")
    curves = {}
    for name, curve in written["curves"].items():
        values = {
            series: {float(x): measured for x, measured in points.items()} for series, points in curve["values"].items()
        }
        curves[name] = Curve(**curve | {"values": values})
    return curves


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that so many of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def spread(values: Sequence[float]) -> str:
    """The median and the quartiles, to be read."""
    low, high = quantile(values, 0.25), quantile(values, 0.75)
    return f"{statistics.median(values):.2f} (quartiles {low:.2f} and {high:.2f}, {len(values)} pairs)"


def show(curve: Curve, console: Console) -> None:
    table = Table(title=f"{curve.title} · {curve.unit}", caption="\n".join(curve.notes) or None)
    table.add_column("")
    places = sorted({x for points in curve.values.values() for x in points})
    if len(places) > MOST_COLUMNS:
        places = places[: -1 : len(places) // MOST_COLUMNS + 1] + places[-1:]
    for x in places:
        table.add_column(f"{x:g}", justify="right")
    table.add_column(f"fit: at 0 + per {curve.x}", justify="right")
    for series in curve.values:
        medians, (start, slope) = curve.medians(series), curve.line(series)
        cells = [f"{medians[x]:.3f}" if x in medians else "" for x in places]
        table.add_row(series, *cells, f"{start:.4f} + {slope:.6f}")
    console.print(table)


def draw(curves: Sequence[Curve], path: Path) -> None:
    """All curves side by side: medians as points, fits as lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * len(curves), 3.6), layout="constrained")
    for axes, curve in zip(figure.subplots(1, len(curves), squeeze=False)[0], curves, strict=True):
        for series in curve.values:
            medians, (start, slope) = curve.medians(series), curve.line(series)
            points = axes.plot(list(medians), list(medians.values()), ".", label=series)
            ends = (min(medians), max(medians))
            axes.plot(ends, [start + slope * x for x in ends], color=points[0].get_color(), linewidth=0.8)
        axes.set(title=curve.title, xlabel=curve.x, ylabel=curve.unit, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})
