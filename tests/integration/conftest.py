"""A server per test on a free loopback port, around an engine and registry that the test can turn."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Protocol

import grpc
import pytest
from grpc_health.v1.health_pb2_grpc import HealthStub

from service.admission import Admission
from service.api.server import Listening, listen
from service.classify import Classify
from service.client import FantailClient
from service.deploy import Deployer
from service.metrics import Metrics
from service.observer import Observer
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.prompt.builder import PromptBuilder
from service.prompt.format import PromptFormat
from service.prompt.tokenizer import PromptTokenizer
from service.registry.registry import Registry
from tests.integration.harness import CONTEXT_TOKENS, WatchedEngine, small_registry
from tests.integration.listener import Listener
from tests.support import classify_with


class Serve(Protocol):
    async def __call__(self, *, deployer: Deployer | None = ..., **changes: Any) -> str:
        """Start one more server around the test's engine; returns its address. `changes`: of how it listens."""
        ...


@pytest.fixture(scope="session")
def builder(tokenizer: PromptTokenizer, prompt_format: PromptFormat) -> PromptBuilder:
    """With a context so small that limits are met with short texts."""
    return PromptBuilder(tokenizer, prompt_format, CONTEXT_TOKENS)


@pytest.fixture(scope="session")
def registry(builder: PromptBuilder) -> Registry:
    return small_registry(builder)


@pytest.fixture
def engine() -> WatchedEngine:
    return WatchedEngine()


@pytest.fixture
def listener() -> Listener:
    return Listener()


@pytest.fixture
def observer(listener: Listener) -> Observer:
    """Who is told of calls."""
    return listener


@pytest.fixture
def admission() -> Admission | None:
    """None: nothing is turned away."""
    return None


@pytest.fixture
def classify(
    registry: Registry,
    builder: PromptBuilder,
    engine: WatchedEngine,
    admission: Admission | None,
    observer: Observer,
) -> Classify:
    """Around the test's engine; a file that needs another engine, bound or observer overrides that fixture alone."""
    return classify_with(registry, builder, engine, admission, observer)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
async def serve(classify: Classify, metrics: Metrics) -> AsyncIterator[Serve]:
    async with contextlib.AsyncExitStack() as servers:

        async def start(*, deployer: Deployer | None = None, **changes: Any) -> str:
            listening = replace(Listening("127.0.0.1:0", grace_seconds=0.0), **changes)
            port = await servers.enter_async_context(listen(classify, listening, metrics, deployer))
            return f"127.0.0.1:{port}"

        yield start


@pytest.fixture
async def address(serve: Serve) -> str:
    return await serve()


@pytest.fixture
async def client(address: str) -> AsyncIterator[FantailClient]:
    async with FantailClient(address) as connected:
        yield connected


@pytest.fixture
async def channel(address: str) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(address) as connected:
        yield connected


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> ClassificationServiceStub:
    return ClassificationServiceStub(channel)


@pytest.fixture
def health(channel: grpc.aio.Channel) -> HealthStub:
    return HealthStub(channel)
