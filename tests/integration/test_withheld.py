"""A classifier that did not pass its gate: refused by name and reason, while everything else is served."""

from __future__ import annotations

import re

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from service.api.server import SERVICE
from service.client import FantailClient, RpcError
from service.pb.fantail.v1 import classifier_pb2
from service.prompt.builder import PromptBuilder
from service.registry.registry import Registry
from tests.integration.conftest import Serve
from tests.integration.harness import DEADLINE_S, HELLO, NAMES, PLAIN, WatchedEngine, small_registry

WITHHELD = PLAIN
SERVED = [name for name in NAMES if name != WITHHELD]
BECAUSE = "on every probe the engine answers as the base model; the adapter does nothing"

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="session")
def registry(builder: PromptBuilder) -> Registry:
    return small_registry(builder).without({WITHHELD: BECAUSE})


async def _state(stub: HealthStub, name: str) -> int:
    return (await stub.Check(HealthCheckRequest(service=name), timeout=DEADLINE_S)).status


@pytest.mark.parametrize("names", [(), NAMES], ids=["all", "by name"])
async def test_a_fan_out_answers_for_all_the_others(client: FantailClient, names: tuple[str, ...]) -> None:
    response = await client.fan_out(HELLO, names, timeout=DEADLINE_S)
    assert [result.classifier for result in response.results] == NAMES
    assert [r.classification.classifier for r in response.results if r.HasField("classification")] == SERVED


async def test_in_a_fan_out_its_result_is_the_status_with_reason_and_name(client: FantailClient) -> None:
    response = await client.fan_out(HELLO, timeout=DEADLINE_S)
    (status,) = (result.status for result in response.results if result.HasField("status"))
    info, request = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
    assert status.code == grpc.StatusCode.FAILED_PRECONDITION.value[0]
    assert status.details[0].Unpack(info)
    assert (info.reason, info.metadata) == ("ERROR_REASON_CLASSIFIER_WITHHELD", {"classifier": WITHHELD})
    assert status.details[1].Unpack(request)
    assert re.fullmatch("[0-9a-f]{32}", request.request_id)


async def test_a_fan_out_of_it_alone_succeeds_with_that_status(client: FantailClient) -> None:
    (result,) = (await client.fan_out(HELLO, [WITHHELD], timeout=DEADLINE_S)).results
    assert (result.classifier, result.WhichOneof("outcome")) == (WITHHELD, "status")


async def test_the_engine_is_never_asked_for_it(
    client: FantailClient, engine: WatchedEngine, registry: Registry
) -> None:
    await client.fan_out(HELLO, timeout=DEADLINE_S)
    asked = [request.label_ids for request in engine.requests]
    assert asked == [registry.classifiers[name].label_ids for name in SERVED]


async def test_classify_refuses_it_and_says_where_the_reason_is(client: FantailClient) -> None:
    with pytest.raises(RpcError) as failure:
        await client.classify(HELLO, WITHHELD, timeout=DEADLINE_S)
    error = failure.value
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ERROR_REASON_CLASSIFIER_WITHHELD")
    assert error.metadata == {"classifier": WITHHELD}
    assert "GetClassifier" in error.message
    assert re.fullmatch("[0-9a-f]{32}", error.request_id)


@pytest.mark.parametrize("name", SERVED)
async def test_classify_answers_for_the_others(client: FantailClient, name: str) -> None:
    assert (await client.classify(HELLO, name, timeout=DEADLINE_S)).classification.classifier == name


async def test_the_list_says_who_is_withheld_and_why(client: FantailClient) -> None:
    listed = await client.list_classifiers(timeout=DEADLINE_S)
    withheld = (classifier_pb2.SERVING_STATE_WITHHELD, BECAUSE)
    serving = (classifier_pb2.SERVING_STATE_SERVING, "")
    assert {each.name: (each.state, each.withheld_because) for each in listed} == {
        name: withheld if name == WITHHELD else serving for name in NAMES
    }


async def test_one_that_is_withheld_is_described_as_in_the_list(client: FantailClient) -> None:
    listed = {each.name: each for each in await client.list_classifiers(timeout=DEADLINE_S)}
    assert await client.get_classifier(WITHHELD, timeout=DEADLINE_S) == listed[WITHHELD]


@pytest.mark.parametrize(
    ("name", "state"),
    [
        pytest.param("", SERVING, id="overall"),
        pytest.param(SERVICE, SERVING, id="the service"),
        pytest.param(f"{SERVICE}/{WITHHELD}", NOT_SERVING, id="the withheld classifier"),
        *(pytest.param(f"{SERVICE}/{name}", SERVING, id=name) for name in SERVED),
    ],
)
async def test_health_tells_the_classifiers_apart(health: HealthStub, name: str, state: int) -> None:
    assert await _state(health, name) == state


async def test_it_does_not_serve_again_because_the_engine_does(
    serve: Serve, engine: WatchedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.health.CHECK_SECONDS", 0.001)
    async with grpc.aio.insecure_channel(await serve()) as channel:
        stub = HealthStub(channel)
        watch = stub.Watch(HealthCheckRequest(service=""), timeout=DEADLINE_S)
        for engine.dead in (False, True, False):
            await watch.read()
        assert await _state(stub, f"{SERVICE}/{WITHHELD}") == NOT_SERVING
        watch.cancel()
