"""StreamFanOut: each result as soon as it is ready, and for the rest what FanOut does."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from types import MappingProxyType

import grpc
import pytest

from service.client import RpcError
from service.errors import EngineDeadError, EngineError
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.prompt.builder import PromptBuilder
from service.registry.registry import Registry
from tests.integration.conftest import Serve
from tests.integration.harness import (
    ACTIVATED,
    DEADLINE_S,
    NAMES,
    PLAIN,
    SECOND_ACTIVATED,
    WITHOUT_ADAPTER,
    asks,
    fan_out_request,
    small_registry,
)
from tests.integration.holding_engine import HoldingEngine
from tests.integration.talking import customer

LONG = [customer(f"message {i} " + "word " * 40) for i in range(20)]
STAGES = ("prompt", "engine", "scoring")


@pytest.fixture
def engine() -> HoldingEngine:
    return HoldingEngine()


@pytest.fixture(scope="module")
def registry(builder: PromptBuilder) -> Registry:
    """With one classifier more, which did not pass its gate."""
    small = small_registry(builder)
    withheld = replace(small.classifiers[PLAIN], name="withheld", flaw="It does nothing.")
    return Registry(MappingProxyType({**small.classifiers, "withheld": withheld}))


@pytest.fixture
def held(engine: HoldingEngine, registry: Registry) -> dict[str, asyncio.Event]:
    """Every classifier is held back until its event is set."""
    return {name: engine.hold(asks(name, registry)) for name in NAMES}


async def streamed(stub: ClassificationServiceStub, request: pb.FanOutRequest) -> dict[str, pb.FanOutResult]:
    """All results of a stream by name, as they came."""
    return {result.classifier: result async for result in stub.StreamFanOut(request, timeout=DEADLINE_S)}


async def ended(call: AsyncIterator[pb.FanOutResult]) -> RpcError:
    """What ends a stream that must fail before its next result."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await anext(call)
    return RpcError.of_call(failure.value)


@pytest.mark.parametrize("order", list(itertools.permutations([ACTIVATED, PLAIN, WITHOUT_ADAPTER])), ids=" ".join)
async def test_each_result_comes_when_it_is_ready_while_others_wait(
    stub: ClassificationServiceStub, held: dict[str, asyncio.Event], order: tuple[str, ...]
) -> None:
    request = fan_out_request(ACTIVATED, PLAIN, WITHOUT_ADAPTER)
    results = aiter(stub.StreamFanOut(request, timeout=DEADLINE_S))
    for name in order:
        held[name].set()
        result = await anext(results)
        assert (result.classifier, result.classification.classifier) == (name, name)
    assert await anext(results, None) is None


async def test_without_names_there_is_one_result_for_each_classifier(stub: ClassificationServiceStub) -> None:
    results = [each.classifier async for each in stub.StreamFanOut(fan_out_request(), timeout=DEADLINE_S)]
    assert sorted(results) == sorted([*NAMES, "withheld"])


async def test_only_the_named_classifiers_are_asked(
    stub: ClassificationServiceStub, engine: HoldingEngine, registry: Registry
) -> None:
    assert list(await streamed(stub, fan_out_request(PLAIN))) == [PLAIN]
    assert [request.label_ids for request in engine.requests] == [registry.classifiers[PLAIN].label_ids]


@pytest.mark.parametrize("turns", [None, LONG], ids=["short", "too long for the context"])
async def test_a_result_is_the_one_of_a_fan_out(stub: ClassificationServiceStub, turns: list[pb.Turn] | None) -> None:
    request = fan_out_request(*NAMES, turns=turns)
    results = await streamed(stub, request)
    expected = (await stub.FanOut(request, timeout=DEADLINE_S)).results
    for result in (*results.values(), *expected):
        result.ClearField("durations")
        result.classification.ClearField("usage")  # the second call reuses what the first one read
    assert [results[each.classifier] for each in expected] == list(expected)
    assert (expected[0].classification.truncation.dropped_turns > 0) == (turns is not None)


