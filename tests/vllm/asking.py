"""What the tests of a whole server ask, and how they hold its answers against PEFT's."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from service.client import FantailClient, RpcError, Turns
from service.domain import Classifier
from service.pb.fantail.v1 import classification_service_pb2 as pb
from tests.vllm.conftest import ROOT

TURNS: Turns = [(t["role"], t["text"]) for t in json.loads((ROOT / "examples/conversation.json").read_text())["turns"]]
TRACE = "0af7651916cd43dd8448eb211c80319c"


def long_talk(opening: str, messages: int = 8) -> Turns:
    """Several engine steps long, 280 tokens for each message, and not in any cache."""
    return [("customer", f"{opening}: " + "where is it? " * 70)] * messages


def labels_of(results: Iterable[pb.FanOutResult]) -> dict[str, str]:
    return {result.classifier: result.classification.label for result in results}


def probe_turns(classifier: Classifier) -> Turns:
    """The conversation of its first probe."""
    return [(turn.role.value, turn.text) for turn in classifier.probes[0].conversation.turns]


def require_pefts_answer(found: pb.Classification, classifier: Classifier) -> None:
    """An answer to the classifier's first probe must be of its revision, and PEFT's."""
    probabilities, alone = classifier.probes[0].probabilities, sum(classifier.probes[0].probabilities)
    assert found.revision == classifier.revision
    assert [score.label for score in found.scores] == [label.name for label in classifier.labels]
    assert [score.raw_probability for score in found.scores] == pytest.approx(
        [p / alone for p in probabilities], abs=1e-3
    )
    assert found.label_mass == pytest.approx(alone, abs=1e-3)


def require_same(one: pb.Classification, other: pb.Classification) -> None:
    """Two answers, of whatever revisions, must say the same."""
    assert [(each.label, each.raw_probability) for each in one.scores] == [
        (each.label, pytest.approx(each.raw_probability, abs=1e-3)) for each in other.scores
    ]


async def streamed(client: FantailClient, turns: Turns) -> list[pb.FanOutResult]:
    async with contextlib.aclosing(client.stream_fan_out(turns, timeout=60)) as stream:
        return [result async for result in stream]


async def followed(client: FantailClient, turns: Turns) -> pb.FanOutResponse | None:
    async with client.follow(timeout=60) as conversation:
        return await conversation.tell(turns)


KINDS: dict[str, Callable[[FantailClient, Turns], Coroutine[Any, Any, object]]] = {
    "FanOut": lambda client, turns: client.fan_out(turns, timeout=60),
    "StreamFanOut": streamed,
    "ClassifyBatch": lambda client, turns: client.classify_batch([turns] * 2, timeout=60),
    "Follow": followed,
}
"""Of calls that a caller can have under way."""


@contextlib.asynccontextmanager
async def each_kind_of_call(client: FantailClient) -> AsyncIterator[dict[str, asyncio.Task[object]]]:
    """Calls of every kind, by method; none is waited for."""
    calls = {method: asyncio.create_task(made(client, TURNS)) for method, made in KINDS.items()}
    try:
        yield calls
    finally:
        for call in calls.values():
            call.cancel()
        await asyncio.gather(*calls.values(), return_exceptions=True)


@contextlib.asynccontextmanager
async def asked_all_along(
    client: FantailClient, classifiers: Sequence[Classifier]
) -> AsyncIterator[list[pb.Classification]]:
    """Fan-outs of these classifiers until the end, for each of them about its first probe; yields what each has
    answered about its own. No call may fail."""
    answers: list[pb.Classification] = []

    async def about(turns: Turns, name: str) -> None:
        while True:
            results = (await client.fan_out(turns, [each.name for each in classifiers], timeout=60)).results
            answers.extend(each.classification for each in results if each.classifier == name)

    asking = [asyncio.create_task(about(probe_turns(each), each.name)) for each in classifiers]
    try:
        yield answers
    finally:
        for each in asking:
            each.cancel()
        ended = await asyncio.gather(*asking, return_exceptions=True)
    assert not [each for each in ended if isinstance(each, Exception)]


async def what_became_of(call: asyncio.Task[object]) -> set[str]:
    """Names of codes and reasons with which a call was refused, as a whole or part by part; empty for an answer."""
    try:
        answer = await call
    except RpcError as error:
        return {f"{error.code.name} {error.reason}".strip()}
    results = list(answer.items if isinstance(answer, pb.ClassifyBatchResponse) else getattr(answer, "results", answer))
    return {grpc.StatusCode(_code(each.status.code)).name for each in results if each.HasField("status")}


def _code(number: int) -> tuple[int, str]:
    return next(code.value for code in grpc.StatusCode if code.value[0] == number)


async def comes_to_be_said_not_to_serve(address: str) -> None:
    """Watch what health says of the whole server until that is so."""
    async with grpc.aio.insecure_channel(address) as channel, asyncio.timeout(10):
        async for state in health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest()):
            if state.status == health_pb2.HealthCheckResponse.NOT_SERVING:
                return


async def is_said_to_serve(address: str) -> bool:
    """What health says of the whole server; False also where nobody listens."""
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
        except grpc.aio.AioRpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def is_traced(span: Span) -> bool:
    """Whether it belongs to `TRACE`."""
    return span.trace_id.hex() == TRACE
