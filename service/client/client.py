"""An async client with typed answers and typed errors. Knows the contract alone."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from types import TracebackType
from typing import Literal, Self, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2

from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1 import classifier_pb2
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub

DETAILS_KEY = "grpc-status-details-bin"
ROLES = {"customer": pb.ROLE_CUSTOMER, "agent": pb.ROLE_AGENT, "system": pb.ROLE_SYSTEM}

Turns = Sequence[tuple[Literal["customer", "agent", "system"], str]]
"""A conversation as (role, text) pairs, oldest first."""

Reply = TypeVar("Reply")


class RpcError(Exception):
    """A call that failed.

    `code`: the gRPC status; `reason`: an `ErrorReason` name, empty when the failure is not the server's own;
    `metadata`: its facts; `request_id`: what to quote to the operator; `violations`: field to what is wrong with it.
    """

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code()
        self.message = error.details() or ""
        super().__init__(f"{self.code.name}: {self.message}")
        info, request, invalid = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.RequestInfo(),
            error_details_pb2.BadRequest(),
        )
        raw = next((value for key, value in error.trailing_metadata() or () if key == DETAILS_KEY), None)
        for detail in status_pb2.Status.FromString(raw).details if isinstance(raw, bytes) else ():
            for message in (info, request, invalid):
                if detail.Is(message.DESCRIPTOR):
                    detail.Unpack(message)
        self.reason = info.reason
        self.metadata: Mapping[str, str] = dict(info.metadata)
        self.request_id = request.request_id
        self.violations = {violation.field: violation.description for violation in invalid.field_violations}


class FantailClient:
    """Talks to one server; use it as an async context manager. Every call has a deadline, in seconds.

    >>> async with FantailClient("127.0.0.1:50051") as client:
    ...     answer = await client.fan_out([("customer", "where is my refund??")], timeout=5)
    """

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stub = ClassificationServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def wait_until_reachable(self) -> None:
        """Return once the server accepts connections; wrap in `asyncio.timeout`."""
        await self._channel.channel_ready()

    async def classify(self, turns: Turns, classifier: str, *, timeout: float) -> pb.ClassifyResponse:
        """Ask one classifier. Raises RpcError."""
        request = pb.ClassifyRequest(conversation=conversation(turns), classifier=classifier)
        return await _typed(self._stub.Classify(request, timeout=timeout))

    async def fan_out(self, turns: Turns, classifiers: Sequence[str] = (), *, timeout: float) -> pb.FanOutResponse:
        """Ask the named classifiers, or all. Raises RpcError for the call; each result has its own outcome."""
        request = pb.FanOutRequest(conversation=conversation(turns), classifiers=classifiers)
        return await _typed(self._stub.FanOut(request, timeout=timeout))

    async def list_classifiers(self, *, timeout: float) -> Sequence[classifier_pb2.Classifier]:
        """All classifiers of the server, by name. Raises RpcError."""
        return (await _typed(self._stub.ListClassifiers(pb.ListClassifiersRequest(), timeout=timeout))).classifiers

    async def get_classifier(self, name: str, *, timeout: float) -> classifier_pb2.Classifier:
        """One classifier. Raises RpcError."""
        return (
            await _typed(self._stub.GetClassifier(pb.GetClassifierRequest(classifier=name), timeout=timeout))
        ).classifier


def conversation(turns: Turns) -> pb.Conversation:
    """Turns as a message; a role it does not know is left for the server to refuse."""
    return pb.Conversation(
        turns=[pb.Turn(role=ROLES.get(role, pb.ROLE_UNSPECIFIED), text=text) for role, text in turns]
    )


async def _typed(call: Awaitable[Reply]) -> Reply:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise RpcError(error) from error
