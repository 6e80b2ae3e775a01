"""The command `fantail` where no server is asked: settings, keys, help, and what it refuses by itself."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.cli import main
from service.keys import KeyRing
from service.settings import PREFIX, Settings
from tests.integration.harness import Ended
from tests.support import CLASSIFIERS, REPOSITORY

Fantail = Callable[..., Ended]
USAGE = 2
"""The exit code of a command line that makes no sense, by convention."""


@pytest.fixture
def fantail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Fantail:
    """Runs the command in an empty folder; `FANTAIL_…` comes from the arguments alone."""
    monkeypatch.chdir(tmp_path)
    for name in [*filter(lambda name: name.startswith(PREFIX), os.environ), "COLUMNS"]:
        monkeypatch.delenv(name, raising=False)

    def run(*arguments: str, **environment: str) -> Ended:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.argv", ["fantail", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else int(code is not None), *capsys.readouterr())

    return run


@pytest.mark.parametrize(
    "conversation",
    [
        pytest.param([], id="a list"),
        pytest.param({}, id="no turns"),
        pytest.param({"turns": 5}, id="turns that are a number"),
        pytest.param({"turns": ["hi"]}, id="a turn that is text"),
        pytest.param({"turns": [{"role": "customer"}]}, id="a turn without text"),
        pytest.param({"turns": [{"role": "customer", "text": 5}]}, id="text that is a number"),
        pytest.param({"turns": [{"role": ["customer"], "text": "hi"}]}, id="a role that is a list"),
        pytest.param({"turns": [{"role": "customer", "text": "\ud800"}]}, id="text that is no Unicode"),
    ],
)
def test_a_file_that_holds_no_conversation_is_a_usage_error_that_names_it(
    fantail: Fantail, tmp_path: Path, conversation: Any
) -> None:
    (tmp_path / "talk.json").write_text(json.dumps(conversation), encoding="utf-8")
    ended = fantail("classify", "talk.json")
    assert (ended.code, ended.out) == (USAGE, "")
    assert "talk.json" in ended.err


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff"], ids=["missing", "empty", "not JSON", "not UTF-8"])
def test_a_file_that_cannot_be_read_is_a_usage_error_that_names_it(
    fantail: Fantail, tmp_path: Path, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "talk.json").write_bytes(content)
    ended = fantail("classify", "talk.json")
    assert (ended.code, ended.out) == (USAGE, "")
    assert "talk.json" in ended.err


def test_settings_lists_every_setting_by_its_whole_name_with_its_default(fantail: Fantail) -> None:
    ended = fantail("settings")
    assert (ended.code, ended.err) == (0, "")
    names = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    assert [name for name in names if name not in ended.out] == []
    assert "127.0.0.1:50051" in ended.out


def test_unknown_and_malformed_settings_are_told_all_at_once(fantail: Fantail) -> None:
    ended = fantail("base", FANTAIL_ADRESS="127.0.0.1:1", FANTAIL_CORES="many", FANTAIL_MAX_TURNS="0")
    assert (ended.code, ended.out) == (1, "")
    for part in ("FANTAIL_ADRESS: unknown setting", "FANTAIL_CORES: ", "FANTAIL_MAX_TURNS: ", "known settings: "):
        assert part in ended.err


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FANTAIL_ADDRESS", "nowhere"),
        ("FANTAIL_CORES", "several"),
        ("FANTAIL_GPU_MEMORY_SHARE", "1.5"),
        ("FANTAIL_DTYPE", "int8"),
        ("FANTAIL_LOG_LEVEL", "chatty"),
    ],
)
def test_a_malformed_setting_is_named_and_its_value_not_echoed(fantail: Fantail, name: str, value: str) -> None:
    ended = fantail("base", **{name: value})
    assert (ended.code, ended.out) == (1, "")
    assert ended.err.startswith(f"error: {name}: ")
    assert value not in ended.err


@pytest.mark.parametrize("model", ["./nowhere", "nowhere", "/no/[/x]where", "/no/[bold]where"])
def test_a_base_that_is_not_there_is_told_with_its_setting(fantail: Fantail, model: str) -> None:
    ended = fantail("base", FANTAIL_MODEL=model)
    assert (ended.code, ended.out) == (1, "")
    assert model in ended.err
    assert "FANTAIL_MODEL" in ended.err


@pytest.mark.parametrize("signal", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_still_gets_its_base_ready_ends_at_once_and_leaves_nothing(tmp_path: Path, signal: int) -> None:
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "FANTAIL_CLASSIFIERS": str(CLASSIFIERS)}
    command = [sys.executable, "-m", "service", "serve"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment) as server:
        while not list(tmp_path.glob("fantail/.*")):  # what is converted
            assert server.poll() is None
            time.sleep(0.05)
        server.send_signal(signal)
        assert server.wait(10) == 0
    assert list(tmp_path.glob("fantail/*")) == list(tmp_path.glob("fantail/.*")) == []


def test_where_only_the_client_is_installed_the_command_says_what_to_install() -> None:
    without = "import sys; sys.modules['typer'] = None; from service.__main__ import main; main()"
    ended = subprocess.run([sys.executable, "-c", without], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == (
        "The command needs typer, which is not installed: the base install is the client alone. "
        "Install fantail[cpu] or fantail[gpu].\n"
    )


def test_help_names_every_command(fantail: Fantail) -> None:
    ended = fantail("--help")
    assert ended.code == 0
    serving = ("serve", "check", "settings", "classify", "key", "base", "demo")
    making = ("new", "import", "train", "probes", "calibrate", "evaluate", "gate")
    for command in (*serving, *making):
        assert f" {command} " in ended.out


def shown_key(ended: Ended) -> str:
    """The key that the command showed."""
    (line,) = ended.err.splitlines()
    return line.removeprefix("the key, shown once: ")


@pytest.mark.parametrize(
    ("arguments", "scopes"),
    [
        ((), {"classify"}),
        (("--scope", "admin"), {"admin"}),
        (("--scope", "admin", "--scope", "classify", "--scope", "admin"), {"admin", "classify"}),
    ],
    ids=["by default", "one", "several"],
)
def test_key_prints_an_entry_that_lets_the_key_in(
    fantail: Fantail, tmp_path: Path, arguments: tuple[str, ...], scopes: set[str]
) -> None:
    ended = fantail("key", "support.1", *arguments)
    (tmp_path / "keys.toml").write_text(ended.out, encoding="utf-8")
    found = KeyRing(tmp_path / "keys.toml").find(shown_key(ended))
    assert found is not None
    assert (ended.code, found.name, found.scopes) == (0, "support.1", scopes)


def test_key_prints_the_key_apart_from_what_belongs_in_the_file(fantail: Fantail) -> None:
    ended = fantail("key", "support")
    assert shown_key(ended) not in ended.out


def test_entries_follow_each_other_in_one_file(fantail: Fantail, tmp_path: Path) -> None:
    made = [fantail("key", name) for name in ("support", "billing", "support")]
    (tmp_path / "keys.toml").write_text("".join(each.out for each in made), encoding="utf-8")
    ring = KeyRing(tmp_path / "keys.toml")
    found = [ring.find(shown_key(each)) for each in made]
    assert [each.name for each in found if each is not None] == ["support", "billing", "support"]


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("two words",), "name: "), (('a"b',), "name: "), (("",), "name: "), (("x" * 65,), "name: "),
        (("support", "--scope", "root"), "scopes."), (("support", "--scope", ""), "scopes."), ((), "argument"),
    ],
    ids=["two words", "a quote", "no name", "65 characters", "unknown scope", "empty scope", "nothing"],
)  # fmt: skip
def test_a_key_that_the_file_would_not_take_is_a_usage_error(
    fantail: Fantail, arguments: tuple[str, ...], what: str
) -> None:
    ended = fantail("key", *arguments)
    assert (ended.code, ended.out) == (USAGE, "")
    assert what in ended.err
    assert "shown once" not in ended.err


@pytest.mark.parametrize(
    "content", [None, b"", b"no PEM", b"-----BEGIN CERTIFICATE-----\nMIIB"], ids=["missing", "empty", "other", "half"]
)
def test_a_ca_that_is_no_pem_is_a_usage_error_that_names_it(
    fantail: Fantail, tmp_path: Path, content: bytes | None
) -> None:
    (tmp_path / "talk.json").write_text('{"turns": [{"role": "customer", "text": "hi"}]}', encoding="utf-8")
    if content is not None:
        (tmp_path / "ca.pem").write_bytes(content)
    ended = fantail("classify", "talk.json", "--ca", "ca.pem")
    assert (ended.code, ended.out) == (USAGE, "")
    assert "ca.pem" in ended.err


@pytest.mark.parametrize("key", ["", " ", "hunter2 hunter2", "hunter2\n", "hünter2", "hunter2\x7f"], ids=ascii)
def test_a_key_that_no_header_can_hold_is_a_usage_error_that_does_not_repeat_it(
    fantail: Fantail, tmp_path: Path, key: str
) -> None:
    (tmp_path / "talk.json").write_text('{"turns": [{"role": "customer", "text": "hi"}]}', encoding="utf-8")
    ended = fantail("classify", "talk.json", "--key", key)
    assert (ended.code, ended.out) == (USAGE, "")
    assert "--key" in ended.err
    assert "nter2" not in ended.err


@pytest.fixture
def folders(tmp_path: Path, make_classifier_folder: Callable[..., Path]) -> Path:
    """Two classifiers that are servable."""
    made = tmp_path / "classifiers"
    made.mkdir()
    shutil.copy(CLASSIFIERS / "prompt.toml", made)
    for name in ("fraud", "refund"):
        make_classifier_folder(made, name)
    return made


def test_check_shows_every_classifier_without_a_server(fantail: Fantail, folders: Path) -> None:
    ended = fantail("check", FANTAIL_CLASSIFIERS=str(folders), COLUMNS="200")
    assert (ended.code, ended.err) == (0, "")
    assert "2 of 2 classifiers are servable" in ended.out
    assert [name for name in ("fraud", "refund") if name in ended.out] == ["fraud", "refund"]


@pytest.mark.parametrize("command", ["check", "serve"])
def test_all_problems_of_all_folders_are_told_and_nothing_starts(fantail: Fantail, folders: Path, command: str) -> None:
    (folders / "fraud" / "adapter" / "adapter_config.json").unlink()
    (folders / "refund" / "classifier.toml").write_text("words =", encoding="utf-8")
    ended = fantail(command, FANTAIL_CLASSIFIERS=str(folders))
    assert (ended.code, ended.out) == (1, "")
    assert "fraud: adapter_config.json is missing" in ended.err
    assert "refund: classifier.toml is not valid TOML" in ended.err
