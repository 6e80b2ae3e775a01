"""The faults: what is done to a server under load, and what is expected to be seen."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from safetensors.numpy import load_file, save_file

from loadtest.growth.reloads import change_slightly
from service.client import FantailClient, RpcError, Turns
from service.pb.fantail.v1 import admin_service_pb2 as admin
from tests.faults.load import TALKS, Account, steady_load, summary
from tests.faults.server import GRACE_SECONDS, Server

RECOVERY_SECONDS = 240.0
SETTLE_SECONDS = 4.0
"""How long the load goes on after a fault that interrupts nothing."""

STALL_SECONDS = 25
"""Longer than the longest step of these calls on a slow machine: one step of 2,000 tokens takes 7 s on two cores."""

OVERLOAD_SECONDS = 8.0
REPORT_SECONDS = 3.0
"""After which what a server counts of its engine is counted in its metrics."""

RESTARTS = "fantail_engine_restarts_total"

VICTIM = "refund_request"


class UnexpectedError(Exception):
    """The server did something else than expected."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`do`: brings the fault about and returns what was seen, or raises UnexpectedError; `refusals`: codes with which
    calls, or single classifiers of one, may be refused meanwhile; `ends`: whether the server is gone afterwards."""

    name: str
    expected: str
    do: Callable[[Server, Account], Awaitable[str]]
    refusals: frozenset[str] = frozenset()
    ends: bool = False


async def kill(server: Server, account: Account) -> str:
    refused = await outlives(server, account, server.kill_engine)
    return f"{refused} times UNAVAILABLE, then answered again"


async def hang(server: Server, account: Account) -> str:
    refused = await outlives(server, account, server.suspend_engine)
    return f"replaced after {STALL_SECONDS} s without progress, {refused} times UNAVAILABLE"


async def pause(server: Server, account: Account) -> str:
    """Stop the server and its engine together, as `docker pause` does, for longer than an engine may do nothing."""
    restarts = server.series()[RESTARTS]
    server.suspend()
    await asyncio.sleep(STALL_SECONDS + 5)
    server.resume()
    if not await account.hears_again(RECOVERY_SECONDS):
        raise UnexpectedError(f"no answer within {RECOVERY_SECONDS:.0f} s")
    await asyncio.sleep(REPORT_SECONDS)
    if server.series()[RESTARTS] != restarts:
        raise UnexpectedError("the engine was replaced")
    return "answered by the same engine"


async def outlives(server: Server, account: Account, harm: Callable[[], None]) -> int:
    """Harm the engine; returns how often UNAVAILABLE was heard until another answers in its place."""
    if not server.engine_processes():
        raise UnexpectedError("there is no process of an engine to be harmed")
    restarts, refused = server.series()[RESTARTS], account.refused["UNAVAILABLE"]
    harm()
    await asyncio.sleep(1.0)  # so that no answer from before is taken for one from after
    if not await account.hears_again(RECOVERY_SECONDS):
        raise UnexpectedError(f"no answer within {RECOVERY_SECONDS:.0f} s")
    await asyncio.sleep(REPORT_SECONDS)
    heard = account.refused["UNAVAILABLE"] - refused
    if server.series()[RESTARTS] != restarts + 1 or not heard:
        raise UnexpectedError(f"{server.series()[RESTARTS] - restarts:.0f} restarts, {heard} times UNAVAILABLE")
    return heard


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
    cancelled = 0
    async with FantailClient(server.address, key=server.key) as client:
        for _ in range(20):
            calls = [asyncio.create_task(client.fan_out(talk, timeout=20)) for talk in TALKS]
            await asyncio.sleep(0.05)
            cancelled += sum(call.cancel() for call in calls)
            await asyncio.gather(*calls, return_exceptions=True)
    if not await account.hears_again(30):
        raise UnexpectedError("calls beside the cancelled ones are not answered")
    if not cancelled:
        raise UnexpectedError("every call was answered before it could be cancelled")
    return f"{cancelled} calls cancelled"


async def no_time(server: Server, account: Account) -> str:
    """Deadlines that cannot be kept."""
    seen: Counter[str] = Counter()
    before = told_too_late(server)
    async with FantailClient(server.address, key=server.key) as client:
        await client.list_classifiers(timeout=20)
        for number in range(20):
            try:
                await client.fan_out(new_story(f"{number}"), timeout=0.03)
                seen["answered in time"] += 1
            except RpcError as error:
                seen[error.code.name] += 1
    told = told_too_late(server) - before
    if seen.keys() - {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"} or not told:
        raise UnexpectedError(f"{summary(seen)}; {told:.0f} times by the server itself")
    return f"{summary(seen)}; {told:.0f} times by the server itself"


def told_too_late(server: Server) -> float:
    """How many calls the server itself has ended for their deadline."""
    calls = {name: count for name, count in server.series().items() if name.startswith("fantail_calls_total{")}
    return sum(count for name, count in calls.items() if 'code="DEADLINE_EXCEEDED"' in name)


async def overload(server: Server, account: Account) -> str:
    """Twenty times as many callers, who come again as soon as they are told."""
    more = Account(known=account.known)
    async with server.client() as client, steady_load(client, more, 60):
        await asyncio.sleep(OVERLOAD_SECONDS)
    if more.wrong or more.lost:
        raise UnexpectedError("; ".join((*more.wrong, *more.lost))[:200])
    if not more.refused["RESOURCE_EXHAUSTED"] or more.refused.keys() != {"RESOURCE_EXHAUSTED"}:
        raise UnexpectedError(summary(more.calls))
    return f"{summary(more.calls)}; told within {more.refusal_s:.1f} s"


async def terminate(server: Server, account: Account) -> str:
    async with server.client() as client:
        calls = [asyncio.create_task(client.fan_out(new_story(name), timeout=GRACE_SECONDS)) for name in "ABC"]
        refused, accepted = await asyncio.wait(calls, timeout=0.5)  # those for which there is no room are told at once
        code, seconds = await asyncio.to_thread(server.terminate)
        answers = [(await call).results for call in accepted]
        if strange := [str(error) for call in refused if not is_overload(error := call.exception())]:
            raise UnexpectedError("; ".join(strange))
    answered = sum(result.HasField("classification") for results in answers for result in results)
    if code != 0 or seconds > GRACE_SECONDS or not accepted or answered != sum(map(len, answers)):
        raise UnexpectedError(f"exit code {code} after {seconds:.1f} s, {answered} classifiers answered")
    if not account.calls["UNAVAILABLE ERROR_REASON_STOPPING"]:
        raise UnexpectedError(f"nobody was told that it stops: {dict(account.calls)}")
    return f"exit code 0 after {seconds:.1f} s, {len(accepted)} accepted calls answered"


def is_overload(error: BaseException | None) -> bool:
    return isinstance(error, RpcError) and error.reason == "ERROR_REASON_OVERLOADED"


def new_story(beginning: str) -> Turns:
    """A conversation of 700 tokens that is in no cache."""
    return [("customer", f"{beginning}: a long story, and all of it is new. " * 20)] * 3


async def revision(server: Server) -> str:
    """The revision of the victim that answers now."""
    async with FantailClient(server.address, key=server.key) as client:
        return (await client.get_classifier(VICTIM, timeout=20)).revision


SAME = "UNAVAILABLE, then the same answers"
OUTAGE = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED"})
OVERLOAD = frozenset({"RESOURCE_EXHAUSTED"})
"""The fault's own calls take the room that the others need."""

FAULTS = (
    Fault("callers give up", "the others are answered", cancel_many, OVERLOAD),
    Fault("deadlines of 30 ms", "DEADLINE_EXCEEDED", no_time, OVERLOAD),
    Fault("overload", "RESOURCE_EXHAUSTED or a right answer", overload, OVERLOAD),
    Fault("reload of a changed folder", "the new revision answers, no call fails", reload_good),
    Fault("reload of a wrong adapter", "refused by the gate, no call fails", reload_bad),
    Fault("server and engine paused", "the same engine answers on", pause, OUTAGE | OVERLOAD),
    Fault("kill -9 of the engine", SAME, kill, OUTAGE),
    Fault("the engine hangs", "replaced, then the same answers", hang, OUTAGE),
    Fault("folder damaged, engine killed", "the proven bytes answer again", damage_and_kill, OUTAGE),
    Fault(
        "SIGTERM", "accepted calls are answered, exit code 0", terminate, OUTAGE | OVERLOAD | {"CANCELLED"}, ends=True
    ),
)
