"""`python -m loadtest.growth`: how cost grows, one curve after the other, each with its fitted line; prints and writes.

Every curve starts a server of its own. Measurements alternate over the places of a curve and are medians; every
conversation is new unless a curve is about going on with one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import shutil
import statistics
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loadtest.contestants import CALL_SECONDS, timed
from loadtest.conversations import conversation, with_next_turn
from loadtest.output import wide_console, write_whole
from loadtest.resident import resident_bytes
from loadtest.server import ROOT, commit, fresh_server, machine, started_server
from service.client import FantailClient
from service.keys import new_key
from service.pb.fantail.v1 import admin_service_pb2
from service.pb.fantail.v1.admin_service_pb2_grpc import AdminServiceStub

CONVERSATION_TOKENS = 1000
TURNS = 20
ADAPTERS = 64
SLOTS = 16
REVISIONS = 10

WIDTH = 140
"""Of the output where it goes to no terminal."""

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


Measure = Callable[[Curve, int, Callable[[], None]], Coroutine[Any, Any, None]]


async def per_token(curve: Curve, rounds: int, advance: Callable[[], None]) -> None:
    async with serving() as client:
        name = (await classifiers(client))[0]
        for number in range(rounds):
            for tokens in (100, 200, 320, 500, 1000, 1500, 2000):
                for series, names in (("one classification", [name]), ("fan-out of 16", [])):
                    turns = conversation(tokens, f"{tokens} {number} {series}")
                    curve.add(series, tokens, await seconds_of(client.fan_out(turns, names, timeout=CALL_SECONDS)))
                advance()


async def per_classifier(curve: Curve, rounds: int, advance: Callable[[], None]) -> None:
    with many_classifiers(ADAPTERS) as folder:
        async with serving(FANTAIL_CLASSIFIERS=str(folder)) as client:
            names = await classifiers(client)
            for number in range(rounds):
                for count in (1, 2, 4, 8, 16, 17, 24, 32, 48, 64):
                    turns = conversation(CONVERSATION_TOKENS, f"{count} {number}")
                    taken = await seconds_of(client.fan_out(turns, names[:count], timeout=CALL_SECONDS))
                    curve.add("fan-out", count, taken)
                    advance()
    one = curve.medians("fan-out")[1]
    slope = curve.line("fan-out")[1]
    curve.notes.append(f"one more classifier costs {slope / one:.2%} of one classification")
    curve.notes.append(f"64 classifiers cost {curve.medians('fan-out')[64] / one:.2f} classifications")


async def per_turn(curve: Curve, rounds: int, advance: Callable[[], None]) -> None:
    """A live conversation, and the same number of tokens scored anew: another conversation of the same shape."""
    async with serving() as client:
        for number in range(rounds):
            anew, told = conversation(40, f"anew {number}"), conversation(40, f"told {number}")
            async with client.follow(timeout=CALL_SECONDS) as live:
                await live.tell(told, timeout=CALL_SECONDS)
                for turn in range(2, TURNS + 1):
                    longer = with_next_turn(told, f"{number} {turn}")
                    curve.add("Follow", turn, await seconds_of(live.tell(longer[len(told) :], timeout=CALL_SECONDS)))
                    told = longer
                    anew = conversation(sum(len(text.split()) + 6 for _, text in told), f"anew {number} {turn}")
                    curve.add("anew", turn, await seconds_of(client.fan_out(anew, timeout=CALL_SECONDS)))
                    advance()
    ratio = curve.medians("Follow")[TURNS] / curve.medians("anew")[TURNS]
    curve.notes.append(f"turn {TURNS} costs {ratio:.2f} of scoring the conversation anew")


async def per_call(curve: Curve, rounds: int, advance: Callable[[], None]) -> None:
    """Cold fan-outs at once: when the last of them has its answer. Admission must not turn any of them away."""
    async with serving(FANTAIL_MAX_TOKENS_IN_FLIGHT="1000000") as client:
        for number in range(rounds):
            for count in (1, 2, 4, 8, 16):
                asked = [conversation(320, f"{count} {number} {each}") for each in range(count)]
                calls = asyncio.gather(*(client.fan_out(turns, timeout=CALL_SECONDS) for turns in asked))
                curve.add("all of them", count, await seconds_of(calls))
                advance()
    curve.notes.append(f"{1 / curve.line('all of them')[1]:.2f} fan-outs a second at the slope")


async def per_adapter(curve: Curve, rounds: int, advance: Callable[[], None]) -> None:
    """More adapters than slots: the same question with its adapter in a slot, and with one that must be put there."""
    with many_classifiers(ADAPTERS) as folder:
        async with serving(FANTAIL_CLASSIFIERS=str(folder), FANTAIL_SLOTS=str(SLOTS)) as client:
            names = await classifiers(client)
            turns = conversation(100, "swaps")
            for _ in range(rounds):
                for place, name in enumerate(names):
                    await client.classify(turns, name, timeout=CALL_SECONDS)
                    for series in ("in a slot", "in a slot again"):
                        curve.add(series, place, await seconds_of(client.classify(turns, name, timeout=CALL_SECONDS)))
                    cold = names[(place + ADAPTERS // 2) % ADAPTERS]
                    curve.add(
                        "put into a slot", place, await seconds_of(client.classify(turns, cold, timeout=CALL_SECONDS))
                    )
                advance()
            warm, swapped = (
                statistics.median([s for each in curve.values[series].values() for s in each])
                for series in ("in a slot", "put into a slot")
            )
            curve.notes.append(f"a swap from RAM into a slot costs {1000 * (swapped - warm):.1f} ms")
            calm = await waited_beside(client, names[1:2], names[0], 40 * rounds)
            beside = await waited_beside(client, names[1:], names[0], 40 * rounds)
            delay = statistics.median(beside) - statistics.median(calm)
            curve.notes.append(
                f"a call beside one that swaps waits {1000 * delay:.1f} ms longer than beside one that does not"
            )
            for count in (SLOTS, SLOTS + 1, ADAPTERS):
                taken = [
                    await seconds_of(client.fan_out(turns, names[:count], timeout=CALL_SECONDS)) for _ in range(rounds)
                ]
                curve.notes.append(
                    f"a repeated fan-out of {count} with {SLOTS} slots: {statistics.median(taken):.3f} s"
                )


async def per_revision(curve: Curve, rounds: int, advance: Callable[[], None]) -> None:
    """New revisions of a classifier, one after the other from disk, while somebody else asks another classifier."""
    key, digest = new_key()
    metadata = (("authorization", f"Bearer {key}"),)
    with many_classifiers(SLOTS) as folder, tempfile.TemporaryDirectory(prefix="fantail-revisions-") as scratch:
        name, other = sorted(path.parent.name for path in folder.glob("*/classifier.toml"))[:2]
        candidate = Path(scratch) / "candidates" / name
        shutil.copytree(folder / name, candidate)
        keys = Path(scratch) / "keys.toml"
        keys.write_text(f'[[key]]\nname = "growth"\nsha256 = "{digest}"\nscopes = ["classify", "admin"]\n')
        settings = {
            "FANTAIL_CLASSIFIERS": str(folder),
            "FANTAIL_CANDIDATES": str(candidate.parent),
            "FANTAIL_ADMIN": "true",
            "FANTAIL_KEYS": str(keys),
        }
        async with (
            started_server(Path(scratch) / "log", **settings) as server,
            FantailClient(server.address, key=key) as client,
            grpc.aio.insecure_channel(server.address) as channel,
        ):
            admin = AdminServiceStub(channel)
            calm = await waited(client, other, 40 * rounds)
            beside: list[float] = []
            for number in range(REVISIONS * rounds):
                change_slightly(candidate / "adapter" / "adapter_model.safetensors")
                request = admin_service_pb2.LoadRevisionRequest(classifier=name, folder=name)
                loading = asyncio.ensure_future(
                    timed(admin.LoadRevision(request, timeout=CALL_SECONDS, metadata=metadata))
                )
                while not loading.done():
                    beside += await waited(client, other, 1)
                taken, loaded = loading.result()
                curve.add("load", number, taken)
                unload = admin_service_pb2.UnloadRevisionRequest(classifier=name, revision=loaded.revision)
                await admin.UnloadRevision(unload, timeout=CALL_SECONDS, metadata=metadata)
                curve.add("GiB resident", number, resident_bytes(server.pid) / 2**30)
                advance()
    curve.notes.append(
        f"a call beside a load: median {1000 * statistics.median(beside):.0f} ms, longest {1000 * max(beside):.0f} ms; "
        f"without one {1000 * statistics.median(calm):.0f} and {1000 * max(calm):.0f} ms"
    )


def change_slightly(weights: Path) -> None:
    """Make another adapter of it: one number by its last digit, so that it answers as before."""
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    first = next(iter(tensors.values())).view(-1)
    first[0] = torch.nextafter(first[0], torch.tensor(torch.inf, dtype=first.dtype))
    save_file(tensors, weights)


async def waited_beside(client: FantailClient, others: Sequence[str], name: str, asked: int) -> list[float]:
    """Seconds of so many classifications by `name`, while somebody else asks `others` one after the other."""
    theirs = conversation(100, "somebody else")

    async def ask_others() -> None:
        while True:
            for other in others:
                await client.classify(theirs, other, timeout=CALL_SECONDS)

    asking = asyncio.create_task(ask_others())
    try:
        return await waited(client, name, asked)
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def waited(client: FantailClient, name: str, asked: int) -> list[float]:
    """Seconds of so many classifications by `name`."""
    turns = conversation(100, "bystander")
    return [await seconds_of(client.classify(turns, name, timeout=CALL_SECONDS)) for _ in range(asked)]


async def memory(curve: Curve, rounds: int, advance: Callable[[], None]) -> None:
    for count in (16, 64, 128, 200):
        with many_classifiers(count) as folder:
            settings = {"FANTAIL_CLASSIFIERS": str(folder), "FANTAIL_SLOTS": str(SLOTS), "FANTAIL_KV_GIB": "1"}
            async with started_server(folder.parent / f"{folder.name}.log", **settings) as server:
                curve.add("GiB", count, resident_bytes(server.pid) / 2**30)
        for _ in range(rounds):
            advance()


CURVES: dict[str, tuple[str, str, str, Measure, int]] = {
    "tokens": ("cost per token of conversation", "token", "s", per_token, 7),
    "classifiers": (f"cost per classifier, {CONVERSATION_TOKENS} tokens", "classifier", "s", per_classifier, 10),
    "turns": ("cost per turn of a live conversation", "turn", "s", per_turn, TURNS - 1),
    "calls": ("cost per call under way, 320 tokens", "call", "s", per_call, 5),
    "adapters": (f"{ADAPTERS} adapters in {SLOTS} slots", "adapter", "s", per_adapter, 1),
    "revisions": ("new revisions from disk, copied, checked, proven", "revision", "s", per_revision, REVISIONS),
    "memory": (f"resident memory, {SLOTS} slots, 1 GiB of KV", "adapter", "GiB", memory, 4),
}


async def seconds_of(asked: Awaitable[Any]) -> float:
    return (await timed(asked))[0]


async def classifiers(client: FantailClient) -> list[str]:
    return [each.name for each in await client.list_classifiers(timeout=CALL_SECONDS)]


@contextlib.asynccontextmanager
async def serving(**settings: str) -> AsyncIterator[FantailClient]:
    """A client of a fresh server that has answered once."""
    with tempfile.TemporaryDirectory(prefix="fantail-growth-") as scratch:
        async with fresh_server(Path(scratch) / "log", **settings) as address, FantailClient(address) as client:
            for tokens in (100, 1000):
                await client.fan_out(conversation(tokens, f"warm-up {tokens}"), timeout=CALL_SECONDS)
            yield client


@contextlib.contextmanager
def many_classifiers(count: int) -> Iterator[Path]:
    """A folder with so many classifiers: copies of the shipped ones under other names, each an adapter of its own."""
    shipped = sorted(path.parent for path in (ROOT / "classifiers").glob("*/classifier.toml"))
    with tempfile.TemporaryDirectory(prefix="fantail-many-") as scratch:
        shutil.copy(ROOT / "classifiers" / "prompt.toml", scratch)
        for number in range(count):
            source = shipped[number % len(shipped)]
            shutil.copytree(source, Path(scratch) / f"{source.name}_{number // len(shipped)}")
        yield Path(scratch)


def show(curve: Curve, console: Console) -> None:
    table = Table(title=f"{curve.title} · {curve.unit}", caption="\n".join(curve.notes) or None)
    table.add_column("")
    places = sorted({x for points in curve.values.values() for x in points})
    if len(places) > MOST_COLUMNS:
        places = places[:: len(places) // MOST_COLUMNS + 1] + places[-1:]
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest.growth", description=__doc__)
    parser.add_argument("curves", nargs="*", help=f"of {', '.join(CURVES)}; default all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="also write everything as JSON, and beside it the curves as SVG")
    options = parser.parse_args()
    if unknown := set(options.curves) - set(CURVES):
        parser.error(f"no such curve: {', '.join(sorted(unknown))}")
    console = wide_console(WIDTH)
    curves: dict[str, Curve] = {}
    for name in options.curves or CURVES:
        title, x, unit, measure, places = CURVES[name]
        curve = curves[name] = Curve(title, x, unit)
        with Progress(console=console) as progress:
            bar = progress.add_task(title, total=places * options.rounds)
            asyncio.run(measure(curve, options.rounds, lambda bar=bar: progress.advance(bar)))  # type: ignore[misc]
        show(curve, console)
        if options.output:
            found = {name: asdict(each) for name, each in curves.items()}
            facts = {"machine": machine(), "commit": commit(), "curves": found}
            write_whole(options.output, json.dumps(facts, indent=1) + "\n")
            draw(list(curves.values()), options.output.with_suffix(".svg"))


if __name__ == "__main__":
    main()
