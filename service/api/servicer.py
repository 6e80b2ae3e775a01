"""The contract's methods: message in, domain call, message out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from grpc.aio import ServicerContext

from service.api.convert import (
    batch_item_to_proto,
    classifier_to_proto,
    classify_response_to_proto,
    conversation_from_proto,
    conversation_problems,
    fan_out_response_to_proto,
    follow_response_to_proto,
    stream_result_to_proto,
    text_problems,
    timeout_problems,
    turns_from_proto,
    turns_problems,
    usage_to_proto,
)
from service.api.status import DEFECT, reason_name
from service.call import Call, current_call
from service.classify import Answers, Classify, name_problems
from service.deadline import Deadline
from service.domain import TokenUsage, Turn
from service.errors import (
    BatchTooLargeError,
    CallerError,
    ClassifierNameMissingError,
    EmptyBatchError,
    EmptyConversationError,
    FantailError,
    InvalidRequestError,
    StoppingError,
    raise_all,
)
from service.follow import LiveConversation
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceServicer
from service.reading import is_long

logger = logging.getLogger(__name__)

Context = ServicerContext[Any, Any]

NAME_IT = "Name the classifier; ListClassifiers names them all."

MAX_BATCH_RESULTS = 8_192
"""Conversations times classifiers of one batch beyond which it is refused: each result takes memory, also one that only
says that there is no such classifier, and all of them, at 300 bytes, have to fit into what a client receives: 4 MiB."""

RESULT_SECONDS = 50e-6
"""Time that writing one result of a batch into its response takes at most, to be left before the deadline."""

BATCH_AT_ONCE = 4
"""Conversations of one batch under way at once: enough to keep the engine busy beside nothing else."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one call may ask for.

    `follow_seconds`: how long a message of a live conversation may take at most; `follow_bytes`: how much text may be
    said in it, all its messages together.
    """

    max_turns: int = 1000
    max_batch: int = 256
    follow_seconds: float = 60.0
    follow_bytes: int = 4 << 20


class ClassificationServicer(ClassificationServiceServicer):
    """Answers calls; what it raises, an interceptor turns into statuses."""

    def __init__(self, classify: Classify, limits: Limits) -> None:
        self._classify = classify
        self._limits = limits
        self._reading = asyncio.Lock()

    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        missing = [] if request.classifier else [ClassifierNameMissingError(NAME_IT, "classifier")]
        raise_all([*conversation_problems(request.conversation, self._limits.max_turns), *missing])
        conversation = conversation_from_proto(request.conversation)
        answer = await self._classify.one(conversation, request.classifier, current_call())
        return classify_response_to_proto(*answer)

    async def FanOut(self, request: pb.FanOutRequest, context: Context) -> pb.FanOutResponse:
        self._require_valid(request)
        conversation, call = conversation_from_proto(request.conversation), current_call()
        return fan_out_response_to_proto(
            await self._classify.fan_out(conversation, request.classifiers, call), call.request_id
        )

    async def StreamFanOut(self, request: pb.FanOutRequest, context: Context) -> AsyncIterator[pb.FanOutResult]:
        self._require_valid(request)
        conversation, call = conversation_from_proto(request.conversation), current_call()
        stream = self._classify.stream(conversation, request.classifiers, call)
        async with contextlib.aclosing(stream) as results:
            async for result in results:
                yield stream_result_to_proto(result, call.request_id)

    async def ClassifyBatch(self, request: pb.ClassifyBatchRequest, context: Context) -> pb.ClassifyBatchResponse:
        raise_all([*self._batch_problems(request), *name_problems(request.classifiers)])
        await self._classify.engine.check()  # one refusal that a client tries again, not one for each item
        call = current_call()
        writing = len(request.conversations) * self._asked(request) * RESULT_SECONDS
        call = replace(call, background=True, deadline=call.deadline.earlier(writing))
        call.toll(len(request.conversations) - 1)
        waiting = iter(range(len(request.conversations)))
        found: dict[int, Answers | FantailError] = {}

        async def work() -> None:
            for index in waiting:
                found[index] = await self._outcome("ClassifyBatch", self._answers_in_batch(request, index, call), call)
                await asyncio.sleep(0)  # what is refused waits for nothing, and many in a row would hold up others

        async with asyncio.TaskGroup() as group:
            for _ in range(BATCH_AT_ONCE):
                group.create_task(work())
        outcomes = [found[index] for index in sorted(found)]
        usage = sum((each.usage for each in outcomes if isinstance(each, Answers)), TokenUsage())
        return pb.ClassifyBatchResponse(
            items=[batch_item_to_proto(each, call.request_id) for each in outcomes], usage=usage_to_proto(usage)
        )

    async def Follow(
        self, requests: AsyncIterator[pb.FollowRequest], context: Context
    ) -> AsyncIterator[pb.FollowResponse]:
        message = 0
        with self._classify.admission.memory() as hold:
            live = LiveConversation(self._classify, hold)
            async for request in until(self._classify.admission.stopping, requests):
                message += 1
                live.received(request.ByteSize())
                call = self._call_of(request)
                outcome = await self._followed(live, request, call)
                del request  # or it would be in memory until the next one comes
                if outcome is not None:
                    yield follow_response_to_proto(message, len(live.turns), outcome, call.request_id)
        if self._classify.admission.stopping.is_set():
            raise StoppingError("The server is stopping; another may go on with the conversation.")

    async def ListClassifiers(self, request: pb.ListClassifiersRequest, context: Context) -> pb.ListClassifiersResponse:
        registry = self._classify.catalogue.current
        return pb.ListClassifiersResponse(
            classifiers=[classifier_to_proto(each, registry) for each in registry.select(())]
        )

    async def GetClassifier(self, request: pb.GetClassifierRequest, context: Context) -> pb.GetClassifierResponse:
        if not request.classifier:
            raise ClassifierNameMissingError(NAME_IT, "classifier")
        registry = self._classify.catalogue.current
        found = registry.get(request.classifier)
        return pb.GetClassifierResponse(classifier=classifier_to_proto(found, registry))

    def _require_valid(self, request: pb.FanOutRequest) -> None:
        problems = conversation_problems(request.conversation, self._limits.max_turns)
        raise_all([*problems, *name_problems(request.classifiers)])

    def _batch_problems(self, request: pb.ClassifyBatchRequest) -> list[InvalidRequestError]:
        size, most = len(request.conversations), self._limits.max_batch
        if not size:
            return [EmptyBatchError("The batch has no conversations; send at least one.", "conversations")]
        if size > most:
            message = f"The batch has {size} conversations, this server accepts {most} in one call; split it."
            return [BatchTooLargeError(message, "conversations", {"max_conversations": str(most)})]
        if size * self._asked(request) > MAX_BATCH_RESULTS:
            message = f"The batch asks for more than {MAX_BATCH_RESULTS} results; split it or name fewer classifiers."
            return [BatchTooLargeError(message, "conversations", {"max_results": str(MAX_BATCH_RESULTS)})]
        return []

    def _asked(self, request: pb.ClassifyBatchRequest) -> int:
        return len(request.classifiers) or len(self._classify.catalogue.current.classifiers)

    async def _answers_in_batch(self, request: pb.ClassifyBatchRequest, index: int, call: Call) -> Answers:
        message, field = request.conversations[index], f"conversations[{index}]"
        raise_all(conversation_problems(message, self._limits.max_turns, field))
        try:
            answers = await self._classify.fan_out(conversation_from_proto(message), request.classifiers, call)
        except InvalidRequestError as error:
            move(error, "conversation.", f"{field}.")
            raise
        for _, outcome in answers.results:
            if isinstance(outcome, InvalidRequestError):
                move(outcome, "conversation.", f"{field}.")
        return answers

    def _call_of(self, request: pb.FollowRequest) -> Call:
        """The terms of one message: those of the whole call, with the message's own time."""
        call, longest = current_call(), self._limits.follow_seconds
        deadline = call.deadline.no_later_than(
            Deadline.after(longest).named(f"the server's limit of {longest:g} s for a message")
        )
        if request.HasField("timeout"):
            own = Deadline.after(max(0.0, request.timeout.ToNanoseconds() / 1e9))
            deadline = own.named("the message's timeout").no_later_than(deadline)
        return replace(call, deadline=deadline)

    async def _followed(
        self, live: LiveConversation, request: pb.FollowRequest, call: Call
    ) -> Answers | FantailError | None:
        """Take over a message and answer it; None when it wants no answer.

        Raises OverloadedError, which ends the call, when there is no memory for it: nothing of it is taken over.
        """
        try:
            new = await self._new_turns(live, request)
        except InvalidRequestError as error:
            call.toll(1)  # reading it was work; and over the rate the call ends, as any other status takes turns over
            return error
        live.take_over(request.conversation_id, new, selected(request))
        return await self._outcome("Follow", self._answers_of(live, call), call) if live.wants_answers(new) else None

    async def _answers_of(self, live: LiveConversation, call: Call) -> Answers:
        call.toll(1)
        with self._classify.admission.call():
            return await live.answers(call)

    async def _new_turns(self, live: LiveConversation, request: pb.FollowRequest) -> Sequence[Turn]:
        """The turns of a message that can be taken over. Raises InvalidRequestError for one that can not."""
        raise_all(self._message_problems(live, request))
        new = turns_from_proto(request.turns)
        live.require_memory(request.conversation_id, new, selected(request))
        try:
            # Their turns are kept even where they cannot be answered, so they are read also under load: the long ones
            # one after the other, which leaves the threads to calls.
            async with self._reading if is_long(new) else contextlib.nullcontext():
                await live.require_room(new)
        except InvalidRequestError as error:
            move(error, "conversation.", "")
            raise
        return new

    async def _outcome(self, method: str, work: Awaitable[Answers], call: Call) -> Answers | FantailError:
        """What came of one part of a call: an error is that part's alone, unless it is the caller's; defects are
        logged."""
        failed: FantailError
        try:
            return await work
        except CallerError:
            raise
        except FantailError as error:
            failed = error
        except Exception:
            logger.exception("request %s: one part failed", call.request_id)
            failed = DEFECT
        self._classify.observer.part_failed(method, reason_name(failed))
        return failed

    def _message_problems(self, live: LiveConversation, request: pb.FollowRequest) -> list[InvalidRequestError]:
        problems = turns_problems(request.turns, len(live.turns), self._limits.max_turns, "turns")
        problems += text_problems(request.turns, live.text_bytes, self._limits.follow_bytes, "turns")
        if not live.turns and not request.turns:
            problems.append(EmptyConversationError("Nothing has been said so far; send at least one turn.", "turns"))
        names = name_problems(request.classifiers.names)
        for each in names:
            move(each, "classifiers", "classifiers.names")
        return [*problems, *timeout_problems(request), *names]


def selected(request: pb.FollowRequest) -> Sequence[str] | None:
    """The classifiers to ask from now on; None: as before."""
    return request.classifiers.names if request.HasField("classifiers") else None


def move(error: InvalidRequestError, old: str, new: str) -> None:
    """Let a refusal name fields of a request that has them under `new` instead of `old`."""
    for each in (error, *error.others):
        each.field = each.field.replace(old, new, 1)
        each.metadata = {**each.metadata, "field": each.field}


async def until(stopping: asyncio.Event, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The requests of a stream until it ends or the server stops."""
    stop, following = asyncio.ensure_future(stopping.wait()), asyncio.ensure_future(anext(requests, None))
    try:
        while True:
            await asyncio.wait({stop, following}, return_when=asyncio.FIRST_COMPLETED)
            if not following.done() or following.result() is None:
                return
            yield following.result()
            following = asyncio.ensure_future(anext(requests, None))
    finally:
        # A caller that goes away ends this while a request is awaited, and nobody else hears how that ends.
        stop.cancel()
        following.cancel()
        await asyncio.gather(stop, following, return_exceptions=True)
