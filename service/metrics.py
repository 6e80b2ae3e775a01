"""What a server counts, in one list, served to Prometheus. Knows no gRPC; holds no text of any conversation."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import prometheus_client as prometheus

from service.admission import Admission
from service.domain import Classification, Classifier, StageSeconds
from service.engine.base import AdapterPlace, EngineCounters
from service.errors import ConfigurationError
from service.observer import Observer
from service.registry.registry import Registry
from service.scoring.decision import LABEL_MASS_TOO_LOW
from service.scoring.drift import LabelDrift

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
SHARES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
REVISION = ("classifier", "revision")

DRIFT_AFTER = 50
"""Answers of a revision before its drift is reported: fewer say nothing."""


@dataclass(frozen=True, slots=True)
class Metric:
    """An entry of the list. `unit`: appended to the name, as OpenMetrics wants it; counters end in `_total` besides."""

    kind: str
    name: str
    help: str
    labels: tuple[str, ...] = ()
    unit: str = ""
    buckets: tuple[float, ...] = ()

    @property
    def served_name(self) -> str:
        """The name of its samples, without what histograms append."""
        name = "_".join(filter(None, ("fantail", self.name, self.unit)))
        return f"{name}_total" if self.kind == "counter" else name


LIST = (
    Metric("counter", "calls", "Calls by method and how they ended.", ("method", "code")),
    Metric("histogram", "call", "Duration of calls.", ("method",), "seconds", SECONDS),
    Metric("gauge", "calls_in_flight", "Calls under way.", ("method",)),
    Metric("histogram", "stage", "Duration of a fan-out's stages.", ("stage",), "seconds", SECONDS),
    Metric("counter", "tokens", "Prompt tokens: computed, or reused from the prefix cache.", ("kind",)),
    Metric("gauge", "tokens_in_flight", "Prompt tokens that admitted calls have yet to compute, as estimated."),
    Metric("gauge", "tokens_in_flight_limit", "From which tokens in flight on calls are turned away."),
    Metric("gauge", "engine_rate", "Prompt tokens a second at the engine's best, as measured.", unit="tokens"),
    Metric("counter", "shed", "Answers left out of a fan-out for want of room.", ("classifier", "priority")),
    Metric("counter", "late", "Answers that were not ready at the deadline.", ("classifier",)),
    Metric("counter", "answers", "Answers by label.", (*REVISION, "label")),
    Metric("histogram", "confidence", "Calibrated probability of the chosen label.", REVISION, "ratio", SHARES),
    Metric("counter", "abstained", "Answers marked as not to be acted on.", (*REVISION, "reason")),
    Metric("counter", "low_label_mass", "Answers in which the model wanted to say no label at all.", REVISION),
    Metric("gauge", "label_drift", "PSI of the labels given lately against those of the calibration split.", REVISION),
    Metric("gauge", "confidence_drift", "Mean confidence lately less the calibration split's.", REVISION, "ratio"),
    Metric("counter", "shadowed", "Answers of shadows beside the one given, by agreement.", ("classifier", "outcome")),
    Metric("gauge", "engine_up", "Whether the engine serves: 1 or 0."),
    Metric("gauge", "engine_restarts", "Times the engine was started again since the server started."),
    Metric("gauge", "engine_requests", "Prompts in the engine, by state.", ("state",)),
    Metric("gauge", "engine_kv_blocks", "KV blocks, by state: used by prompts under way, or all.", ("state",)),
    Metric("gauge", "adapter_resident", "Whether an adapter is in the engine's memory: 1 or 0.", ("adapter",)),
    Metric("gauge", "adapter_slot_loads", "Times an adapter took a slot; rising: too few slots.", ("adapter",)),
    Metric("gauge", "classifiers", "Classifiers by state.", ("state",)),
    Metric("counter", "reloads", "Classifiers that a reload changed or refused, by outcome.", ("outcome",)),
    Metric("gauge", "last_reload_refused", "Whether the last reload refused this classifier: 1 or 0.", ("classifier",)),
)

KINDS = {"counter": prometheus.Counter, "gauge": prometheus.Gauge, "histogram": prometheus.Histogram}


class Metrics(Observer):
    """Counts. `last_used`: when each (classifier, revision) was last asked, on `time.time`'s clock."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self.registry)
        prometheus.GCCollector(registry=self.registry)
        prometheus.PlatformCollector(registry=self.registry)
        self._metrics: dict[str, Any] = {each.name: _made(each, self.registry) for each in LIST}
        self._drifts: dict[tuple[str, str], LabelDrift] = {}
        self.last_used: dict[tuple[str, str], float] = {}

    def watch_admission(self, admission: Admission) -> None:
        """Report what is in flight whenever somebody looks."""
        self._metrics["tokens_in_flight"].set_function(lambda: admission.tokens)
        self._metrics["tokens_in_flight_limit"].set(admission.max_tokens)
        self._metrics["engine_rate"].set_function(lambda: admission.rate or 0.0)

    @contextlib.contextmanager
    def call_in_flight(self, method: str) -> Iterator[None]:
        with self._metrics["calls_in_flight"].labels(method).track_inprogress():
            yield

    def call_ended(self, method: str, code: str, seconds: float) -> None:
        self._metrics["calls"].labels(method, code).inc()
        self._metrics["call"].labels(method).observe(seconds)

    def finished(self, stages: StageSeconds) -> None:
        for stage in ("prompt", "engine", "scoring", "total"):
            self._metrics["stage"].labels(stage).observe(getattr(stages, stage))

    def answered(self, classifier: Classifier, answer: Classification) -> None:
        revision = (answer.classifier, answer.revision)
        self.last_used[revision] = time.time()
        self._metrics["tokens"].labels("computed").inc(answer.usage.computed)
        self._metrics["tokens"].labels("reused").inc(answer.usage.reused)
        self._metrics["answers"].labels(*revision, answer.label).inc()
        self._metrics["confidence"].labels(*revision).observe(answer.confidence)
        if answer.abstain_reason is not None:
            self._metrics["abstained"].labels(*revision, answer.abstain_reason).inc()
        if answer.abstain_reason == LABEL_MASS_TOO_LOW:
            self._metrics["low_label_mass"].labels(*revision).inc()
        self._drift(classifier, answer)

    def shed(self, classifier: Classifier) -> None:
        self._metrics["shed"].labels(classifier.name, classifier.priority.value).inc()

    def late(self, classifier: Classifier) -> None:
        self._metrics["late"].labels(classifier.name).inc()

    def shadowed(self, answer: Classification, shadow: Classification | None) -> None:
        outcome = "no answer" if shadow is None else "agrees" if shadow.label == answer.label else "differs"
        self._metrics["shadowed"].labels(answer.classifier, outcome).inc()

    def reloaded(self, classifier: str, outcome: str) -> None:
        self._metrics["reloads"].labels(outcome).inc()
        self._metrics["last_reload_refused"].labels(classifier).set(outcome == "refused")

    def engine_seen(self, restarts: int, counters: EngineCounters | None, places: Mapping[str, AdapterPlace]) -> None:
        """What the engine says of itself; no counters: it is not serving."""
        self._metrics["engine_up"].set(counters is not None)
        self._metrics["engine_restarts"].set(restarts)
        if counters is not None:
            for state in ("running", "waiting"):
                self._metrics["engine_requests"].labels(state).set(getattr(counters, state))
            self._metrics["engine_kv_blocks"].labels("used").set(counters.kv_blocks_used)
            self._metrics["engine_kv_blocks"].labels("all").set(counters.kv_blocks)
        for name in ("adapter_resident", "adapter_slot_loads"):
            self._metrics[name].clear()
        for adapter, place in places.items():
            self._metrics["adapter_resident"].labels(adapter).set(1)
            self._metrics["adapter_slot_loads"].labels(adapter).set(place.slot_loads)

    def registry_seen(self, registry: Registry) -> None:
        """What is served; series of revisions that are gone go too, or a thousand reloads would leave as many."""
        withheld = registry.withheld
        self._metrics["classifiers"].labels("serving").set(len(registry.classifiers) - len(withheld))
        self._metrics["classifiers"].labels("withheld").set(len(withheld))
        loaded = {(each.name, each.revision) for each in registry.loaded}
        for gone in self.last_used.keys() - loaded:
            del self.last_used[gone]
            self._drifts.pop(gone, None)
            for metric in (each for each in LIST if each.labels[:2] == REVISION):
                _forget(self._metrics[metric.name], gone)

    def _drift(self, classifier: Classifier, answer: Classification) -> None:
        reference = classifier.calibration.reference if classifier.calibration else None
        if reference is None:
            return
        revision = (answer.classifier, answer.revision)
        drift = self._drifts.setdefault(revision, LabelDrift(reference.shares, reference.confidence))
        drift.add(answer.labels.index(answer.label), answer.confidence)
        if drift.answers >= DRIFT_AFTER:
            self._metrics["label_drift"].labels(*revision).set(drift.stability_index)
            self._metrics["confidence_drift"].labels(*revision).set(drift.confidence_shift)


@contextlib.contextmanager
def serve_metrics(metrics: Metrics, address: str | None) -> Iterator[int | None]:
    """Serve `/metrics` over HTTP and yield the port; None serves nothing. Raises ConfigurationError."""
    if address is None:
        yield None
        return
    host, _, port = address.rpartition(":")
    try:
        server, thread = prometheus.start_http_server(int(port), host.strip("[]"), metrics.registry)
    except OSError as error:
        raise ConfigurationError(
            f"FANTAIL_METRICS_ADDRESS: cannot listen on {address}; is another server running there?"
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _made(metric: Metric, registry: prometheus.CollectorRegistry) -> Any:
    buckets = {"buckets": (*metric.buckets, math.inf)} if metric.buckets else {}
    return KINDS[metric.kind](
        metric.name, metric.help, metric.labels, namespace="fantail", unit=metric.unit, registry=registry, **buckets
    )


def _forget(metric: Any, labels: Sequence[str]) -> None:
    """Remove every series that begins with these label values."""
    for values in [each for each in metric._metrics if each[: len(labels)] == tuple(labels)]:
        metric.remove(*values)
