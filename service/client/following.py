"""A live conversation as its client sees it: messages out, each with its answer or its error."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import grpc
from google.rpc import status_pb2

from service.client.conversation import Turns, conversation, duration
from service.client.errors import RpcError
from service.pb.fantail.v1 import classification_service_pb2 as pb

Value = TypeVar("Value")

LATE_SECONDS = 5.0
"""How long after a message's time the server may still say what became of it; then it is taken for gone."""

CORE_FAILED = "Internal error from Core"
"""What grpc.aio says of a write to a call that has ended."""


STATUS_SECONDS = 1.0
"""How long after a failed write the status that ended the call may still come; where a connection is lost none does."""


class FollowedConversation:
    """A live conversation. Made by `FantailClient.follow`; tell it what is said, one message after the other."""

    def __init__(self, call: Any, classifiers: Sequence[str], id: str) -> None:
        self._call, self._id, self._messages = call, id, 0
        self._ending, self._given_up = Ending(call), False
        self._classifiers: Sequence[str] | None = classifiers or None

    async def tell(
        self, turns: Turns, *, classifiers: Sequence[str] | None = None, timeout: float | None = None
    ) -> pb.FanOutResponse | None:
        """Add turns; returns the fan-out when the customer spoke last, None when somebody else did.

        No turns: ask about the conversation as it stands. `classifiers`: ask these from now on, () for all; `timeout`:
        seconds for this answer. Raises RpcError; after INVALID_ARGUMENT the turns are not part of the conversation,
        after any other code they are, and the conversation can be gone on with unless the call itself has ended: as
        where not even a refusal comes within some seconds of the `timeout`. A message that returned None and is refused
        is heard of when a later one is told, or on leaving: `RpcError.messages_ago`.
        """
        before = self._classifiers
        if classifiers is not None:
            self._classifiers = classifiers
        try:
            async with asyncio.timeout(None if timeout is None else timeout + LATE_SECONDS):
                await self._write(self._request(turns, timeout))
                if turns and turns[-1][0] != "customer":
                    return None
                return await self._answer()
        except TimeoutError:
            self._given_up = True  # gRPC has ended the call with the writing or reading that was given up
            raise given_up() from None
        except RpcError as error:
            if error.code is grpc.StatusCode.INVALID_ARGUMENT and not error.messages_ago:
                self._classifiers = before
            raise

    async def finish(self) -> None:
        """Say no more. Raises RpcError for what ended the call before, or for messages refused unheard of."""
        if self._given_up:
            return
        await self._call.done_writing()
        refused: RpcError | None = None
        while (response := await self._read()) is not grpc.aio.EOF:
            if response.HasField("status"):
                refused = self._error_of(response, refused)
        if refused is not None:
            raise refused

    def _request(self, turns: Turns, timeout: float | None) -> pb.FollowRequest:
        """A message. It always names the classifiers: the server may have refused those before, with their names."""
        request = pb.FollowRequest(turns=conversation(turns).turns, conversation_id=self._id)
        if self._classifiers is not None:
            request.classifiers.CopyFrom(pb.ClassifierSelection(names=self._classifiers))
        if timeout is not None:
            request.timeout.CopyFrom(duration(timeout))
        return request

    async def _write(self, request: pb.FollowRequest) -> None:
        if self._given_up:
            raise given_up()
        try:
            await self._call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            if (ended := await self._ending.error()).code is grpc.StatusCode.OK:
                raise RuntimeError("the conversation is over") from error
            raise ended from error
        self._messages += 1

    async def _read(self) -> Any:
        """The next response, EOF behind the last one."""
        try:
            return await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise await self._ending.error() from error

    async def _answer(self) -> pb.FanOutResponse:
        """The answer to the last message. Raises its error, and those before it that nobody has heard of yet."""
        refused: RpcError | None = None
        while True:
            if (response := await self._read()) is grpc.aio.EOF:
                raise RuntimeError("the server ended the conversation without an answer")
            if response.HasField("status"):
                refused = self._error_of(response, refused)
            if response.message == self._messages:
                if refused is not None:
                    raise refused
                fan_out: pb.FanOutResponse = response.fan_out
                return fan_out

    def _error_of(self, response: pb.FollowResponse, earlier: RpcError | None) -> RpcError:
        error = RpcError.of_status(response.status, self._messages - response.message)
        error.__cause__ = earlier
        return error


def given_up() -> RpcError:
    """The error of a message that nobody has answered in time, and of those after it."""
    message = "the server said nothing in time, and the conversation is over"
    return RpcError(grpc.StatusCode.DEADLINE_EXCEEDED, message, status_pb2.Status())


class Ending:
    """What ended a call, noted at the moment when it becomes known.

    A write to a call that has ended gets the status INTERNAL, and grpc.aio puts that in the place of the status that
    ended the call (https://github.com/grpc/grpc/issues/36066): a caller whose server stops, or refuses the call, would
    hear of an internal error about every other time. Remove this when grpcio has
    https://github.com/grpc/grpc/pull/43486.
    """

    def __init__(self, call: Any) -> None:
        self._call = call
        self._noted: RpcError | None = None
        call.add_done_callback(self._note)

    async def error(self) -> RpcError:
        """To be asked once a write or a read has failed. Where that was before the status came, it waits for it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STATUS_SECONDS):
                while self._noted is None:
                    await asyncio.sleep(0.001)
                    self._note(self._call)
        lost = RpcError(grpc.StatusCode.UNAVAILABLE, "the connection was lost", status_pb2.Status())
        return self._noted or lost

    def _note(self, call: Any) -> None:
        code, details, metadata = map(at_once, (call.code(), call.details(), call.trailing_metadata()))
        if details != CORE_FAILED:  # else a write has failed, and the status that ended the call is still on its way
            self._noted = RpcError.of_call(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), metadata, details))


def at_once(work: Coroutine[Any, Any, Value]) -> Value:
    """The result of a coroutine that has nothing to wait for."""
    try:
        work.send(None)
    except StopIteration as done:
        result: Value = done.value
        return result
    raise AssertionError("a call that is done knows its status")
