"""What a live conversation's client hears when its call has ended, at whatever moment it notices."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from service.classify import Classify
from service.client import FantailClient, FollowedConversation, RpcError, following
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import (
    ClassificationServiceServicer,
    add_ClassificationServiceServicer_to_server,
)
from tests.integration.harness import DEADLINE_S, HELLO

MESSAGE = [("agent", "word " * 100)]
MOMENTS = pytest.mark.parametrize("turns_of_the_loop", range(0, 40, 2))
"""How often the event loop turns before the client goes on, so that it does so before, while and after it hears."""


class Nodding(ClassificationServiceServicer):
    """Answers every message, with nothing."""

    async def Follow(self, requests: Any, context: Any) -> AsyncIterator[pb.FollowResponse]:
        number = 0
        async for _ in requests:
            number += 1
            yield pb.FollowResponse(message=number, fan_out=pb.FanOutResponse())


async def what_ended(live: FollowedConversation, turns_of_the_loop: int) -> RpcError:
    """The error of the first message that cannot be told any more."""
    for _ in range(turns_of_the_loop):
        await asyncio.sleep(0)
    while True:
        try:
            await live.tell(MESSAGE)
        except RpcError as error:
            return error


async def after_leaving(
    client: FantailClient, turns_of_the_loop: int, end: Callable[[], object], first: Any = HELLO
) -> tuple[RpcError, RpcError]:
    """What the client hears when it goes on, and then when it leaves."""
    told: list[RpcError] = []

    async def go_on() -> None:
        async with client.follow(timeout=DEADLINE_S) as live:
            if first:
                await live.tell(first)
            end()
            told.append(await what_ended(live, turns_of_the_loop))

    with pytest.raises(RpcError) as failure:
        await go_on()
    return told[0], failure.value


@MOMENTS
async def test_a_server_that_stops_says_so(client: FantailClient, classify: Classify, turns_of_the_loop: int) -> None:
    for error in await after_leaving(client, turns_of_the_loop, classify.admission.stop):
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_STOPPING")


async def test_a_server_that_stops_says_so_also_where_a_write_fails_before_its_status_comes(
    client: FantailClient, classify: Classify
) -> None:
    with contextlib.suppress(RpcError):  # which is heard again on leaving
        async with client.follow(timeout=DEADLINE_S) as live:
            await live.tell(HELLO)
            classify.admission.stop()
            live._call._cython_call.set_internal_error("the write failed")  # as grpc.aio itself does then
            error = await what_ended(live, 0)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_STOPPING")


@MOMENTS
async def test_a_refused_call_says_why(client: FantailClient, classify: Classify, turns_of_the_loop: int) -> None:
    classify.admission.max_follows = 0
    for error in await after_leaving(client, turns_of_the_loop, lambda: None, first=None):
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ERROR_REASON_OVERLOADED")
        assert error.metadata == {"limit": "follows"}
        assert error.retry_after_s


@MOMENTS
async def test_a_lost_connection_is_unavailable(turns_of_the_loop: int) -> None:
    server = grpc.aio.server()
    add_ClassificationServiceServicer_to_server(Nodding(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    stopped: list[asyncio.Task[None]] = []
    async with FantailClient(f"127.0.0.1:{port}") as client:
        errors = await after_leaving(
            client, turns_of_the_loop, lambda: stopped.append(asyncio.create_task(server.stop(0)))
        )
    assert [error.code for error in errors] == [grpc.StatusCode.UNAVAILABLE] * 2
    await stopped[0]


class Silent(ClassificationServiceServicer):
    """Takes every message, and says nothing."""

    async def Follow(self, requests: Any, context: Any) -> AsyncIterator[pb.FollowResponse]:
        async for _ in requests:
            pass
        yield pb.FollowResponse()


async def test_a_message_has_a_deadline_also_where_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LATE_SECONDS", 0.05)
    server = grpc.aio.server()
    add_ClassificationServiceServicer_to_server(Silent(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with FantailClient(f"127.0.0.1:{port}") as client, client.follow(timeout=DEADLINE_S) as live:
        with pytest.raises(RpcError) as failure:
            await live.tell(HELLO, timeout=0.05)
        assert failure.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        with pytest.raises(RpcError):
            await live.tell(HELLO)
    await server.stop(0)


async def test_a_message_has_a_deadline_also_where_it_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LATE_SECONDS", 0.05)
    mute = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    port = mute.sockets[0].getsockname()[1]
    async with FantailClient(f"127.0.0.1:{port}") as client, client.follow(timeout=DEADLINE_S) as live:
        with pytest.raises(RpcError) as failure:
            await live.tell(HELLO, timeout=0.05)
        assert failure.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    mute.close()
