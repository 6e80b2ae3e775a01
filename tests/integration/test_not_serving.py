"""Servers that are full, still starting or already stopping: what they refuse and how, and what always gets through."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from service.admission import Admission
from service.api.server import Listening, listen
from service.classify import Classify
from service.client import RpcError
from service.engine.base import ScoringEngine
from service.engine.supervised import SupervisedEngine
from service.errors import EngineDeadError, NotServingError
from service.metrics import Metrics
from service.pb.fantail.v1 import admin_service_pb2
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.admin_service_pb2_grpc import AdminServiceStub
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.prompt.builder import PromptBuilder
from service.registry.registry import Registry
from tests.integration.asking import ASKING, BATCH, DESCRIBING, answer, every, refusal
from tests.integration.conftest import Serve
from tests.integration.harness import DEADLINE_S, WatchedEngine
from tests.support import classify_with

OVERLOADED = (grpc.StatusCode.RESOURCE_EXHAUSTED, "ERROR_REASON_OVERLOADED")
STARTING = (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_STARTING")
STOPPING = (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_STOPPING")
DEAD = (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_ENGINE_DEAD")


def full(admission: Admission) -> None:
    admission.max_calls = admission.max_follows = 0


def stopping(admission: Admission) -> None:
    admission.stop()


WHATEVER_IS_REFUSED = pytest.mark.parametrize("become", [full, stopping])
Become = Callable[[Admission], None]


class NothingDeployed:
    """A deployer with no revisions."""

    async def places(self) -> list[Any]:
        return []


@WHATEVER_IS_REFUSED
async def test_health_always_gets_through(health: HealthStub, classify: Classify, become: Become) -> None:
    become(classify.admission)
    found = await health.Check(HealthCheckRequest(service=""), timeout=DEADLINE_S)
    assert found.status == HealthCheckResponse.SERVING


@WHATEVER_IS_REFUSED
async def test_reflection_always_gets_through(channel: grpc.aio.Channel, classify: Classify, become: Become) -> None:
    become(classify.admission)
    requests = iter([ServerReflectionRequest(list_services="")])
    call = ServerReflectionStub(channel).ServerReflectionInfo(requests, timeout=DEADLINE_S)
    assert [response.WhichOneof("message_response") async for response in call] == ["list_services_response"]


@WHATEVER_IS_REFUSED
async def test_the_operator_always_gets_through(serve: Serve, classify: Classify, become: Become) -> None:
    deployer: Any = NothingDeployed()
    become(classify.admission)
    async with grpc.aio.insecure_channel(await serve(deployer=deployer)) as channel:
        request = admin_service_pb2.ListRevisionsRequest()
        assert not (await answer(AdminServiceStub(channel), "ListRevisions", request)).revisions


@every(ASKING | BATCH | DESCRIBING)
async def test_a_stopping_server_takes_on_no_more_calls(
    stub: ClassificationServiceStub, classify: Classify, engine: WatchedEngine, method: str, request_: Any
) -> None:
    classify.admission.stop()
    error = await refusal(stub, method, request_)
    assert (error.code, error.reason) == STOPPING
    assert error.retry_after_s == NotServingError.retry_after_s
    assert engine.requests == []


@pytest.mark.parametrize(
    ("become", "expected", "metadata"),
    [
        pytest.param(full, OVERLOADED, {"limit": "follows"}, id="full"),
        pytest.param(stopping, STOPPING, {}, id="stopping"),
    ],
)
async def test_no_more_live_conversations_are_taken_on(
    stub: ClassificationServiceStub,
    classify: Classify,
    become: Become,
    expected: tuple[grpc.StatusCode, str],
    metadata: dict[str, str],
) -> None:
    become(classify.admission)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.Follow(iter([pb.FollowRequest()]), timeout=DEADLINE_S).read()
    error = RpcError.of_call(refused.value)
    assert (error.code, error.reason, error.metadata) == (*expected, metadata)
    assert error.retry_after_s is not None


async def test_a_live_conversation_takes_no_room_among_the_calls(
    stub: ClassificationServiceStub, classify: Classify
) -> None:
    classify.admission.max_calls = 0
    silent = pb.FollowRequest(turns=[pb.Turn(role=pb.ROLE_AGENT, text="hello, how can I help?")])
    call = stub.Follow(iter([silent]), timeout=DEADLINE_S)
    assert await call.read() is grpc.aio.EOF
    assert await call.code() is grpc.StatusCode.OK


@dataclass
class Starting:
    """A server around an engine that is started, and proven only when the test says so."""

    stub: ClassificationServiceStub
    health: HealthStub
    proven: asyncio.Event
    started: asyncio.Event


@pytest.fixture
async def starting(
    registry: Registry, builder: PromptBuilder, engine: WatchedEngine, metrics: Metrics
) -> AsyncIterator[Starting]:
    proven, started = asyncio.Event(), asyncio.Event()

    @contextlib.asynccontextmanager
    async def start() -> AsyncIterator[ScoringEngine]:
        yield engine

    async def prove(engine: ScoringEngine) -> None:
        await proven.wait()

    supervised = SupervisedEngine(start, prove)
    classify = classify_with(registry, builder, supervised)
    running = asyncio.create_task(supervised.run(started))
    async with listen(classify, Listening("127.0.0.1:0", grace_seconds=0.0), metrics) as port:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield Starting(ClassificationServiceStub(channel), HealthStub(channel), proven, started)
    running.cancel()


@every(ASKING)
async def test_a_starting_server_says_so_and_when_to_come_back(
    starting: Starting, engine: WatchedEngine, method: str, request_: Any
) -> None:
    error = await refusal(starting.stub, method, request_)
    assert (error.code, error.reason) == STARTING
    assert error.retry_after_s == NotServingError.retry_after_s
    assert engine.requests == []


async def test_a_starting_server_says_so_of_a_batch(starting: Starting) -> None:
    error = await refusal(starting.stub, "ClassifyBatch", BATCH["ClassifyBatch"])
    assert (error.code, error.reason) == STARTING


@every(DESCRIBING)
async def test_a_starting_server_describes_its_classifiers(starting: Starting, method: str, request_: Any) -> None:
    assert await answer(starting.stub, method, request_)


async def test_a_starting_server_is_not_serving(starting: Starting) -> None:
    found = await starting.health.Check(HealthCheckRequest(service=""), timeout=DEADLINE_S)
    assert found.status == HealthCheckResponse.NOT_SERVING


@every(ASKING)
async def test_a_server_answers_once_its_engine_is_proven(starting: Starting, method: str, request_: Any) -> None:
    starting.proven.set()
    await starting.started.wait()
    assert await answer(starting.stub, method, request_)


@every(ASKING)
async def test_a_server_whose_engine_is_started_again_says_that_it_is_dead(
    starting: Starting, engine: WatchedEngine, method: str, request_: Any
) -> None:
    starting.proven.set()
    await starting.started.wait()
    engine.dead = True
    for _ in range(2):  # by the dead engine, and by its absence
        error = await refusal(starting.stub, method, request_)
        assert (error.code, error.reason) == DEAD
        assert error.retry_after_s == EngineDeadError.retry_after_s
