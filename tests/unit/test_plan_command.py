"""`fantail plan`: what it reads, what it prints, and what it refuses, option by option."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from service.cli import app
from service.cli.common import console
from service.errors import ConfigurationError, FantailError, RegistryError
from service.serve import CPU_TOKENS_IN_FLIGHT, GPU_TOKENS_IN_FLIGHT
from tests.architecture.source import is_within
from tests.architecture.test_import_law import modules_loaded_by
from tests.support import ABSENT, CLASSIFIERS, OWN_PROMPT, REPOSITORY, changed
from tests.unit.planned import MISTRAL_7B, SMOLLM2_135M

ADAPTER = {"r": 4, "target_modules": ["q_proj", "o_proj"], "alora_invocation_tokens": [1, 2]}
PAGE = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
SETTINGS = {"SLOTS": "4", "KV_GIB": "2", "MAX_RANK": "32", "CONTEXT_TOKENS": "1024", "MAX_TOKENS_IN_FLIGHT": "4096"}
USAGE = 2
"""The exit code of a command line that makes no sense, by convention."""


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base of which there is only its configuration, and the shipped classifiers."""
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SMOLLM2_135M))
    monkeypatch.setenv("FANTAIL_MODEL", str(folder))
    monkeypatch.setenv("FANTAIL_CLASSIFIERS", str(CLASSIFIERS))
    monkeypatch.setattr(console, "width", 100)
    return folder


def fantail_plan(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["plan", *map(str, arguments)])


def planned(*arguments: str | Path) -> dict[str, Any]:
    done = fantail_plan("--json", *arguments)
    assert done.exit_code == 0, done.output
    plan: dict[str, Any] = json.loads(done.output)
    return plan


def refused(*arguments: str | Path) -> FantailError:
    error = fantail_plan(*arguments).exception
    assert isinstance(error, FantailError)
    return error


def classifier(directory: Path, name: str, config: dict[str, Any] | None) -> None:
    (directory / name / "adapter").mkdir(parents=True)
    if config is None:
        (directory / name / "adapter").rmdir()
    else:
        (directory / name / "adapter" / "adapter_config.json").write_text(json.dumps(config))


def test_by_default_what_is_configured_is_planned() -> None:
    plan = planned()
    assert plan["deployment"]["served"]["fan"] == {"activated": 16, "plain": 0, "bare": 0, "prompts": 1}
    assert plan["memory"]["weights"] == 134_515_008 * 4
    assert plan["slot_count"] == 20
    assert [warning[:35] for warning in plan["warnings"]] == ["1,536 tokens in flight let in 1 of "]


def test_the_example_of_the_documentation_prints_what_stands_there() -> None:
    (example,) = re.findall(r"^\$ fantail plan (.*?)\n(.*?)^```$", PAGE, re.M | re.S)
    arguments, expected = example
    *shown, warning = [line.rstrip() for line in fantail_plan(*arguments.split()).output.rstrip().splitlines()]
    *tables, wrapped = expected.split("warning: ")
    assert shown == [*"".join(tables).rstrip().splitlines(), ""]
    assert warning == "warning: " + " ".join(wrapped.split())


def test_with_the_bound_that_is_advised_as_many_machines_do_as_the_documentation_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usual = planned("--tokens", "2000")
    (advised,) = re.findall(r"set FANTAIL_MAX_TOKENS_IN_FLIGHT to (\d+)", usual["warnings"][0])
    monkeypatch.setenv("FANTAIL_MAX_TOKENS_IN_FLIGHT", advised)
    before, after = (plan["lengths"][0]["ways"][0] for plan in (usual, planned("--tokens", "2000")))
    said = (
        f"set FANTAIL_MAX_TOKENS_IN_FLIGHT to {advised}, and at 2,000 tokens it is {after['machines']} machines "
        f"instead of {before['machines']}, {after['latency_s']:.2f} s instead of {before['latency_s']:.2f}, "
        f"{after['turned_away']:.1%}"
    )
    assert said.removesuffix("%") in " ".join(PAGE.split())


