"""Predictions to measures by source and slice, and those to JSON and one self-contained HTML page with plots."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.domain import Conversation, Role
from service.evaluation.measures import Measures, confusion, macro_f1s, measure, reliability
from service.evaluation.predictions import Predictions, Systems
from service.evaluation.targets import ActedOn
from service.training.records import Record

OURS = "fantail"
ALL = "all"
WORST = 5
"""Mistakes shown of each classifier, the most confident first."""

SLICE_RESAMPLES = 200
SHORT_TURNS, LONG_TURNS = 2, 10


@dataclass(frozen=True, slots=True)
class Mistake:
    """A record answered wrongly, to read."""

    id: str
    gold: str
    label: str
    confidence: float
    conversation: Conversation


@dataclass(frozen=True, slots=True)
class ClassifierReport:
    """`by_system`: measures on all records, ours first; `by_slice`: ours on parts of them; `acted_on`: our answers with
    labels that have a target."""

    name: str
    labels: tuple[str, ...]
    revision: str
    by_system: Mapping[str, Measures]
    by_slice: Mapping[str, Measures]
    predictions: Predictions
    mistakes: Sequence[Mistake]
    acted_on: Sequence[ActedOn] = ()


def classifier_reports(
    systems: Systems, records: Mapping[str, Record], acted_on: Mapping[str, Sequence[ActedOn]] | None = None
) -> list[ClassifierReport]:
    """One report for each classifier that answered; `records` by id, `acted_on` by classifier."""
    reports = []
    for name, ours in systems[OURS].items():
        others = {OURS: ours} | {system: found[name] for system, found in systems.items() if name in found}
        reports.append(
            ClassifierReport(
                name,
                ours.labels,
                ours.revision,
                {system: measure(predictions) for system, predictions in others.items()},
                {
                    slice_name: measure(ours.where(keep), SLICE_RESAMPLES)
                    for slice_name, keep in slices(ours, records).items()
                    if keep.any()
                },
                ours,
                worst(ours, records),
                (acted_on or {}).get(name, ()),
            )
        )
    return reports


def slices(predictions: Predictions, records: Mapping[str, Record]) -> dict[str, NDArray[np.bool_]]:
    """Which records belong to each slice: by length, last speaker and source."""
    talks = [records[each].conversation for each in predictions.ids]
    turns = np.asarray([len(talk.turns) for talk in talks])
    customer_last = np.asarray([talk.turns[-1].role is Role.CUSTOMER for talk in talks])
    found = {
        f"up to {SHORT_TURNS} turns": turns <= SHORT_TURNS,
        f"{SHORT_TURNS + 1} to {LONG_TURNS} turns": (turns > SHORT_TURNS) & (turns <= LONG_TURNS),
        f"more than {LONG_TURNS} turns": turns > LONG_TURNS,
        "customer spoke last": customer_last,
        "agent or system spoke last": ~customer_last,
    }
    sources = np.asarray(predictions.sources)
    return found | {f"source {source}": sources == source for source in sorted(set(predictions.sources))}


def worst(predictions: Predictions, records: Mapping[str, Record]) -> list[Mistake]:
    """The most confident mistakes."""
    confidence = predictions.probabilities.max(axis=1)
    wrong = np.flatnonzero(~predictions.right)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:WORST]
    return [
        Mistake(
            predictions.ids[i],
            predictions.labels[predictions.gold[i]],
            predictions.labels[predictions.chosen[i]],
            float(confidence[i]),
            records[predictions.ids[i]].conversation,
        )
        for i in order
    ]


def summary(reports: Sequence[ClassifierReport]) -> dict[str, Any]:
    """Means over classifiers by system, and every measure; NaN as null. Of mistakes the ids, not what was said.

    A system that has not answered about all classifiers has a mean of those alone: `classifiers` counts them, and
    `ours` is our macro-F1 over the same.
    """
    systems = list(dict.fromkeys(system for report in reports for system in report.by_system))
    answered = {system: [report.by_system for report in reports if system in report.by_system] for system in systems}
    means = {
        system: {
            key: _mean([getattr(by_system[system], key) for by_system in those])
            for key in ("accuracy", "macro_f1", "auc", "ece", "ece_raw", "brier", "brier_raw", "answered")
        }
        | {"classifiers": len(those), "ours": _mean([by_system[OURS].macro_f1 for by_system in those])}
        for system, those in answered.items()
    }
    classifiers = {
        report.name: {
            "revision": report.revision,
            "labels": list(report.labels),
            "by_system": {system: _plain(asdict(m)) for system, m in report.by_system.items()},
            "by_slice": {part: _plain(asdict(m)) for part, m in report.by_slice.items()},
            "confusion": confusion(report.predictions).tolist(),
            "reliability": {
                name: [_plain(asdict(each)) for each in reliability(values, report.predictions.gold)]
                for name, values in _before_and_after(report.predictions)
            },
            "mistakes": [
                _plain({key: value for key, value in asdict(each).items() if key != "conversation"})
                for each in report.mistakes
            ],
            "acted_on": [_plain(asdict(each)) for each in report.acted_on],
        }
        for report in reports
    }
    return {"means": {system: _plain(found) for system, found in means.items()}, "classifiers": classifiers}


def source_means(systems: Systems) -> dict[str, dict[str, Any]]:
    """By source: records and, by system, mean accuracy and macro-F1 over the classifiers that it has labels of.

    `records`: labels, of all classifiers together. A classifier with one label only in a source has no macro-F1 there;
    `classifiers` and `labels` count those that have one, and their labels.
    """
    found: dict[str, dict[str, Any]] = {}
    for source in sorted({each for ours in systems[OURS].values() for each in ours.sources}):
        parts = {
            system: [part for each in by_name.values() if len((part := _of_source(each, source)).ids)]
            for system, by_name in systems.items()
        }
        found[source] = {"records": sum(len(part.ids) for part in parts[OURS])} | {
            system: _plain(_of_parts(those)) for system, those in parts.items()
        }
    return found


def _of_parts(parts: Sequence[Predictions]) -> dict[str, Any]:
    macro_f1 = [float(macro_f1s(part.gold, part.chosen, len(part.labels))[0]) for part in parts]
    labels = [len(part.ids) for part, f1 in zip(parts, macro_f1, strict=True) if not math.isnan(f1)]
    return {
        "classifiers": len(labels),
        "labels": sum(labels),
        "accuracy": _mean([float(part.right.mean()) for part in parts]),
        "macro_f1": _mean(macro_f1),
    }


def _of_source(predictions: Predictions, source: str) -> Predictions:
    return predictions.where(np.asarray([each == source for each in predictions.sources], dtype=np.bool_))


def html(
    reports: Sequence[ClassifierReport],
    title: str,
    facts: Mapping[str, str],
    sources: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """One page with everything in it; conversation texts are escaped. `sources`: as of `source_means`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("service.evaluation"),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = lambda value: "–" if math.isnan(value) else f"{value:.3f}"
    systems = list(dict.fromkeys(system for report in reports for system in report.by_system))
    return environment.get_template("report.html").render(
        title=title,
        facts=facts,
        systems=systems,
        means=summary(reports)["means"],
        sources=sources or {},
        reports=reports,
        overview=_svg(_overview(reports, systems)),
        plots={report.name: _svg(_plots(report)) for report in reports},
    )


