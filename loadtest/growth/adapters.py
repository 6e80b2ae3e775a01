"""What adapters cost that are held: swaps into slots, and memory."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from loadtest.contestants import CALL_SECONDS
from loadtest.conversations import conversation
from loadtest.growth.curve import Curve
from loadtest.growth.places import classifiers, many_classifiers, seconds_of, serving, waited_beside
from loadtest.resident import resident_bytes
from loadtest.server import started_server

ADAPTERS = 64
SLOTS = 16


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
            for what, seconds in (("swaps", beside), ("does not", calm)):
                median, late, longest = (1000 * quantile(seconds, share) for share in (0.5, 0.95, 1.0))
                curve.notes.append(
                    f"a call beside one that {what}: median {median:.1f} ms, 95th percentile {late:.1f}, "
                    f"longest {longest:.1f} of {len(seconds)}"
                )
            for count in (SLOTS, SLOTS + 1, ADAPTERS):
                taken = [
                    await seconds_of(client.fan_out(turns, names[:count], timeout=CALL_SECONDS)) for _ in range(rounds)
                ]
                curve.notes.append(
                    f"a repeated fan-out of {count} with {SLOTS} slots: {statistics.median(taken):.3f} s"
                )


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of the values that so many of them do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


async def memory(curve: Curve, rounds: int, advance: Callable[[], None]) -> None:
    for count in (16, 64, 128, 200):
        with many_classifiers(count) as folder:
            settings = {"FANTAIL_CLASSIFIERS": str(folder), "FANTAIL_SLOTS": str(SLOTS), "FANTAIL_KV_GIB": "1"}
            async with started_server(folder.parent / f"{folder.name}.log", **settings) as server:
                curve.add("GiB", count, resident_bytes(server.pid) / 2**30)
        for _ in range(rounds):
            advance()
