"""The faults: what is done to a server under load, and what is expected to be seen."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from safetensors.numpy import load_file, save_file

from loadtest.growth.revisions import change_slightly
from service.client import FantailClient, RpcError
from service.pb.fantail.v1 import admin_service_pb2 as admin
from tests.faults.load import TALKS, Account, summary
from tests.faults.server import STALL_SECONDS, Server

RECOVERY_SECONDS = 240.0
SETTLE_SECONDS = 4.0
"""How long the load goes on after a fault that interrupts nothing."""

VICTIM = "refund_request"


class UnexpectedError(Exception):
    """The server did something else than expected."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`do`: brings the fault about and returns what was seen, or raises UnexpectedError; `outage`: whether calls may be
    refused as unavailable meanwhile; `ends`: whether the server is gone afterwards."""

    name: str
    expected: str
    do: Callable[[Server, Account], Awaitable[str]]
    outage: bool = False
    ends: bool = False


async def kill(server: Server, account: Account) -> str:
    server.kill_engine()
    await asyncio.sleep(1.0)  # so that no answer from before is taken for one from after
    if not await account.hears_again(RECOVERY_SECONDS):
        raise UnexpectedError(f"no answer within {RECOVERY_SECONDS:.0f} s")
    return "refused with UNAVAILABLE, then answered again"


async def hang(server: Server, account: Account) -> str:
    server.suspend_engine()
    await asyncio.sleep(1.0)
    if not await account.hears_again(RECOVERY_SECONDS + STALL_SECONDS):
        raise UnexpectedError("the stalled engine was not replaced")
    return f"replaced after {STALL_SECONDS} s without progress"


async def reload_good(server: Server, account: Account) -> str:
    """Another adapter with the same answers, which the engine has to load."""
    before = await revision(server)
    change_slightly(server.folder / VICTIM)
    (result,) = await server.reload()
    if result.outcome != admin.RELOAD_OUTCOME_LOADED or await revision(server) in (before, ""):
        raise UnexpectedError(str(result))
    await asyncio.sleep(SETTLE_SECONDS)
    return f"{before} replaced by {result.revision}"


async def reload_bad(server: Server, account: Account) -> str:
    """Another classifier's adapter under this one's name, which only the gate can tell."""
    before, folder = await revision(server), server.folder / VICTIM
    with tempfile.TemporaryDirectory(prefix="fantail-kept-") as kept:
        shutil.copytree(folder, kept, dirs_exist_ok=True)
        shutil.copytree(server.folder / "escalation_risk" / "adapter", folder / "adapter", dirs_exist_ok=True)
        (folder / "calibration.json").unlink(missing_ok=True)
        try:
            (result,) = await server.reload()
        finally:
            shutil.rmtree(folder)
            shutil.copytree(kept, folder)
    by_the_gate = result.outcome == admin.RELOAD_OUTCOME_REFUSED and result.problems[0].startswith(f"{VICTIM}: probe ")
    if not by_the_gate or await revision(server) != before:
        raise UnexpectedError(str(result))
    await asyncio.sleep(SETTLE_SECONDS)
    return result.problems[0][:60]


async def damage_and_kill(server: Server, account: Account) -> str:
    """The folder is damaged while it is served, and then the engine has to read its adapters again."""
    path = server.folder / VICTIM / "adapter" / "adapter_model.safetensors"
    whole = path.read_bytes()
    save_file({name: 3 * tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})
    try:
        seen = await kill(server, account)
    finally:
        path.write_bytes(whole)
    return seen


async def cancel_many(server: Server, account: Account) -> str:
    """Callers who give up at once leave nothing behind in the engine."""
    async with FantailClient(server.address, key=server.key) as client:
        for _ in range(20):
            calls = [asyncio.create_task(client.fan_out(talk, timeout=20)) for talk in TALKS]
            await asyncio.sleep(0.05)
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
    if not await account.hears_again(30):
        raise UnexpectedError("calls beside the cancelled ones are not answered")
    return "80 calls cancelled"


async def no_time(server: Server, account: Account) -> str:
    """Deadlines that cannot be kept."""
    seen: Counter[str] = Counter()
    async with FantailClient(server.address, key=server.key) as client:
        await client.list_classifiers(timeout=20)
        for _ in range(20):
            try:
                await client.fan_out(TALKS[1], timeout=0.03)
                seen["answered in time"] += 1
            except RpcError as error:
                seen[error.code.name] += 1
    if seen.keys() - {"answered in time", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}:
        raise UnexpectedError(summary(seen))
    return summary(seen)


async def terminate(server: Server, account: Account) -> str:
    code, seconds = await asyncio.to_thread(server.terminate)
    if code != 0:
        raise UnexpectedError(f"exit code {code}")
    return f"exit code 0 after {seconds:.1f} s"


async def revision(server: Server) -> str:
    """The revision of the victim that answers now."""
    async with FantailClient(server.address, key=server.key) as client:
        return (await client.get_classifier(VICTIM, timeout=20)).revision


SAME = "UNAVAILABLE, then the same answers"

FAULTS = (
    Fault("callers give up", "the others are answered", cancel_many),
    Fault("deadlines of 30 ms", "DEADLINE_EXCEEDED at once", no_time),
    Fault("reload of a changed folder", "the new revision answers, no call fails", reload_good),
    Fault("reload of a wrong adapter", "refused by the gate, no call fails", reload_bad),
    Fault("kill -9 of the engine", SAME, kill, outage=True),
    Fault("the engine hangs", "replaced, then the same answers", hang, outage=True),
    Fault("folder damaged, engine killed", "the proven bytes answer again", damage_and_kill, outage=True),
    Fault("SIGTERM", "accepted calls are answered, exit code 0", terminate, outage=True, ends=True),
)
