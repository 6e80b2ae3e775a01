"""Live conversations together hold no more memory than they may, and give it back however they end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest

from service.admission import MEMORY_RETRY_S, Admission
from service.client import RpcError
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from tests.integration.harness import DEADLINE_S, WatchedEngine
from tests.integration.talking import Following, agent, customer

ROOM = 20_000
HALF = [agent("word " * 60)] * 15
"""What takes more than half of it, and less than all: in the turns and, as long as no other comes, in their message."""


@pytest.fixture
def admission() -> Admission:
    return Admission(100, 1 << 40, 100, ROOM)


def begin(channel: grpc.aio.Channel) -> Following:
    return Following(ClassificationServiceStub(channel).Follow(timeout=DEADLINE_S))


async def ended(live: Following) -> RpcError:
    """What ends the call."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await live.call.read()
    return RpcError.of_call(failure.value)


async def until(admission: Admission, holds: Callable[[int], bool]) -> None:
    """Return once that holds of the bytes in memory."""
    async with asyncio.timeout(DEADLINE_S):
        while not holds(admission.follow_bytes):  # noqa: ASYNC110  (what is counted tells nobody)
            await asyncio.sleep(0)


async def test_a_conversation_that_is_told_more_than_there_is_room_for_is_ended_and_says_what_to_do(
    channel: grpc.aio.Channel, admission: Admission, engine: WatchedEngine
) -> None:
    live = begin(channel)
    assert (await live.ask(*HALF, customer("hi"))).HasField("fan_out")
    asked = len(engine.requests)
    await live.tell(*HALF, *HALF, customer("again"))
    error = await ended(live)
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ERROR_REASON_OVERLOADED")
    assert (error.metadata, error.retry_after_s) == ({"limit": "follow_bytes"}, MEMORY_RETRY_S)
    assert "end those that are over, and follow this one again" in error.message
    assert len(engine.requests) == asked
    await until(admission, lambda held: held == 0)


async def finish(live: Following, channel: grpc.aio.Channel) -> None:
    await live.finish()


async def cancel(live: Following, channel: grpc.aio.Channel) -> None:
    live.call.cancel()


async def go_away(live: Following, channel: grpc.aio.Channel) -> None:
    await channel.close()


async def be_refused(live: Following, channel: grpc.aio.Channel) -> None:
    await live.tell(*HALF, *HALF)
    await ended(live)


@pytest.mark.parametrize("end", [finish, cancel, go_away, be_refused])
async def test_what_one_held_is_free_for_another_however_it_ends(
    address: str,
    channel: grpc.aio.Channel,
    admission: Admission,
    end: Callable[[Following, grpc.aio.Channel], Awaitable[None]],
) -> None:
    async with grpc.aio.insecure_channel(address) as own:
        first = begin(own)
        await first.tell(*HALF)
        await until(admission, lambda held: held > ROOM // 2)
        second = begin(channel)
        await second.tell(*HALF)
        assert (await ended(second)).metadata == {"limit": "follow_bytes"}
        await end(first, own)
        await until(admission, lambda held: held == 0)
        third = begin(channel)
        assert (await third.ask(*HALF, customer("hi"))).HasField("fan_out")


async def test_who_says_little_goes_on_beside_one_that_was_refused(channel: grpc.aio.Channel) -> None:
    small, large = begin(channel), begin(channel)
    await small.ask(customer("hi"))
    await large.tell(*HALF, *HALF)
    await ended(large)
    assert (await small.ask(customer("again"))).HasField("fan_out")


LARGE: dict[str, tuple[list[pb.Turn], dict[str, Any]]] = {
    "its id": ([customer("hi")], {"id": "i" * ROOM}),
    "its names": ([customer("hi")], {"names": [f"{number:064}" for number in range(200)]}),
    "letters of four bytes": ([customer("\N{SLIGHTLY SMILING FACE}" + "word " * 80)] * 10, {}),
    "turns": ([customer("a")] * 200, {}),
    "a message that would be refused": ([customer(" " * ROOM)], {}),
}


@pytest.mark.parametrize(("turns", "fields"), LARGE.values(), ids=LARGE)
async def test_whatever_is_held_counts_by_what_it_takes_in_memory(
    channel: grpc.aio.Channel, turns: list[pb.Turn], fields: dict[str, Any]
) -> None:
    live = begin(channel)
    await live.tell(*turns, **fields)
    assert (await ended(live)).metadata == {"limit": "follow_bytes"}


async def test_a_message_is_held_until_the_next_one_comes(channel: grpc.aio.Channel, admission: Admission) -> None:
    live = begin(channel)
    for _ in range(3):
        assert (await live.ask(customer(" " * (ROOM - 1000)))).HasField("status")
        assert admission.follow_bytes > ROOM - 1000
    assert (await live.ask(customer("hi"))).HasField("fan_out")
    assert admission.follow_bytes < 1000


@pytest.mark.parametrize(("over", "accepted"), [(-1, True), (0, True), (1, False)], ids=["limit-1", "limit", "limit+1"])
def test_the_sum_of_all_is_bounded(over: int, accepted: bool) -> None:
    admission = Admission(1, 1, 1, ROOM)
    with admission.memory() as one, admission.memory() as other:
        one(ROOM - 100)
        if accepted:
            other(100 + over)
            assert admission.follow_bytes == ROOM + over
        else:
            with pytest.raises(Exception, match="as much memory"):
                other(100 + over)
            assert admission.follow_bytes == ROOM - 100
        one(50)  # less is always possible
    assert admission.follow_bytes == 0
