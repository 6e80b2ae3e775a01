"""What a server counts, in one list, served to Prometheus. Knows no gRPC; holds no text of any conversation."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import prometheus_client as prometheus

from service.admission import Admission
from service.call import Call
from service.domain import Classification, Classifier, Conversation, StageSeconds
from service.engine.base import AdapterPlace, EngineCounters
from service.errors import ConfigurationError
from service.observer import Observer
from service.registry.registry import Registry
from service.scoring.decision import LABEL_MASS_TOO_LOW
from service.scoring.drift import LabelDrift

SECONDS = (
    *(0.001, 0.002, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7),
    *(1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 20.0, 30.0, 60.0),
)
"""Steps of at most 1.7 from 5 ms to 10 s, where fan-outs on GPUs (5 to 100 ms) and CPUs (0.2 to 5 s) are: a percentile
is off by no more than a step."""

SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
"""From what six labels have by chance."""

REVISION = ("classifier", "revision")

DRIFT_AFTER = 200
"""Answers of a revision before its drift is reported: of 50 answers with six labels that have not drifted at all, the
index is 0.1 by chance; of 200 it is 0.03."""


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
    Metric("counter", "calls", "Calls by status code and the reason in their error.", ("method", "code", "reason")),
    Metric("histogram", "call", "Duration of calls; refusals are fast.", ("method", "code"), "seconds", SECONDS),
    Metric("gauge", "calls_in_flight", "Calls under way.", ("method",)),
    Metric("gauge", "calls_admitted", "Calls and messages of live conversations that hold a permit."),
    Metric("gauge", "calls_admitted_limit", "From which calls admitted on calls are turned away."),
    Metric("gauge", "batches", "Batches under way."),
    Metric("gauge", "follows", "Live conversations."),
    Metric("gauge", "follows_limit", "From which live conversations on more are turned away."),
    Metric("gauge", "follows_held", "What the texts of live conversations take up.", unit="bytes"),
    Metric("gauge", "follows_held_limit", "Up to which live conversations may grow or begin.", unit="bytes"),
    Metric("counter", "fan_outs", "Fan-outs asked for, by the name of the caller's key.", ("caller",)),
    Metric(
        "histogram", "stage", "Duration of a fan-out's prompt, engine, scoring, total.", ("stage",), "seconds", SECONDS
    ),
    Metric("counter", "tokens", "Prompt tokens: computed, or reused from the prefix cache.", ("kind",)),
    Metric("gauge", "tokens_in_flight", "Prompt tokens that admitted calls have yet to compute, as estimated."),
    Metric("gauge", "tokens_in_flight_limit", "From which tokens in flight on calls are turned away."),
    Metric("gauge", "engine_rate", "Prompt tokens at the engine's best, as measured.", unit="tokens_per_second"),
    Metric("counter", "shed", "Answers left out of a fan-out for want of room.", ("classifier", "priority")),
    Metric("counter", "failed", "Answers that the engine failed to give.", ("classifier",)),
    Metric("counter", "late", "Answers that were not ready at the deadline.", ("classifier",)),
    Metric(
        "counter",
        "parts_failed",
        "Messages of Follow and items of batches without answers, by reason.",
        ("method", "reason"),
    ),
    Metric("counter", "answers", "Answers by label.", (*REVISION, "label")),
    Metric("histogram", "confidence", "Calibrated probability of the chosen label.", REVISION, "ratio", SHARES),
    Metric("counter", "abstained", "Answers marked as not to be acted on.", (*REVISION, "reason")),
    Metric("counter", "low_label_mass", "Answers in which the model wanted to say no label at all.", REVISION),
    Metric("gauge", "label_drift", "PSI of the labels given lately against those of the calibration split.", REVISION),
    Metric("gauge", "confidence_drift", "Mean confidence lately less the calibration split's.", REVISION, "ratio"),
    Metric("counter", "shadowed", "Answers of shadows beside the one given, by agreement.", ("classifier", "outcome")),
    Metric("gauge", "engine_up", "Whether the engine serves and says so: 1 or 0."),
    Metric("counter", "engine_restarts", "Times the engine was started again."),
    Metric("gauge", "engine_requests", "Prompts in the engine: running, or waiting in its queue.", ("state",)),
    Metric("gauge", "engine_kv_blocks", "KV blocks: used by prompts under way, or free to be taken.", ("state",)),
    Metric("gauge", "adapter_resident", "1 for each adapter in the engine's memory.", ("adapter",)),
    Metric("gauge", "adapter_in_slot", "Whether an adapter can be computed with at once: 1 or 0.", ("adapter",)),
    Metric("counter", "adapter_slot_loads", "Times an adapter took a slot; rising: too few slots.", ("adapter",)),
    Metric("gauge", "classifier_serving", "Whether a classifier is served: 1, or withheld: 0.", ("classifier",)),
    Metric("counter", "reloads", "Classifiers that a reload changed or refused, by outcome.", ("outcome",)),
    Metric("gauge", "last_reload_refused", "Whether the last reload refused this classifier: 1 or 0.", ("classifier",)),
)

KINDS = {"counter": prometheus.Counter, "gauge": prometheus.Gauge, "histogram": prometheus.Histogram}
OF_REVISIONS = tuple(each.name for each in LIST if each.labels[:2] == REVISION)
OF_CLASSIFIERS = ("shed", "failed", "late", "shadowed", "classifier_serving")
OF_ADAPTERS = ("adapter_resident", "adapter_in_slot", "adapter_slot_loads")


class Metrics(Observer):
    """Counts. `last_used`: when each (classifier, revision) was last asked, on `time.time`'s clock."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        prometheus.ProcessCollector(registry=self.registry)
        prometheus.GCCollector(registry=self.registry)
        prometheus.PlatformCollector(registry=self.registry)
        self._metrics: dict[str, Any] = {each.name: _made(each, self.registry) for each in LIST}
        self._drifts: dict[tuple[str, str], LabelDrift] = {}
        self._slot_loads: dict[str, int] = {}
        self._restarts = 0
        self._known: set[tuple[str, str]] = set()
        self.last_used: dict[tuple[str, str], float] = {}

    def watch_admission(self, admission: Admission) -> None:
        """Report what is in flight whenever somebody looks."""
        self._metrics["tokens_in_flight"].set_function(lambda: admission.tokens)
        self._metrics["tokens_in_flight_limit"].set_function(lambda: admission.max_tokens)
        self._metrics["calls_admitted"].set_function(lambda: admission.calls)
        self._metrics["calls_admitted_limit"].set_function(lambda: admission.max_calls)
        self._metrics["batches"].set_function(lambda: admission.batches)
        self._metrics["follows"].set_function(lambda: admission.follows)
        self._metrics["follows_limit"].set_function(lambda: admission.max_follows)
        self._metrics["follows_held"].set_function(lambda: admission.follow_bytes)
        self._metrics["follows_held_limit"].set_function(lambda: admission.max_follow_bytes)
        self._metrics["engine_rate"].set_function(lambda: admission.rate or 0.0)

    @contextlib.contextmanager
    def call_in_flight(self, method: str) -> Iterator[None]:
        with self._metrics["calls_in_flight"].labels(method).track_inprogress():
            yield

    def call_ended(self, method: str, code: str, reason: str, seconds: float) -> None:
        """`code`: name of the status; `reason`: what the error's details say, empty without an error of ours."""
        self._metrics["calls"].labels(method, code, reason).inc()
        self._metrics["call"].labels(method, code).observe(seconds)

    def asked(self, conversation: Conversation, call: Call) -> None:
        self._metrics["fan_outs"].labels(call.caller).inc()

    def finished(self, stages: StageSeconds) -> None:
        for stage in ("prompt", "engine", "scoring", "total"):
            self._metrics["stage"].labels(stage).observe(getattr(stages, stage))

    def answered(self, classifier: Classifier, answer: Classification) -> None:
        revision = (answer.classifier, answer.revision)
        self._known.add(revision)
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

    def failed(self, classifier: Classifier) -> None:
        self._metrics["failed"].labels(classifier.name).inc()

    def part_failed(self, method: str, reason: str) -> None:
        self._metrics["parts_failed"].labels(method, reason).inc()

    def late(self, classifier: Classifier) -> None:
        self._metrics["late"].labels(classifier.name).inc()

    def shadowed(self, answer: Classification, shadow: Classification | None) -> None:
        if shadow is not None:
            self.last_used[shadow.classifier, shadow.revision] = time.time()
        outcome = "no answer" if shadow is None else "agrees" if shadow.label == answer.label else "differs"
        self._metrics["shadowed"].labels(answer.classifier, outcome).inc()

    def reloaded(self, classifier: str, outcome: str) -> None:
        self._metrics["reloads"].labels(outcome).inc()
        if outcome == "removed":
            self._metrics["last_reload_refused"].remove(classifier)
        else:
            self._metrics["last_reload_refused"].labels(classifier).set(outcome == "refused")

    def engine_seen(self, restarts: int, counters: EngineCounters | None, places: Mapping[str, AdapterPlace]) -> None:
        """What the engine says of itself; no counters: it is not serving."""
        self._metrics["engine_up"].set(counters is not None)
        self._metrics["engine_restarts"].inc(restarts - self._restarts)
        self._restarts = restarts
        if counters is None:
            self._metrics["engine_requests"].clear()
            self._metrics["engine_kv_blocks"].clear()
        else:
            self._metrics["engine_requests"].labels("running").set(counters.running)
            self._metrics["engine_requests"].labels("waiting").set(counters.waiting)
            self._metrics["engine_kv_blocks"].labels("used").set(counters.kv_blocks_used)
            self._metrics["engine_kv_blocks"].labels("free").set(counters.kv_blocks - counters.kv_blocks_used)
        self._adapters_seen(places)

    def registry_seen(self, registry: Registry) -> None:
        """What is served; series of revisions that are gone go too, or a thousand reloads would leave as many.

        Counters of what is there begin at 0, so that the first event is an increase and shares can be computed.
        """
        withheld = registry.withheld
        for name in registry.classifiers:
            self._metrics["classifier_serving"].labels(name).set(name not in withheld)
        for each in registry.loaded:
            self._metrics["late"].labels(each.name)
            self._metrics["failed"].labels(each.name)
            self._metrics["shed"].labels(each.name, each.priority.value)
            self._metrics["low_label_mass"].labels(each.name, each.revision)
            for label in each.labels:
                self._metrics["answers"].labels(each.name, each.revision, label.name)
        loaded = {(each.name, each.revision) for each in registry.loaded}
        for name, revision in self._known - loaded:
            self.last_used.pop((name, revision), None)
            self._drifts.pop((name, revision), None)
            self._forget(OF_REVISIONS, classifier=name, revision=revision)
            if name not in registry.classifiers:
                self._forget(OF_CLASSIFIERS, classifier=name)
        self._known = loaded

    def _adapters_seen(self, places: Mapping[str, AdapterPlace]) -> None:
        for adapter in self._slot_loads.keys() - places.keys():
            del self._slot_loads[adapter]
            self._forget(OF_ADAPTERS, adapter=adapter)
        for adapter, place in places.items():
            self._metrics["adapter_resident"].labels(adapter).set(1)
            self._metrics["adapter_in_slot"].labels(adapter).set(place.slot is not None)
            counter, before = self._metrics["adapter_slot_loads"].labels(adapter), self._slot_loads.get(adapter, 0)
            if place.slot_loads < before:  # another engine, which counts from 0
                counter.reset()
                before = 0
            counter.inc(place.slot_loads - before)
            self._slot_loads[adapter] = place.slot_loads

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

    def _forget(self, names: tuple[str, ...], **labels: str) -> None:
        """Remove every series of these metrics that has these labels."""
        for name in names:
            self._metrics[name].remove_by_labels(labels)


@contextlib.contextmanager
def serve_metrics(metrics: Metrics, address: str | None) -> Iterator[int | None]:
    """Serve `/metrics` over HTTP and yield the port; None serves nothing. Raises ConfigurationError."""
    if address is None:
        yield None
        return
    host, _, port = address.rpartition(":")
    try:
        server, thread = prometheus.start_http_server(int(port), host.strip("[]"), metrics.registry)
    except (OSError, OverflowError) as error:  # the second for a port that no machine has
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
