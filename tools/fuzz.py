"""Fuzzes the wire: `python -m tools.fuzz` sends 100,000 hostile calls to a real server in this process and counts.

Exits 1 when a call gets no reply in time, ends with INTERNAL or UNKNOWN, or when the calls leave something behind: work
in flight, tasks, memory, or a server that does not answer. The same seed makes the same calls. In the environment,
GRPC_VERBOSITY=NONE keeps gRPC's own complaints about malformed headers out of the picture, and MALLOC_ARENA_MAX=1
leaves out of the memory what the allocator would keep for each thread.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import gc
import logging
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tools.fuzz_inputs import METHODS, Input, inputs, varied
from tools.fuzz_target import Ended, Target, problem, target

CHUNK = 1_000
"""Calls that are made up together; while one chunk is sent, another process makes up the next."""

VARIATIONS = 2
"""Calls with spoilt bytes that are made of each drawn one, being ten times cheaper than drawing."""

MOST_VARIED_BYTES = 10_000
AT_ONCE = 32
SHOWN = 5
WARM_UP = 0.25
"""Share of the calls after which memory is looked at for the first time: by then caches that are bounded are full."""

MOST_GROWTH_MIB = 32.0
TABLE_WIDTH = 200
EVERY = list(HealthCheck)


@dataclass
class Tally:
    """What came of the calls so far. `counts`: by method and how it ended; `failures`: what must not be."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[tuple[str, Input]] = field(default_factory=list)
    distinct: set[int] = field(default_factory=set)
    slowest: tuple[float, str] = (0.0, "")

    def add(self, each: Input, ended: Ended, seconds: float) -> None:
        self.counts[each.method, ended.how] += 1
        self.distinct.add(hash(each))
        said = f"{seconds:.2f} s, {each.method.rpartition('/')[2]}, {sum(map(len, each.messages)):,} bytes"
        self.slowest = max(self.slowest, (seconds, said))
        if (wrong := problem(each, ended)) is not None:
            self.failures.append((f"{wrong} {ended.message}", each))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=100_000, help="how many calls")
    parser.add_argument("--seed", type=int, default=1, help="of all chance")
    options = parser.parse_args()
    logging.disable()  # hostile calls make every log long; what matters is counted here
    console = Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)
    sys.exit(asyncio.run(fuzz(options.inputs, options.seed, console)))


async def fuzz(count: int, seed: int, console: Console) -> int:
    """Send, print the table and what is wrong; returns the exit code."""
    tally, began, unhandled = Tally(), time.monotonic(), list[str]()
    asyncio.get_running_loop().set_exception_handler(lambda _, about: unhandled.append(unhandled_of(about)))
    with tempfile.TemporaryDirectory(prefix="fantail-fuzz-") as scratch:
        async with target(Path(scratch)) as server:
            grown = await send_all(server, count, seed, tally, console)
            left = await server.wrong_when_idle()
            gc.collect()
            left += [f"{what} ({times} times)" for what, times in Counter(unhandled).items()]
    console.print(table(tally))
    console.print(
        f"{len(tally.distinct):,} distinct calls in {time.monotonic() - began:.0f} s, seed {seed}; slowest reply: "
        f"{tally.slowest[1]}; memory {grown:+.0f} MiB over the last {1 - WARM_UP:.0%}"
    )
    left += [f"{grown:.0f} MiB more memory"] if grown > MOST_GROWTH_MIB else []
    for what in left:
        console.print(f"[red]left behind[/]: {what}")
    for wrong, each in sorted(tally.failures, key=lambda failure: len(repr(failure)))[:SHOWN]:
        console.print(f"[red]{wrong}[/]: ", end="")
        console.print(repr(each)[:2000], markup=False, highlight=False, soft_wrap=True)
    console.print(f"{len(tally.failures)} calls failed")
    return 1 if left or tally.failures else 0


async def send_all(server: Target, count: int, seed: int, tally: Tally, console: Console) -> float:
    """Send everything, some calls at once; returns by how many MiB memory has grown since the warm-up."""
    at_once, warm = asyncio.Semaphore(AT_ONCE), 0.0

    async def one(each: Input) -> None:
        async with at_once:
            began = time.monotonic()
            tally.add(each, await server.send(each), time.monotonic() - began)
        progress.advance(bar)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("calls", total=count)
        async for chunk in chunks(count, seed, server.revisions):
            async with asyncio.TaskGroup() as group:
                for each in chunk:
                    group.create_task(one(each))
            if not warm and tally.counts.total() >= WARM_UP * count:
                warm = resident_mib()
    return resident_mib() - warm


async def chunks(count: int, seed: int, revisions: tuple[str, ...]) -> AsyncIterator[list[Input]]:
    """The calls, in parts; each part is made up in another process while the one before is sent."""
    loop = asyncio.get_running_loop()
    sizes = [min(CHUNK, count - begin) for begin in range(0, count, CHUNK)]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        made = [loop.run_in_executor(pool, chunk_of, size, seed + i, revisions) for i, size in enumerate(sizes[:2])]
        for number, size in enumerate([*sizes[2:], 0, 0], 2):
            yield await made.pop(0)
            if size:
                made.append(loop.run_in_executor(pool, chunk_of, size, seed + number, revisions))


def chunk_of(size: int, seed: int, revisions: tuple[str, ...]) -> list[Input]:
    """So many calls; the same for the same seed."""
    chance, made = random.Random(seed), list[Input]()
    while len(made) < size:
        for each in drawn(-(-(size - len(made)) // (1 + VARIATIONS)), chance.getrandbits(32), revisions):
            made.append(each)
            if sum(map(len, each.messages)) <= MOST_VARIED_BYTES:
                made += [varied(each, chance.getrandbits(32)) for _ in range(VARIATIONS)]
    return made[:size]


def drawn(size: int, seed: int, revisions: tuple[str, ...]) -> list[Input]:
    """About so many calls as hypothesis makes them up."""
    made: list[Input] = []

    @seeded(seed)
    @settings(max_examples=size, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=EVERY)
    @given(each=inputs(revisions))
    def collect(each: Input) -> None:
        made.append(each)

    collect()
    return made


def unhandled_of(about: Mapping[str, Any]) -> str:
    """What the event loop complains of: an exception that no one asked a task for, for instance."""
    where = getattr(about.get("future") or about.get("task"), "get_coro", lambda: None)()
    return f"{about.get('message')}: {type(about.get('exception')).__name__} in {getattr(where, '__qualname__', where)}"


def table(tally: Tally) -> Table:
    """Counts by method and how calls ended."""
    ends = sorted({how for _, how in tally.counts})
    shown = Table(title=f"{tally.counts.total():,} calls")
    shown.add_column("method", min_width=max(len(each.name) for each in METHODS.values()))
    for column in ends:
        shown.add_column(column.replace("_", " "), justify="right")
    for path in METHODS:
        shown.add_row(path.rpartition("/")[2], *(f"{tally.counts[path, how]:,}" for how in ends))
    shown.add_row("all", *(f"{sum(tally.counts[path, how] for path in METHODS):,}" for how in ends), style="bold")
    return shown


def resident_mib() -> float:
    """Memory of this process that is in RAM now, without what its allocator can give back."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


if __name__ == "__main__":
    main()
