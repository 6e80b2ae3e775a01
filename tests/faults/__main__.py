"""Runs every fault and prints a table; exits 1 when an answer was wrong or lost, or something unexpected was seen."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from service.client import FantailClient
from tests.faults.faults import FAULTS, SETTLE_SECONDS, STALL_SECONDS, Fault, UnexpectedError
from tests.faults.load import Account, steady_load, summary
from tests.faults.server import Server, running_server

START_SECONDS = 300
IDLE_SECONDS = 20
CALLERS = 3


async def suffer(fault: Fault, server: Server, known: Account) -> tuple[Account, str, bool]:
    """One fault under load: what became of the calls, what was seen, and whether it was expected."""
    account = Account(known=known.known)
    async with server.client() as client, steady_load(client, account, CALLERS):
        await account.hears_again(60)
        account.harmed()
        try:
            seen, expected = await fault.do(server, account), True
        except UnexpectedError as error:
            seen, expected = str(error), False
        if not fault.ends:
            await asyncio.sleep(SETTLE_SECONDS)
    if not fault.ends and not await server.is_idle(IDLE_SECONDS):
        seen, expected = f"{seen}; the engine still holds requests or KV", False
    if strange := {code: count for code, count in account.refused.items() if code not in fault.refusals}:
        seen, expected = f"{seen}; refused with {summary(strange)}", False
    return account, seen, expected


async def run(faults: list[Fault], console: Console) -> bool:
    """Run the faults against one server; True when all went as expected."""
    table = Table(title=f"faults under the load of {CALLERS} callers, fan-outs of all classifiers")
    for column in ("fault", "expected", "seen", "calls", "wrong", "lost", "time to recover"):
        table.add_column(column, justify="right" if column in ("wrong", "lost", "time to recover") else "left")
    fine = True
    with running_server(FANTAIL_STALL_SECONDS=str(STALL_SECONDS)) as server:
        async with FantailClient(server.address, key=server.key) as client, asyncio.timeout(START_SECONDS):
            with console.status("starting the server …"):
                await client.wait_until_serving()
        known = Account()
        for fault in faults:
            with console.status(fault.name):
                account, seen, expected = await suffer(fault, server, known)
            fine &= expected and not account.wrong and not account.lost
            table.add_row(
                fault.name,
                fault.expected,
                seen if expected else f"[red]{seen}[/]",
                summary(account.calls),
                str(len(account.wrong)),
                str(len(account.lost)),
                "–" if fault.ends else f"{account.silence_s:.1f} s",
            )
            for problem in (*account.wrong[:3], *account.lost[:3]):
                console.print(f"[red]{fault.name}[/]: {problem}")
        shutil.copyfile(server.log, Path("faults.log"))
    console.print(table)
    return fine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="names of faults")
    chosen = parser.parse_args().only
    faults = [fault for fault in FAULTS if not chosen or fault.name in chosen]
    console = Console(width=None if sys.stdout.isatty() else 200)
    sys.exit(0 if asyncio.run(run(faults, console)) else 1)


if __name__ == "__main__":
    main()
