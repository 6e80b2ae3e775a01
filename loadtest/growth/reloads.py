"""What a reload costs while others ask, and whether a thousand of them leave anything behind."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from loadtest.contestants import CALL_SECONDS, CLASSIFIERS, timed
from loadtest.conversations import conversation
from loadtest.growth.curve import Curve
from loadtest.growth.places import administered, shipped, waited
from loadtest.resident import OF_NO_FILE, PROC, held_bytes, resident_bytes
from loadtest.server import free_port

RELOADS = 10
OWN, ENGINE = "the server's process", "the engine's"

MOST_MIB = 0.5
"""Of memory that a reload may leave behind where many are made: a tenth of an adapter."""

LEAST_COUNT = 100
"""Of reloads from which on a slope says something."""

REPORT_SECONDS = 5.0
"""After which the engine has told what it holds."""


async def per_reload(curve: Curve, rounds: int, advance: Callable[[], None]) -> None:
    """Reloads of a classifier that has changed on disk, one after the other, while somebody else asks another one.

    Raises RuntimeError when a new revision does not answer at once, when old ones or adapters are left at the end, and
    when each reload leaves memory behind.
    """
    held = Curve("resident memory", "reload", "GiB")
    name, other = (folder.name for folder in shipped()[:2])
    turns, count = conversation(100, "who is answered by each revision"), RELOADS * rounds
    with tempfile.TemporaryDirectory(prefix="fantail-reloads-") as scratch:
        folders = shutil.copytree(CLASSIFIERS, Path(scratch) / "classifiers", ignore=shutil.ignore_patterns("data"))
        metrics = f"127.0.0.1:{free_port()}"
        places = {"FANTAIL_CLASSIFIERS": str(folders), "FANTAIL_METRICS_ADDRESS": metrics}
        async with administered(**places) as (server, client, admin):
            calm = await waited(client, other, count)
            before = len(await admin.list_revisions(timeout=CALL_SECONDS)), await resident_adapters(metrics)
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
                    own, all_of_it = (
                        held_bytes(PROC / str(server.pid), OF_NO_FILE),
                        resident_bytes(server.pid, OF_NO_FILE),
                    )
                    held.add(OWN, number, own / 2**30)
                    held.add(ENGINE, number, (all_of_it - own) / 2**30)
                advance()
            after = len(await admin.list_revisions(timeout=CALL_SECONDS)), await resident_adapters(metrics)
            if after != before:
                raise RuntimeError(f"{after} revisions and adapters are loaded, {before} were before")
    left_mib = 0.0
    for which in (OWN, ENGINE):
        start, slope = held.line(which)
        half, more_mib = start + slope * (count // 2), 1024 * slope
        left_mib += more_mib
        curve.notes.append(
            f"{which}, without pages of files: {half:.2f} GiB after half, then {more_mib:.3f} MiB more each"
        )
    curve.notes.append(f"adapters in the engine at the end: {after[1]}, as before")
    if left_mib > MOST_MIB and count >= LEAST_COUNT:
        raise RuntimeError(f"each reload leaves {left_mib:.2f} MiB behind")
    with_one, without = (
        f"{1000 * statistics.median(each):.0f} ms (longest {1000 * max(each):.0f})" for each in (beside, calm)
    )
    curve.notes.append(f"a call beside a reload: median {with_one}; without one {without}")


async def resident_adapters(metrics: str) -> int:
    """How many adapters the engine itself says that it holds."""
    await asyncio.sleep(REPORT_SECONDS)
    async with asyncio.timeout(CALL_SECONDS):
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(f"http://{metrics}/metrics").read().decode())
    return sum(line.startswith("fantail_adapter_resident{") for line in page.splitlines())


def change_slightly(folder: Path) -> None:
    """Make another revision of a classifier's folder: its adapter differs in the last digit of one number, so that it
    answers as before. Its calibration goes, which belongs to the adapter as it was."""
    weights = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = next(iter(tensors.values())).reshape(-1)
    first[0] = np.nextafter(first[0], np.inf, dtype=first.dtype)
    save_file(tensors, weights, metadata={"format": "pt"})
    (folder / "calibration.json").unlink(missing_ok=True)
