"""A live conversation through the client: what `tell` returns and raises, and how the conversation ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from service.classify import Classify
from service.client import FantailClient, FollowedConversation, RpcError
from service.domain import Role, Turn
from service.pb.fantail.v1 import classification_service_pb2 as pb
from tests.integration.harness import ACTIVATED, DEADLINE_S, HELLO, NAMES, PLAIN
from tests.integration.holding_engine import HoldingEngine
from tests.integration.listener import Listener

AGENT = [("agent", "hello")]
BLANK: Any = [("customer", " ")]
BLANK_AGENT: Any = [("agent", " ")]


@pytest.fixture
def engine() -> HoldingEngine:
    return HoldingEngine()


@pytest.fixture
async def live(client: FantailClient) -> AsyncIterator[FollowedConversation]:
    async with client.follow(timeout=DEADLINE_S) as following:
        yield following


def names(response: pb.FanOutResponse | None) -> list[str]:
    assert response
    return [result.classification.classifier for result in response.results if result.HasField("classification")]


async def refusal(live: FollowedConversation, *args: Any, **options: Any) -> RpcError:
    with pytest.raises(RpcError) as failure:
        await live.tell(*args, **options)
    return failure.value


async def test_telling_a_customers_turn_returns_the_fan_out(live: FollowedConversation) -> None:
    assert names(await live.tell(HELLO)) == NAMES


@pytest.mark.parametrize("role", ["agent", "system"])
async def test_telling_anybody_elses_turn_returns_none(live: FollowedConversation, role: Any) -> None:
    assert await live.tell([(role, "hello")]) is None


async def test_what_was_told_is_what_is_asked_about(live: FollowedConversation, listener: Listener) -> None:
    await live.tell(HELLO)
    await live.tell(AGENT)
    await live.tell([("customer", "well?")])
    assert listener.heard[1].turns == (
        Turn(Role.CUSTOMER, HELLO[0][1]), Turn(Role.AGENT, "hello"), Turn(Role.CUSTOMER, "well?"),
    )  # fmt: skip


async def test_telling_nothing_asks_about_the_conversation_as_it_stands(
    live: FollowedConversation, listener: Listener
) -> None:
    await live.tell(HELLO)
    await live.tell(AGENT)
    assert names(await live.tell([])) == NAMES
    assert len(listener.heard[1].turns) == 2


async def test_the_callers_id_is_sent(client: FantailClient, listener: Listener) -> None:
    async with client.follow(timeout=DEADLINE_S, id="mine") as live:
        await live.tell(HELLO)
    assert listener.heard[0].id == "mine"


async def test_the_classifiers_stay_until_others_are_chosen(client: FantailClient) -> None:
    async with client.follow([PLAIN], timeout=DEADLINE_S) as live:
        assert names(await live.tell(HELLO)) == [PLAIN]
        assert names(await live.tell(HELLO)) == [PLAIN]
        assert names(await live.tell(HELLO, classifiers=[ACTIVATED])) == [ACTIVATED]
        assert names(await live.tell([])) == [ACTIVATED]
        assert names(await live.tell([], classifiers=())) == NAMES
        assert names(await live.tell(HELLO)) == NAMES


async def test_classifiers_can_be_chosen_with_a_turn_that_is_not_answered(live: FollowedConversation) -> None:
    await live.tell(AGENT, classifiers=[PLAIN])
    assert names(await live.tell(HELLO)) == [PLAIN]


async def test_the_time_for_an_answer_is_sent(live: FollowedConversation, engine: HoldingEngine) -> None:
    released = engine.hold(lambda request: True)
    assert (await refusal(live, HELLO, timeout=0.1)).code is grpc.StatusCode.DEADLINE_EXCEEDED
    released.set()
    assert names(await live.tell([])) == NAMES


@pytest.mark.parametrize("timeout", [0.0, -1.0])
async def test_no_time_for_an_answer_is_refused(live: FollowedConversation, timeout: float) -> None:
    assert (await refusal(live, HELLO, timeout=timeout)).reason == "ERROR_REASON_TIMEOUT_INVALID"


async def test_a_refused_message_raises_and_is_no_part_of_the_conversation(
    live: FollowedConversation, listener: Listener
) -> None:
    error = await refusal(live, [*HELLO, *BLANK])
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "ERROR_REASON_TEXT_MISSING")
    assert error.violations.keys() == {"turns[1].text"}
    assert error.messages_ago == 0
    await live.tell([("customer", "again")])
    assert listener.heard[0].turns == (Turn(Role.CUSTOMER, "again"),)


async def test_the_first_classifiers_outlast_a_refused_first_message(client: FantailClient) -> None:
    async with client.follow([PLAIN], timeout=DEADLINE_S) as live:
        await refusal(live, BLANK)
        assert names(await live.tell(HELLO)) == [PLAIN]


@pytest.mark.parametrize("turns", [HELLO, BLANK], ids=["the names", "the turns"])
async def test_the_classifiers_of_a_refused_message_are_not_taken_over(client: FantailClient, turns: Any) -> None:
    async with client.follow([PLAIN], timeout=DEADLINE_S) as live:
        await live.tell(HELLO)
        await refusal(live, turns, classifiers=[ACTIVATED, ACTIVATED])
        assert names(await live.tell(HELLO)) == [PLAIN]


async def test_after_another_error_the_turns_and_classifiers_are_kept(
    live: FollowedConversation, engine: HoldingEngine, listener: Listener
) -> None:
    engine.dead = True
    error = await refusal(live, HELLO, classifiers=[PLAIN])
    assert (error.code, error.retry_after_s) == (grpc.StatusCode.UNAVAILABLE, 5.0)
    engine.dead = False
    assert names(await live.tell([])) == [PLAIN]
    assert len(listener.heard[-1].turns) == 1


async def test_the_refusal_of_an_agents_turn_is_raised_by_what_is_told_next(
    live: FollowedConversation, listener: Listener
) -> None:
    assert await live.tell(BLANK_AGENT) is None
    error = await refusal(live, HELLO)
    assert (error.reason, error.messages_ago) == ("ERROR_REASON_TEXT_MISSING", 1)
    assert names(await live.tell([("customer", "more")])) == NAMES
    assert len(listener.heard[-1].turns) == 2


async def test_the_refusal_of_the_last_message_is_raised_on_leaving(client: FantailClient) -> None:
    with pytest.raises(RpcError) as failure:
        async with client.follow(timeout=DEADLINE_S) as live:
            await live.tell(BLANK_AGENT)
    assert (failure.value.reason, failure.value.messages_ago) == ("ERROR_REASON_TEXT_MISSING", 0)


async def test_errors_of_several_messages_are_raised_together(
    live: FollowedConversation, engine: HoldingEngine
) -> None:
    await live.tell(BLANK_AGENT)
    await live.tell([("agent", "hello"), *BLANK_AGENT])
    engine.dead = True
    error = await refusal(live, HELLO)
    assert (error.code, error.messages_ago) == (grpc.StatusCode.UNAVAILABLE, 0)
    second = error.__cause__
    assert isinstance(second, RpcError)
    assert (second.violations.keys(), second.messages_ago) == ({"turns[1].text"}, 1)
    first = second.__cause__
    assert isinstance(first, RpcError)
    assert (first.violations.keys(), first.messages_ago) == ({"turns[0].text"}, 2)
    engine.dead = False
    assert names(await live.tell([])) == NAMES


async def test_leaving_ends_the_call_on_the_server(client: FantailClient, classify: Classify) -> None:
    async with client.follow(timeout=DEADLINE_S) as live:
        await live.tell(HELLO)
        assert classify.admission.follows == 1
    assert classify.admission.follows == 0


async def test_leaving_with_an_error_cancels_what_is_under_way(client: FantailClient, engine: HoldingEngine) -> None:
    engine.hold(lambda request: True)

    async def leave() -> None:
        async with client.follow(timeout=DEADLINE_S) as live, asyncio.TaskGroup() as group:
            group.create_task(live.tell(HELLO))
            await engine.begun(len(NAMES))
            raise ValueError("the caller's own")

    with pytest.raises(ExceptionGroup) as failure:
        await leave()
    assert failure.group_contains(ValueError)
    await engine.ended(len(NAMES))
    assert engine.cancelled == len(NAMES)


async def test_the_calls_deadline_ends_the_conversation(client: FantailClient, engine: HoldingEngine) -> None:
    engine.hold(lambda request: True)
    with pytest.raises(RpcError) as failure:
        async with client.follow(timeout=0.5) as live:
            await live.tell(HELLO)
    assert failure.value.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_telling_after_the_end_is_a_mistake(client: FantailClient) -> None:
    async with client.follow(timeout=DEADLINE_S) as live:
        await live.tell(HELLO)
    with pytest.raises(RuntimeError, match="over"):
        await live.tell(HELLO)


async def test_telling_after_giving_up_on_an_answer_says_that_the_call_was_cancelled(
    client: FantailClient, engine: HoldingEngine
) -> None:
    engine.hold(lambda request: True)

    async def give_up() -> None:
        async with client.follow(timeout=DEADLINE_S) as live:
            telling = asyncio.create_task(live.tell(HELLO))
            await engine.begun(len(NAMES))
            telling.cancel()
            await asyncio.wait({telling})
            await live.tell(HELLO)

    with pytest.raises(RpcError) as failure:
        await give_up()
    assert failure.value.code is grpc.StatusCode.CANCELLED