def test_the_command_beside_published_figures_prints_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command,) = re.findall(r"`FANTAIL_GPU_MEMORY_SHARE=1 fantail plan (.*?)`", PAGE, re.S)
    (tmp_path / "mistral-7b").mkdir()
    (tmp_path / "mistral-7b" / "config.json").write_text(json.dumps(MISTRAL_7B))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FANTAIL_GPU_MEMORY_SHARE", "1")
    plan = planned(*command.split())
    published = {"weights": 14e9, "slots": 1.4e9, "kv": 7e9}
    assert {part: plan["memory"][part] for part in published} == pytest.approx(published, rel=0.05)
    assert plan["memory"]["step"] + plan["memory"]["runtime"] == pytest.approx(1e9, rel=0.1)
    assert plan["deployment"]["served"]["ranks"] == [16] * 16


def test_warnings_stand_below_the_tables() -> None:
    *_, last = fantail_plan("--slots", "3", "--tokens", "320").output.splitlines()
    assert last.startswith("warning: 16 adapters share 3 slots")


def test_classifiers_are_counted_by_what_answers_them(tmp_path: Path) -> None:
    classifier(tmp_path / "mine", "activated", ADAPTER)
    classifier(tmp_path / "mine", "plain", changed(ADAPTER, {"r": 16, "alora_invocation_tokens": None}))
    classifier(tmp_path / "mine", "zero_shot", None)
    for name in ("plain", "zero_shot"):  # the plain one reads for itself anyway
        (tmp_path / "mine" / name / "prompt.toml").write_text(OWN_PROMPT)
    plan = planned("--classifiers", tmp_path / "mine")
    assert plan["deployment"]["served"] == {
        "fan": {"activated": 1, "plain": 1, "bare": 1, "prompts": 2},
        "ranks": [4, 16],
        "modules": ["o_proj", "q_proj"],
    }
    assert plan["slot_rank"] == 16


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"r": 0}, "r is 0"),
        ({"r": 513}, "r is 513"),
        ({"r": ABSENT}, "r is None"),
        ({"target_modules": "all-linear"}, "target_modules is 'all-linear'"),
        ({"target_modules": []}, "target_modules is []"),
        ({"target_modules": ["lm_head"]}, "q_proj"),
        ({"target_modules": [["q_proj"]]}, "target_modules is [["),
    ],
)
def test_adapters_that_cannot_be_planned_are_all_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    for name in ("one", "two"):
        classifier(tmp_path / "mine", name, changed(ADAPTER, changes))
    error = refused("--classifiers", tmp_path / "mine")
    assert isinstance(error, RegistryError)
    assert [name in problem and named in problem for name, problem in zip(("one", "two"), error.problems, strict=True)]


@pytest.mark.parametrize(
    ("options", "ranks"),
    [(("--adapters", "3"), [8, 8, 8]), (("--adapters", "2", "--rank", "64"), [64, 64])],
    ids=["of the usual rank", "of a rank"],
)
def test_adapters_can_be_described_instead(options: tuple[str, ...], ranks: list[int]) -> None:
    assert planned(*options)["deployment"]["served"]["ranks"] == ranks


@pytest.mark.parametrize(
    "options",
    [("--rank", "8"), ("--adapters", "2", "--classifiers", "x"), ("--rank", "8", "--classifiers", "x")],
    ids=" ".join,
)
def test_options_that_contradict_each_other_are_refused(options: tuple[str, ...]) -> None:
    error = refused(*options)
    assert isinstance(error, ConfigurationError)
    assert "give either --classifiers FOLDER, or --adapters N" in error.message