async def test_results_say_the_tokens_they_cost(stub: ClassificationServiceStub, engine: HoldingEngine) -> None:
    results = await streamed(stub, fan_out_request(ACTIVATED, SECOND_ACTIVATED))
    first, second = (results[name].classification.usage for name in (ACTIVATED, SECOND_ACTIVATED))
    prefix = engine.requests[0].activation_index
    assert (first.computed_tokens, first.reused_tokens) == (len(engine.requests[0].token_ids), 0)
    assert (second.computed_tokens, second.reused_tokens) == (len(engine.requests[1].token_ids) - (prefix or 0), prefix)


FAULTY: dict[str, tuple[str, grpc.StatusCode, str]] = {
    "the engine fails on it": (PLAIN, grpc.StatusCode.INTERNAL, "ERROR_REASON_ENGINE_FAILED"),
    "unknown": ("nobody", grpc.StatusCode.NOT_FOUND, "ERROR_REASON_CLASSIFIER_UNKNOWN"),
    "withheld": ("withheld", grpc.StatusCode.FAILED_PRECONDITION, "ERROR_REASON_CLASSIFIER_WITHHELD"),
}


@pytest.mark.parametrize(("name", "code", "reason"), FAULTY.values(), ids=FAULTY)
async def test_a_classifier_without_answer_has_the_reason_in_its_result_alone(
    stub: ClassificationServiceStub, engine: HoldingEngine, registry: Registry, name: str, code: grpc.StatusCode,
    reason: str,
) -> None:  # fmt: skip
    fails = asks(PLAIN, registry)
    engine.fault = lambda request: EngineError("No.") if fails(request) else None
    results = await streamed(stub, fan_out_request(ACTIVATED, name, WITHOUT_ADAPTER))
    error = RpcError.of_status(results[name].status)
    assert (error.code, error.reason) == (code, reason)
    assert [results[each].HasField("classification") for each in (ACTIVATED, WITHOUT_ADAPTER)] == [True, True]


async def test_a_classifier_that_cannot_be_asked_does_not_wait_for_the_others(
    stub: ClassificationServiceStub, held: dict[str, asyncio.Event]
) -> None:
    results = aiter(stub.StreamFanOut(fan_out_request(PLAIN, "nobody"), timeout=DEADLINE_S))
    assert (await anext(results)).classifier == "nobody"
    held[PLAIN].set()
    assert (await anext(results)).classifier == PLAIN


async def test_what_is_not_ready_at_the_deadline_has_a_status_and_its_work_is_cancelled(
    serve: Serve, engine: HoldingEngine, held: dict[str, asyncio.Event]
) -> None:
    held[ACTIVATED].set()
    async with grpc.aio.insecure_channel(await serve(longest_seconds=1.0)) as channel:
        results = await streamed(ClassificationServiceStub(channel), fan_out_request(ACTIVATED, PLAIN, WITHOUT_ADAPTER))
    assert list(results) == [ACTIVATED, PLAIN, WITHOUT_ADAPTER]
    assert results[ACTIVATED].HasField("classification")
    for name in (PLAIN, WITHOUT_ADAPTER):
        error = RpcError.of_status(results[name].status)
        assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "ERROR_REASON_DEADLINE_EXCEEDED")
    assert engine.cancelled == 2


REFUSED = {
    "no turns": fan_out_request(turns=[]),
    "a blank turn and a name twice": fan_out_request(PLAIN, PLAIN, turns=[customer(" ")]),
    "no role": fan_out_request(turns=[pb.Turn(text="hi")]),
    "a turn too long": fan_out_request(turns=[customer("word " * 1000)]),
    "an empty name": fan_out_request(""),
    "too many names": fan_out_request(*map(str, range(1001))),
    "too many turns": fan_out_request(turns=[customer("hi")] * 1001),
}


