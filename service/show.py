"""Answers as tables for people. Knows the contract's messages and rich."""

from __future__ import annotations

from google.protobuf.duration_pb2 import Duration
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.pb.fantail.v1 import classification_service_pb2 as pb


def show_fan_out(response: pb.FanOutResponse, console: Console) -> None:
    """One line per classifier, then the tokens and stage times of the call."""
    title = f"{len(response.results)} classifiers, one conversation, one call"
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in ("classifier", "label", "confidence", "label mass", "computed", "reused"):
        table.add_column(column, justify="left" if column in ("classifier", "label") else "right")
    for result in response.results:
        if result.HasField("status"):
            table.add_row(escape(result.classifier), f"[red]{escape(result.status.message)}[/]")
            continue
        answer = result.classification
        table.add_row(
            escape(answer.classifier),
            f"{escape(answer.label)} [dim](abstains)[/]" if answer.abstained else escape(answer.label),
            f"{answer.confidence:.3f}",
            f"{answer.label_mass:.3f}",
            str(answer.usage.computed_tokens),
            str(answer.usage.reused_tokens),
        )
    console.print(table)
    usage, times = response.usage, response.durations
    console.print(f"tokens: {usage.computed_tokens} computed, {usage.reused_tokens} reused")
    stages = ", ".join(
        f"{name} {_ms(getattr(times, name)):.1f} ms" for name in ("prompt", "engine", "scoring", "total")
    )
    console.print(f"stages: {stages}")


def _ms(duration: Duration) -> float:
    return duration.ToNanoseconds() / 1e6
