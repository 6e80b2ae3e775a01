"""The TypeScript client, installed as a user would, prints what the Python client is answered and told."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from service.classify import Classify
from service.client import FantailClient, RpcError, Tls, Turns
from tests.integration.certificates import Authority, install
from tests.integration.conftest import Serve
from tests.integration.harness import ACTIVATED, DEADLINE_S, NAMES, PLAIN, Ended, run_command
from tests.integration.keyring import ring_of
from tests.support import REPOSITORY

INSTALL_S = 300
KEY = "key-of-the-example"
OURS = Authority()
TALK: Turns = [("customer", "hi, ünïcode 👋"), ("agent", "Hello!"), ("system", "Moved."), ("customer", "my refund??")]
SILENCE: Turns = [("customer", "hi"), ("customer", " ")]

pytestmark = pytest.mark.skipif(
    not (shutil.which("node") and shutil.which("npm")), reason="node and npm are not installed"
)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the client and of the protos that it reads, with its packages; removed at the end for its size."""
    root = tmp_path_factory.mktemp("typescript")
    folder = root / "clients" / "typescript"
    shutil.copytree(REPOSITORY / "proto", root / "proto")
    shutil.copytree(
        REPOSITORY / "clients" / "typescript", folder, ignore=shutil.ignore_patterns("node_modules", ".gitignore")
    )
    npm("ci", folder)
    yield folder
    shutil.rmtree(root)


def npm(what: str, folder: Path, *more: str) -> None:
    command = ["npm", what, "--no-audit", "--no-fund", "--no-update-notifier", *more]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S)
    assert done.returncode == 0, done.stdout + done.stderr


@dataclass(frozen=True)
class Example:
    """The client, and the files it is given."""

    installed: Path
    folder: Path

    async def run(self, address: str, turns: Turns, *options: str, key: str = "") -> Ended:
        talk = self.folder / "talk.json"
        talk.write_text(json.dumps({"turns": [{"role": role, "text": text} for role, text in turns]}))
        command = ["node", "fan_out.mjs", "--address", address, "--timeout", str(DEADLINE_S), *options, str(talk)]
        return await run_command(*command, cwd=self.installed, **({"API_KEY": key} if key else {}))


@pytest.fixture
def example(installed: Path, tmp_path: Path) -> Example:
    return Example(installed, tmp_path)


def test_its_types_are_right(installed: Path) -> None:
    npm("run", installed, "check")


@pytest.mark.parametrize(
    "names", [[], [PLAIN, ACTIVATED], [PLAIN, "nobody"]], ids=["all", "some", "one that is not there"]
)
async def test_its_results_are_those_of_the_python_client(
    address: str, client: FantailClient, example: Example, names: list[str]
) -> None:
    ended = await example.run(address, TALK, *(f"--classifier={name}" for name in names))
    assert (ended.code, ended.err) == (0, "")
    expected = await client.fan_out(TALK, names, timeout=DEADLINE_S)
    assert len(expected.results) == len(names or NAMES)
    assert answers(json.loads(ended.out)) == answers(MessageToDict(expected))


async def test_it_talks_tls_and_presents_its_key(serve: Serve, example: Example, tmp_path: Path) -> None:
    ring, files = ring_of(tmp_path, {KEY: 'name = "example"'}), install(tmp_path, OURS.server())
    (tmp_path / "ca.pem").write_bytes(OURS.pem)
    address = await serve(tls=files, keys=ring)
    ended = await example.run(address, TALK, "--ca", str(tmp_path / "ca.pem"), key=KEY)
    assert ended.code == 0, ended.err
    async with FantailClient(address, key=KEY, tls=Tls(roots=OURS.pem)) as client:
        expected = await client.fan_out(TALK, timeout=DEADLINE_S)
    assert answers(json.loads(ended.out)) == answers(MessageToDict(expected))


@pytest.mark.parametrize(
    ("turns", "keys", "calls", "reason"),
    [
        pytest.param(SILENCE, False, 256, "ERROR_REASON_TEXT_MISSING", id="a request that is not in order"),
        pytest.param(TALK, True, 256, "ERROR_REASON_KEY_INVALID", id="no key"),
        pytest.param(TALK, False, 0, "ERROR_REASON_OVERLOADED", id="overload, with a delay to keep"),
    ],
)
async def test_it_tells_of_a_failure_what_the_python_client_tells(
    serve: Serve,
    classify: Classify,
    example: Example,
    tmp_path: Path,
    turns: Turns,
    keys: bool,
    calls: int,
    reason: str,
) -> None:
    classify.admission.max_calls = calls
    address = await serve(keys=ring_of(tmp_path, {KEY: 'name = "example"'}) if keys else None)
    ended = await example.run(address, turns)
    assert (ended.code, ended.out) == (1, "")
    told = json.loads(ended.err)
    async with FantailClient(address) as client:
        with pytest.raises(RpcError) as failure:
            await client.fan_out(turns, timeout=DEADLINE_S)
    assert told.pop("requestId")
    assert told == as_told(failure.value)
    assert told["reason"] == reason


async def test_it_tells_of_a_server_that_is_not_there(example: Example) -> None:
    ended = await example.run("127.0.0.1:1", TALK)
    assert ended.code == 1
    told = json.loads(ended.err)
    assert (told["code"], told["reason"], told["retryAfterSeconds"]) == ("UNAVAILABLE", "", None)


@pytest.mark.parametrize("options", [("--timeout=soon",), ("--timeout=0",), ("one.json",)], ids=" ".join)
async def test_it_says_how_it_is_used(example: Example, options: tuple[str, ...]) -> None:
    ended = await example.run("127.0.0.1:1", TALK, *options)
    assert ended.code == 2
    assert ended.err.startswith("usage: node fan_out.mjs")


def answers(response: dict[str, Any]) -> list[dict[str, Any]]:
    """The results without what differs from call to call: request ids, and tokens found in a cache."""
    results: list[dict[str, Any]] = response["results"]
    for result in results:
        result.get("classification", {}).pop("usage", None)
        for detail in result.get("status", {}).get("details", []):
            detail.pop("requestId", None)
    return results


def as_told(error: RpcError) -> dict[str, Any]:
    """What the example prints of a failure, but for the request id."""
    return {
        "code": error.code.name,
        "message": error.message,
        "reason": error.reason,
        "violations": error.violations,
        "retryAfterSeconds": error.retry_after_s,
    }
