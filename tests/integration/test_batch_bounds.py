"""What a batch takes at once whatever its size: conversations in work, memory, and time before others go on."""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from service.api import servicer
from service.api.convert import conversation_problems
from service.api.servicer import BATCH_AT_ONCE, Limits
from service.call import Call
from service.domain import Conversation, StageSeconds
from service.engine.base import LabelLogprobs, ScoringRequest
from service.errors import InvalidRequestError
from service.observer import Observer
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.prompt.builder import PromptBuilder
from service.prompt.format import PromptFormat
from service.prompt.tokenizer import PromptTokenizer
from service.registry.registry import Registry
from tests.conftest import CONTEXT_TOKENS
from tests.integration.conftest import Serve
from tests.integration.harness import DEADLINE_S, NAMES, PLAIN, WatchedEngine, small_registry
from tests.integration.talking import customer
from tests.support import settle

LARGEST = Limits().max_batch
SIZES = pytest.mark.parametrize("size", [BATCH_AT_ONCE, 2 * BATCH_AT_ONCE, LARGEST])

DIGITS = 1_000
"""Of a long conversation: each is a token, so that prompts take many times as much memory as their text."""

TOKEN_BYTES = 8
"""Of a token in a prompt, at the least."""

MANY = 2_048
"""Conversations for a server that takes more than by itself."""

WAITING_BYTES = 100
"""Of a conversation that waits for its turn, at the most, beside its message; a task of its own would take 1,700."""


class ForgetfulEngine(WatchedEngine):
    """Keeps nothing of what it was asked, as the tests ask how much others keep."""

    async def score(self, request: ScoringRequest) -> LabelLogprobs:
        try:
            return await super().score(request)
        finally:
            self.requests.clear()
            self._cached.clear()


class InWork(Observer):
    """`now`: conversations whose prompt has been begun and that are not answered; `peak`: most at once."""

    now = peak = 0

    def asked(self, conversation: Conversation, call: Call) -> None:
        self.now += 1
        self.peak = max(self.peak, self.now)

    def finished(self, stages: StageSeconds) -> None:
        self.now -= 1


@pytest.fixture(scope="module")
def builder(tokenizer: PromptTokenizer, prompt_format: PromptFormat) -> PromptBuilder:
    """With the base's own context, so that nothing of a long conversation is cut."""
    return PromptBuilder(tokenizer, prompt_format, CONTEXT_TOKENS)


@pytest.fixture(scope="module")
def registry(builder: PromptBuilder) -> Registry:
    return small_registry(builder)


@pytest.fixture
def engine() -> ForgetfulEngine:
    return ForgetfulEngine()


@pytest.fixture
def observer() -> InWork:
    return InWork()


def batch(size: int, *names: str, text: str = "{}") -> pb.ClassifyBatchRequest:
    conversations = [pb.Conversation(turns=[customer(text.format(number))]) for number in range(size)]
    return pb.ClassifyBatchRequest(conversations=conversations, classifiers=names)


@SIZES
async def test_whatever_its_size_so_many_conversations_of_a_batch_are_in_work_at_once(
    stub: ClassificationServiceStub, engine: ForgetfulEngine, observer: InWork, size: int
) -> None:
    engine.gate.clear()
    call = stub.ClassifyBatch(batch(size), timeout=DEADLINE_S)
    await engine.begun(BATCH_AT_ONCE * len(NAMES))
    await settle()
    assert observer.now == BATCH_AT_ONCE
    engine.gate.set()
    assert len((await call).items) == size
    assert (observer.peak, observer.now) == (BATCH_AT_ONCE, 0)


async def held(stub: ClassificationServiceStub, engine: ForgetfulEngine, size: int) -> tuple[int, int]:
    """Bytes and tasks that there are more while a batch of short conversations is held up in the engine."""
    engine.gate.clear()
    tasks = len(asyncio.all_tasks())
    gc.collect()
    tracemalloc.start()
    try:
        call = stub.ClassifyBatch(batch(size, PLAIN), timeout=DEADLINE_S)
        await engine.begun(BATCH_AT_ONCE)
        await settle()
        gc.collect()
        found, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    more = len(asyncio.all_tasks()) - tasks
    engine.gate.set()
    assert len((await call).items) == size
    return found, more


async def test_a_conversation_that_waits_for_its_turn_has_neither_a_task_nor_a_prompt(
    serve: Serve, engine: ForgetfulEngine
) -> None:
    async with grpc.aio.insecure_channel(await serve(limits=Limits(max_batch=MANY))) as channel:
        stub = ClassificationServiceStub(channel)
        await held(stub, engine, BATCH_AT_ONCE)  # what is made once
        few_bytes, few_tasks = await held(stub, engine, BATCH_AT_ONCE)
        many_bytes, many_tasks = await held(stub, engine, MANY)
    assert (many_bytes - few_bytes) / (MANY - BATCH_AT_ONCE) < WAITING_BYTES
    assert many_tasks - few_tasks < BATCH_AT_ONCE  # gRPC has some of its own, which come and go


class LoopTurns:
    """`number`: of the event loop's turns so far."""

    number = 0

    async def count(self) -> None:
        while True:
            self.number += 1
            await asyncio.sleep(0)


@pytest.fixture
async def turns() -> AsyncIterator[LoopTurns]:
    found = LoopTurns()
    counting = asyncio.create_task(found.count())
    yield found
    counting.cancel()


async def test_between_conversations_that_are_refused_others_go_on(
    stub: ClassificationServiceStub, turns: LoopTurns, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at: list[int] = []

    def problems(*arguments: Any) -> list[InvalidRequestError]:
        looked_at.append(turns.number)
        return conversation_problems(*arguments)

    monkeypatch.setattr(servicer, "conversation_problems", problems)
    response = await stub.ClassifyBatch(batch(LARGEST, text=" "), timeout=DEADLINE_S)
    assert [item.WhichOneof("outcome") for item in response.items] == ["status"] * LARGEST
    assert len(looked_at) == LARGEST
    assert max(looked_at.count(turn) for turn in looked_at) <= BATCH_AT_ONCE


async def peak_bytes(stub: ClassificationServiceStub, size: int) -> tuple[int, int]:
    """What there is more at the most while a batch of long conversations is answered, and the tokens of its prompts."""
    request = batch(size, text="{} " + "7" * DIGITS)
    gc.collect()
    tracemalloc.start()
    try:
        response = await stub.ClassifyBatch(request, timeout=DEADLINE_S)
        _, found = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return found, response.usage.computed_tokens + response.usage.reused_tokens


async def test_a_batch_of_the_largest_size_never_holds_the_prompts_of_all_its_conversations(
    stub: ClassificationServiceStub,
) -> None:
    await peak_bytes(stub, LARGEST // 2)  # fills the memory of prefixes, which has a bound of its own
    few_bytes, few_tokens = await peak_bytes(stub, LARGEST // 8)
    many_bytes, many_tokens = await peak_bytes(stub, LARGEST)
    prompts = TOKEN_BYTES * (many_tokens - few_tokens)
    assert prompts > TOKEN_BYTES * DIGITS * len(NAMES) * LARGEST // 2
    assert many_bytes - few_bytes < prompts / 2
