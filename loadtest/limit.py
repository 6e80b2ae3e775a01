"""`python -m loadtest.limit`: what a fan-out needs by count, beside what it takes and what the machine could do.

The count is that of `fantail plan`, the rate that of large matrix products on the same cores between two measurements.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtest.baselines.prompts import Prompts, Task
from loadtest.baselines.worker import Worker
from loadtest.contestants import CALL_SECONDS, CLASSIFIERS, base_model, timed, timed_fan_out
from loadtest.conversations import conversation
from loadtest.output import positive, wide_console, write_whole
from loadtest.server import ROOT, commit, fresh_server, machine, provenance
from service.client import FantailClient


@dataclass(slots=True)
class Taken:
    """Of one length: prefix tokens that were computed; seconds of one classification, of a fan-out by the client's
    clock and by the engine's, and of the same fan-out again; operations a second of large matrices, between them."""

    prefix: list[int] = field(default_factory=list)
    one: list[float] = field(default_factory=list)
    fan_out: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        return {name: statistics.median(getattr(self, name)) for name in self.__slots__}


async def measure(
    client: FantailClient, tasks: Sequence[Task], rate: Worker, tokens: int, number: int, taken: Taken
) -> None:
    """One round."""
    alone = conversation(tokens, f"one {tokens} {number}")
    seconds, _ = await timed(client.classify(alone, tasks[0].name, timeout=CALL_SECONDS))
    taken.one.append(seconds)
    turns = conversation(tokens, f"fan {tokens} {number}")
    seconds, reply = await timed_fan_out(client, turns)
    taken.fan_out.append(seconds)
    taken.engine.append(reply.durations.engine.ToTimedelta().total_seconds())
    taken.prefix.append(reply.usage.computed_tokens - sum(len(task.tail) for task in tasks))
    seconds, _ = await timed_fan_out(client, turns)
    taken.again.append(seconds)
    taken.rate.append((await asyncio.to_thread(rate.ask, []))[1][0][0])


def counted(prefix_tokens: int, tail_tokens: int) -> dict[str, Any]:
    """What `fantail plan` counts for a fan-out of all classifiers over so many tokens."""
    command = [sys.executable, "-m", "service", "plan", "--json", "--tokens", str(prefix_tokens)]
    command += ["--tail", str(tail_tokens)]
    plan = json.loads(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)
    found: dict[str, Any] = plan["lengths"][0]["fan_out"]
    return found


def figures(taken: Taken, tail_tokens: int) -> dict[str, float]:
    """What is told of a length, by name."""
    m = taken.medians()
    work = counted(int(m["prefix"]), tail_tokens)
    operations = sum(work[part] for part in ("prefix", "tails", "adapters", "attention", "head"))
    reached = operations / m["engine"]
    return {
        "GFLOP: prefix": work["prefix"] / 1e9,
        "GFLOP: tails and their adapters": (work["tails"] + work["adapters"]) / 1e9,
        "GFLOP: attention": work["attention"] / 1e9,
        "GFLOP: head": work["head"] / 1e9,
        "GB from memory": work["memory_bytes"] / 1e9,
        "one classification, ms": 1000 * m["one"],
        "fan-out, ms": 1000 * m["fan_out"],
        "of which engine, ms": 1000 * m["engine"],
        "the same fan-out again, ms": 1000 * m["again"],
        "fan-out / one": m["fan_out"] / m["one"],
        "service and gRPC, % of the fan-out": 100 * (1 - m["engine"] / m["fan_out"]),
        "GFLOP/s reached": reached / 1e9,
        "GFLOP/s of large matrices": m["rate"] / 1e9,
        "reached, % of these": 100 * reached / m["rate"],
    }


def tell(found: Mapping[int, Taken], tail_tokens: int, output: Path | None, console: Console) -> None:
    """Print the medians as a table; write them, and all that they are of, to `output`, if any."""
    columns = {tokens: figures(taken, tail_tokens) for tokens, taken in found.items()}
    table = Table(title=f"{machine()} · {commit()} · medians")
    table.add_column("")
    for tokens, taken in found.items():
        table.add_column(f"{tokens:,} tokens ({len(taken.one)})", justify="right")
    for row in next(iter(columns.values())):
        table.add_row(row, *(f"{column[row]:.2f}" for column in columns.values()))
    console.print(table)
    if output:
        measured = {tokens: asdict(taken) for tokens, taken in found.items()}
        facts = {**provenance(), "medians": columns, "measured": measured}
        write_whole(output, json.dumps(facts, indent=1) + "\n")


async def run(options: argparse.Namespace, console: Console) -> None:
    found = {length: Taken() for length in options.lengths}
    async with contextlib.AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fantail-limit-")))
        model = base_model()
        tasks = Prompts(model, CLASSIFIERS).tasks
        rate = stack.enter_context(Worker("loadtest.baselines.matrix_rate", model, CLASSIFIERS, scratch / "rate.log"))
        address = await stack.enter_async_context(fresh_server(scratch / "server.log"))
        client = await stack.enter_async_context(FantailClient(address))
        for tokens in (60, 1000):
            await timed_fan_out(client, conversation(tokens, f"warm-up {tokens}"))
        with Progress(console=console) as progress:
            bar = progress.add_task("measuring", total=options.rounds * len(found))
            for number in range(options.rounds):
                for tokens, taken in found.items():
                    await measure(client, tasks, rate, tokens, number, taken)
                    progress.advance(bar)
    tell(found, max(len(task.tail) for task in tasks), options.output, console)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.limit", description=__doc__)
    parser.add_argument("--rounds", type=positive, default=9)
    parser.add_argument("--lengths", type=int, nargs="+", default=(100, 320, 1000, 2000), help="tokens of conversation")
    parser.add_argument("--output", type=Path, help="also write everything as JSON")
    asyncio.run(run(parser.parse_args(), wide_console()))


if __name__ == "__main__":
    main()
