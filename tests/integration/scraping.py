"""What the tests of metrics share: a look at the served numbers as Prometheus takes it, and numbers to wait for."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from service.domain import Classification
from service.metrics import Metrics
from service.registry.registry import Registry
from tests.integration.harness import DEADLINE_S

TEXT = "text/plain"
OPEN_METRICS = "application/openmetrics-text"
PARSERS: dict[str, Callable[[str], Any]] = {
    TEXT: text_string_to_metric_families,
    OPEN_METRICS: openmetrics.text_string_to_metric_families,
}


@dataclass(frozen=True)
class Scrape:
    """One look. `families`: by name, as the format's own parser understands `body`."""

    content_type: str
    body: str
    families: Mapping[str, Metric]

    def series(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of every sample of that name."""
        return [
            (each.labels, each.value) for one in self.families.values() for each in one.samples if each.name == name
        ]

    def sum(self, name: str, **labels: str) -> float:
        """Sum of the samples of that name that have these labels; 0 where there are none."""
        return sum(value for has, value in self.series(name) if labels.items() <= has.items())

    def by(self, label: str, name: str) -> dict[str, float]:
        """The same, for each value of a label that is above 0."""
        values = {has[label]: self.sum(name, **{label: has[label]}) for has, _ in self.series(name)}
        return {each: total for each, total in values.items() if total}


def scrape(port: int, accept: str = OPEN_METRICS) -> Scrape:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
        body = response.read().decode()
        return Scrape(response.headers["Content-Type"], body, {each.name: each for each in PARSERS[accept](body)})


class TellingMetrics(Metrics):
    """Says when calls have ended, shadows have been compared and reports been made, so that no test sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = asyncio.Semaphore(0)
        self.shadows = asyncio.Semaphore(0)
        self.reports = asyncio.Semaphore(0)

    async def called(self, times: int = 1) -> None:
        """Wait until so many more calls have ended and are counted."""
        async with asyncio.timeout(DEADLINE_S):
            for _ in range(times):
                await self.calls.acquire()

    def call_ended(self, method: str, code: str, reason: str, seconds: float) -> None:
        super().call_ended(method, code, reason, seconds)
        self.calls.release()

    def shadowed(self, answer: Classification, shadow: Classification | None) -> None:
        super().shadowed(answer, shadow)
        self.shadows.release()

    def registry_seen(self, registry: Registry) -> None:
        super().registry_seen(registry)
        self.reports.release()
