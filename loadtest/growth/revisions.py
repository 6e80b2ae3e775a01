"""What a new revision costs that is loaded from disk while others ask, and whether loads leave anything behind."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from loadtest.contestants import CALL_SECONDS, timed
from loadtest.growth.curve import Curve
from loadtest.growth.places import administered, shipped, waited
from loadtest.resident import resident_bytes

REVISIONS = 10


async def per_revision(curve: Curve, rounds: int, advance: Callable[[], None]) -> None:
    """New revisions of a classifier, one after the other from disk, while somebody else asks another classifier."""
    held = Curve("resident memory", "revision", "GiB")
    folder, other = shipped()[:2]
    name = folder.name
    with tempfile.TemporaryDirectory(prefix="fantail-revisions-") as scratch:
        candidate = Path(scratch) / "candidates" / name
        shutil.copytree(folder, candidate)
        settings = {"FANTAIL_CLASSIFIERS": str(folder.parent), "FANTAIL_CANDIDATES": str(candidate.parent)}
        async with administered(**settings) as (server, client, admin):
            calm = await waited(client, other.name, REVISIONS * rounds)
            beside: list[float] = []
            for number in range(REVISIONS * rounds):
                change_slightly(candidate)
                loading = asyncio.create_task(timed(admin.load_revision(name, name, timeout=CALL_SECONDS)))
                while not loading.done():
                    beside += await waited(client, other.name, 1)
                taken, revision = loading.result()
                curve.add("load", number, taken)
                await admin.unload_revision(name, revision, timeout=CALL_SECONDS)
                held.add("server", number, resident_bytes(server.pid) / 2**30)
                advance()
    start, slope = held.line("server")
    curve.notes.append(f"resident after the first load {start:.2f} GiB, and {1024 * slope:.2f} MiB more with each")
    curve.notes.append(
        f"a call beside a load: median {1000 * statistics.median(beside):.0f} ms, longest {1000 * max(beside):.0f} ms; "
        f"without one {1000 * statistics.median(calm):.0f} and {1000 * max(calm):.0f} ms"
    )


def change_slightly(folder: Path) -> None:
    """Make another revision of a classifier's folder: its adapter differs in the last digit of one number, so that it
    answers as before. Its calibration goes, which belongs to the adapter as it was."""
    weights = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(weights)
    first = next(iter(tensors.values())).reshape(-1)
    first[0] = np.nextafter(first[0], np.inf, dtype=first.dtype)
    save_file(tensors, weights, metadata={"format": "pt"})
    (folder / "calibration.json").unlink(missing_ok=True)
