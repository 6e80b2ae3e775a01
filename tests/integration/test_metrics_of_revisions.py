"""What the served metrics say of revisions: series begin at 0, drift is measured, and what is gone leaves no series."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from service.classify import Classify
from service.client import FantailClient
from service.domain import Calibration, Reference
from service.metrics import DRIFT_AFTER, LIST, REVISION, Metrics, serve_metrics
from service.prompt.builder import PromptBuilder
from service.registry.registry import Registry
from tests.integration.harness import (
    ACTIVATED,
    DEADLINE_S,
    HELLO,
    LABELS,
    NAMES,
    SECOND_ACTIVATED,
    WatchedEngine,
)
from tests.integration.scraping import Scrape, scrape
from tests.support import classify_with

NEW = "f" * 16
"""The revision that replaces another."""

FAKE_CONFIDENCE = 0.8
"""What the fake engine's favourite label has of the labels' mass."""

Look = Callable[[], Scrape]


@pytest.fixture
def classify(registry: Registry, builder: PromptBuilder, engine: WatchedEngine, metrics: Metrics) -> Classify:
    metrics.registry_seen(registry)
    return classify_with(registry, builder, engine, observer=metrics)


@pytest.fixture
def look(metrics: Metrics) -> Iterator[Look]:
    with serve_metrics(metrics, "127.0.0.1:0") as port:
        assert port is not None
        yield lambda: scrape(port)


def with_reference(registry: Registry, name: str, shares: tuple[float, ...]) -> Registry:
    """The registry with that classifier calibrated to itself, and this its calibration split."""
    labels = len(LABELS[name])
    calibration = Calibration(1.0, (0.0,) * labels, (0.0,) * labels, Reference(shares, 0.5))
    return registry.with_classifier(replace(registry.get(name), calibration=calibration))


async def test_series_begin_at_zero_so_that_the_first_event_is_an_increase(classify: Classify, look: Look) -> None:
    seen = look()
    assert [value for _, value in seen.series("fantail_answers_total")] == [0] * sum(map(len, LABELS.values()))
    for name in ("fantail_late_total", "fantail_shed_total", "fantail_low_label_mass_total"):
        assert {has["classifier"]: value for has, value in seen.series(name)} == dict.fromkeys(NAMES, 0)


@pytest.mark.parametrize(("answers", "shown"), [(-1, False), (0, True), (1, True)], ids=["limit-1", "limit", "limit+1"])
async def test_drift_is_shown_from_enough_answers_on(
    classify: Classify, client: FantailClient, registry: Registry, look: Look, answers: int, shown: bool
) -> None:
    classify.catalogue.replace(with_reference(registry, ACTIVATED, (0.5, 0.5)))
    for _ in range(DRIFT_AFTER + answers):
        await client.classify(HELLO, ACTIVATED, timeout=DEADLINE_S)
    label, confidence = (look().series(f"fantail_{each}") for each in ("label_drift", "confidence_drift_ratio"))
    assert bool(label) == bool(confidence) == shown
    if shown:
        assert label[0][1] > 0.25
        assert confidence[0][1] == pytest.approx(FAKE_CONFIDENCE - 0.5)


async def test_series_of_a_revision_that_is_gone_disappear(
    classify: Classify,
    client: FantailClient,
    engine: WatchedEngine,
    registry: Registry,
    metrics: Metrics,
    look: Look,
) -> None:
    old = registry.get(ACTIVATED).revision
    classify.catalogue.replace(with_reference(registry, ACTIVATED, (0.5, 0.5)))
    engine.mass = 0.1
    for _ in range(DRIFT_AFTER):
        await client.classify(HELLO, ACTIVATED, timeout=DEADLINE_S)
    assert families_with(look(), old) == {each.served_name for each in LIST if each.labels[:2] == REVISION}
    metrics.registry_seen(registry.with_classifier(replace(registry.get(ACTIVATED), revision=NEW)))
    assert families_with(look(), old) == set()
    assert (ACTIVATED, old) not in metrics.last_used


async def test_series_of_a_classifier_that_is_gone_disappear(
    classify: Classify, client: FantailClient, registry: Registry, metrics: Metrics, look: Look
) -> None:
    metrics.reloaded(ACTIVATED, "loaded")
    await client.fan_out(HELLO, timeout=DEADLINE_S)
    metrics.registry_seen(registry.without_classifier(ACTIVATED))
    metrics.reloaded(ACTIVATED, "removed")
    assert ACTIVATED not in look().body
    assert SECOND_ACTIVATED in look().body


async def test_what_is_counted_of_a_classifier_outlives_its_revisions(
    classify: Classify, registry: Registry, metrics: Metrics, look: Look
) -> None:
    metrics.late(registry.get(ACTIVATED))
    metrics.registry_seen(registry.with_classifier(replace(registry.get(ACTIVATED), revision=NEW)))
    assert look().by("classifier", "fantail_late_total") == {ACTIVATED: 1}


async def test_a_revision_that_goes_while_it_is_asked_leaves_no_series_behind(
    classify: Classify,
    client: FantailClient,
    engine: WatchedEngine,
    registry: Registry,
    metrics: Metrics,
    look: Look,
) -> None:
    engine.gate.clear()
    call = asyncio.create_task(client.classify(HELLO, ACTIVATED, timeout=DEADLINE_S))
    await engine.begun(1)
    newer = registry.with_classifier(replace(registry.get(ACTIVATED), revision=NEW))
    metrics.registry_seen(newer)
    engine.gate.set()
    await call
    metrics.registry_seen(newer)
    assert families_with(look(), registry.get(ACTIVATED).revision) == set()


def families_with(seen: Scrape, revision: str) -> set[str]:
    """Names of the metrics that have a series of a revision."""
    return {
        next(metric.served_name for metric in LIST if metric.served_name.removesuffix("_total") == name)
        for name, family in seen.families.items()
        if any(each.labels.get("revision") == revision for each in family.samples)
    }
