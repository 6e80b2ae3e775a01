"""Dashboard and alerts speak only of what the server serves; the alerts fire when they should, as promtool sees it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from service.metrics import LIST, Metrics
from service.pb.fantail.v1.error_reason_pb2 import ErrorReason
from tests.integration.promql import grouped_by, metrics_of, selected
from tests.support import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
PROMETHEUS = DEPLOY / "prometheus"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "fantail.json").read_text(encoding="utf-8"))
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
UNIT_TESTS: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text(encoding="utf-8"))["tests"]

OF_PROMETHEUS = {"up": {"job", "instance"}, "process_start_time_seconds": {"job", "instance"}}
"""What Prometheus itself adds to a scrape."""

OF_EVERY_SERIES = {"job", "instance"}
HISTOGRAM = ("_bucket", "_sum", "_count")


def panels() -> list[dict[str, Any]]:
    return [each for each in DASHBOARD["panels"] if each["type"] != "row"]


def expressions() -> Iterator[tuple[str, str]]:
    """Where it stands, and the expression, for each of the dashboard's and the rules'."""
    for panel in panels():
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield f"variable {variable['name']}", re.sub(r", \w+\)$", ")", variable["definition"])
    for each in DASHBOARD["annotations"]["list"]:
        yield f"annotation {each['name']}", each["expr"]
    for rule in RULES:
        yield rule["alert"], rule["expr"]


def served() -> dict[str, set[str]]:
    """Labels of each sample that the server serves, by its name."""
    found = {sample.name: set(sample.labels) for each in Metrics().registry.collect() for sample in each.samples}
    for metric in LIST:
        suffixes = HISTOGRAM if metric.kind == "histogram" else ("",)
        for suffix in suffixes:
            found[metric.served_name + suffix] = {*metric.labels, *(["le"] if suffix == "_bucket" else [])}
    return {name: labels | OF_EVERY_SERIES for name, labels in (found | OF_PROMETHEUS).items()}


SERVED = served()
EXPRESSIONS = dict(expressions())
EVERY = pytest.mark.parametrize("expression", EXPRESSIONS.values(), ids=EXPRESSIONS)


@EVERY
def test_an_expression_speaks_of_metrics_that_are_served(expression: str) -> None:
    assert metrics_of(expression)
    assert metrics_of(expression) <= SERVED.keys()


@EVERY
def test_an_expression_selects_by_labels_that_the_metric_has(expression: str) -> None:
    for each in selected(expression):
        assert each.labels.keys() <= SERVED[each.metric]


@EVERY
def test_an_expression_groups_by_labels_that_a_metric_of_it_has(expression: str) -> None:
    assert grouped_by(expression) <= set().union(*(SERVED[name] for name in metrics_of(expression)))


@EVERY
def test_an_expression_selects_codes_and_reasons_that_there_are(expression: str) -> None:
    known = {"code": {each.name for each in grpc.StatusCode}, "reason": {*ErrorReason.keys()}}
    for each in selected(expression):
        for label in each.labels.keys() & known.keys():
            assert set(each.labels[label].split("|")) <= known[label]


def test_every_metric_of_ours_is_on_the_dashboard() -> None:
    shown = {name for panel in panels() for target in panel["targets"] for name in metrics_of(target["expr"])}
    missing = {
        metric.served_name
        for metric in LIST
        if not shown & {metric.served_name + suffix for suffix in ("", *HISTOGRAM)}
    }
    assert missing == set()


def test_names_are_found_wherever_an_expression_has_them() -> None:
    expression = (
        'a / on (le) (sum by (le) (rate(b_total{code="c", instance=~"$d"}[$__rate_interval])) > 5) or e == bool 0'
    )
    assert metrics_of(expression) == {"a", "b_total", "e"}
    assert [(each.metric, each.labels) for each in selected(expression)] == [
        ("b_total", {"code": "c", "instance": "$d"})
    ]
    assert grouped_by(expression) == {"le"}


def test_every_panel_has_its_own_number_place_and_explanation() -> None:
    numbers = [each["id"] for each in DASHBOARD["panels"]]
    assert len(numbers) == len(set(numbers))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + right, at["y"] + down) for right in range(at["w"]) for down in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]


def test_every_alert_says_what_is_wrong_what_to_do_and_how_bad_it_is() -> None:
    for rule in RULES:
        assert rule["labels"].keys() == {"severity"}, rule["alert"]
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"].keys() == {"summary", "description"}, rule["alert"]
        assert len(rule["annotations"]["description"].split()) > 20, rule["alert"]


def test_what_an_alert_points_to_is_there() -> None:
    titles = {panel["title"] for panel in panels()}
    settings = (REPOSITORY / "service" / "settings.py").read_text(encoding="utf-8")
    for rule in RULES:
        said = rule["annotations"]["description"]
        for setting in re.findall(r"FANTAIL_(\w+)", said):
            assert f"    {setting.lower()}: " in settings, setting
        assert set(re.findall(r"ERROR_REASON_\w+", said)) <= set(ErrorReason.keys())
        assert set(re.findall(r"see (Fantail\w+)", said)) <= {each["alert"] for each in RULES}
        assert set(re.findall(r'"([A-Z][^"]+)"', said)) <= titles, rule["alert"]


def fires(test: dict[str, Any], alert: str) -> set[bool]:
    """Whether a unit test expects an alert to fire, or not to: both when it looks twice."""
    looks = [(each["alertname"], each["exp_alerts"]) for each in test.get("alert_rule_test", [])]
    looks += [(each["expr"], each["exp_samples"]) for each in test.get("promql_expr_test", [])]
    return {bool(expected) for about, expected in looks if re.search(rf"\b{alert}\b", about)}


@pytest.mark.parametrize("alert", [rule["alert"] for rule in RULES])
def test_every_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not(alert: str) -> None:
    assert set().union(*(fires(test, alert) for test in UNIT_TESTS)) == {True, False}


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is missing; install Prometheus (Debian: apt-get install prometheus)")
    return found


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("check", "config", PROMETHEUS / "prometheus.yml"),
        ("check", "rules", PROMETHEUS / "alerts.yml"),
        ("test", "rules", PROMETHEUS / "alerts_test.yml"),
    ],
    ids=["config", "rules", "unit tests of the rules"],
)
def test_promtool_accepts(promtool: str, command: tuple[str | Path, ...]) -> None:
    run(promtool, *command)


def test_promtool_can_read_every_expression_of_the_dashboard(promtool: str, tmp_path: Path) -> None:
    rules = [
        {"record": f"panel:{number}", "expr": re.sub(r"\$\w+", "5m", expression)}
        for number, (place, expression) in enumerate(EXPRESSIONS.items())
        if not place.startswith("variable ")
    ]
    path = tmp_path / "dashboard.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    run(promtool, "check", "rules", path)
