"""`make bench`: the fan-out beside one classification, PEFT and stock vLLM, alternating in one run; prints medians.

Every measurement is of a conversation nobody has seen before, so nothing is answered from a cache. The answers of
the fan-out are compared with PEFT's on the way: a fast wrong answer does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtest.baselines.worker import Worker
from loadtest.conversations import Turns, conversation
from loadtest.server import ROOT, commit, fresh_server, machine
from service.client import FantailClient

LENGTHS = (100, 320, 1000, 2000)
CALL_SECONDS = 600
WARM_UP_TOKENS = 60
TOLERANCE = 2e-3

Measure = Callable[[Turns], Awaitable[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each contestant and length")
    parser.add_argument(
        "--budget", type=float, default=240, help="seconds a contestant may take per length, after at least one round"
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of conversation")
    parser.add_argument("--only-ours", action="store_true", help="leave the baselines out")
    parser.add_argument("--output", type=Path, help="also write the measurements as JSON")
    asyncio.run(bench(parser.parse_args(), Console()))


async def bench(options: argparse.Namespace, console: Console) -> None:
    """Measure, print, and write."""
    with tempfile.TemporaryDirectory(prefix="fantail-bench-") as scratch:
        async with contestants(Path(scratch), options.only_ours, console) as measures:
            seconds = await measure(measures, options, console)
    show(seconds, console)


def write(seconds: dict[int, dict[str, list[float]]], output: Path | None) -> None:
    """Keep what is measured so far, so that an interrupted run is not lost."""
    if output:
        facts = {"machine": machine(), "commit": commit(), "seconds": seconds}
        output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


async def measure(
    measures: dict[str, Measure], options: argparse.Namespace, console: Console
) -> dict[int, dict[str, list[float]]]:
    """Seconds by length and contestant, taken in turn."""
    seconds: dict[int, dict[str, list[float]]] = {n: {name: [] for name in measures} for n in options.lengths}
    for ask in measures.values():
        await ask(conversation(WARM_UP_TOKENS, seed="warm-up"))
    with Progress(console=console) as progress:
        bar = progress.add_task("measuring", total=len(options.lengths) * options.rounds * len(measures))
        for length in options.lengths:
            for round_number in range(options.rounds):
                for name, ask in measures.items():
                    taken = seconds[length][name]
                    progress.update(bar, advance=1, description=f"{length} tokens, {name}")
                    if sum(taken) < options.budget:
                        taken.append(await ask(conversation(length, seed=f"{length} {round_number} {name}")))
                        write(seconds, options.output)
    return seconds


@contextlib.asynccontextmanager
async def contestants(scratch: Path, only_ours: bool, console: Console) -> AsyncIterator[dict[str, Measure]]:
    """Everything that is measured, started and warm."""
    async with contextlib.AsyncExitStack() as stack:
        console.print("starting Fantail …")
        address = await stack.enter_async_context(fresh_server(scratch / "fantail.log"))
        client = await stack.enter_async_context(FantailClient(address))
        names = [each.name for each in await client.list_classifiers(timeout=CALL_SECONDS)]
        measures: dict[str, Measure] = {"one classification": one(client, names[0]), "fan-out of 16": fan_out(client)}
        if not only_ours:
            model = base_model()
            for name, module in (("PEFT, one by one", "peft_sequential"), ("stock vLLM", "stock_vllm")):
                console.print(f"starting {name} …")
                variables = {
                    "VLLM_PLUGINS": "",
                    "VLLM_LOGGING_LEVEL": "WARNING",
                    "VLLM_USE_V2_MODEL_RUNNER": "0",
                } | openmp()
                worker = stack.enter_context(
                    Worker(
                        f"loadtest.baselines.{module}",
                        model,
                        ROOT / "classifiers",
                        scratch / f"{module}.log",
                        variables if module == "stock_vllm" else {},
                    )
                )
                if module == "peft_sequential":
                    await agree(client, worker, console)
                measures[name] = baseline(worker)
        yield measures


def one(client: FantailClient, name: str) -> Measure:
    async def ask(turns: Turns) -> float:
        began = time.perf_counter()
        await client.classify(turns, name, timeout=CALL_SECONDS)  # type: ignore[arg-type]
        return time.perf_counter() - began

    return ask


def fan_out(client: FantailClient) -> Measure:
    async def ask(turns: Turns) -> float:
        began = time.perf_counter()
        await client.fan_out(turns, timeout=CALL_SECONDS)  # type: ignore[arg-type]
        return time.perf_counter() - began

    return ask


def baseline(worker: Worker) -> Measure:
    async def ask(turns: Turns) -> float:
        return (await asyncio.to_thread(worker.ask, turns))[0]

    return ask


async def agree(client: FantailClient, peft: Worker, console: Console) -> None:
    """Stop the run when our answers are not PEFT's."""
    turns = conversation(200, "agree")
    ours = await client.fan_out(turns, timeout=CALL_SECONDS)  # type: ignore[arg-type]
    _, theirs = await asyncio.to_thread(peft.ask, turns)
    pairs = zip(ours.results, theirs, strict=True)
    worst = max(abs(s.probability - p) for r, ps in pairs for s, p in zip(r.classification.scores, ps, strict=True))
    console.print(f"largest difference from PEFT's probabilities: {worst:.1e}")
    if worst > TOLERANCE:
        sys.exit("Fantail's answers are not PEFT's; nothing is measured")


def base_model() -> Path:
    """The folder of the base model, which the baselines share with the server."""
    command = [sys.executable, "-m", "service", "base"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip())


def openmp() -> dict[str, str]:
    """The OpenMP set-up that vLLM's CPU guide asks for, which Fantail's server makes by itself."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    library = next(Path(sys.prefix, "lib").glob("libiomp5.so"), None)
    return {"VLLM_CPU_OMP_THREADS_BIND": cores} | ({"LD_PRELOAD": str(library)} if library else {})


def show(seconds: dict[int, dict[str, list[float]]], console: Console) -> None:
    """Medians, and what the fan-out's are relative to."""
    table = Table(title=f"seconds, median (measurements) · {machine()} · {commit()}")
    table.add_column("conversation")
    for name in next(iter(seconds.values())):
        table.add_column(name, justify="right")
    for heading in ("fan-out / one", "PEFT / fan-out", "stock / fan-out"):
        table.add_column(heading, justify="right")
    for length, taken in seconds.items():
        medians = [statistics.median(each) for each in taken.values()]
        cells = [f"{median:.3f} ({len(each)})" for median, each in zip(medians, taken.values(), strict=True)]
        ratios = [f"{medians[1] / medians[0]:.2f}", *(f"{median / medians[1]:.1f} ×" for median in medians[2:])]
        table.add_row(f"{length} tokens", *cells, *ratios)
    console.print(table)


if __name__ == "__main__":
    main()
