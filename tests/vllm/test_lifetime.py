"""An engine's processes live as long as their server: nobody else's signal ends them, and they do not outlive it."""

from __future__ import annotations

import asyncio
import os
import signal

import grpc
import psutil
import pytest

from loadtest.growth.reloads import change_slightly
from service.client import FantailClient, RpcError, Turns
from tests.faults.server import GRACE_SECONDS, Server, running_server
from tests.vllm.asking import TURNS, is_said_to_serve

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


ENDING_SECONDS = 10
"""After the grace, for the engine's processes to end."""

NOBODY = "nobody listens"


async def test_who_comes_too_early_is_told_a_change_is_seen_and_an_engine_ends_with_its_server_alone() -> None:
    long: Turns = [("customer", "a long story, and all of it is new. " * 40)] * 4
    with running_server(FANTAIL_WATCH="true") as server:
        async with server.client() as client:
            async with asyncio.timeout(300):
                while True:
                    said_to_serve = await is_said_to_serve(server.address)
                    if (reason := await refusal(client)) == "":
                        break
                    assert reason in (NOBODY, "ERROR_REASON_STARTING")
                    told = reason
                    assert not said_to_serve
                    await asyncio.sleep(0.1)
            assert told == "ERROR_REASON_STARTING"
            assert await is_said_to_serve(server.address)
            clock = asyncio.get_running_loop().time
            began = clock()
            await client.fan_out([("customer", f"first, {long[0][1]}"), *long], timeout=60)
            with pytest.raises(RpcError) as hopeless:
                await client.fan_out([("customer", f"second, {long[0][1]}"), *long], timeout=0.2 * (clock() - began))
            assert hopeless.value.reason == "ERROR_REASON_DEADLINE_TOO_NEAR"
            await changes_by_itself(server, client)
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


@pytest.mark.faults
async def test_a_server_that_is_stopped_while_its_engine_starts_ends_with_0_and_leaves_no_process() -> None:
    with running_server() as server:
        for _ in range(3000):  # until its engine's process is there, which then takes some ten seconds to serve
            if engines := server.engine_processes():
                break
            await asyncio.sleep(0.1)
        assert not await is_said_to_serve(server.address)
        code, seconds = await asyncio.to_thread(server.terminate)
        assert (code, seconds < GRACE_SECONDS) == (0, True)
        gone, alive = await asyncio.to_thread(psutil.wait_procs, engines, timeout=30)
        assert (gone, alive) == (engines, [])


@pytest.mark.faults
async def test_work_that_outlasts_the_grace_is_given_up_and_told_and_the_server_ends_with_0() -> None:
    with running_server(FANTAIL_GRACE_SECONDS="2") as server:
        async with server.client() as client:
            await asyncio.wait_for(client.wait_until_serving(), 300)
            call = asyncio.create_task(
                client.fan_out([("customer", "nothing of it is known. " * 300)] * 3, timeout=120)
            )
            await server.is_busy_with(call)
            code, seconds = await asyncio.to_thread(server.terminate)
            with pytest.raises(RpcError) as given_up:
                await call
    assert (code, seconds < 2 + ENDING_SECONDS) == (0, True)
    assert given_up.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


async def changes_by_itself(server: Server, client: FantailClient) -> None:
    """A folder that is changed on disk is proven and answers, without anybody asking for it."""
    before = (await client.get_classifier("topic", timeout=20)).revision
    change_slightly(server.folder / "topic")
    for _ in range(600):
        if (now := (await client.get_classifier("topic", timeout=20)).revision) != before:
            break
        await asyncio.sleep(0.2)
    assert now != before
    assert (await client.classify(TURNS, "topic", timeout=60)).classification.revision == now


async def refusal(client: FantailClient) -> str:
    """Why a call is refused; empty for one that is answered. None hangs."""
    try:
        await client.classify(TURNS, "topic", timeout=5)
    except RpcError as error:
        if error.code is not grpc.StatusCode.UNAVAILABLE:
            raise
        return error.reason or NOBODY
    return ""
