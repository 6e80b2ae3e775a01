"""How metrics are served, in both formats, and what they say of engine, adapters, catalogue and reloads."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from service import watch
from service.admission import Admission
from service.call import Call
from service.catalogue import Catalogue
from service.domain import Calibration, Classification, Reference, StageSeconds, TokenUsage, Truncation
from service.engine.base import AdapterPlace, EngineCounters, ScoringEngine
from service.engine.fake_engine import FakeEngine
from service.engine.supervised import SupervisedEngine
from service.errors import ConfigurationError
from service.metrics import DRIFT_AFTER, LIST, Metric, Metrics, serve_metrics
from service.registry.loader import RegistryLoader
from service.registry.registry import Registry
from service.scoring.decision import LABEL_MASS_TOO_LOW
from tests.deployment import ACTIVATED as REFUND
from tests.deployment import BARE, Served, serving
from tests.integration.harness import ACTIVATED, DEADLINE_S, NAMES, WITHOUT_ADAPTER
from tests.integration.scraping import OPEN_METRICS, TEXT, Scrape, TellingMetrics, scrape
from tests.support import talk

METHOD = "/fantail.v1.ClassificationService/FanOut"
SERVING = EngineCounters(
    running=2, computed_tokens=7, waiting=3, kv_blocks_used=10, kv_blocks=100, block_tokens=32, steps=5
)
IN_SLOT, IN_MEMORY = AdapterPlace(0, 1), AdapterPlace(None, 1)

Look = Callable[[], Scrape]


@pytest.fixture
def metrics() -> TellingMetrics:
    return TellingMetrics()


@pytest.fixture
def port(metrics: Metrics) -> Iterator[int]:
    with serve_metrics(metrics, "127.0.0.1:0") as port:
        assert port is not None
        yield port


@pytest.fixture
def look(port: int) -> Look:
    return lambda: scrape(port)


def use(metrics: Metrics, registry: Registry) -> None:
    """Tell metrics of everything that there is to tell."""
    calibration = Calibration(1.0, (0.0, 0.0), (0.0, 0.0), Reference((0.5, 0.5), 0.9))
    asked = replace(registry.get(ACTIVATED), calibration=calibration)
    answer = Classification(
        *(ACTIVATED, "yes", 0.9, ("yes", "no"), (0.9, 0.1), (0.9, 0.1), 0.1),
        *(LABEL_MASS_TOO_LOW, asked.revision, Truncation(), TokenUsage(10, 20)),
    )
    metrics.watch_admission(Admission(1, 1))
    with metrics.call_in_flight(METHOD):
        metrics.asked(talk("hi"), Call())
    metrics.call_ended(METHOD, "OK", "", 0.1)
    metrics.finished(StageSeconds(0.1, 0.2, 0.3, 0.6))
    for _ in range(DRIFT_AFTER):
        metrics.answered(asked, answer)
    metrics.shed(asked)
    metrics.late(asked)
    metrics.part_failed("Follow", "ERROR_REASON_DEFECT")
    metrics.shadowed(answer, answer)
    metrics.reloaded(ACTIVATED, "loaded")
    metrics.engine_seen(1, SERVING, {ACTIVATED: IN_SLOT})
    metrics.registry_seen(registry)


@pytest.mark.parametrize("accept", [OPEN_METRICS, TEXT])
def test_every_metric_of_the_list_is_served_with_its_help_and_kind(
    metrics: TellingMetrics, registry: Registry, port: int, accept: str
) -> None:
    use(metrics, registry)
    seen = scrape(port, accept)
    served = {name: (each.type, each.documentation) for name, each in seen.families.items() if each.samples}
    wanted = {each.served_name.removesuffix("_total"): (each.kind, each.help) for each in LIST}
    assert {name: has for name, has in served.items() if name in wanted} == wanted
    assert seen.content_type.startswith(accept)


def test_every_unit_of_the_list_is_served(metrics: TellingMetrics, look: Look) -> None:
    units = {name: each.unit for name, each in look().families.items() if name.startswith("fantail_")}
    assert units == {each.served_name.removesuffix("_total"): each.unit for each in LIST}
    assert {unit for unit in units.values() if unit} == {"seconds", "ratio", "tokens_per_second", "bytes"}


def test_every_label_of_the_list_is_served(metrics: TellingMetrics, registry: Registry, look: Look) -> None:
    use(metrics, registry)
    families = look().families
    for each in LIST:
        served = {label for one in families[each.served_name.removesuffix("_total")].samples for label in one.labels}
        assert served - {"le"} == set(each.labels), each.name


def test_the_process_is_measured_too(look: Look) -> None:
    assert look().sum("process_resident_memory_bytes") > 0


@pytest.mark.parametrize("metric", LIST, ids=lambda each: each.name)
def test_an_entry_has_a_name_a_help_and_buckets_as_prometheus_wants_them(metric: Metric) -> None:
    assert metric.help.endswith(".")
    assert not metric.name.endswith(("_total", "_count", "_sum", "_bucket", "_info"))
    assert metric.buckets == tuple(sorted(set(metric.buckets)))
    assert bool(metric.buckets) == (metric.kind == "histogram")


def test_nothing_is_served_without_an_address(metrics: TellingMetrics) -> None:
    with serve_metrics(metrics, None) as port:
        assert port is None


@pytest.mark.parametrize("address", ["127.0.0.1:65536", "192.0.2.1:0"])
def test_an_address_that_cannot_be_listened_on_is_a_configuration_error(metrics: TellingMetrics, address: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^FANTAIL_METRICS_ADDRESS: .*{address}"):
        contextlib.ExitStack().enter_context(serve_metrics(metrics, address))


def test_an_address_in_use_is_a_configuration_error_that_names_the_setting(metrics: TellingMetrics, port: int) -> None:
    with pytest.raises(ConfigurationError, match=f"^FANTAIL_METRICS_ADDRESS: .*:{port}") as failure:
        contextlib.ExitStack().enter_context(serve_metrics(metrics, f"127.0.0.1:{port}"))
    assert "another server" in failure.value.message


def test_an_address_is_free_again_at_the_end(metrics: TellingMetrics) -> None:
    with serve_metrics(metrics, "127.0.0.1:0") as port:
        pass
    with serve_metrics(metrics, f"127.0.0.1:{port}") as again:
        assert again == port


def test_an_engine_that_is_down_has_neither_requests_nor_adapters(metrics: TellingMetrics, look: Look) -> None:
    metrics.engine_seen(0, SERVING, {"a": IN_SLOT})
    up = look()
    metrics.engine_seen(0, None, {})
    down = look()
    assert (up.sum("fantail_engine_up"), down.sum("fantail_engine_up")) == (1, 0)
    for name in ("engine_requests", "engine_kv_blocks", "adapter_resident", "adapter_slot_loads_total"):
        assert up.series(f"fantail_{name}")
        assert not down.series(f"fantail_{name}")


def test_the_engines_queue_and_kv_are_shown(metrics: TellingMetrics, look: Look) -> None:
    metrics.engine_seen(0, SERVING, {})
    assert look().by("state", "fantail_engine_requests") == {"running": 2, "waiting": 3}
    assert look().by("state", "fantail_engine_kv_blocks") == {"used": 10, "free": 90}


def test_restarts_are_counted_once_each(metrics: TellingMetrics, look: Look) -> None:
    for restarts in (0, 1, 1, 3):
        metrics.engine_seen(restarts, None, {})
    assert look().sum("fantail_engine_restarts_total") == 3


def test_adapters_are_shown_while_they_are_there(metrics: TellingMetrics, look: Look) -> None:
    metrics.engine_seen(0, SERVING, {"a": IN_SLOT, "b": IN_MEMORY, "c": IN_SLOT})
    metrics.engine_seen(0, SERVING, {"a": IN_SLOT, "b": IN_MEMORY})
    assert look().by("adapter", "fantail_adapter_resident") == {"a": 1, "b": 1}
    assert look().by("adapter", "fantail_adapter_in_slot") == {"a": 1}
    assert [has["adapter"] for has, _ in look().series("fantail_adapter_slot_loads_total")] == ["a", "b"]


@pytest.mark.parametrize(("loads", "counted"), [((1, 1), 1), ((1, 4), 4), ((4, 1), 1)], ids=["same", "more", "anew"])
def test_slot_loads_are_counted_as_the_engine_has_them(
    metrics: TellingMetrics, look: Look, loads: tuple[int, ...], counted: int
) -> None:
    for each in loads:
        metrics.engine_seen(0, SERVING, {"a": AdapterPlace(0, each)})
    assert look().sum("fantail_adapter_slot_loads_total") == counted


@dataclass
class SilentEngine(FakeEngine):
    """Never says what it is doing."""

    async def counters(self) -> EngineCounters:
        await asyncio.Event().wait()
        raise AssertionError


@contextlib.asynccontextmanager
async def reported(engine: ScoringEngine, registry: Registry, metrics: TellingMetrics) -> AsyncIterator[None]:
    """Supervise an engine and report of it, at least once."""

    @contextlib.asynccontextmanager
    async def start() -> AsyncIterator[ScoringEngine]:
        yield engine

    async def prove(started: ScoringEngine) -> None:
        pass

    supervised, serves = SupervisedEngine(start, prove), asyncio.Event()
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as group:
        tasks = [group.create_task(supervised.run(serves))]
        await serves.wait()
        tasks.append(group.create_task(watch.report(supervised, Catalogue(registry), metrics)))
        await metrics.reports.acquire()
        yield
        for each in tasks:
            each.cancel()


async def test_what_serves_is_reported(registry: Registry, metrics: TellingMetrics, look: Look) -> None:
    registry = registry.without({WITHOUT_ADAPTER: "It answers otherwise."})
    async with reported(FakeEngine(loaded={"a": 0}), registry, metrics):
        seen = look()
    assert seen.sum("fantail_engine_up") == 1
    assert seen.by("adapter", "fantail_adapter_resident") == {"a": 1}
    serving = {has["classifier"]: value for has, value in seen.series("fantail_classifier_serving")}
    assert serving == {name: float(name != WITHOUT_ADAPTER) for name in NAMES}


async def test_an_engine_that_does_not_answer_is_reported_as_down(
    registry: Registry, metrics: TellingMetrics, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "ASK_SECONDS", 0.0)
    async with reported(SilentEngine(), registry, metrics):
        seen = look()
    assert seen.sum("fantail_engine_up") == 0
    assert len(seen.series("fantail_classifier_serving")) == len(NAMES)


@pytest.fixture
async def served(tmp_path: Path, loader: RegistryLoader) -> AsyncIterator[Served]:
    async with serving(tmp_path, loader, REFUND, BARE) as served:
        yield served


async def test_reloads_are_counted_by_outcome_and_the_last_refusal_stands(served: Served) -> None:
    with serve_metrics(served.metrics, "127.0.0.1:0") as port:
        assert port is not None
        outcomes = {"fantail_reloads_total": "outcome", "fantail_last_reload_refused": "classifier"}
        served.write(number=1)
        await served.deployer.reload()
        served.write(BARE, labels={})
        await served.deployer.reload()
        refused = {name: scrape(port).by(label, name) for name, label in outcomes.items()}
        served.write(BARE, words="else?")
        await served.deployer.reload()
        mended = {name: scrape(port).by(label, name) for name, label in outcomes.items()}
        shutil.rmtree(served.classifiers / BARE)
        await served.deployer.reload()
        removed = scrape(port)
    changed = [{name: count for name, count in each.items() if name != "unchanged"} for each in refused.values()]
    assert changed == [{"loaded": 1, "refused": 1}, {BARE: 1}]
    changed = [{name: count for name, count in each.items() if name != "unchanged"} for each in mended.values()]
    assert changed == [{"loaded": 2, "refused": 1}, {}]
    counted = removed.by("outcome", "fantail_reloads_total")
    assert (counted["loaded"], counted["refused"], counted["removed"]) == (2, 1, 1)
    assert [has for has, _ in removed.series("fantail_last_reload_refused")] == [{"classifier": REFUND}]


async def test_a_refused_folder_that_is_taken_away_again_leaves_no_alarm(served: Served) -> None:
    with serve_metrics(served.metrics, "127.0.0.1:0") as port:
        assert port is not None
        folder = served.write("newcomer", 1)
        (folder / "classifier.toml").unlink()
        await served.deployer.reload()
        assert scrape(port).by("classifier", "fantail_last_reload_refused")["newcomer"] == 1
        shutil.rmtree(folder)
        await served.deployer.reload()
        assert "newcomer" not in scrape(port).by("classifier", "fantail_last_reload_refused")
