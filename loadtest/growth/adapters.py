"""What adapters cost that are held: swaps into slots, and memory."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence

from loadtest.contestants import CALL_SECONDS, timed_fan_out
from loadtest.conversations import conversation
from loadtest.growth.curve import Curve, quantile, spread
from loadtest.growth.places import administered, classifiers, many_classifiers, seconds_of, waited_beside
from loadtest.resident import resident_bytes
from loadtest.server import started_server
from service.client import FantailAdminClient, FantailClient

ADAPTERS = 200
SLOTS = 16
HOT, COLD = "in a slot", "put into a slot"

BLOCK = 10
"""Calls beside swaps, and then as many beside none, so that a slow minute of the machine falls on both."""

BLOCKS = 4
"""Pairs of blocks in a round."""


async def per_adapter(curve: Curve, rounds: int, advance: Callable[[], None]) -> None:
    """More adapters than slots: the same question with its adapter in a slot, and with one that must be put there."""
    with many_classifiers(ADAPTERS) as folder:
        settings = {"FANTAIL_CLASSIFIERS": str(folder), "FANTAIL_SLOTS": str(SLOTS)}
        async with administered(**settings) as (_, client, admin):
            names = await classifiers(client)
            for _ in range(rounds):
                before = await slot_loads(admin)
                await ask_in_turn(curve, client, names)
                require_swaps(await slot_loads(admin) - before)
                advance()
            hot, cold = (list(itertools.chain(*curve.values[series].values())) for series in (HOT, COLD))
            swaps = [1000 * (after - before) for before, after in zip(hot, cold, strict=True)]
            curve.notes.append(f"a swap from RAM into a slot costs {spread(swaps)} ms")
            curve.notes += await waits(client, admin, names, BLOCKS * rounds)
            turns = conversation(100, "swaps")
            for count in (SLOTS, SLOTS + 1, ADAPTERS):
                taken = [(await timed_fan_out(client, turns, names[:count]))[0] for _ in range(rounds)]
                curve.notes.append(
                    f"a repeated fan-out of {count} with {SLOTS} slots: {statistics.median(taken):.3f} s"
                )


async def ask_in_turn(curve: Curve, client: FantailClient, names: Sequence[str]) -> None:
    """Each adapter once when it is in a slot, and beside it another that is not."""
    turns = conversation(100, "swaps")
    for place, name in enumerate(names):
        await client.classify(turns, name, timeout=CALL_SECONDS)
        for series, asked in ((HOT, name), (COLD, names[(place + len(names) // 2) % len(names)])):
            curve.add(series, place, await seconds_of(client.classify(turns, asked, timeout=CALL_SECONDS)))


async def waits(client: FantailClient, admin: FantailAdminClient, names: Sequence[str], blocks: int) -> list[str]:
    """What somebody waits beside one who asks for an adapter that must be put into a slot, and beside one who does not:
    in blocks by turns, so many of each. Raises RuntimeError when nothing was put into a slot."""
    others = {"swaps": itertools.cycle(names[1:]), "does not": itertools.cycle(names[1:2])}
    waited: dict[str, list[list[float]]] = {what: [] for what in others}
    swaps = dict.fromkeys(others, 0)
    await waited_beside(client, others["does not"], names[0], 1)  # reads both conversations, so that no call below does
    for _ in range(blocks):
        for what, asked in others.items():
            before = await slot_loads(admin)
            waited[what].append([1000 * each for each in await waited_beside(client, asked, names[0], BLOCK)])
            swaps[what] += await slot_loads(admin) - before
    require_swaps(swaps["swaps"])
    notes = [wait_note(what, swaps[what], waited[what]) for what in others]
    return [*notes, difference_note(waited["swaps"], waited["does not"])]


def wait_note(what: str, swaps: int, blocks: Sequence[Sequence[float]]) -> str:
    calls = list(itertools.chain(*blocks))
    median, late, longest = (quantile(calls, share) for share in (0.5, 0.95, 1.0))
    return (
        f"a call beside one that {what} ({swaps} swaps): median {median:.1f} ms, 95th percentile {late:.1f}, "
        f"longest {longest:.1f} of {len(calls)}"
    )


def difference_note(swapping: Sequence[Sequence[float]], calm: Sequence[Sequence[float]]) -> str:
    """Of the medians of each two blocks that followed one another."""
    pairs = zip(swapping, calm, strict=True)
    return f"beside a swap longer by {spread([statistics.median(a) - statistics.median(b) for a, b in pairs])} ms"


async def slot_loads(admin: FantailAdminClient) -> int:
    """How often the engine has put an adapter into a slot so far."""
    return sum(each.adapter.slot_loads for each in await admin.list_revisions(timeout=CALL_SECONDS))


def require_swaps(swaps: int) -> None:
    if not swaps:
        raise RuntimeError("no adapter was put into a slot, so that what would be measured as swaps is none")


async def memory(curve: Curve, rounds: int, advance: Callable[[], None]) -> None:
    """Once at each place, whatever the rounds: a server of its own, weighed when it serves."""
    for count in (16, 64, 128, 200):
        with many_classifiers(count) as folder:
            settings = {"FANTAIL_CLASSIFIERS": str(folder), "FANTAIL_SLOTS": str(SLOTS), "FANTAIL_KV_GIB": "1"}
            async with started_server(folder.parent / f"{folder.name}.log", **settings) as server:
                curve.add("GiB", count, resident_bytes(server.pid) / 2**30)
        advance()
