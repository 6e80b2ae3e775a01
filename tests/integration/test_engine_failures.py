"""An engine that fails on a prompt, gives nonsense, or is gone."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import replace

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from service.client import FantailClient, RpcError
from service.engine.base import LabelLogprobs, ScoringRequest
from service.errors import EngineError
from service.registry.registry import Registry
from tests.integration.harness import ACTIVATED, DEADLINE_S, HELLO, LABELS, NAMES, PLAIN, WatchedEngine, asks

NONSENSE = {
    "one NaN": lambda logprobs: (math.nan, *logprobs[1:]),
    "all NaN": lambda logprobs: (math.nan,) * len(logprobs),
    "all -inf": lambda logprobs: (-math.inf,) * len(logprobs),
    "+inf": lambda logprobs: (math.inf, *logprobs[1:]),
    "more than certain": lambda logprobs: (0.5, *logprobs[1:]),
    "none": lambda logprobs: (),
    "one too few": lambda logprobs: logprobs[1:],
}


def _info(status: status_pb2.Status) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info


def _fail_on(engine: WatchedEngine, registry: Registry, name: str) -> None:
    asked = asks(name, registry)
    engine.fault = lambda request: EngineError("The engine failed on this prompt.") if asked(request) else None


def _distort_for(engine: WatchedEngine, registry: Registry, name: str, nonsense: str) -> None:
    asked = asks(name, registry)

    def distort(request: ScoringRequest, answer: LabelLogprobs) -> LabelLogprobs:
        return replace(answer, logprobs=NONSENSE[nonsense](answer.logprobs)) if asked(request) else answer

    engine.distort = distort


@pytest.mark.parametrize("name", NAMES)
async def test_one_classifier_failing_is_a_status_in_its_result_alone(
    client: FantailClient, engine: WatchedEngine, registry: Registry, name: str
) -> None:
    _fail_on(engine, registry, name)
    response = await client.fan_out(HELLO, timeout=DEADLINE_S)
    failed = [result for result in response.results if result.HasField("status")]
    assert [result.classifier for result in failed] == [name]
    assert [r.classification.classifier for r in response.results if r.HasField("classification")] == [
        each for each in NAMES if each != name
    ]
    assert failed[0].status.code == grpc.StatusCode.INTERNAL.value[0]
    assert _info(failed[0].status).reason == "ERROR_REASON_ENGINE_FAILED"


async def test_one_classifier_failing_leaves_its_trace_in_the_log_with_the_request_id(
    client: FantailClient, engine: WatchedEngine, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    _fail_on(engine, registry, PLAIN)
    response = await client.fan_out(HELLO, timeout=DEADLINE_S)
    (failed,) = (result.status for result in response.results if result.HasField("status"))
    request = error_details_pb2.RequestInfo()
    assert failed.details[1].Unpack(request)
    logged = [r for r in caplog.records if r.levelno >= logging.WARNING and request.request_id in r.getMessage()]
    assert logged
    assert any(record.exc_info for record in logged)


async def test_an_engine_failure_fails_classify_with_the_reason(
    client: FantailClient, engine: WatchedEngine, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    _fail_on(engine, registry, PLAIN)
    with pytest.raises(RpcError) as failure:
        await client.classify(HELLO, PLAIN, timeout=DEADLINE_S)
    error = failure.value
    assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "ERROR_REASON_ENGINE_FAILED")
    assert error.message == "The engine failed on this prompt."
    assert re.fullmatch("[0-9a-f]{32}", error.request_id)
    assert error.request_id in caplog.text
    assert "Traceback" in caplog.text


async def test_a_failure_of_one_prompt_does_not_outlast_it(
    client: FantailClient, engine: WatchedEngine, registry: Registry
) -> None:
    _fail_on(engine, registry, PLAIN)
    await client.fan_out(HELLO, timeout=DEADLINE_S)
    engine.fault = lambda request: None
    response = await client.fan_out(HELLO, timeout=DEADLINE_S)
    assert {result.WhichOneof("outcome") for result in response.results} == {"classification"}


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_nonsense_from_the_engine_never_becomes_an_answer(
    client: FantailClient, engine: WatchedEngine, registry: Registry, nonsense: str
) -> None:
    _distort_for(engine, registry, PLAIN, nonsense)
    with pytest.raises(RpcError) as failure:
        await client.classify(HELLO, PLAIN, timeout=DEADLINE_S)
    assert failure.value.code is grpc.StatusCode.INTERNAL
    assert failure.value.reason == "ERROR_REASON_ENGINE_FAILED"


@pytest.mark.parametrize("nonsense", NONSENSE)
async def test_nonsense_for_one_classifier_is_a_status_in_its_result_alone(
    client: FantailClient, engine: WatchedEngine, registry: Registry, nonsense: str
) -> None:
    _distort_for(engine, registry, PLAIN, nonsense)
    response = await client.fan_out(HELLO, timeout=DEADLINE_S)
    outcomes = {result.classifier: result.WhichOneof("outcome") for result in response.results}
    assert outcomes == dict.fromkeys(NAMES, "classification") | {PLAIN: "status"}
    (failed,) = (result.status for result in response.results if result.classifier == PLAIN)
    assert _info(failed).reason == "ERROR_REASON_ENGINE_FAILED"


async def test_an_impossible_label_among_possible_ones_has_probability_zero(
    client: FantailClient, engine: WatchedEngine
) -> None:
    engine.distort = lambda request, answer: replace(answer, logprobs=(*answer.logprobs[:-1], -math.inf))
    answer = (await client.classify(HELLO, PLAIN, timeout=DEADLINE_S)).classification
    assert answer.scores[-1].probability == 0
    assert sum(score.probability for score in answer.scores) == pytest.approx(1)
    assert answer.label == LABELS[PLAIN][0]


@pytest.mark.parametrize("names", [(), (ACTIVATED,), (ACTIVATED, PLAIN)], ids=["all", "one", "two"])
async def test_a_dead_engine_fails_the_whole_fan_out(
    client: FantailClient, engine: WatchedEngine, names: tuple[str, ...]
) -> None:
    engine.dead = True
    with pytest.raises(RpcError) as failure:
        await client.fan_out(HELLO, names, timeout=DEADLINE_S)
    assert (failure.value.code, failure.value.reason) == (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_ENGINE_DEAD")
    assert re.fullmatch("[0-9a-f]{32}", failure.value.request_id)


async def test_a_dead_engine_fails_classify(client: FantailClient, engine: WatchedEngine) -> None:
    engine.dead = True
    with pytest.raises(RpcError) as failure:
        await client.classify(HELLO, PLAIN, timeout=DEADLINE_S)
    assert (failure.value.code, failure.value.reason) == (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_ENGINE_DEAD")


async def test_calls_are_answered_again_once_the_engine_lives(client: FantailClient, engine: WatchedEngine) -> None:
    engine.dead = True
    with pytest.raises(RpcError):
        await client.fan_out(HELLO, timeout=DEADLINE_S)
    engine.dead = False
    response = await client.fan_out(HELLO, timeout=DEADLINE_S)
    assert {result.WhichOneof("outcome") for result in response.results} == {"classification"}
