"""`python -m loadtest.growth`: how cost grows, one curve after the other, each with its fitted line; prints and writes.

Every curve starts a server of its own. Measurements alternate over the places of a curve and are medians, memory aside,
which is weighed once; every conversation is new unless a curve is about going on with one.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from rich.progress import Progress

from loadtest.growth.adapters import ADAPTERS, SLOTS, memory, per_adapter
from loadtest.growth.curve import Curve, read, show, write
from loadtest.growth.reloads import RELOADS, per_reload
from loadtest.growth.requests import CONVERSATION_TOKENS, COUNTS, TURNS, per_call, per_classifier, per_token, per_turn
from loadtest.output import positive, wide_console
from loadtest.server import provenance

WIDTH = 140
"""Of the output where it goes to no terminal."""

Measure = Callable[[Curve, int, Callable[[], None]], Coroutine[Any, Any, None]]
"""Fills a curve in so many rounds; calls its third argument after each step."""

CURVES: dict[str, tuple[str, str, str, Measure, int]] = {
    "tokens": ("cost per token of conversation", "token", "s", per_token, 7),
    "classifiers": (
        f"cost per classifier, {CONVERSATION_TOKENS} tokens",
        "classifier",
        "s",
        per_classifier,
        len(COUNTS),
    ),
    "turns": ("cost per turn of a live conversation", "turn", "s", per_turn, TURNS - 1),
    "calls": ("cost per call under way, 320 tokens", "call", "s", per_call, 5),
    "adapters": (f"{ADAPTERS} adapters in {SLOTS} slots", "adapter", "s", per_adapter, 1),
    "reloads": ("reloads of a changed classifier, until the new one answers alone", "reload", "s", per_reload, RELOADS),
    "memory": (f"resident memory, {SLOTS} slots, 1 GiB of KV", "adapter", "GiB", memory, 4),
}

WEIGHED = ("memory",)
"""Curves that are no matter of time: each place is a server of its own, which holds what it holds."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.growth", description=__doc__)
    parser.add_argument("curves", nargs="*", help=f"of {', '.join(CURVES)}; default all")
    parser.add_argument(
        "--rounds",
        type=positive,
        default=5,
        help=f"measurements of each place; {', '.join(WEIGHED)}: once, whatever is said",
    )
    parser.add_argument("--output", type=Path, help="also write everything as JSON, and beside it the curves as SVG")
    parser.add_argument(
        "--resume", action="store_true", help="keep the curves that --output has; measure those that it lacks"
    )
    options = parser.parse_args()
    if options.resume and not options.output:
        parser.error("--resume goes on with what --output has")
    if unknown := set(options.curves) - set(CURVES):
        parser.error(f"no such curve: {', '.join(sorted(unknown))}")
    console = wide_console(WIDTH)
    facts = {**provenance(), "rounds": options.rounds}
    try:
        curves = read(options.output, facts) if options.resume else {}
    except ValueError as error:
        parser.error(str(error))
    for name in options.curves or CURVES:
        if name in curves:
            show(curves[name], console)
            continue
        title, x, unit, measure, _ = CURVES[name]
        curve = Curve(title, x, unit)
        with Progress(console=console) as progress:
            bar = progress.add_task(title, total=steps(name, options.rounds))
            asyncio.run(measure(curve, options.rounds, lambda bar=bar: progress.advance(bar)))  # type: ignore[misc]
        curves[name] = curve
        show(curve, console)
        if options.output:
            write(options.output, facts, curves)


def steps(name: str, rounds: int) -> int:
    """How often a curve's measurement says that it is further."""
    return CURVES[name][-1] * (1 if name in WEIGHED else rounds)


if __name__ == "__main__":
    main()
