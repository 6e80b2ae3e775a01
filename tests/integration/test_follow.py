"""Follow: turns in as they happen, a fan-out after each message that ends with a customer's turn."""

from __future__ import annotations

import grpc
import pytest

from service.api.servicer import Limits
from service.client import RpcError
from service.domain import Conversation, Role, Turn
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.prompt.builder import PromptBuilder
from service.prompt.format import PREFIX_MULTIPLE
from service.registry.registry import Registry
from tests.integration.conftest import Serve
from tests.integration.harness import ACTIVATED, DEADLINE_S, NAMES, PLAIN, SECOND_ACTIVATED, asks, fan_out_request
from tests.integration.holding_engine import HoldingEngine
from tests.integration.listener import Listener
from tests.integration.talking import Following, agent, customer

SYSTEM = pb.Turn(role=pb.ROLE_SYSTEM, text="moved to billing")
SILENT = {"agent": agent("hello"), "system": SYSTEM}
LONG = "my parcel did not arrive and nobody answers " * 12


@pytest.fixture
def engine() -> HoldingEngine:
    return HoldingEngine()


@pytest.fixture
def live(stub: ClassificationServiceStub) -> Following:
    return Following(stub.Follow(timeout=DEADLINE_S))


def answered(response: pb.FollowResponse) -> list[str]:
    """Names of the classifiers that answered."""
    return [each.classification.classifier for each in response.fan_out.results if each.HasField("classification")]


def said(*turns: pb.Turn) -> tuple[Turn, ...]:
    roles = {pb.ROLE_CUSTOMER: Role.CUSTOMER, pb.ROLE_AGENT: Role.AGENT, pb.ROLE_SYSTEM: Role.SYSTEM}
    return tuple(Turn(roles[turn.role], turn.text) for turn in turns)


async def test_a_customers_turn_is_answered_by_all_classifiers(live: Following) -> None:
    response = await live.ask(customer("hi"))
    assert answered(response) == NAMES
    assert (response.message, response.turns) == (1, 1)
    await live.finish()


@pytest.mark.parametrize("turn", SILENT.values(), ids=SILENT)
async def test_nobody_elses_turn_is_answered(live: Following, engine: HoldingEngine, turn: pb.Turn) -> None:
    await live.tell(turn)
    await live.finish()
    assert engine.requests == []


async def test_each_answer_is_about_everything_said_so_far(live: Following, listener: Listener) -> None:
    turns = (customer("hi"), agent("hello"), SYSTEM, customer("my parcel is late"))
    await live.ask(turns[0])
    await live.tell(turns[1])
    await live.tell(turns[2])
    response = await live.ask(turns[3])
    assert (response.message, response.turns) == (4, 4)
    assert [conversation.turns for conversation in listener.heard] == [said(turns[0]), said(*turns)]


async def test_an_answer_is_the_one_of_a_fan_out(live: Following, stub: ClassificationServiceStub) -> None:
    turns = [customer("hi"), agent("hello"), customer("my parcel is late")]
    await live.ask(turns[0])
    await live.tell(turns[1])
    found = (await live.ask(turns[2])).fan_out
    expected = await stub.FanOut(fan_out_request(turns=turns), timeout=DEADLINE_S)
    assert found.durations.total.ToNanoseconds() > 0
    assert found.usage.computed_tokens + found.usage.reused_tokens > 0
    for result in (*found.results, *expected.results):
        result.classification.ClearField("usage")  # the second call reuses what the first one read
    assert list(found.results) == list(expected.results)


async def test_several_turns_in_one_message_are_answered_once(live: Following, listener: Listener) -> None:
    turns = (customer("hi"), customer("anybody?"), agent("hello"), customer("finally"))
    await live.ask(customer("before"))
    response = await live.ask(*turns)
    assert (response.message, response.turns) == (2, 5)
    assert listener.heard[1:] == [Conversation("", said(customer("before"), *turns))]
    await live.finish()


@pytest.mark.parametrize("last", SILENT.values(), ids=SILENT)
async def test_a_customers_turn_that_is_not_the_last_of_its_message_is_not_answered(
    live: Following, engine: HoldingEngine, last: pb.Turn
) -> None:
    await live.tell(customer("hi"), last)
    await live.finish()
    assert engine.requests == []


async def test_the_first_message_may_bring_all_turns_so_far(live: Following, listener: Listener) -> None:
    history = (customer("hi"), agent("hello"), SYSTEM, customer("still waiting"))
    assert (await live.ask(*history)).turns == len(history)
    assert listener.heard == [Conversation("", said(*history))]


async def test_the_classifiers_of_a_message_are_asked_from_then_on_in_their_order(live: Following) -> None:
    assert answered(await live.ask(customer("hi"), names=[PLAIN, ACTIVATED])) == [PLAIN, ACTIVATED]
    assert answered(await live.ask(customer("again"))) == [PLAIN, ACTIVATED]
    assert answered(await live.ask(customer("and now"), names=[SECOND_ACTIVATED])) == [SECOND_ACTIVATED]
    assert answered(await live.ask(customer("again"))) == [SECOND_ACTIVATED]


async def test_an_empty_selection_asks_all_again(live: Following) -> None:
    await live.ask(customer("hi"), names=[PLAIN])
    assert answered(await live.ask(customer("again"), names=[])) == NAMES
    assert answered(await live.ask(customer("again"))) == NAMES


