"""A plan as tables for people. Knows rich."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from service.engine.hardware import GIB
from service.planning.plan import Plan


def show_plan(plan: Plan, console: Console) -> None:
    """Memory, work and traffic, one table each, then the warnings."""
    machine = plan.deployment.machine
    what = f"{'GPU' if machine.gpu else 'CPU'}, {machine.memory_bytes / GIB:g} GiB"
    rates = f"{machine.operations_per_s / 1e12:g} TFLOP/s, {machine.memory_bytes_per_s / 1e9:g} GB/s"
    _print(console, f"memory ({what})", ("part", "<GiB", "of"), _memory(plan))
    parts = ("<prefix", "<tails", "<adapters", "<attention", "<head")
    columns = ("<tokens", "asked", *parts, "<seconds", "bound by")
    _print(console, f"GFLOP of a call by part, and its time ({rates})", columns, _work(plan))
    rate, price = plan.deployment.calls_per_s, machine.price_per_hour
    title = f"{rate:g} fan-outs a second, {price:g} per machine hour; cost per million classifications"
    numbers = ("<machines", "<busy", "<let in", "<turned away", "<seconds", "<under way", "<cost", "<times")
    _print(console, title, ("<tokens", "way", *numbers), _traffic(plan))
    for warning in plan.warnings:
        console.print(f"[yellow]warning[/]: {escape(warning)}", highlight=False, soft_wrap=True)


def _print(console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table; a column that starts with < is one of numbers."""
    table = Table(title=title, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for column in columns:
        table.add_column(column.removeprefix("<"), justify="right" if column[0] == "<" else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print()


def _memory(plan: Plan) -> list[tuple[str, str, str]]:
    memory, deployment = plan.memory, plan.deployment
    adapters, conversations = (
        len(deployment.served.ranks),
        ", ".join(f"{x.held:,} of {x.tokens:,}" for x in plan.lengths),
    )
    rows = (
        ("weights", memory.weights, f"{deployment.shape.parameters / 1e6:,.1f} M numbers, {deployment.dtype}"),
        ("slots", memory.slots, f"{plan.slot_count} of rank {plan.slot_rank}, {plan.slot_bytes / 1e6:,.1f} MB each"),
        ("adapters", memory.adapters, f"{adapters} and {deployment.spare_adapters} spare, in main memory"),
        ("a step", memory.step, f"activations of {deployment.step_tokens:,} tokens, logits"),
        ("runtime", memory.runtime, "processes and libraries, an allowance"),
        ("KV", memory.kv, f"{plan.kv_tokens:,} tokens of {deployment.kv_token_bytes:,} bytes: holds {conversations}"),
    )
    return [(part, f"{size / GIB:.2f}", what) for part, size, what in rows]


def _work(plan: Plan) -> list[tuple[str, ...]]:
    rows = []
    for each in plan.lengths:
        for asked, work in (("one", each.one), (f"all {plan.deployment.served.fan.size}", each.fan_out)):
            parts = (work.prefix, work.tails, work.adapters, work.attention, work.head)
            bound = "memory" if work.memory_s > work.arithmetic_s else "arithmetic"
            numbers = [f"{part / 1e9:,.1f}" for part in parts]
            rows.append((f"{each.tokens:,}", asked, *numbers, f"{work.seconds:.3f}", bound))
    return rows


def _traffic(plan: Plan) -> list[tuple[str, ...]]:
    return [
        (
            f"{each.tokens:,}",
            way.name,
            f"{way.machines:,}",
            f"{way.busy:.0%}",
            "all" if way.let_in is None else f"{way.let_in:,}",
            f"{way.turned_away:.1%}",
            f"{way.latency_s:.3f}",
            f"{way.under_way:.2f}",
            f"{way.cost:,.2f}",
            f"{way.cost / each.ways[0].cost:.1f}",
        )
        for each in plan.lengths
        for way in each.ways
    ]
