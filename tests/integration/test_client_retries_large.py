"""Requests larger than gRPC keeps by itself are made again as small ones are, up to what a server takes.

gRPC repeats a request only while all of it, its headers counted, fits into a buffer, of 256 KiB unless a channel says
otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from service.call import current_call
from service.client import FantailClient, RpcError
from service.client.client import RETRIED_BYTES, SERVICE_CONFIG
from service.client.conversation import conversation
from service.errors import EngineDeadError, OverloadedError
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from tests.integration.conftest import Serve
from tests.integration.harness import DEADLINE_S, HELLO, PLAIN, WatchedEngine
from tests.integration.listener import Listener

OF_GRPC = 256 << 10
"""What gRPC keeps by itself."""

OF_A_SERVER = 4 << 20
"""What a server takes unless it is set up otherwise."""

HEADERS = 1 << 10
"""More than the headers of a call that brings none of its own."""


@dataclass
class RefusingEngine(WatchedEngine):
    """`refuse`: what calls are refused with, one after the other; `attempts`: request ids of calls that came so far."""

    refuse: Iterator[Exception] = field(default_factory=lambda: iter(()))
    attempts: list[str] = field(default_factory=list)

    async def check(self) -> None:
        if (request_id := current_call().request_id) and request_id not in self.attempts:
            self.attempts.append(request_id)
            if (error := next(self.refuse, None)) is not None:
                raise error


@pytest.fixture
def engine() -> RefusingEngine:
    return RefusingEngine()


async def _classify(client: FantailClient, id: str) -> pb.Classification:
    return (await client.classify(HELLO, PLAIN, timeout=DEADLINE_S, id=id)).classification


async def _fan_out(client: FantailClient, id: str) -> pb.Classification:
    return (await client.fan_out(HELLO, [PLAIN], timeout=DEADLINE_S, id=id)).results[0].classification


async def _stream(client: FantailClient, id: str) -> pb.Classification:
    (result,) = [each async for each in client.stream_fan_out(HELLO, [PLAIN], timeout=DEADLINE_S, id=id)]
    return result.classification


async def _batch(client: FantailClient, id: str) -> pb.Classification:
    response = await client.classify_batch([HELLO], [PLAIN], timeout=DEADLINE_S, ids=[id])
    return response.items[0].fan_out.results[0].classification


Ask = Callable[[FantailClient, str], Awaitable[pb.Classification]]
UNARY: dict[str, Ask] = {"classify": _classify, "fan_out": _fan_out, "classify_batch": _batch}
ASKING = UNARY | {"stream_fan_out": _stream}
REQUEST: dict[str, Callable[[str], Any]] = {
    "classify": lambda id: pb.ClassifyRequest(conversation=conversation(HELLO, id), classifier=PLAIN),
    "fan_out": lambda id: pb.FanOutRequest(conversation=conversation(HELLO, id), classifiers=[PLAIN]),
    "stream_fan_out": lambda id: pb.FanOutRequest(conversation=conversation(HELLO, id), classifiers=[PLAIN]),
    "classify_batch": lambda id: pb.ClassifyBatchRequest(conversations=[conversation(HELLO, id)], classifiers=[PLAIN]),
}


def id_for(method: str, size: int) -> str:
    """An id of the conversation with which a request has so many bytes."""
    id = "x" * (size // 2)  # so long that its own length takes as many bytes as in the end
    id += "x" * (size - REQUEST[method](id).ByteSize())
    assert REQUEST[method](id).ByteSize() == size
    return id


@pytest.mark.parametrize("size", [OF_GRPC, OF_A_SERVER], ids=["more than gRPC keeps", "as much as a server takes"])
@pytest.mark.parametrize("method", ASKING)
async def test_a_large_request_to_an_unavailable_server_is_made_again_as_it_was(
    client: FantailClient, engine: RefusingEngine, listener: Listener, method: str, size: int
) -> None:
    engine.refuse = iter([EngineDeadError("No.")])
    id = id_for(method, size)
    assert (await ASKING[method](client, id)).classifier == PLAIN
    assert len(engine.attempts) == 2
    assert {heard.id for heard in listener.heard} == {id}


@pytest.mark.parametrize("method", ASKING)
async def test_a_request_larger_than_what_is_kept_is_made_once_and_fails_as_it_failed(
    serve: Serve, engine: RefusingEngine, method: str
) -> None:
    engine.refuse = iter([EngineDeadError("No.")])
    async with FantailClient(await serve(max_message_bytes=2 * RETRIED_BYTES)) as client:
        with pytest.raises(RpcError) as failure:
            await ASKING[method](client, id_for(method, RETRIED_BYTES))
    assert (failure.value.code, failure.value.reason) == (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_ENGINE_DEAD")
    assert len(engine.attempts) == 1


@pytest.mark.parametrize("method", UNARY)
async def test_a_request_of_any_size_to_an_overloaded_server_is_made_again(
    serve: Serve, engine: RefusingEngine, method: str
) -> None:
    engine.refuse = iter([OverloadedError("No.", 0.01)])
    async with FantailClient(await serve(max_message_bytes=2 * RETRIED_BYTES)) as client:
        assert (await UNARY[method](client, id_for(method, RETRIED_BYTES))).classifier == PLAIN
    assert len(engine.attempts) == 2


@pytest.mark.parametrize(
    ("size", "buffer", "attempts"),
    [
        pytest.param(OF_GRPC - HEADERS, None, 2, id="what gRPC keeps by itself"),
        pytest.param(OF_GRPC, None, 1, id="more than gRPC keeps by itself"),
        pytest.param(OF_GRPC, OF_GRPC + HEADERS, 2, id="the same, where more is kept"),
    ],
)
async def test_a_service_config_alone_has_no_large_request_made_again(
    address: str, engine: RefusingEngine, size: int, buffer: int | None, attempts: int
) -> None:
    engine.refuse = iter([EngineDeadError("No.")])
    options: list[tuple[str, Any]] = [("grpc.service_config", json.dumps(SERVICE_CONFIG))]
    options += [("grpc.per_rpc_retry_buffer_size", buffer)] if buffer else []
    async with grpc.aio.insecure_channel(address, options) as channel:
        request = REQUEST["fan_out"](id_for("fan_out", size))
        code = await ClassificationServiceStub(channel).FanOut(request, timeout=DEADLINE_S).code()
    assert (code is grpc.StatusCode.OK) == (attempts == 2)
    assert len(engine.attempts) == attempts