def _overview(reports: Sequence[ClassifierReport], systems: Sequence[str]) -> Any:
    """Macro-F1 of every classifier and system, with our interval."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.34 * len(reports) + 1), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(reports))[::-1]
    for system in systems:
        found = [report.by_system.get(system) for report in reports]
        values = [math.nan if each is None else each.macro_f1 for each in found]
        if system == OURS:
            bounds = np.asarray([report.by_system[system].macro_f1_interval for report in reports])
            axes.hlines(rows, bounds[:, 0], bounds[:, 1], color="#1b6ca8", linewidth=6, alpha=0.25)
        axes.plot(values, rows, "o" if system == OURS else "|", markersize=8, label=system)
    axes.set_yticks(rows, [report.name for report in reports])
    axes.set_xlim(0, 1.01)
    axes.set_xlabel("macro-F1")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(loc="lower left", fontsize=8)
    return figure


def _plots(report: ClassifierReport) -> Any:
    """Confusion on the left, reliability before and after calibration on the right."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    counts = confusion(report.predictions)
    left.imshow(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        left.text(column, row, str(count), ha="center", va="center")
    left.set_xticks(range(len(report.labels)), report.labels, rotation=30)
    left.set_yticks(range(len(report.labels)), report.labels)
    left.set_xlabel("answered")
    left.set_ylabel("labelled")
    right.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for name, values in _before_and_after(report.predictions):
        bins = reliability(values, report.predictions.gold)
        right.plot([b.confidence for b in bins], [b.accuracy for b in bins], "o-", markersize=4, label=name)
    right.set_xlabel("confidence")
    right.set_ylabel("accuracy")
    right.set_xlim(0, 1.02)
    right.set_ylim(0, 1.02)
    right.legend(fontsize=8)
    return figure


def _before_and_after(predictions: Predictions) -> list[tuple[str, NDArray[np.float64]]]:
    """Probabilities before and after calibration, by what a diagram calls them."""
    return [("raw", predictions.raw), ("calibrated", predictions.probabilities)]


def _svg(figure: Any) -> str:
    """The figure as an inline element; text stays text, so that it can be searched."""
    import matplotlib

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fantail"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()[buffer.getvalue().index("<svg") :]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _plain(value: Any) -> Any:
    """The same for JSON: numbers of four digits, NaN as null."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return None if math.isnan(value) else round(value, 4)
    return value
