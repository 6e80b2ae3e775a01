"""The command `fantail` as people run it: what it prints, and how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from service.settings import PREFIX, Settings
from tests.integration.harness import ACTIVATED, NAMES, NEVER_S, PLAIN, Ended, WatchedEngine, run_command

FANTAIL = str(Path(sys.executable).with_name("fantail"))
REFUND = {"turns": [{"role": "customer", "text": "where is my refund??"}]}


class Fantail:
    """Runs the command in an empty folder. `address`: of the server to ask."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address

    async def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> Ended:
        return await run_command(FANTAIL, *arguments, cwd=self.folder, stdin=stdin, **environment)

    async def classify(self, conversation: Any, *arguments: str) -> Ended:
        file = self.folder / "conversation.json"
        file.write_text(json.dumps(conversation), encoding="utf-8")
        return await self("classify", str(file), "--address", self.address, *arguments)


@pytest.fixture
def fantail(address: str, tmp_path: Path) -> Fantail:
    return Fantail(tmp_path, address)


def _assert_one_message(ended: Ended, code: int = 1) -> None:
    assert ended.code == code
    assert ended.out == ""
    assert "Traceback" not in ended.err
    assert ended.err.strip()


async def test_classify_prints_one_line_per_classifier(fantail: Fantail) -> None:
    ended = await fantail.classify(REFUND)
    assert (ended.code, ended.err) == (0, "")
    rows = [line for line in ended.out.splitlines() if any(f" {name} " in line for name in NAMES)]
    assert [next(name for name in NAMES if name in row) for row in rows] == NAMES
    assert all("0.800" in row and "0.900" in row for row in rows)
    assert "tokens: " in ended.out
    assert "stages: prompt " in ended.out


async def test_classify_asks_only_the_named_classifiers(fantail: Fantail, engine: WatchedEngine) -> None:
    ended = await fantail.classify(REFUND, "--classifier", PLAIN, "--classifier", ACTIVATED)
    assert ended.code == 0
    assert ended.out.index(PLAIN) < ended.out.index(ACTIVATED)
    assert len(engine.requests) == 2


async def test_classify_reads_standard_input(fantail: Fantail) -> None:
    ended = await fantail("classify", "-", "--address", fantail.address, stdin=json.dumps(REFUND))
    assert ended.code == 0
    assert all(name in ended.out for name in NAMES)


async def test_classify_prints_the_response_as_json(fantail: Fantail) -> None:
    ended = await fantail.classify(REFUND, "--json", "--classifier", PLAIN, "--classifier", "nobody")
    assert (ended.code, ended.err) == (0, "")
    answered, unknown = json.loads(ended.out)["results"]
    assert answered["classification"]["classifier"] == PLAIN
    assert answered["classification"]["abstained"] is False
    assert answered["classification"]["truncation"] == {"droppedTurns": 0, "droppedTokens": 0}
    assert unknown["status"]["details"][0]["reason"] == "ERROR_REASON_CLASSIFIER_UNKNOWN"


async def test_a_classifier_without_answer_is_shown_beside_the_others(fantail: Fantail) -> None:
    ended = await fantail.classify(REFUND, "--classifier", PLAIN, "--classifier", "nobody")
    assert ended.code == 0
    assert "0.800" in ended.out
    assert "nobody" in ended.out
    assert "no such" in " ".join(ended.out.split())


@pytest.mark.parametrize("name", ["[/x]", "[bold]x"])
async def test_a_name_that_looks_like_markup_is_shown_as_it_is(fantail: Fantail, name: str) -> None:
    ended = await fantail.classify(REFUND, "--classifier", name)
    assert (ended.code, ended.err) == (0, "")
    assert name in ended.out


async def test_a_refusal_gives_code_reason_and_every_field(fantail: Fantail) -> None:
    turns = [{"role": "customer", "text": " "}, {"role": "nobody", "text": "hi"}]
    ended = await fantail.classify({"turns": turns})
    _assert_one_message(ended)
    for part in (
        "INVALID_ARGUMENT",
        "ERROR_REASON_TEXT_MISSING",
        "conversation.turns[0].text",
        "conversation.turns[1].role",
    ):
        assert part in ended.err


@pytest.mark.parametrize("name", ["[/x]", "[bold]x"])
async def test_a_refusal_that_quotes_markup_is_shown_as_it_is(fantail: Fantail, name: str) -> None:
    ended = await fantail.classify(REFUND, "--classifier", name, "--classifier", name)
    _assert_one_message(ended)
    assert "ERROR_REASON_CLASSIFIER_DUPLICATED" in ended.err
    assert name in ended.err