async def test_a_message_that_is_not_answered_may_change_the_classifiers(live: Following) -> None:
    await live.tell(agent("hello"), names=[PLAIN])
    assert answered(await live.ask(customer("hi"))) == [PLAIN]


async def test_an_unknown_classifier_is_a_status_in_its_result_alone(live: Following) -> None:
    response = await live.ask(customer("hi"), names=["nobody", PLAIN])
    assert [each.WhichOneof("outcome") for each in response.fan_out.results] == ["status", "classification"]


@pytest.mark.parametrize("last", [customer("hello?"), agent("hello")], ids=["customer last", "agent last"])
async def test_an_empty_message_asks_about_the_conversation_as_it_stands(
    live: Following, listener: Listener, last: pb.Turn
) -> None:
    turns = (customer("hi"), last)
    await live.tell(*turns)
    if last.role == pb.ROLE_CUSTOMER:
        await live.answer()
    response = await live.ask()
    assert answered(response) == NAMES
    assert (response.message, response.turns) == (2, 2)
    assert listener.heard[-1].turns == said(*turns)


async def test_an_empty_message_may_choose_other_classifiers(live: Following) -> None:
    await live.ask(customer("hi"), names=[PLAIN])
    assert answered(await live.ask(names=[ACTIVATED])) == [ACTIVATED]


@pytest.mark.parametrize("later", ["", "other"])
@pytest.mark.parametrize("first", ["", "mine"])
async def test_the_conversations_id_is_the_one_of_the_first_message(
    live: Following, listener: Listener, first: str, later: str
) -> None:
    await live.ask(customer("hi"), id=first)
    await live.ask(customer("again"), id=later)
    assert [conversation.id for conversation in listener.heard] == [first, first]


async def test_a_refused_first_message_leaves_the_id_to_the_next(live: Following, listener: Listener) -> None:
    assert (await live.ask(customer("word " * 1000), id="refused")).HasField("status")
    await live.ask(customer("hi"), id="mine")
    assert [conversation.id for conversation in listener.heard] == ["mine"]


async def test_earlier_turns_reach_the_engine_as_the_same_tokens(
    live: Following, engine: HoldingEngine, builder: PromptBuilder
) -> None:
    turns = (customer(LONG), agent("we look into it"), customer("when?"))
    await live.ask(turns[0], names=[ACTIVATED])
    await live.ask(*turns[1:])
    first, second = (request.token_ids for request in engine.requests)
    filler = builder.prefix(Conversation("", said(turns[0]))).token_ids[-1]
    read = len(first[: engine.requests[0].activation_index])
    while first[read - 1] == filler:
        read -= 1
    assert read > 2 * PREFIX_MULTIPLE
    assert second[:read] == first[:read]
    assert {request.cache_salt for request in engine.requests} == {""}


async def test_what_was_read_is_not_read_again(live: Following, engine: HoldingEngine) -> None:
    await live.ask(customer(LONG), names=[ACTIVATED])
    prefix = engine.requests[0].activation_index
    response = await live.ask(names=[SECOND_ACTIVATED])
    assert prefix
    assert response.fan_out.usage.reused_tokens == prefix


async def test_what_is_not_ready_in_the_messages_time_has_a_status_and_the_rest_is_answered(
    live: Following, engine: HoldingEngine, registry: Registry
) -> None:
    released = engine.hold(asks(PLAIN, registry))
    response = await live.ask(customer("hi"), timeout_ns=1_000_000_000)
    assert answered(response) == [name for name in NAMES if name != PLAIN]
    (late,) = (each for each in response.fan_out.results if each.HasField("status"))
    assert (late.classifier, RpcError.of_status(late.status).code) == (PLAIN, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert engine.cancelled == 1
    released.set()
    assert answered(await live.ask()) == NAMES


async def test_a_message_of_which_nothing_is_ready_in_time_keeps_its_turns(
    live: Following, engine: HoldingEngine
) -> None:
    released = engine.hold(lambda request: True)
    response = await live.ask(customer("hi"), timeout_ns=1)
    assert RpcError.of_status(response.status).code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert response.turns == 1
    released.set()
    assert answered(await live.ask()) == NAMES


async def test_a_timeout_is_the_one_of_its_message_alone(live: Following) -> None:
    await live.ask(customer("hi"), timeout_ns=1)
    assert answered(await live.ask(customer("again"))) == NAMES


async def test_a_message_without_timeout_ends_at_the_servers_own(serve: Serve, engine: HoldingEngine) -> None:
    engine.hold(lambda request: True)
    async with grpc.aio.insecure_channel(await serve(limits=Limits(follow_seconds=0.2))) as channel:
        live = Following(ClassificationServiceStub(channel).Follow())
        response = await live.ask(customer("hi"))
        assert RpcError.of_status(response.status).code is grpc.StatusCode.DEADLINE_EXCEEDED
        await live.finish()


async def test_a_caller_who_leaves_cancels_the_engines_work(live: Following, engine: HoldingEngine) -> None:
    engine.hold(lambda request: True)
    await live.tell(customer("hi"))
    await engine.begun(len(NAMES))
    live.call.cancel()
    await engine.ended(len(NAMES))
    assert engine.cancelled == len(NAMES)
