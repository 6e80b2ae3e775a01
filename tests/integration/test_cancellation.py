"""Callers who give up, and calls side by side."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Sequence

import grpc
import pytest

from service.client import FantailClient, RpcError
from service.domain import Conversation, Role, Turn
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.prompt.builder import PromptBuilder
from service.registry.registry import Registry
from tests.integration.harness import (
    DEADLINE_S,
    HELLO,
    LABELS,
    NAMES,
    NEVER_S,
    PLAIN,
    WatchedEngine,
    classify_request,
    fan_out_request,
)

CALLERS = 32


@pytest.mark.parametrize(("method", "requests"), [("Classify", 1), ("FanOut", len(NAMES))])
async def test_a_cancelled_call_cancels_the_engines_work(
    stub: ClassificationServiceStub, engine: WatchedEngine, method: str, requests: int
) -> None:
    engine.latency_s = NEVER_S
    message = classify_request(PLAIN) if method == "Classify" else fan_out_request()
    call = getattr(stub, method)(message, timeout=DEADLINE_S)
    await engine.begun(requests)
    assert engine.cancelled == 0
    assert call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await engine.ended(requests)
    assert engine.cancelled == requests


@pytest.mark.parametrize(("method", "requests"), [("classify", 1), ("fan_out", len(NAMES))])
async def test_a_deadline_that_passes_ends_the_call_and_cancels_the_engines_work(
    client: FantailClient, engine: WatchedEngine, method: str, requests: int
) -> None:
    engine.latency_s = NEVER_S
    await client.list_classifiers(timeout=DEADLINE_S)  # connected, so that the deadline is spent in the engine
    names = {"classify": PLAIN, "fan_out": ()}[method]
    with pytest.raises(RpcError) as failure:
        await getattr(client, method)(HELLO, names, timeout=0.5)
    assert failure.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    await engine.ended(requests)
    assert engine.cancelled == requests


async def test_a_client_that_goes_away_cancels_the_engines_work(address: str, engine: WatchedEngine) -> None:
    engine.latency_s = NEVER_S
    async with FantailClient(address) as leaving:
        call = asyncio.create_task(leaving.fan_out(HELLO, timeout=DEADLINE_S))
        await engine.begun(len(NAMES))
    await engine.ended(len(NAMES))
    assert engine.cancelled == len(NAMES)
    with pytest.raises((RpcError, asyncio.CancelledError)):
        await call


async def test_cancelling_one_call_leaves_the_others(client: FantailClient, engine: WatchedEngine) -> None:
    engine.gate.clear()
    leaving, staying = (asyncio.create_task(client.fan_out(HELLO, timeout=DEADLINE_S)) for _ in range(2))
    await engine.begun(2 * len(NAMES))
    leaving.cancel()
    await engine.ended(len(NAMES))
    engine.gate.set()
    assert len((await staying).results) == len(NAMES)


async def test_concurrent_fan_outs_of_different_conversations_each_get_their_own_answers(
    client: FantailClient, engine: WatchedEngine, builder: PromptBuilder, registry: Registry
) -> None:
    engine.favour = lambda request: _favoured(request.token_ids, len(request.label_ids))
    engine.gate.clear()
    texts = [f"order {i} is late" + ", again" * (i % 5) for i in range(CALLERS)]
    calls = [asyncio.create_task(client.fan_out([("customer", text)], timeout=DEADLINE_S)) for text in texts]
    await engine.begun(CALLERS * len(NAMES))  # all are under way at once
    engine.gate.set()
    labels = [[result.classification.label for result in (await call).results] for call in calls]
    expected = [_expected(text, builder, registry) for text in texts]
    assert labels == expected
    assert len(set(map(tuple, expected))) > CALLERS // 2


async def test_a_defect_in_one_call_leaves_the_calls_beside_it(
    client: FantailClient, engine: WatchedEngine, builder: PromptBuilder
) -> None:
    cursed = builder.prefix(Conversation("", (Turn(Role.CUSTOMER, "break"),))).token_ids
    engine.fault = lambda request: ValueError() if request.token_ids[: len(cursed)] == cursed else None
    engine.gate.clear()
    bad = asyncio.create_task(client.fan_out([("customer", "break")], timeout=DEADLINE_S))
    good = [asyncio.create_task(client.fan_out(HELLO, timeout=DEADLINE_S)) for _ in range(4)]
    await engine.begun(5 * len(NAMES))
    engine.gate.set()
    for call in good:
        assert {result.WhichOneof("outcome") for result in (await call).results} == {"classification"}
    with pytest.raises(RpcError) as failure:
        await bad
    assert failure.value.reason == "ERROR_REASON_DEFECT"


def _favoured(token_ids: Sequence[int], labels: int) -> int:
    return zlib.crc32(str(token_ids).encode()) % labels


def _expected(text: str, builder: PromptBuilder, registry: Registry) -> list[str]:
    prefix = builder.prefix(Conversation("", (Turn(Role.CUSTOMER, text),))).token_ids
    return [LABELS[n][_favoured(prefix + registry.classifiers[n].tail_ids, len(LABELS[n]))] for n in NAMES]
