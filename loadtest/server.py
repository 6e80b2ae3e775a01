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
from pathlib import Path

from service.client import FantailClient

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 600


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
            async with FantailClient(address) as client, asyncio.timeout(START_SECONDS):
                await client.wait_until_serving()
            yield Server(address, server.pid)
        finally:
            server.send_signal(signal.SIGTERM)
            await server.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def machine() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        model = next((line.split(":")[1].strip() for line in file if line.startswith("model name")), platform.machine())
    return f"{len(os.sched_getaffinity(0))} cores of {model}"


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "no commit"
