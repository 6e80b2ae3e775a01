"""`python -m loadtest PROFILE`: put a server under load at one rate or a sweep of them; print, and write a report."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from loadtest.outcome import Outcome, milliseconds, ratio
from loadtest.output import positive, wide_console
from loadtest.profile import Profile, ProfileError, load_profile
from loadtest.report import OF_LENGTHS, length_rows, write_report
from loadtest.run import broken_promises, by_rate, duration_s, is_generator_the_limit, knee, pool, sweep, unloaded
from loadtest.server import fresh_server, provenance, settings
from loadtest.target import Credentials, Target

PROFILES = Path(__file__).resolve().parent / "profiles"

WIDTH = 140
"""Of the output where it goes to no terminal."""

COLUMNS = (
    *("offered / s", "calls", "goodput / s", "classified / s", "tokens read / s"),
    *("p50 ms", "p95 ms", "p99 ms", "p99 / lowest", "turned away", "tokens reused"),
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m loadtest", description=__doc__)
    parser.add_argument(
        "profile", help=f"a TOML file, or one of {', '.join(sorted(p.stem for p in PROFILES.iterdir()))}"
    )
    parser.add_argument(
        "--rate", type=float, nargs="*", default=[], help="calls a second; several, or none for a sweep"
    )
    parser.add_argument("--rounds", type=positive, default=1, help="how often each of these rates is run, in turn")
    parser.add_argument("--address", help="a server that runs already; default a fresh one")
    parser.add_argument("--key", help="API key for it")
    parser.add_argument("--tls", action="store_true", help="talk to it over TLS; so too with any of the next three")
    parser.add_argument("--ca", metavar="PEM", help="who signs its certificate; default whom the system trusts")
    parser.add_argument("--cert", metavar="PEM", help="a certificate of ours, for a server that wants one")
    parser.add_argument("--cert-key", metavar="PEM", help="and its key")
    parser.add_argument("--processes", type=positive, default=1, help="generator processes")
    parser.add_argument(
        "--seed", type=positive, help="equal seeds give equal calls, which a server has in its cache; default any"
    )
    parser.add_argument(
        "--overload",
        action="store_true",
        help="exit 1 unless the highest rate is ten times capacity, costs no goodput, and no accepted call much time",
    )
    parser.add_argument("--output", type=Path, default=Path("loadtest-report"), help="folder for JSON and HTML")
    options = parser.parse_args()
    if not all(0 < rate < math.inf for rate in options.rate):
        parser.error("rates are positive numbers")
    options.seed = options.seed or random.randrange(1, 1 << 31)
    if not options.address and credentials(options):
        parser.error("a fresh server talks in the clear; --tls, --ca and --cert are for a server of --address")
    if options.rounds > 1 and not options.rate:
        parser.error("rounds are of given rates; a sweep finds its own")
    path = Path(options.profile)
    path = path if path.is_file() else PROFILES / f"{options.profile}.toml"
    try:
        profile = load_profile(path)
    except ProfileError as error:
        sys.exit(str(error))
    asyncio.run(load(path, profile, options, wide_console(WIDTH)))


async def load(path: Path, profile: Profile, options: argparse.Namespace, console: Console) -> None:
    """Run, print each result when it is there, write the report after each."""
    facts = facts_of(profile, options)
    runs: list[tuple[float, Outcome]] = []
    async with contextlib.AsyncExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fantail-load-")))
        with console.status("starting a server …"):
            address = options.address or await stack.enter_async_context(fresh_server(scratch / "server.log"))
        target = await asked_of(Target(address, key=options.key, tls=credentials(options)))
        console.print(f"each run takes {duration_s(profile):.0f} s")
        with console.status("under load …"):
            async for rate, outcome in sweep(
                path, target, options.rate, options.seed, options.processes, options.rounds
            ):
                runs.append((rate, outcome))
                write_report(options.output, facts, runs)
                console.print(f"{rate:.2f} calls a second: {outcome.goodput:.2f} answered in time")
    show(facts, runs, console)
    console.print(f"the report: {options.output / 'report.html'}")
    if options.overload and (broken := broken_promises(pool(runs))):
        sys.exit("not as promised: " + "; ".join(broken))


def facts_of(profile: Profile, options: argparse.Namespace) -> dict[str, str]:
    """What makes a run repeatable. Of a server that ran already nothing is known here: it may be on another machine."""
    here = provenance()
    date = here.pop("date")
    if options.address:
        here = {f"generator {each}": value for each, value in here.items()} | {f"server {e}": "unknown" for e in here}
    facts = {
        "profile": profile.name,
        "server": options.address or f"a fresh one, {settings() or 'with the default settings'}",
        **here,
        "date": date,
        "generator": f"{options.processes} process(es), open loop, seed {options.seed}",
        "rounds": str(options.rounds),
    }
    return facts | {
        name: json.dumps(value) for name, value in asdict(profile).items() if name != "name" and value not in ("", None)
    }


def credentials(options: argparse.Namespace) -> Credentials | None:
    files = (options.ca, options.cert, options.cert_key)
    return Credentials(*files) if options.tls or any(files) else None


async def asked_of(target: Target) -> Target:
    """The same with the names of all classifiers that it serves."""
    async with target.connect() as client:
        served = await client.list_classifiers(timeout=60)
    return replace(target, classifiers=tuple(each.name for each in served))


def show(facts: dict[str, str], runs: list[tuple[float, Outcome]], console: Console) -> None:
    """Each rate's runs as a row: medians of the rates reached, percentiles of all latencies. The same by length of
    conversation. And the knee."""
    rounds, rates = by_rate(runs), pool(runs)
    known = [facts[name] for name in ("machine", "commit") if name in facts]
    where = known or [facts["server"], "machine and commit of the server unknown"]
    table = right_aligned(" · ".join([facts["profile"], *where]), COLUMNS)
    lengths = right_aligned("by length of conversation, in tokens", OF_LENGTHS)
    for rate, outcome in rates:
        percentiles = (milliseconds(outcome.latency, percentile) for percentile in (50, 95, 99))
        shares = (f"{outcome.shed_share:.1%}", f"{outcome.reused_share:.1%}")
        goodput = median(each.goodput for each in rounds[rate])
        classified = median(each.classification_rate for each in rounds[rate])
        read = median(each.read_rate for each in rounds[rate])
        reached = (f"{rate:.2f}", str(outcome.sent), f"{goodput:.2f}", f"{classified:.1f}", f"{read:,.0f}")
        table.add_row(*reached, *percentiles, ratio(outcome.latency, unloaded(rates).latency, 99), *shares)
        if is_generator_the_limit(outcome):
            console.print(
                f"[red]at {rate:.2f} a second the generator was the limit[/]: {outcome.late_sends} late sends"
            )
    for row in length_rows(rates):
        lengths.add_row(*row)
    console.print(table, lengths)
    found = knee(rates)
    console.print("no rate was borne" if found is None else f"knee: {found[0]:.2f} calls a second")


def right_aligned(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column, justify="right")
    return table


if __name__ == "__main__":
    main()
