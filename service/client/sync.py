"""The same client for code that does not await: each call runs on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
from collections.abc import Coroutine, Generator, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import grpc
from google.rpc import status_pb2

from service.client.client import FantailClient
from service.client.connection import Tls
from service.client.conversation import Turns
from service.client.errors import RpcError
from service.client.following import FollowedConversation
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1 import classifier_pb2

Value = TypeVar("Value")


class FantailSyncClient:
    """Talks to one server; use it as a context manager, from any thread of the process that made it.

    >>> with FantailSyncClient("127.0.0.1:50051") as client:
    ...     answer = client.fan_out([("customer", "where is my refund??")], timeout=5)
    """

    def __init__(self, address: str, *, key: str | None = None, tls: Tls | None = None) -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fantail-client", daemon=True)
        self._thread.start()

        async def connect() -> FantailClient:
            return FantailClient(address, key=key, tls=tls)

        self._client = self._run(connect())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def wait_until_serving(self, timeout: float) -> None:
        """Return once the server says that it serves. Raises TimeoutError."""
        self._run(asyncio.wait_for(self._client.wait_until_serving(), timeout))

    def classify(self, turns: Turns, classifier: str, *, timeout: float, id: str = "") -> pb.ClassifyResponse:
        """Ask one classifier. Raises RpcError."""
        return self._run(self._client.classify(turns, classifier, timeout=timeout, id=id))

    def fan_out(
        self, turns: Turns, classifiers: Sequence[str] = (), *, timeout: float, id: str = ""
    ) -> pb.FanOutResponse:
        """Ask the named classifiers, or all. Raises RpcError for the call; each result has its own outcome."""
        return self._run(self._client.fan_out(turns, classifiers, timeout=timeout, id=id))

    def stream_fan_out(
        self, turns: Turns, classifiers: Sequence[str] = (), *, timeout: float, id: str = ""
    ) -> Generator[pb.FanOutResult, None, None]:
        """The same, each result as soon as it is ready; close it to cancel what is under way. Raises RpcError."""
        stream = self._client.stream_fan_out(turns, classifiers, timeout=timeout, id=id)
        while (result := self._run(_next(stream))) is not None:
            yield result

    def classify_batch(
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
        return self._run(self._client.classify_batch(conversations, classifiers, timeout=timeout, ids=ids))

    @contextlib.contextmanager
    def follow(
        self, classifiers: Sequence[str] = (), *, timeout: float, id: str = ""
    ) -> Iterator[FollowedSyncConversation]:
        """Follow a live conversation for at most `timeout` seconds."""
        following = self._client.follow(classifiers, timeout=timeout, id=id)
        conversation = self._run(following.__aenter__())
        try:
            yield FollowedSyncConversation(self, conversation)
        except BaseException as error:
            self._run(following.__aexit__(type(error), error, error.__traceback__))
            raise
        self._run(following.__aexit__(None, None, None))

    def list_classifiers(self, *, timeout: float) -> Sequence[classifier_pb2.Classifier]:
        """All classifiers of the server, by name. Raises RpcError."""
        return self._run(self._client.list_classifiers(timeout=timeout))

    def get_classifier(self, name: str, *, timeout: float) -> classifier_pb2.Classifier:
        """One classifier. Raises RpcError."""
        return self._run(self._client.get_classifier(name, timeout=timeout))

    async def _close(self) -> None:
        """End what other threads still wait for, so that none of them waits for a loop that has stopped."""
        await self._client.__aexit__(None, None, None)
        waiting = asyncio.all_tasks() - {asyncio.current_task()}
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    def _run(self, work: Coroutine[Any, Any, Value]) -> Value:
        """The result of work on the loop. Raises what it raises, and RpcError when the client is closed meanwhile."""
        if (forked := os.getpid() != self._process) or self._loop.is_closed():
            work.close()  # nobody would do it
            raise RuntimeError(
                "the client is of another process; make one in each" if forked else "the client is closed"
            )
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop).result()
        except concurrent.futures.CancelledError:
            raise RpcError(grpc.StatusCode.CANCELLED, "the client was closed", status_pb2.Status()) from None


class FollowedSyncConversation:
    """A live conversation. Made by `FantailSyncClient.follow`."""

    def __init__(self, client: FantailSyncClient, conversation: FollowedConversation) -> None:
        self._client, self._conversation = client, conversation

    def tell(
        self, turns: Turns, *, classifiers: Sequence[str] | None = None, timeout: float | None = None
    ) -> pb.FanOutResponse | None:
        """As `FollowedConversation.tell`."""
        return self._client._run(self._conversation.tell(turns, classifiers=classifiers, timeout=timeout))


async def _next(stream: Any) -> pb.FanOutResult | None:
    found: pb.FanOutResult | None = await anext(stream, None)
    return found