async def test_a_dead_engine_is_told(fantail: Fantail, engine: WatchedEngine) -> None:
    engine.dead = True
    ended = await fantail.classify(REFUND)
    _assert_one_message(ended)
    assert "UNAVAILABLE ERROR_REASON_ENGINE_DEAD" in ended.err


async def test_a_server_that_is_not_there_is_told_with_its_address(fantail: Fantail) -> None:
    fantail.address = "127.0.0.1:1"
    ended = await fantail.classify(REFUND)
    _assert_one_message(ended)
    assert "UNAVAILABLE" in ended.err
    assert "127.0.0.1:1" in ended.err


async def test_a_deadline_that_passes_is_told(fantail: Fantail, engine: WatchedEngine) -> None:
    engine.latency_s = NEVER_S
    ended = await fantail.classify(REFUND, "--timeout", "0.5")
    _assert_one_message(ended)
    assert "DEADLINE_EXCEEDED" in ended.err


@pytest.mark.parametrize(
    "conversation",
    [
        pytest.param([], id="a list"),
        pytest.param({}, id="no turns"),
        pytest.param({"turns": ["hi"]}, id="a turn that is text"),
        pytest.param({"turns": [{"role": "customer"}]}, id="a turn without text"),
        pytest.param({"turns": [{"role": "customer", "text": 5}]}, id="text that is a number"),
        pytest.param({"turns": [{"role": ["customer"], "text": "hi"}]}, id="a role that is a list"),
        pytest.param({"turns": [{"role": "customer", "text": "\ud800"}]}, id="text that is no Unicode"),
    ],
)
async def test_a_file_that_holds_no_conversation_is_a_usage_error_that_names_it(
    fantail: Fantail, engine: WatchedEngine, conversation: Any
) -> None:
    ended = await fantail.classify(conversation)
    _assert_one_message(ended, code=2)
    assert "conversation.json" in "".join(ended.err.split())
    assert engine.requests == []


@pytest.mark.parametrize("content", [None, "{", "\xff"], ids=["missing", "not JSON", "not JSON either"])
async def test_a_file_that_cannot_be_read_is_a_usage_error_that_names_it(fantail: Fantail, content: str | None) -> None:
    if content is not None:
        (fantail.folder / "talk.json").write_text(content, encoding="latin-1")
    ended = await fantail("classify", "talk.json", "--address", fantail.address)
    _assert_one_message(ended, code=2)
    assert "talk.json" in ended.err


async def test_settings_lists_every_setting_with_its_default(fantail: Fantail) -> None:
    ended = await fantail("settings")
    assert (ended.code, ended.err) == (0, "")
    missing = [
        f"{PREFIX}{name.upper()}" for name in Settings.model_fields if f"{PREFIX}{name.upper()}" not in ended.out
    ]
    assert missing == []
    assert "127.0.0.1:50051" in ended.out


async def test_unknown_and_malformed_settings_are_told_all_at_once(fantail: Fantail) -> None:
    ended = await fantail("base", FANTAIL_ADRESS="127.0.0.1:1", FANTAIL_CORES="many", FANTAIL_MAX_TURNS="0")
    _assert_one_message(ended)
    for part in ("FANTAIL_ADRESS: unknown setting", "FANTAIL_CORES: ", "FANTAIL_MAX_TURNS: ", "known settings: "):
        assert part in ended.err
    assert "many" not in ended.err


async def test_a_malformed_secret_is_not_echoed_and_the_address_is_checked(fantail: Fantail) -> None:
    ended = await fantail("base", FANTAIL_ADDRESS="hunter2")
    _assert_one_message(ended)
    assert "FANTAIL_ADDRESS: " in ended.err
    assert "hunter2" not in ended.err


@pytest.mark.parametrize("model", ["./nowhere", "/no/[/x]where", "nowhere"])
async def test_a_base_that_is_not_there_is_told_with_its_setting(fantail: Fantail, model: str) -> None:
    ended = await fantail("base", FANTAIL_MODEL=model)
    _assert_one_message(ended)
    assert model in ended.err
    assert "FANTAIL_MODEL" in ended.err


async def test_help_names_every_command(fantail: Fantail) -> None:
    ended = await fantail("--help")
    assert ended.code == 0
    assert all(command in ended.out for command in ("serve", "check", "settings", "classify", "train", "base", "demo"))