@pytest.mark.parametrize("request_", REFUSED.values(), ids=REFUSED)
async def test_a_refusal_is_the_one_of_a_fan_out(
    stub: ClassificationServiceStub, engine: HoldingEngine, request_: pb.FanOutRequest
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await stub.FanOut(request_, timeout=DEADLINE_S)
    expected = RpcError.of_call(failure.value)
    error = await ended(aiter(stub.StreamFanOut(request_, timeout=DEADLINE_S)))
    assert error.code is grpc.StatusCode.INVALID_ARGUMENT
    assert (error.reason, error.message, error.metadata) == (expected.reason, expected.message, expected.metadata)
    assert error.violations == expected.violations != {}
    assert engine.requests == []


async def test_a_dead_engine_ends_the_stream_before_its_first_result(
    stub: ClassificationServiceStub, engine: HoldingEngine
) -> None:
    engine.dead = True
    error = await ended(aiter(stub.StreamFanOut(fan_out_request(*NAMES), timeout=DEADLINE_S)))
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_ENGINE_DEAD")


async def test_an_engine_that_dies_midway_ends_the_stream_after_what_was_ready(
    stub: ClassificationServiceStub, engine: HoldingEngine, held: dict[str, asyncio.Event], registry: Registry
) -> None:
    dies = asks(PLAIN, registry)
    engine.fault = lambda request: EngineDeadError("The engine is not running.") if dies(request) else None
    results = aiter(stub.StreamFanOut(fan_out_request(ACTIVATED, PLAIN, WITHOUT_ADAPTER), timeout=DEADLINE_S))
    held[ACTIVATED].set()
    assert (await anext(results)).classifier == ACTIVATED
    held[PLAIN].set()
    error = await ended(results)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_ENGINE_DEAD")
    await engine.ended(3)
    assert engine.cancelled == 1


LEAVING: dict[str, Callable[..., object]] = {
    "cancels": lambda call, channel: call.cancel(),
    "goes away": lambda call, channel: asyncio.ensure_future(channel.close()),
}


@pytest.mark.parametrize("leave", LEAVING.values(), ids=LEAVING)
async def test_a_caller_who_leaves_midway_cancels_the_engines_work(
    channel: grpc.aio.Channel, engine: HoldingEngine, held: dict[str, asyncio.Event], leave: Callable[..., object]
) -> None:
    call = ClassificationServiceStub(channel).StreamFanOut(fan_out_request(*NAMES), timeout=DEADLINE_S)
    held[PLAIN].set()
    assert (await anext(aiter(call))).classifier == PLAIN
    assert engine.cancelled == 0
    leaving = leave(call, channel)
    await engine.ended(len(NAMES))
    assert engine.cancelled == len(NAMES) - 1
    if isinstance(leaving, asyncio.Future):
        await leaving


async def test_each_result_says_how_long_each_stage_took_up_to_it(
    stub: ClassificationServiceStub, held: dict[str, asyncio.Event]
) -> None:
    results = aiter(stub.StreamFanOut(fan_out_request(*NAMES), timeout=DEADLINE_S))
    found = []
    for name in reversed(NAMES):
        held[name].set()
        found.append((await anext(results)).durations)
    for durations in found:
        stages = [getattr(durations, stage).ToNanoseconds() for stage in STAGES]
        assert min(stages) > 0
        assert durations.total.ToNanoseconds() >= sum(stages) - len(stages)  # each is rounded to a nanosecond
    for earlier, later in itertools.pairwise(found):
        assert earlier.prompt == later.prompt
        for stage in ("engine", "scoring", "total"):
            assert getattr(earlier, stage).ToNanoseconds() < getattr(later, stage).ToNanoseconds()


async def test_a_fan_out_says_durations_of_the_call_alone(stub: ClassificationServiceStub) -> None:
    response = await stub.FanOut(fan_out_request(), timeout=DEADLINE_S)
    assert not any(result.HasField("durations") for result in response.results)


async def test_a_status_says_durations_too(stub: ClassificationServiceStub) -> None:
    results = await streamed(stub, fan_out_request("nobody"))
    assert results["nobody"].durations.total.ToNanoseconds() > 0
