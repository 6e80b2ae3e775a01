"""What comes back when all goes well."""

from __future__ import annotations

import itertools

import pytest

from service.classify import Classify
from service.client import FantailClient
from service.domain import Conversation, Role, Turn
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.prompt.builder import PromptBuilder
from service.prompt.format import PREFIX_MULTIPLE
from service.registry.registry import Registry
from tests.integration.harness import (
    ACTIVATED,
    DEADLINE_S,
    HELLO,
    LABELS,
    MIN_LABEL_MASS,
    NAMES,
    PLAIN,
    SECOND_ACTIVATED,
    WITHOUT_ADAPTER,
    WatchedEngine,
)

LONG = [("customer" if i % 2 else "agent", f"message {i} " + "word " * 40) for i in range(20)]
STAGES = ("prompt", "engine", "scoring")


async def test_a_fan_out_without_names_asks_all_by_name(client: FantailClient) -> None:
    response = await client.fan_out(HELLO, timeout=DEADLINE_S)
    assert [result.classifier for result in response.results] == sorted(NAMES)
    assert [result.classification.classifier for result in response.results] == sorted(NAMES)


@pytest.mark.parametrize("names", list(itertools.permutations([ACTIVATED, PLAIN, WITHOUT_ADAPTER])), ids=" ".join)
async def test_results_come_in_the_order_asked(client: FantailClient, names: tuple[str, ...]) -> None:
    response = await client.fan_out(HELLO, names, timeout=DEADLINE_S)
    assert [result.classifier for result in response.results] == list(names)
    assert [result.classification.classifier for result in response.results] == list(names)


async def test_only_the_named_classifiers_are_asked(
    client: FantailClient, engine: WatchedEngine, registry: Registry
) -> None:
    await client.fan_out(HELLO, [PLAIN], timeout=DEADLINE_S)
    assert [request.label_ids for request in engine.requests] == [registry.classifiers[PLAIN].label_ids]


async def test_scores_list_every_label_in_order_and_sum_to_one(client: FantailClient) -> None:
    response = await client.fan_out(HELLO, timeout=DEADLINE_S)
    for result in response.results:
        scores = result.classification.scores
        assert tuple(score.label for score in scores) == LABELS[result.classifier]
        assert sum(score.probability for score in scores) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("favoured", [0, 1])
async def test_the_label_is_the_most_probable_one_and_the_confidence_its_probability(
    client: FantailClient, engine: WatchedEngine, favoured: int
) -> None:
    engine.favour = lambda request: favoured
    response = await client.fan_out(HELLO, timeout=DEADLINE_S)
    for result in response.results:
        answer = result.classification
        assert answer.label == LABELS[result.classifier][favoured]
        assert answer.confidence == max(score.probability for score in answer.scores) == pytest.approx(0.8)
        assert answer.scores[favoured].probability == answer.confidence


@pytest.mark.parametrize("mass", [0.05, 0.7, 1.0])
async def test_the_label_mass_is_what_the_labels_hold_of_the_whole_vocabulary(
    client: FantailClient, engine: WatchedEngine, mass: float
) -> None:
    engine.mass = mass
    response = await client.fan_out(HELLO, timeout=DEADLINE_S)
    assert [r.classification.label_mass for r in response.results] == [pytest.approx(mass)] * len(NAMES)
    assert all(0 <= r.classification.label_mass <= 1 for r in response.results)


@pytest.mark.parametrize(
    ("mass", "abstained", "reason"),
    [
        pytest.param(MIN_LABEL_MASS - 1e-6, True, pb.ABSTAIN_REASON_LABEL_MASS_TOO_LOW, id="below"),
        pytest.param(MIN_LABEL_MASS + 1e-6, False, pb.ABSTAIN_REASON_UNSPECIFIED, id="above"),
    ],
)
async def test_a_label_mass_below_the_bound_abstains_with_the_reason_and_keeps_the_label(
    client: FantailClient, engine: WatchedEngine, mass: float, abstained: bool, reason: pb.AbstainReason
) -> None:
    engine.mass = mass
    answer = (await client.classify(HELLO, PLAIN, timeout=DEADLINE_S)).classification
    assert (answer.abstained, answer.abstain_reason) == (abstained, reason)
    assert answer.label == LABELS[PLAIN][0]


async def test_each_answer_names_its_classifiers_revision(client: FantailClient, registry: Registry) -> None:
    response = await client.fan_out(HELLO, timeout=DEADLINE_S)
    expected = {name: classifier.revision for name, classifier in registry.classifiers.items()}
    assert {result.classifier: result.classification.revision for result in response.results} == expected


