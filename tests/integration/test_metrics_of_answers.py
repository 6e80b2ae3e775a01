"""What the served metrics count of answers: tokens, stages, labels, confidence, gaps; never what was said."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

import grpc
import pytest

from service.admission import Admission, Job
from service.classify import Classify
from service.client import FantailClient, RpcError
from service.deadline import Deadline
from service.domain import Calibration, Classification, Priority
from service.errors import EngineError
from service.metrics import serve_metrics
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from service.prompt.builder import PromptBuilder
from service.registry.registry import Deployment, Registry
from tests.integration.conftest import Serve
from tests.integration.harness import (
    ACTIVATED,
    DEADLINE_S,
    HELLO,
    LABELS,
    NAMES,
    PLAIN,
    SECOND_ACTIVATED,
    WatchedEngine,
    fan_out_request,
)
from tests.integration.scraping import OPEN_METRICS, TEXT, Scrape, TellingMetrics, scrape
from tests.support import classify_with, talk

SPOKEN = "my card is 4929-1111-2222-3333"
NEW = "f" * 16
"""The revision of what stands beside or replaces a classifier."""

FAKE_CONFIDENCE = 0.8
"""What the fake engine's favourite label has of the labels' mass."""

Look = Callable[[], Scrape]


@pytest.fixture
def metrics() -> TellingMetrics:
    return TellingMetrics()


@pytest.fixture
def admission() -> Admission:
    return Admission(1 << 20, 1 << 40)


@pytest.fixture
def classify(
    registry: Registry, builder: PromptBuilder, engine: WatchedEngine, metrics: TellingMetrics, admission: Admission
) -> Classify:
    metrics.registry_seen(registry)
    return classify_with(registry, builder, engine, admission, observer=metrics)


@pytest.fixture
def port(metrics: TellingMetrics) -> Iterator[int]:
    with serve_metrics(metrics, "127.0.0.1:0") as port:
        assert port is not None
        yield port


@pytest.fixture
def look(port: int) -> Look:
    return lambda: scrape(port)


async def test_tokens_are_those_of_the_answers(
    client: FantailClient, stub: ClassificationServiceStub, look: Look
) -> None:
    first = await client.fan_out(HELLO, timeout=DEADLINE_S)
    one = await client.classify(HELLO, ACTIVATED, timeout=DEADLINE_S)
    streamed = [each async for each in stub.StreamFanOut(fan_out_request(), timeout=DEADLINE_S)]
    usages = [first.usage, one.usage, *(each.classification.usage for each in streamed)]
    tokens = look().by("kind", "fantail_tokens_total")
    assert tokens == {
        "computed": sum(each.computed_tokens for each in usages),
        "reused": sum(each.reused_tokens for each in usages),
    }
    assert min(tokens.values()) > 0


async def test_every_stage_of_every_fan_out_is_timed(client: FantailClient, look: Look) -> None:
    answers = [await client.fan_out(HELLO, timeout=DEADLINE_S) for _ in range(3)]
    seen = look()
    for stage in ("prompt", "engine", "scoring", "total"):
        said = sum(getattr(each.durations, stage).ToNanoseconds() for each in answers) / 1e9
        assert seen.sum("fantail_stage_seconds_count", stage=stage) == len(answers)
        assert seen.sum("fantail_stage_seconds_sum", stage=stage) >= said * 0.999


async def test_answers_are_counted_by_revision_and_label(
    client: FantailClient, engine: WatchedEngine, registry: Registry, look: Look
) -> None:
    await client.classify(HELLO, PLAIN, timeout=DEADLINE_S)
    engine.favour = lambda request: 1
    for _ in range(2):
        await client.classify(HELLO, PLAIN, timeout=DEADLINE_S)
    seen, (first, second, *_) = look(), LABELS[PLAIN]
    assert seen.by("label", "fantail_answers_total") == {first: 1, second: 2}
    assert seen.by("revision", "fantail_answers_total") == {registry.get(PLAIN).revision: 3}


async def test_confidence_is_counted_between_its_bounds(client: FantailClient, look: Look) -> None:
    await client.classify(HELLO, PLAIN, timeout=DEADLINE_S)
    seen = look()
    assert seen.sum("fantail_confidence_ratio_sum", classifier=PLAIN) == pytest.approx(FAKE_CONFIDENCE)
    buckets = {float(has["le"]): value for has, value in seen.series("fantail_confidence_ratio_bucket")}
    assert (buckets[0.7], buckets[0.9]) == (0, 1)


async def test_answers_with_too_little_label_mass_are_counted_as_such_and_as_abstained(
    client: FantailClient, engine: WatchedEngine, look: Look
) -> None:
    await client.fan_out(HELLO, timeout=DEADLINE_S)
    engine.mass = 0.1
    await client.classify(HELLO, ACTIVATED, timeout=DEADLINE_S)
    seen = look()
    assert seen.by("classifier", "fantail_low_label_mass_total") == {ACTIVATED: 1}
    assert seen.by("reason", "fantail_abstained_total") == {"label mass too low": 1}


async def test_answers_below_a_threshold_are_counted_as_abstained_alone(
    classify: Classify, client: FantailClient, registry: Registry, look: Look
) -> None:
    never = Calibration(1.0, (0.0, 0.0), (1.0, 1.0))
    classify.catalogue.replace(registry.with_classifier(replace(registry.get(ACTIVATED), calibration=never)))
    await client.fan_out(HELLO, timeout=DEADLINE_S)
    assert look().by("reason", "fantail_abstained_total") == {"below threshold": 1}
    assert look().by("classifier", "fantail_low_label_mass_total") == {}


async def test_an_answer_shed_for_want_of_room_is_counted_by_classifier_and_priority(
    classify: Classify,
    client: FantailClient,
    engine: WatchedEngine,
    registry: Registry,
    admission: Admission,
    look: Look,
) -> None:
    for name, priority in ((ACTIVATED, Priority.LOW), (SECOND_ACTIVATED, Priority.CRITICAL)):
        registry = registry.with_classifier(replace(registry.get(name), priority=priority))
    classify.catalogue.replace(registry)
    engine.gate.clear()
    first = asyncio.create_task(client.classify(HELLO, SECOND_ACTIVATED, timeout=DEADLINE_S))
    await engine.begun(1)
    admission.max_tokens = 2 * admission.tokens  # half is free: for a long conversation, and nothing beside it
    long = [("customer", "where is my refund? " * 40)]
    second = asyncio.create_task(client.fan_out(long, [ACTIVATED, SECOND_ACTIVATED], timeout=DEADLINE_S))
    await engine.begun(1)
    engine.gate.set()
    await asyncio.gather(first, second)
    shed = [has for has, value in look().series("fantail_shed_total") if value]
    assert shed == [{"classifier": ACTIVATED, "priority": "low"}]


async def test_answers_not_ready_at_the_deadline_are_counted_as_late(
    serve: Serve, engine: WatchedEngine, look: Look
) -> None:
    engine.gate.clear()
    async with FantailClient(await serve(longest_seconds=1.0)) as client:
        with pytest.raises(RpcError) as failure:
            await client.fan_out(HELLO, timeout=DEADLINE_S)
    assert failure.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert look().by("classifier", "fantail_late_total") == dict.fromkeys(NAMES, 1)


async def test_an_answer_is_counted_though_its_caller_leaves_with_it(
    classify: Classify, admission: Admission, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed: list[int] = []
    monkeypatch.setattr(admission, "computed", computed.append)
    async with contextlib.aclosing(classify.stream(talk("hi"), [PLAIN])) as results:
        result = await anext(results)
    assert isinstance(result.outcome, Classification)
    assert look().sum("fantail_answers_total") == 1
    assert computed == [result.outcome.usage.computed]


OUTCOMES = {"agrees": (lambda request: 0, None), "differs": (lambda request: 1, None), "no answer": (None, "fails")}


@pytest.mark.parametrize(("favour", "fails"), OUTCOMES.values(), ids=OUTCOMES)
async def test_what_a_shadow_would_have_said_is_counted_by_agreement(
    classify: Classify,
    client: FantailClient,
    engine: WatchedEngine,
    registry: Registry,
    metrics: TellingMetrics,
    look: Look,
    request: pytest.FixtureRequest,
    favour: Callable[[object], int] | None,
    fails: str | None,
) -> None:
    shadow = replace(registry.get(ACTIVATED), revision=NEW, adapter=None)
    deployment = Deployment((shadow,), shadows=frozenset({NEW}))
    classify.catalogue.replace(registry.with_deployment(ACTIVATED, deployment))
    engine.favour = lambda asked: favour(asked) if favour and asked.adapter is None else 0
    engine.fault = lambda asked: EngineError("No.") if fails and asked.adapter is None else None
    await client.classify(HELLO, ACTIVATED, timeout=DEADLINE_S)
    async with asyncio.timeout(DEADLINE_S):
        await metrics.shadows.acquire()
    (has, value) = look().series("fantail_shadowed_total")[0]
    assert (has, value) == ({"classifier": ACTIVATED, "outcome": request.node.callspec.id}, 1)
    assert look().sum("fantail_answers_total") == 1


FAULTS = {"an answer": None, "an engine failure": EngineError("No."), "a defect": RuntimeError(SPOKEN)}


@pytest.mark.parametrize("accept", [OPEN_METRICS, TEXT])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_nothing_of_a_conversation_is_shown(
    client: FantailClient, engine: WatchedEngine, port: int, fault: Exception | None, accept: str
) -> None:
    engine.fault = lambda request: fault
    identity = "conversation-4711"
    with contextlib.suppress(RpcError):
        await client.fan_out([("customer", SPOKEN)], id=identity, timeout=DEADLINE_S)
    with contextlib.suppress(RpcError):
        await client.classify([("customer", "hi")], SPOKEN, timeout=DEADLINE_S)
    body = scrape(port, accept).body
    assert "fantail_calls_total" in body
    assert not [text for text in (*SPOKEN.split(), identity) if len(text) > 4 and text in body]


async def test_a_message_or_an_item_without_answers_is_counted_by_its_reason(
    client: FantailClient, admission: Admission, look: Look
) -> None:
    admission.max_tokens = 1
    async with client.follow(timeout=DEADLINE_S) as live:
        with admission.admit(0, [Job(1)], Deadline()), pytest.raises(RpcError):
            await live.tell(HELLO)
    response = await client.classify_batch([[("customer", " ")]], timeout=DEADLINE_S)
    assert response.items[0].HasField("status")
    found = {tuple(labels.values()): count for labels, count in look().series("fantail_parts_failed_total")}
    assert found == {("Follow", "ERROR_REASON_OVERLOADED"): 1, ("ClassifyBatch", "ERROR_REASON_TEXT_MISSING"): 1}