def test_a_gpu_is_planned_with_its_own_usual_values(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(MISTRAL_7B))
    plan = planned("--gpu", "--model", file, "--adapters", "16", "--tokens", "1000")
    assert plan["deployment"]["dtype"] == "bfloat16"
    assert plan["deployment"]["machine"]["memory_bytes"] == 22.5 * 2**30
    assert [length["tokens"] for length in plan["lengths"]] == [1000]


@pytest.mark.parametrize(("what", "bound"), [("--cpu", CPU_TOKENS_IN_FLIGHT), ("--gpu", GPU_TOKENS_IN_FLIGHT)])
def test_the_bound_on_tokens_in_flight_is_the_servers(what: str, bound: int) -> None:
    assert planned(what)["deployment"]["max_tokens_in_flight"] == bound


def test_given_values_take_the_place_of_the_usual_ones() -> None:
    rates = ("--tflops", "2", "--bandwidth", "100", "--call-ms", "5", "--memory", "8", "--price", "3")
    deployment = planned(*rates, "--dtype", "bfloat16", "--tail", "9", "--calls-per-second", "4")["deployment"]
    machine = deployment["machine"]
    assert (machine["operations_per_s"], machine["memory_bytes_per_s"], machine["call_s"]) == (2e12, 1e11, 0.005)
    assert (machine["memory_bytes"], machine["price_per_hour"]) == (8 * 2**30, 3)
    assert (deployment["dtype"], deployment["tail_tokens"], deployment["calls_per_s"]) == ("bfloat16", 9, 4)


def test_settings_of_the_engine_count(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SETTINGS.items():
        monkeypatch.setenv(f"FANTAIL_{name}", value)
    plan = planned("--tokens", "2000")
    assert (plan["slot_count"], plan["slot_rank"], plan["memory"]["kv"]) == (4, 32, 2 * 2**30)
    assert plan["lengths"][0]["prefix_tokens"] == 928
    assert plan["lengths"][0]["ways"][0]["let_in"] == 1 + 2048 // (928 + 16 * 3)
    assert len(plan["warnings"]) == 3


@pytest.mark.parametrize(
    "option", ["--memory", "--tflops", "--bandwidth", "--call-ms", "--price", "--calls-per-second"]
)
@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_a_quantity_that_no_machine_has_is_refused_by_its_option(option: str, value: str) -> None:
    error = refused(option, value)
    assert isinstance(error, ConfigurationError)
    assert error.message == f"{option}: {value} is not a positive number"


def test_all_wrong_quantities_are_told_at_once() -> None:
    assert refused("--memory", "0", "--price", "-2").message.count("is not a positive number") == 2


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--adapters", "0"), ("--rank", "0"), ("--rank", "513"), ("--slots", "0"), ("--tokens", "0"), ("--tail", "0"),
        ("--tail", "65"), ("--dtype", "int8"), ("--memory", "much"), ("--tokens", "1.5"), ("--price", ""),
    ],
)  # fmt: skip
def test_a_malformed_option_is_a_usage_error_that_names_it(option: str, value: str) -> None:
    done = fantail_plan(option, value)
    assert done.exit_code == USAGE
    assert option in done.output


@pytest.mark.parametrize("options", [("--model", "nowhere"), ("--classifiers", "nowhere")], ids=" ".join)
def test_what_is_not_there_is_named(options: tuple[str, str]) -> None:
    assert "nowhere" in refused(*options).message


def test_a_configured_name_is_not_downloaded_for_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FANTAIL_MODEL", "somebody/some-model")
    assert "--model" in refused().message


def test_a_context_longer_than_the_bases_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FANTAIL_CONTEXT_TOKENS", "8193")
    assert "FANTAIL_CONTEXT_TOKENS" in refused().message


def test_planning_loads_neither_an_engine_nor_a_framework_nor_a_protocol() -> None:
    loaded = modules_loaded_by("service.planning.plan")
    unwanted = ("vllm", "torch", "transformers", "grpc")
    assert {name for name in loaded if any(is_within(name, root) for root in unwanted)} == set()
