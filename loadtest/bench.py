"""`make bench`: the fan-out beside one classification and its peers, alternating in one run; prints medians.

Every measurement is of a conversation nobody has seen before, so nothing is answered from a cache. The answers of
the fan-out, and of the peers that compute with an adapter, are compared with PEFT's before anything is measured: a fast
wrong answer does not count.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from loadtest.comparison import Comparison, has_time_left, worst_difference
from loadtest.contestants import MERGED, PEERS, Contestant, base_model, fantail, worker
from loadtest.conversations import conversation
from loadtest.output import positive, wide_console, write_whole
from loadtest.resident import resident_bytes
from loadtest.server import commit, machine, provenance

LENGTHS = (100, 320, 1000, 2000)
WARM_UPS = 2
WARM_UP_TOKENS = 60
SETTLE_SECONDS = 1.5
"""Between two measurements: vLLM's processes go on spinning on a core for a second after their last message."""

AGREE_TURNS = conversation(200, "agree")
TOLERANCE = 2e-3
SAME_ANSWERS = ("peft", "peft-mixed", "peft-shared")
"""The peers that compute what Fantail does."""

PLAIN_ANSWERS = ("stock-vllm", MERGED)
"""The peers that compute with plain copies of the adapters; merged weights with the first one's alone."""


def main() -> None:
    asyncio.run(bench(parser().parse_args(), wide_console()))


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=positive, default=5, help="measurements of each contestant and length")
    parser.add_argument(
        "--budget", type=float, default=240, help="seconds a contestant may take per length, after at least one round"
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of conversation")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--peers", nargs="+", metavar="NAME", choices=PEERS, default=list(PEERS), help=", ".join(PEERS))
    which.add_argument("--only-ours", dest="peers", action="store_const", const=[], help="leave the peers out")
    parser.add_argument("--output", type=Path, default=Path("bench.json"), help="the measurements, as JSON")
    return parser


async def bench(options: argparse.Namespace, console: Console) -> None:
    """Start everybody, compare answers, measure, print, and write."""
    async with contextlib.AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fantail-bench-")))
        console.print("starting Fantail …")
        one, fan_out = await stack.enter_async_context(fantail(scratch))
        model = base_model()
        peers: dict[str, Contestant] = {}
        for name in [each for each in PEERS if each in options.peers]:
            console.print(f"starting {PEERS[name].title} …")
            peers[name] = await stack.enter_async_context(PEERS[name].start(PEERS[name].title, model, scratch))
        classifiers = await agree(fan_out, peers, console)
        if plain := {name: peers[name] for name in PLAIN_ANSWERS if name in peers}:
            async with worker("peft_plain")("PEFT on plain copies", model, scratch) as reference:
                await agree_on_plain_copies(reference, plain, console)
        comparison = Comparison(fan_out.title)
        await measure([one, fan_out, *peers.values()], comparison, options, console)
        show(comparison, peers, classifiers, console)


async def agree(fan_out: Contestant, peers: Mapping[str, Contestant], console: Console) -> int:
    """End the program when our answers are not PEFT's; the number of classifiers that answered."""
    _, ours = await fan_out.ask(AGREE_TURNS)
    compared = [peers[name] for name in SAME_ANSWERS if name in peers]
    if not compared:
        console.print("no peer computes what Fantail does, so that its answers are not compared with PEFT's")
    for peer in compared:
        _, theirs = await peer.ask(AGREE_TURNS)
        require_same("Fantail", ours, peer.title, theirs, console)
    return len(ours)


async def agree_on_plain_copies(reference: Contestant, peers: Mapping[str, Contestant], console: Console) -> None:
    """End the program when a peer that computes with plain copies does not answer as PEFT does with them."""
    _, wanted = await reference.ask(AGREE_TURNS)
    for name, peer in peers.items():
        _, theirs = await peer.ask(AGREE_TURNS)
        require_same(peer.title, theirs, reference.title, wanted[:1] if name == MERGED else wanted, console)


def require_same(
    who: str, ours: Sequence[Sequence[float]], whom: str, theirs: Sequence[Sequence[float]], console: Console
) -> None:
    worst = worst_difference(ours, theirs)
    console.print(f"{who}: largest difference from the probabilities of {whom}: {worst:.1e}")
    if worst > TOLERANCE:
        sys.exit(f"the answers of {who} are not those of {whom}; nothing is measured")


async def measure(
    entrants: Sequence[Contestant], comparison: Comparison, options: argparse.Namespace, console: Console
) -> None:
    """Warm everybody up, weigh them, and ask them in turn."""
    for entrant in entrants:
        for number in range(WARM_UPS):
            await entrant.ask(conversation(WARM_UP_TOKENS, f"warm-up {number} {entrant.title}"))
        comparison.weigh(entrant.title, resident_bytes(entrant.pid))
    with Progress(console=console) as progress:
        bar = progress.add_task("measuring", total=len(options.lengths) * options.rounds * len(entrants))
        for length in options.lengths:
            for round_number in range(options.rounds):
                for entrant in entrants:
                    progress.update(bar, advance=1, description=f"{length} tokens, {entrant.title}")
                    if has_time_left(comparison.taken(entrant.title, length), options.budget):
                        await asyncio.sleep(SETTLE_SECONDS)
                        seconds, _ = await entrant.ask(conversation(length, f"{length} {round_number} {entrant.title}"))
                        comparison.add(entrant.title, length, seconds)
                        comparison.weigh(entrant.title, resident_bytes(entrant.pid))
                        write(comparison, options.output)


def write(comparison: Comparison, output: Path) -> None:
    """Keep what is measured so far, so that an interrupted run is not lost."""
    facts = provenance() | comparison.to_json()
    write_whole(output, json.dumps(facts, indent=1) + "\n")


def show(comparison: Comparison, peers: Mapping[str, Contestant], classifiers: int, console: Console) -> None:
    """The table, and under it what each peer is."""
    if MERGED in peers:
        title = f"{classifiers} merged models, computed"
        comparison = comparison.with_multiple(peers[MERGED].title, classifiers, title)
    console.print(comparison.table(f"{machine()} · {commit()}"))
    for name, peer in peers.items():
        remark = peer.remark()
        console.print(f"{peer.title}: {PEERS[name].note}" + (f" ({remark})" if remark else ""), highlight=False)


if __name__ == "__main__":
    main()