async def test_a_conversation_too_long_for_the_context_reports_what_was_left_out(
    client: FantailClient, builder: PromptBuilder, engine: WatchedEngine
) -> None:
    response = await client.fan_out(LONG, timeout=DEADLINE_S)
    expected = builder.prefix(Conversation("", tuple(Turn(Role(role), text) for role, text in LONG)))
    assert 0 < expected.truncation.dropped_turns < len(LONG)
    for result in response.results:
        cut = result.classification.truncation
        assert (cut.dropped_turns, cut.dropped_tokens) == (
            expected.truncation.dropped_turns,
            expected.truncation.dropped_tokens,
        )
    assert all(request.token_ids[: len(expected.token_ids)] == expected.token_ids for request in engine.requests)


async def test_a_conversation_that_fits_reports_nothing_left_out(client: FantailClient) -> None:
    response = await client.fan_out(HELLO, timeout=DEADLINE_S)
    assert {
        (r.classification.truncation.dropped_turns, r.classification.truncation.dropped_tokens)
        for r in response.results
    } == {(0, 0)}


async def test_usage_is_the_sum_over_the_results(client: FantailClient, engine: WatchedEngine) -> None:
    response = await client.fan_out(HELLO, timeout=DEADLINE_S)
    usages = [result.classification.usage for result in response.results]
    assert response.usage.computed_tokens == sum(usage.computed_tokens for usage in usages)
    assert response.usage.reused_tokens == sum(usage.reused_tokens for usage in usages)
    prompts = sum(len(request.token_ids) for request in engine.requests)
    assert response.usage.computed_tokens + response.usage.reused_tokens == prompts


async def test_the_second_activated_classifier_reuses_the_first_ones_reading(
    client: FantailClient, engine: WatchedEngine
) -> None:
    response = await client.fan_out(HELLO, [ACTIVATED, SECOND_ACTIVATED], timeout=DEADLINE_S)
    prefix = engine.requests[0].activation_index
    assert prefix
    assert prefix % PREFIX_MULTIPLE == 0
    assert [result.classification.usage.reused_tokens for result in response.results] == [0, prefix]


async def test_only_activated_classifiers_get_an_activation_index(
    client: FantailClient, engine: WatchedEngine, builder: PromptBuilder
) -> None:
    await client.fan_out(HELLO, timeout=DEADLINE_S)
    prefix = builder.prefix(Conversation("", (Turn(Role.CUSTOMER, HELLO[0][1]),))).token_ids
    assert [request.activation_index for request in engine.requests] == [len(prefix), len(prefix), None, None]
    adapters = [request.adapter and request.adapter.name.split("@")[0] for request in engine.requests]
    assert adapters == [ACTIVATED, SECOND_ACTIVATED, PLAIN, None]


@pytest.mark.parametrize("method", ["classify", "fan_out"])
async def test_stage_durations_are_present_and_the_total_holds_them_all(client: FantailClient, method: str) -> None:
    durations = await _durations(client, method)
    assert all(durations.HasField(stage) for stage in (*STAGES, "total"))
    stages = [getattr(durations, stage).ToNanoseconds() for stage in STAGES]
    assert min(stages) > 0
    assert durations.total.ToNanoseconds() >= sum(stages) - len(stages)  # each is rounded to a nanosecond


async def test_the_engine_stage_holds_the_engines_time(client: FantailClient, engine: WatchedEngine) -> None:
    engine.latency_s = 0.05
    durations = await _durations(client, "fan_out")
    assert durations.engine.ToNanoseconds() >= 0.05e9


async def _durations(client: FantailClient, method: str) -> pb.StageDurations:
    if method == "classify":
        return (await client.classify(HELLO, PLAIN, timeout=DEADLINE_S)).durations
    return (await client.fan_out(HELLO, timeout=DEADLINE_S)).durations


@pytest.mark.parametrize("name", NAMES)
async def test_classify_gives_the_same_answer_as_a_fan_out(client: FantailClient, name: str) -> None:
    one = await client.classify(HELLO, name, timeout=DEADLINE_S)
    (many,) = (await client.fan_out(HELLO, [name], timeout=DEADLINE_S)).results
    assert one.usage == one.classification.usage
    for answer in (one.classification, many.classification):
        answer.ClearField("usage")  # the second call reuses what the first one read
    assert one.classification == many.classification
    assert one.classification.classifier == name


async def test_earlier_turns_are_read_in_their_roles(
    client: FantailClient, engine: WatchedEngine, classify: Classify
) -> None:
    turns = [("customer", "hi"), ("agent", "hello"), ("system", "moved to billing"), ("customer", "finally")]
    await client.classify(turns, PLAIN, timeout=DEADLINE_S)
    expected = classify.builder.prefix(Conversation("", tuple(Turn(Role(role), text) for role, text in turns)))
    assert engine.requests[0].token_ids[: len(expected.token_ids)] == expected.token_ids
