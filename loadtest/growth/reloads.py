"""What a reload costs while others ask, and whether a thousand of them leave anything behind."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from loadtest.contestants import CALL_SECONDS, CLASSIFIERS, timed
from loadtest.conversations import conversation
from loadtest.growth.curve import Curve
from loadtest.growth.places import administered, shipped, waited
from loadtest.resident import resident_bytes

RELOADS = 10


async def per_reload(curve: Curve, rounds: int, advance: Callable[[], None]) -> None:
    """Reloads of a classifier that has changed on disk, one after the other, while somebody else asks another one.

    Raises RuntimeError when a new revision does not answer at once, or when old ones are left at the end.
    """
    held = Curve("resident memory", "reload", "GiB")
    name, other = (folder.name for folder in shipped()[:2])
    turns, count = conversation(100, "who is answered by each revision"), RELOADS * rounds
    with tempfile.TemporaryDirectory(prefix="fantail-reloads-") as scratch:
        folders = shutil.copytree(CLASSIFIERS, Path(scratch) / "classifiers", ignore=shutil.ignore_patterns("data"))
        async with administered(FANTAIL_CLASSIFIERS=str(folders)) as (server, client, admin):
            calm = await waited(client, other, count)
            before = len(await admin.list_revisions(timeout=CALL_SECONDS))
            beside: list[float] = []
            for number in range(count):
                change_slightly(folders / name)
                reloading = asyncio.create_task(timed(admin.reload([name], timeout=CALL_SECONDS)))
                while not reloading.done():
                    beside += await waited(client, other, 1)
                taken, (result,) = reloading.result()
                curve.add("reload", number, taken)
                answer = (await client.classify(turns, name, timeout=CALL_SECONDS)).classification
                if result.problems or answer.revision != result.revision:
                    raise RuntimeError(f"reload {number}: {answer.revision} answers; {result}")
                if number >= count // 2:  # by then what is filled only once is full
                    held.add("server", number, resident_bytes(server.pid) / 2**30)
                advance()
            if (after := len(await admin.list_revisions(timeout=CALL_SECONDS))) != before:
                raise RuntimeError(f"{after} revisions are loaded, {before} were before")
    start, slope = held.line("server")
    half = start + slope * (count // 2)
    curve.notes.append(
        f"resident after half of them {half:.2f} GiB, from there on {1024 * slope:.3f} MiB more with each"
    )
    with_one, without = (
        f"{1000 * statistics.median(each):.0f} ms (longest {1000 * max(each):.0f})" for each in (beside, calm)
    )
    curve.notes.append(f"a call beside a reload: median {with_one}; without one {without}")


def change_slightly(folder: Path) -> None:
    """Make another revision of a classifier's folder: its adapter differs in the last digit of one number, so that it
    answers as before. Its calibration goes, which belongs to the adapter as it was."""
    weights = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = next(iter(tensors.values())).reshape(-1)
    first[0] = np.nextafter(first[0], np.inf, dtype=first.dtype)
    save_file(tensors, weights, metadata={"format": "pt"})
    (folder / "calibration.json").unlink(missing_ok=True)
