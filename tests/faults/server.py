"""A real server as a process of its own, with an operator's key, on a copy of the shipped classifiers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from service.client import FantailAdminClient, FantailClient
from service.domain import Classifier
from service.engine.base import engine_adapter
from service.keys import new_key
from service.pb.fantail.v1 import admin_service_pb2 as admin

ROOT = Path(__file__).resolve().parents[2]
GRACE_SECONDS = 30
STOP_SECONDS = 90
RESIDENT = "fantail_adapter_resident"
REPORTED_SECONDS = 3.0
"""After which what the engine counts is newer than the question: it is asked every two."""

LAST_WORDS = 40
"""Lines of a server's log that are shown with a test that fails."""


@dataclass(slots=True)
class Server:
    """A running `fantail serve`.

    `folder`: its classifiers, which faults may change; `candidates`: where further revisions are loaded from; `log`:
    what it has said; `temporary`: its temporary files; `metrics`: URL of what it counts.
    """

    process: subprocess.Popen[bytes]
    address: str
    metrics: str
    key: str
    folder: Path
    candidates: Path
    log: Path
    temporary: Path

    def client(self) -> FantailClient:
        """A caller who hides nothing by trying again."""
        return FantailClient(self.address, key=self.key, retries=False)

    def engine_processes(self) -> list[psutil.Process]:
        """vLLM's processes: the engine core, which on a CPU computes itself."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):  # it may end while it is looked at
                if "EngineCore" in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def kill_engine(self) -> None:
        """Send SIGKILL to the engine's processes."""
        for process in self.engine_processes():
            process.kill()

    def suspend_engine(self) -> None:
        """Send SIGSTOP: the engine lives and does nothing."""
        for process in self.engine_processes():
            process.suspend()

    def resume_engine(self) -> None:
        """Send SIGCONT."""
        for process in self.engine_processes():
            process.resume()

    def suspend(self) -> None:
        """Send SIGSTOP to all its processes, the server's own first."""
        for process in family_of(self.process):
            process.suspend()

    def resume(self) -> None:
        """Send SIGCONT to all of them."""
        for process in reversed(family_of(self.process)):
            process.resume()

    async def reload(self) -> Sequence[admin.ReloadResult]:
        """Ask the server to serve what its folder holds now."""
        async with FantailAdminClient(self.address, key=self.key) as operator:
            return await operator.reload(timeout=120)

    async def is_idle(self, seconds: float) -> bool:
        """Wait until nothing is in use, as counted from now on; False when that takes too long."""
        await asyncio.sleep(REPORTED_SECONDS)
        return await _comes_true(lambda: self._in_use() == 0, seconds)

    async def is_busy_with(self, call: asyncio.Task[Any]) -> None:
        """Wait until something is in use, or the call is over."""
        await _comes_true(lambda: call.done() or bool(self._in_use()), STOP_SECONDS)

    async def comes_to_count(self, name: str, seconds: float) -> bool:
        """Wait until it counts this series; False when that takes too long."""
        return await _comes_true(lambda: name in self.series(), seconds)

    async def comes_to_hold(self, adapters: Iterable[Classifier], seconds: float) -> bool:
        """Wait until the engine itself lists the adapters of these and no other; False when that takes too long."""
        wanted = {f'{RESIDENT}{{adapter="{each.name}"}}' for each in map(engine_adapter, adapters) if each}
        return await _comes_true(lambda: {name for name in self.series() if RESIDENT in name} == wanted, seconds)

    def _in_use(self) -> float | None:
        """Requests and KV blocks in use, as the engine itself counts them; None while the server cannot say."""
        wanted = {
            'fantail_engine_requests{state="running"}',
            'fantail_engine_requests{state="waiting"}',
            'fantail_engine_kv_blocks{state="used"}',
        }
        series = self.series()
        # An engine that serves is asked every two seconds; until then its series are not there.
        return sum(series[name] for name in wanted) if series.keys() >= wanted else None

    def series(self) -> dict[str, float]:
        """What it counts, by name and labels."""
        with urllib.request.urlopen(self.metrics, timeout=10) as response:
            lines = [line.rsplit(" ", 1) for line in response.read().decode().splitlines() if line[0] != "#"]
        return {name: float(value) for name, value in lines}

    def terminate(self) -> tuple[int, float]:
        """Send SIGTERM; returns the exit code, and after how many seconds."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_SECONDS), time.monotonic() - began


@contextmanager
def running_server(**settings: str) -> Iterator[Server]:
    """Start a server, as in a new container without a C++ compiler; whatever is left of it is killed at the end."""
    with tempfile.TemporaryDirectory(prefix="fantail-faults-") as scratch:
        folder, candidates = Path(scratch) / "classifiers", Path(scratch) / "candidates"
        keys, log, temporary = (Path(scratch) / name for name in ("keys.toml", "server.log", "temporary"))
        candidates.mkdir()
        temporary.mkdir()
        shutil.copytree(ROOT / "classifiers", folder, ignore=shutil.ignore_patterns("data", ".*"))
        key, digest = new_key()
        keys.write_text(f'[[key]]\nname = "faults"\nsha256 = "{digest}"\nscopes = ["classify", "admin"]\n')
        address, metrics = (f"127.0.0.1:{_free_port()}" for _ in range(2))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FANTAIL_")}
        environment |= {
            "TMPDIR": str(temporary),  # without anything that was compiled before
            "CXX": "/no/compiler",
            "FANTAIL_ADDRESS": address,
            "FANTAIL_CLASSIFIERS": str(folder),
            "FANTAIL_CANDIDATES": str(candidates),
            "FANTAIL_KEYS": str(keys),
            "FANTAIL_ADMIN": "true",
            "FANTAIL_METRICS_ADDRESS": metrics,
            "FANTAIL_KV_GIB": "1",
            "FANTAIL_GRACE_SECONDS": str(GRACE_SECONDS),
        } | settings
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "service", "serve"], cwd=ROOT, env=environment, stdout=output, stderr=output
            )
            try:
                yield Server(process, address, f"http://{metrics}/metrics", key, folder, candidates, log, temporary)
            except BaseException as error:
                said = log.read_text(errors="replace").splitlines()
                error.add_note("\n".join(["The server's last words:", *said[-LAST_WORDS:]]))
                raise
            finally:
                _kill_all(process)


async def _comes_true(condition: Callable[[], bool], seconds: float) -> bool:
    """Ask in a thread until it holds; False when that takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if await asyncio.to_thread(condition):
            return True
        await asyncio.sleep(0.5)
    return False


def family_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """A process and all that came of it, itself first. Raises psutil.NoSuchProcess."""
    own = psutil.Process(process.pid)
    return [own, *own.children(recursive=True)]


def _kill_all(process: subprocess.Popen[bytes]) -> None:
    try:
        family = family_of(process)
    except psutil.NoSuchProcess:
        return
    for each in reversed(family):
        try:
            each.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
