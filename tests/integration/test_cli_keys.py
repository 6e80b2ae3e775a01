"""`fantail classify` against servers that want a key, or talk TLS."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.integration.certificates import Authority, Pair, encrypted, install
from tests.integration.conftest import Serve
from tests.integration.harness import NAMES, Ended, WatchedEngine, run_command
from tests.integration.keyring import ring_of

FANTAIL = str(Path(sys.executable).with_name("fantail"))
TALK = json.dumps({"turns": [{"role": "customer", "text": "where is my refund??"}]})
KEY, DASHED = "key-of-support-4f1c", "-key-of-billing-77aa"
KEYS = {KEY: 'name = "support"', DASHED: 'name = "billing"'}
OURS, THEIRS = Authority("ours"), Authority("theirs")

USAGE = 2

Classify = Callable[..., Awaitable[Ended]]


@pytest.fixture
def classify_talk(tmp_path: Path) -> Classify:
    """Runs `fantail classify` beside the two authorities' files."""
    for name, authority in (("ours.pem", OURS), ("theirs.pem", THEIRS)):
        (tmp_path / name).write_bytes(authority.pem)
    (tmp_path / "key.txt").write_text(KEY + "\n")

    async def run(address: str, *arguments: str) -> Ended:
        command = (FANTAIL, "classify", "-", "--address", address, *arguments)
        return await run_command(*command, cwd=tmp_path, stdin=TALK)

    return run


def assert_answered(ended: Ended) -> None:
    assert (ended.code, ended.err) == (0, "")
    assert [name for name in NAMES if name not in ended.out] == []


def assert_failed(ended: Ended, what: str) -> None:
    assert (ended.code, ended.out) == (1, "")
    assert what in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("key", [KEY, DASHED, "@key.txt"])
async def test_a_call_with_a_key_is_answered(serve: Serve, tmp_path: Path, classify_talk: Classify, key: str) -> None:
    assert_answered(await classify_talk(await serve(keys=ring_of(tmp_path, KEYS)), "--key", key))


@pytest.mark.parametrize("arguments", [(), ("--key", "key-of-nobody")], ids=["none", "unknown"])
async def test_a_call_without_a_valid_key_is_told_so(
    serve: Serve, tmp_path: Path, classify_talk: Classify, engine: WatchedEngine, arguments: tuple[str, ...]
) -> None:
    ended = await classify_talk(await serve(keys=ring_of(tmp_path, KEYS)), *arguments)
    assert_failed(ended, "UNAUTHENTICATED ERROR_REASON_KEY_INVALID")
    assert "key-of-nobody" not in ended.err
    assert engine.requests == []


async def test_a_call_with_key_and_ca_is_answered_over_tls(
    serve: Serve, tmp_path: Path, classify_talk: Classify
) -> None:
    address = await serve(keys=ring_of(tmp_path, KEYS), tls=install(tmp_path, OURS.server()))
    assert_answered(await classify_talk(address, "--key", KEY, "--ca", "ours.pem"))


@pytest.mark.parametrize("arguments", [(), ("--ca", "theirs.pem")], ids=["in the clear", "trusting others"])
async def test_a_server_that_is_not_trusted_is_not_talked_to(
    serve: Serve, tmp_path: Path, classify_talk: Classify, engine: WatchedEngine, arguments: tuple[str, ...]
) -> None:
    address = await serve(tls=install(tmp_path, OURS.server()))
    assert_failed(await classify_talk(address, *arguments), "UNAVAILABLE")
    assert engine.requests == []


async def test_a_call_with_a_certificate_is_answered_where_callers_need_one(
    serve: Serve, tmp_path: Path, classify_talk: Classify
) -> None:
    address = await serve(tls=install(tmp_path, OURS.server(), client_ca=OURS.pem))
    write_pair(tmp_path, OURS.caller())
    assert_answered(
        await classify_talk(address, "--ca", "ours.pem", "--cert", "caller.pem", "--cert-key", "caller.key")
    )
    assert_failed(await classify_talk(address, "--ca", "ours.pem"), "UNAVAILABLE")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--cert", "caller.pem"), "--cert-key"),
        (("--cert-key", "caller.key"), "--cert-key"),
        (("--cert", "caller.pem", "--cert-key", "locked.key"), "unencrypted"),
        (("--cert", "caller.pem", "--cert-key", "other.key"), "other.key"),
        (("--cert", "nowhere.pem", "--cert-key", "caller.key"), "nowhere.pem"),
    ],
    ids=["certificate alone", "key alone", "encrypted", "another's key", "missing"],
)
async def test_a_certificate_that_cannot_be_used_is_a_usage_error_that_says_why(
    tmp_path: Path, classify_talk: Classify, arguments: tuple[str, ...], named: str
) -> None:
    pair = OURS.caller()
    write_pair(tmp_path, pair)
    (tmp_path / "locked.key").write_bytes(encrypted(pair.key))
    (tmp_path / "other.key").write_bytes(OURS.caller().key)
    ended = await classify_talk("127.0.0.1:1", *arguments)
    assert ended.code == USAGE
    assert named in "".join(ended.err.split())


async def test_a_file_that_holds_no_key_is_a_usage_error_that_names_it(classify_talk: Classify) -> None:
    ended = await classify_talk("127.0.0.1:1", "--key", "@nowhere.txt")
    assert ended.code == USAGE
    assert "nowhere.txt" in ended.err


def write_pair(folder: Path, pair: Pair) -> None:
    (folder / "caller.pem").write_bytes(pair.certificate)
    (folder / "caller.key").write_bytes(pair.key)
