"""The command `fantail` against a server, as people run it: what it prints, and how it ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import ACTIVATED, NAMES, NEVER_S, PLAIN, Ended, WatchedEngine, run_command

FANTAIL = str(Path(sys.executable).with_name("fantail"))
REFUND = {"turns": [{"role": "customer", "text": "where is my refund??"}]}


class Fantail:
    """`fantail classify` in a folder of its own. `address`: of the server to ask."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder, self.address = folder, address

    async def __call__(self, conversation: Any, *arguments: str) -> Ended:
        (self.folder / "talk.json").write_text(json.dumps(conversation), encoding="utf-8")
        command = (FANTAIL, "classify", "talk.json", "--address", self.address, *arguments)
        return await run_command(*command, cwd=self.folder)


@pytest.fixture
def classify_file(address: str, tmp_path: Path) -> Fantail:
    return Fantail(tmp_path, address)


def assert_one_message(ended: Ended) -> None:
    assert ended.code == 1
    assert ended.out == ""
    assert ended.err.strip()
    assert "Traceback" not in ended.err


async def test_classify_prints_one_line_per_classifier(classify_file: Fantail) -> None:
    ended = await classify_file(REFUND)
    assert (ended.code, ended.err) == (0, "")
    rows = [line for line in ended.out.splitlines() if line.split(" ")[0] in NAMES]
    assert [row.split(" ")[0] for row in rows] == NAMES
    assert all("0.800" in row and "0.900" in row for row in rows)
    assert "tokens: " in ended.out
    assert "stages: prompt " in ended.out


async def test_an_abstaining_classifier_is_marked(classify_file: Fantail, engine: WatchedEngine) -> None:
    engine.mass = 0.01
    ended = await classify_file(REFUND, "--classifier", PLAIN)
    assert ended.code == 0
    assert "billing" in ended.out
    assert "(abstains)" in ended.out


async def test_classify_reads_standard_input_and_asks_only_the_named(
    address: str, tmp_path: Path, engine: WatchedEngine
) -> None:
    command = (FANTAIL, "classify", "-", "--address", address, "--classifier", PLAIN, "--classifier", ACTIVATED)
    ended = await run_command(*command, cwd=tmp_path, stdin=json.dumps(REFUND))
    assert ended.code == 0
    assert ended.out.index(PLAIN) < ended.out.index(ACTIVATED)
    assert len(engine.requests) == 2


async def test_classify_prints_the_response_as_json(classify_file: Fantail) -> None:
    ended = await classify_file(REFUND, "--json", "--classifier", PLAIN, "--classifier", "nobody")
    assert (ended.code, ended.err) == (0, "")
    answered, unknown = json.loads(ended.out)["results"]
    assert answered["classification"]["classifier"] == PLAIN
    assert answered["classification"]["abstained"] is False
    assert answered["classification"]["truncation"] == {"droppedTurns": 0, "droppedTokens": 0}
    assert unknown["status"]["details"][0]["reason"] == "ERROR_REASON_CLASSIFIER_UNKNOWN"


async def test_a_classifier_without_answer_is_shown_beside_the_others(classify_file: Fantail) -> None:
    ended = await classify_file(REFUND, "--classifier", PLAIN, "--classifier", "nobody")
    assert ended.code == 0
    assert "0.800" in ended.out
    assert "nobody" in ended.out
    assert "no such" in " ".join(ended.out.split())


@pytest.mark.parametrize("name", ["[/x]", "[bold]x"])
async def test_a_name_that_looks_like_markup_is_shown_as_it_is(classify_file: Fantail, name: str) -> None:
    ended = await classify_file(REFUND, "--classifier", name)
    assert (ended.code, ended.err) == (0, "")
    assert name in ended.out


async def test_a_refusal_gives_code_reason_and_every_field(classify_file: Fantail) -> None:
    ended = await classify_file({"turns": [{"role": "customer", "text": " "}, {"role": "nobody", "text": "hi"}]})
    assert_one_message(ended)
    assert "INVALID_ARGUMENT ERROR_REASON_TEXT_MISSING: " in ended.err
    assert "conversation.turns[0].text: " in ended.err
    assert "conversation.turns[1].role: " in ended.err


@pytest.mark.parametrize("name", ["[/x]", "[bold]x"])
async def test_a_refusal_that_quotes_markup_is_shown_as_it_is(classify_file: Fantail, name: str) -> None:
    ended = await classify_file(REFUND, "--classifier", name, "--classifier", name)
    assert_one_message(ended)
    assert "ERROR_REASON_CLASSIFIER_DUPLICATED" in ended.err
    assert name in ended.err


async def test_a_dead_engine_is_told(classify_file: Fantail, engine: WatchedEngine) -> None:
    engine.dead = True
    ended = await classify_file(REFUND)
    assert_one_message(ended)
    assert "UNAVAILABLE ERROR_REASON_ENGINE_DEAD" in ended.err


async def test_a_server_that_is_not_there_is_told_with_its_address(classify_file: Fantail) -> None:
    classify_file.address = "127.0.0.1:1"
    ended = await classify_file(REFUND)
    assert_one_message(ended)
    assert "UNAVAILABLE" in ended.err
    assert "127.0.0.1:1" in ended.err


async def test_a_deadline_that_passes_is_told(classify_file: Fantail, engine: WatchedEngine) -> None:
    engine.latency_s = NEVER_S
    ended = await classify_file(REFUND, "--timeout", "0.5")
    assert_one_message(ended)
    assert "DEADLINE_EXCEEDED" in ended.err
