"""An engine's processes live as long as their server: nobody else's signal ends them, and they do not outlive it."""

from __future__ import annotations

import asyncio
import os
import signal

import psutil
import pytest

from tests.faults.server import running_server
from tests.vllm.test_served import TURNS

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


async def test_an_engine_ends_with_its_server_and_by_no_signal() -> None:
    with running_server() as server:
        async with server.client() as client:
            async with asyncio.timeout(300):
                await client.wait_until_serving()
            engines = server.engine_processes()
            assert engines
            for process in engines:  # as Ctrl-C does, or a process manager that signals a whole group
                process.send_signal(signal.SIGINT)
                process.send_signal(signal.SIGTERM)
            answer = await client.fan_out(TURNS, timeout=60)
            assert len(answer.results) == 16
            assert server.engine_processes() == engines
        os.kill(server.process.pid, signal.SIGKILL)
        gone, alive = await asyncio.to_thread(psutil.wait_procs, engines, timeout=30)
        assert (gone, alive) == (engines, [])
