"""The caller's side of conversations: turns, and a live conversation message by message."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from service.pb.fantail.v1 import classification_service_pb2 as pb


def customer(text: str) -> pb.Turn:
    return pb.Turn(role=pb.ROLE_CUSTOMER, text=text)


def agent(text: str) -> pb.Turn:
    return pb.Turn(role=pb.ROLE_AGENT, text=text)


class Following:
    """A call of Follow. `names`: the classifiers that a message selects; `timeout_ns`: of a message."""

    def __init__(self, call: Any) -> None:
        self.call = call

    async def tell(
        self, *turns: pb.Turn, names: Sequence[str] | None = None, timeout_ns: int | None = None, id: str = ""
    ) -> None:
        """Send a message."""
        request = pb.FollowRequest(turns=turns, conversation_id=id)
        if names is not None:
            request.classifiers.CopyFrom(pb.ClassifierSelection(names=names))
        if timeout_ns is not None:
            duration = Duration()
            duration.FromNanoseconds(timeout_ns)
            request.timeout.CopyFrom(duration)
        await self.call.write(request)

    async def answer(self) -> pb.FollowResponse:
        """The next response."""
        response = await self.call.read()
        assert isinstance(response, pb.FollowResponse)
        return response

    async def ask(self, *turns: pb.Turn, **fields: Any) -> pb.FollowResponse:
        """Send a message and read the response to it."""
        await self.tell(*turns, **fields)
        return await self.answer()

    async def finish(self) -> None:
        """Say no more; there must be nothing left to read."""
        await self.call.done_writing()
        assert await self.call.read() is grpc.aio.EOF
        assert await self.call.code() is grpc.StatusCode.OK
