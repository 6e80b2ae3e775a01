"""What is certain to be refused is refused before it is tokenised; what takes long to tokenise holds up nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from service.admission import Admission, Job
from service.api.convert import conversation_from_proto
from service.classify import Classify
from service.client import RpcError
from service.deadline import Deadline
from service.domain import Conversation, Prefix
from service.observer import Observer
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.prompt.builder import PromptBuilder
from service.prompt.format import PromptFormat
from service.prompt.tokenizer import PromptTokenizer
from service.reading import LONG_BYTES, TURN_BYTES
from service.registry.registry import Registry
from tests.integration.asking import answer, refusal
from tests.integration.harness import (
    CONTEXT_TOKENS,
    DEADLINE_S,
    PLAIN,
    WatchedEngine,
    classify_request,
    fan_out_request,
)
from tests.integration.talking import Following, agent, customer
from tests.support import classify_with

MAX_TOKENS = 1000
TURN = 400
"""Bytes of a turn, which fits the context alone."""

LONG = [customer("word " * (TURN // 5))] * 20
ASKING = {
    "Classify": classify_request(PLAIN, turns=LONG),
    "FanOut": fan_out_request(turns=LONG),
    "StreamFanOut": fan_out_request(turns=LONG),
}
ASKED = pytest.mark.parametrize(("method", "request_"), ASKING.items(), ids=ASKING)


class WatchedBuilder(PromptBuilder):
    """`asked`: for which conversations; `threads`: in which thread each time.

    `together`: so many seconds a conversation waits for another one to be read at the same time; `peak`: most at once.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.asked: list[Conversation] = []
        self.threads: list[threading.Thread] = []
        self.together, self.now, self.peak = 0.0, 0, 0
        self._two, self._counting = threading.Event(), threading.Lock()

    def prefix(self, conversation: Conversation) -> Prefix:
        self.asked.append(conversation)
        self.threads.append(threading.current_thread())
        with self._counting:
            self.now += 1
            self.peak = max(self.peak, self.now)
            if self.now == 2:
                self._two.set()
        self._two.wait(self.together)
        with self._counting:
            self.now -= 1
        return super().prefix(conversation)


@pytest.fixture
def watched(tokenizer: PromptTokenizer, prompt_format: PromptFormat) -> WatchedBuilder:
    return WatchedBuilder(tokenizer, prompt_format, CONTEXT_TOKENS)


@pytest.fixture
def admission() -> Admission:
    return Admission(100, MAX_TOKENS)


@pytest.fixture
def classify(
    registry: Registry, watched: WatchedBuilder, engine: WatchedEngine, admission: Admission, observer: Observer
) -> Classify:
    return classify_with(registry, watched, engine, admission, observer)


@pytest.fixture
def full(admission: Admission) -> Iterator[None]:
    """As long as the test lasts, as many tokens are in flight as may be."""
    with admission.admit(0, [Job(MAX_TOKENS)], Deadline()):
        yield


@ASKED
@pytest.mark.usefixtures("full")
async def test_under_load_a_text_is_refused_without_the_tokenizer_being_asked(
    stub: ClassificationServiceStub, watched: WatchedBuilder, method: str, request_: Any
) -> None:
    error = await refusal(stub, method, request_)
    assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "ERROR_REASON_OVERLOADED")
    assert error.metadata == {"limit": "tokens"}
    assert watched.asked == []


@ASKED
async def test_so_is_one_before_which_there_is_more_to_do_than_its_time_allows(
    stub: ClassificationServiceStub, watched: WatchedBuilder, admission: Admission, method: str, request_: Any
) -> None:
    admission.rate = 1e-3
    with admission.admit(0, [Job(1)], Deadline()):
        error = await refusal(stub, method, request_)
    assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "ERROR_REASON_DEADLINE_TOO_NEAR")
    assert watched.asked == []


@ASKED
@pytest.mark.usefixtures("full")
async def test_a_dead_engine_is_another_thing_than_no_room(
    stub: ClassificationServiceStub, engine: WatchedEngine, method: str, request_: Any
) -> None:
    engine.dead = True
    assert (await refusal(stub, method, request_)).code is grpc.StatusCode.UNAVAILABLE


@pytest.mark.usefixtures("full")
async def test_where_nobody_would_be_asked_no_room_is_needed(stub: ClassificationServiceStub) -> None:
    (result,) = (await answer(stub, "FanOut", fan_out_request("nobody"))).results
    assert RpcError.of_status(result.status).code is grpc.StatusCode.NOT_FOUND


def text_of(size: int) -> list[pb.Turn]:
    """Turns that count for so many bytes."""
    turns, left = [], size
    while left > 0:
        now = min(left, TURN if left >= 2 * TURN else left)
        turns.append(customer("a ".ljust(now - TURN_BYTES, "a")))
        left -= now
    return turns


SIZES = [(LONG_BYTES - 1, False), (LONG_BYTES, True), (LONG_BYTES + 1, True)]


@pytest.mark.parametrize(("size", "apart"), SIZES, ids=["limit-1", "limit", "limit+1"])
async def test_a_long_text_is_tokenised_in_a_thread(
    stub: ClassificationServiceStub, watched: WatchedBuilder, size: int, apart: bool
) -> None:
    await answer(stub, "Classify", classify_request(PLAIN, turns=text_of(size)))
    assert [each is not threading.main_thread() for each in watched.threads] == [apart]


@pytest.mark.parametrize("turns", [[customer("é" * 200)] * 15, [customer("a")] * 600], ids=["letters", "turns"])
async def test_long_is_what_has_many_bytes_or_many_turns(
    stub: ClassificationServiceStub, watched: WatchedBuilder, turns: list[pb.Turn]
) -> None:
    assert sum(len(turn.text) for turn in turns) < LONG_BYTES
    await answer(stub, "Classify", classify_request(PLAIN, turns=turns))
    assert [each is not threading.main_thread() for each in watched.threads] == [True]


def said(*turns: pb.Turn) -> Conversation:
    return conversation_from_proto(pb.Conversation(turns=turns))


@pytest.mark.usefixtures("full")
async def test_under_load_of_a_live_conversation_only_what_is_new_is_tokenised_as_it_is_kept(
    stub: ClassificationServiceStub, watched: WatchedBuilder
) -> None:
    live = Following(stub.Follow(timeout=DEADLINE_S))
    await live.tell(*[agent("hello")] * 3)
    response = await live.ask(customer("hi"))
    assert (RpcError.of_status(response.status).reason, response.turns) == ("ERROR_REASON_OVERLOADED", 4)
    assert watched.asked == [said(*[agent("hello")] * 3), said(customer("hi"))]


async def test_long_messages_of_live_conversations_are_tokenised_one_after_the_other(
    stub: ClassificationServiceStub, watched: WatchedBuilder
) -> None:
    watched.together = 0.2
    lives = [Following(stub.Follow(timeout=DEADLINE_S)) for _ in range(4)]
    for live in lives:
        await live.tell(*LONG, agent("hello"))
    for live in lives:
        await live.finish()
    assert len(watched.asked) == len(lives)
    assert watched.peak == 1
