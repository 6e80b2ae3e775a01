"""Settings from the environment: defaults, and that every unknown or malformed one is named at once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.base_model import BUNDLED
from service.errors import ConfigurationError
from service.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("FANTAIL_"):
            monkeypatch.delenv(name)


def refusal(monkeypatch: pytest.MonkeyPatch, **environment: str) -> list[str]:
    """The lines of the refusal of these settings."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load_settings()
    return str(caught.value).splitlines()


def test_without_environment_the_defaults_hold() -> None:
    settings = load_settings()
    assert settings == Settings.model_construct()
    assert (settings.model, settings.address) == (BUNDLED, "127.0.0.1:50051")
    assert settings.classifiers == Path("classifiers")
    assert settings.admin is False
    assert (settings.cores, settings.kv_gib, settings.context_tokens) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("FANTAIL_ADDRESS", "127.0.0.2:1", "address", "127.0.0.2:1"),
        ("FANTAIL_ADDRESS", "[::1]:50051", "address", "[::1]:50051"),
        ("FANTAIL_CLASSIFIERS", "/srv/c", "classifiers", Path("/srv/c")),
        ("FANTAIL_CORES", "3", "cores", 3),
        ("FANTAIL_KV_GIB", "1.5", "kv_gib", 1.5),
        ("FANTAIL_DTYPE", "bfloat16", "dtype", "bfloat16"),
        ("FANTAIL_GRACE_SECONDS", "0", "grace_seconds", 0.0),
        ("FANTAIL_GPU_MEMORY_SHARE", "1", "gpu_memory_share", 1.0),
        ("FANTAIL_CONTEXT_TOKENS", "256", "context_tokens", 256),
        ("fantail_cores", "3", "cores", 3),
        ("Fantail_Cores", "3", "cores", 3),
        ("FANTAIL_CORES", "", "cores", None),
    ],
)
def test_a_setting_is_read_whatever_its_case(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, field: str, value: object
) -> None:
    monkeypatch.setenv(name, text)
    assert getattr(load_settings(), field) == value


ADDRESS = "must be HOST:PORT, for instance 127.0.0.1:50051"
INTEGER = "Input should be a valid integer, unable to parse string as an integer"


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("FANTAIL_ADDRESS", "localhost", ADDRESS),
        ("FANTAIL_ADDRESS", ":50051", ADDRESS),
        ("FANTAIL_ADDRESS", "localhost:http", ADDRESS),
        ("FANTAIL_METRICS_ADDRESS", "9090", ADDRESS),
        ("FANTAIL_OTLP_ENDPOINT", "collector:4317", "must begin with http:// or https://"),
        ("FANTAIL_DTYPE", "int8", "Input should be 'auto', 'float32', 'bfloat16' or 'float16'"),
        ("FANTAIL_LOG_LEVEL", "trace", "Input should be 'debug', 'info', 'warning' or 'error'"),
        ("FANTAIL_ADMIN", "maybe", "Input should be a valid boolean, unable to interpret input"),
        ("FANTAIL_CORES", "0", "Input should be greater than or equal to 1"),
        ("FANTAIL_CORES", "two", INTEGER),
        ("FANTAIL_CORES", "1.5", INTEGER),
        ("FANTAIL_KV_GIB", "0", "Input should be greater than 0"),
        ("FANTAIL_KV_GIB", "nan", "Input should be a finite number"),
        ("FANTAIL_KV_GIB", "inf", "Input should be a finite number"),
        ("FANTAIL_GPU_MEMORY_SHARE", "0", "Input should be greater than 0"),
        ("FANTAIL_GPU_MEMORY_SHARE", "1.01", "Input should be less than or equal to 1"),
        ("FANTAIL_CONTEXT_TOKENS", "255", "Input should be greater than or equal to 256"),
        ("FANTAIL_STEP_TOKENS", "63", "Input should be greater than or equal to 64"),
        ("FANTAIL_SLOTS", "0", "Input should be greater than or equal to 1"),
        ("FANTAIL_CONCURRENT_SEQUENCES", "0", "Input should be greater than or equal to 1"),
        ("FANTAIL_MAX_TURNS", "0", "Input should be greater than or equal to 1"),
        ("FANTAIL_MAX_MESSAGE_BYTES", "1023", "Input should be greater than or equal to 1024"),
        ("FANTAIL_GRACE_SECONDS", "-1", "Input should be greater than or equal to 0"),
        ("fantail_cores", "0", "Input should be greater than or equal to 1"),
    ],
)
def test_a_malformed_setting_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, why: str
) -> None:
    problem, known = refusal(monkeypatch, **{name: value})
    assert problem == f"{name.upper()}: {why}"
    assert known.startswith("known settings: ")


def test_an_unknown_setting_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, known = refusal(monkeypatch, FANTAIL_ADRESS="127.0.0.1:1")
    assert problem == "FANTAIL_ADRESS: unknown setting"
    assert known.removeprefix("known settings: ").split(", ") == sorted(
        f"FANTAIL_{name.upper()}" for name in Settings.model_fields
    )


def test_an_unknown_setting_in_lower_case_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(monkeypatch, fantail_adress="x")[0] == "fantail_adress: unknown setting"


def test_all_problems_are_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    *problems, _ = refusal(
        monkeypatch, FANTAIL_ADRESS="x", FANTAIL_PORT="1", FANTAIL_CORES="0", FANTAIL_DTYPE="int8", FANTAIL_SLOTS="x"
    )
    assert [problem.split(":")[0] for problem in problems] == [
        "FANTAIL_ADRESS",
        "FANTAIL_PORT",
        "FANTAIL_DTYPE",
        "FANTAIL_CORES",
        "FANTAIL_SLOTS",
    ]


def test_a_refusal_does_not_repeat_the_value(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = refusal(monkeypatch, FANTAIL_CORES="hunter2", FANTAIL_TOKEN="hunter2")
    assert "hunter2" not in "\n".join(lines)


def test_names_of_other_programs_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FANTAILS", "x")
    monkeypatch.setenv("MY_FANTAIL_CORES", "x")
    assert load_settings().cores is None


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        load_settings().cores = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_explains_its_trade_off(name: str) -> None:
    assert len(Settings.model_fields[name].description or "") > 20
