"""An async client with typed answers and typed errors. Knows the contract alone."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from typing import Any, Protocol, TypeVar

import grpc

from service.client.connection import Connection, Metadata, Tls
from service.client.conversation import Turns, conversation
from service.client.errors import RpcError, typed_errors
from service.client.following import FollowedConversation
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1 import classifier_pb2
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub

ATTEMPTS = 3
"""How often at most a call is made, within its deadline, while servers are unavailable or overloaded."""

SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "fantail.v1.ClassificationService"}],
            # Nothing here changes anything, so every call may be repeated. RESOURCE_EXHAUSTED is not among the codes:
            # it is repeated by `_patiently`, which keeps the delay that the server asks for.
            "retryPolicy": {
                "maxAttempts": ATTEMPTS,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 3,
                # CANCELLED comes from gRPC itself, for a call that meets a server in the instant of its stopping.
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        }
    ]
}

RETRIED_BYTES = (4 << 20) + (16 << 10)
"""Of a request and its headers, kept to be sent again: as much as a server takes; gRPC's own 256 KiB are less than a
batch."""

RECEIVED_BYTES = 64 << 20
"""Of a response: a batch of many labels is larger than the 4 MiB that gRPC allows by itself."""

SERVING = b"\x08\x01"
"""grpc.health.v1.HealthCheckResponse{status: SERVING}: two bytes that spare the client a dependency."""

POLL_SECONDS = 0.2

Request = TypeVar("Request", contravariant=True)
Reply = TypeVar("Reply", covariant=True)


class Method(Protocol[Request, Reply]):
    """One of the stub's methods."""

    def __call__(self, request: Request, /, *, timeout: float, metadata: Metadata) -> Awaitable[Reply]: ...


class FantailClient(Connection):
    """Talks to one server; use it as an async context manager. Every call has a deadline, in seconds.

    >>> async with FantailClient("127.0.0.1:50051") as client:
    ...     answer = await client.fan_out([("customer", "where is my refund??")], timeout=5)

    `key`: an API key; `tls`: None talks in the clear, over which no key should travel beyond this machine; `retries`:
    whether a call is made again where that makes sense, at most `ATTEMPTS` times and within its deadline.
    """

    def __init__(self, address: str, *, key: str | None = None, tls: Tls | None = None, retries: bool = True) -> None:
        options = [
            ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
            ("grpc.enable_retries", int(retries)),
            ("grpc.per_rpc_retry_buffer_size", RETRIED_BYTES),
            ("grpc.max_receive_message_length", RECEIVED_BYTES),
        ]
        super().__init__(address, key, tls, options)
        self._attempts = ATTEMPTS if retries else 1
        self._stub = ClassificationServiceStub(self._channel)

    async def wait_until_serving(self) -> None:
        """Return once the server says that it serves; wrap in `asyncio.timeout`."""
        check: Any = self._channel.unary_unary("/grpc.health.v1.Health/Check")
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                if await check(b"", wait_for_ready=True) == SERVING:
                    return
            await asyncio.sleep(POLL_SECONDS)

    async def classify(self, turns: Turns, classifier: str, *, timeout: float, id: str = "") -> pb.ClassifyResponse:
        """Ask one classifier. Raises RpcError."""
        request = pb.ClassifyRequest(conversation=conversation(turns, id), classifier=classifier)
        return await self._patiently(self._stub.Classify, request, timeout)

    async def fan_out(
        self, turns: Turns, classifiers: Sequence[str] = (), *, timeout: float, id: str = ""
    ) -> pb.FanOutResponse:
        """Ask the named classifiers, or all. Raises RpcError for the call; each result has its own outcome."""
        request = pb.FanOutRequest(conversation=conversation(turns, id), classifiers=classifiers)
        return await self._patiently(self._stub.FanOut, request, timeout)

    async def stream_fan_out(
        self, turns: Turns, classifiers: Sequence[str] = (), *, timeout: float, id: str = ""
    ) -> AsyncGenerator[pb.FanOutResult, None]:
        """The same, each result as soon as it is ready; close it to cancel what is under way. Raises RpcError."""
        request = pb.FanOutRequest(conversation=conversation(turns, id), classifiers=classifiers)
        call = self._stub.StreamFanOut(request, timeout=timeout, metadata=self._metadata)
        try:
            with typed_errors():
                async for result in call:
                    yield result
        finally:
            call.cancel()

    async def classify_batch(
        self,
        conversations: Sequence[Turns],
        classifiers: Sequence[str] = (),
        *,
        timeout: float,
        ids: Sequence[str] = (),
    ) -> pb.ClassifyBatchResponse:
        """Ask about many conversations, in their order; each item has its own outcome. Raises RpcError.

        `ids`: the caller's own, one for each conversation, or none. Raises ValueError for another number of them.
        """
        named = zip(conversations, ids or [""] * len(conversations), strict=True)
        request = pb.ClassifyBatchRequest(
            conversations=[conversation(turns, id) for turns, id in named], classifiers=classifiers
        )
        return await self._patiently(self._stub.ClassifyBatch, request, timeout)

    @contextlib.asynccontextmanager
    async def follow(
        self, classifiers: Sequence[str] = (), *, timeout: float, id: str = ""
    ) -> AsyncIterator[FollowedConversation]:
        """Follow a live conversation for at most `timeout` seconds; `id`: the caller's own, of the conversation."""
        call = self._stub.Follow(timeout=timeout, metadata=self._metadata)
        try:
            live = FollowedConversation(call, classifiers, id)
            yield live
            await live.finish()
        finally:
            call.cancel()

    async def list_classifiers(self, *, timeout: float) -> Sequence[classifier_pb2.Classifier]:
        """All classifiers of the server, by name. Raises RpcError."""
        return (await self._patiently(self._stub.ListClassifiers, pb.ListClassifiersRequest(), timeout)).classifiers

    async def get_classifier(self, name: str, *, timeout: float) -> classifier_pb2.Classifier:
        """One classifier. Raises RpcError."""
        request = pb.GetClassifierRequest(classifier=name)
        return (await self._patiently(self._stub.GetClassifier, request, timeout)).classifier

    async def _patiently(self, method: Method[Request, Reply], request: Request, timeout: float) -> Reply:
        """Make a call; while the server is overloaded, make it again after the delay that it asks for, if time allows.

        Raises RpcError.
        """
        clock = asyncio.get_running_loop().time
        ends = clock() + timeout
        for attempt in range(1, self._attempts + 1):
            try:
                with typed_errors():
                    return await method(request, timeout=max(0.0, ends - clock()), metadata=self._metadata)
            except RpcError as error:
                delay = error.retry_after_s
                last = attempt == self._attempts or error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED
                if last or delay is None or clock() + delay >= ends:
                    raise
                await asyncio.sleep(delay)
        raise AssertionError("the last attempt returns or raises")
