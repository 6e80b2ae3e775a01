"""The load generator against a real server around a fake engine: what it sends, counts, prints and writes."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from loadtest.__main__ import asked_of, load
from loadtest.generator import Share, generate
from loadtest.outcome import STAGES, Outcome, seconds
from loadtest.profile import load_profile
from loadtest.run import first_rate, run
from loadtest.schedule import calls
from loadtest.server import fresh_server
from loadtest.target import Credentials, Target
from service.admission import Admission
from service.client import FantailClient
from service.errors import EngineError
from service.registry.registry import Registry
from tests.integration.certificates import Authority, install
from tests.integration.conftest import Serve
from tests.integration.harness import DEADLINE_S, HELLO, NAMES, NEVER_S, PLAIN, WatchedEngine, asks
from tests.integration.keyring import ring_of
from tests.integration.listener import Listener
from tests.traffic import write_profile

RATE, STEADY_S = 50.0, 0.4
CALLS = 20
"""So many are due in that time at that rate."""


@pytest.fixture
def admission() -> Admission:
    return Admission(1 << 20, 1 << 40)


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generators are given no time to start, so their first calls are late, which makes no limit of them here."""
    monkeypatch.setattr("loadtest.run.START_SECONDS", 0.0)
    monkeypatch.setattr("loadtest.run.LATE_SHARE", 1.0)


def share(folder: Path, address: str, **profile: Any) -> Share:
    """All calls of a short run that begins now."""
    path = write_profile(folder, **{"steady_s": STEADY_S, "deadline_s": DEADLINE_S} | profile)
    return Share(str(path), Target(address, tuple(NAMES)), RATE, 1, 0, 1, time.time())


def asked(listener: Listener) -> Counter[str]:
    """The conversations that the server has heard, as lists of role and text."""
    return Counter(str([(turn.role.value, turn.text) for turn in each.turns]) for each in listener.heard)


def due(path: Path, rate: float = RATE) -> Counter[str]:
    """The same of those that the schedule asks about."""
    return Counter(str(call.turns) for call in calls(load_profile(path), rate, NAMES, 1))


async def test_a_server_is_asked_what_the_schedule_says(tmp_path: Path, address: str, listener: Listener) -> None:
    mixed = {"arrivals": "poisson", "fan_out": 0.5, "follow_ups": 0.5}
    outcome = await generate(share(tmp_path, address, **mixed))
    assert asked(listener) == due(tmp_path / "test.toml")
    assert outcome.by_status == {"OK": outcome.sent}
    assert outcome.sent == len(listener.heard) > 1


async def test_what_the_server_says_of_its_answers_is_taken_down(
    tmp_path: Path, address: str, engine: WatchedEngine
) -> None:
    outcome = await generate(share(tmp_path, address, fan_out=0.5))
    assert [outcome.stages[stage].get_total_count() for stage in STAGES] == [CALLS] * 4
    assert seconds(outcome.stages["total"], 50) <= seconds(outcome.latency, 100)
    assert outcome.tokens["reused"] > 0
    assert outcome.tokens.total() == sum(len(each.token_ids) for each in engine.requests)


async def test_calls_that_are_due_while_the_server_stalls_are_sent_and_count_from_then(
    tmp_path: Path, address: str, engine: WatchedEngine
) -> None:
    engine.gate.clear()
    generating = asyncio.create_task(generate(share(tmp_path, address)))
    await engine.begun(CALLS * len(NAMES))  # comes only when every call is sent before the first is answered
    assert not generating.done()
    engine.gate.set()
    outcome = await generating
    assert outcome.by_status == {"OK": CALLS}
    for place in range(CALLS):  # the last call was due at (CALLS - 1) / RATE, and nobody was answered before
        assert seconds(outcome.latency, 100 * (place + 0.5) / CALLS) >= 0.99 * place / RATE


async def test_a_stall_beyond_the_deadline_is_no_goodput(tmp_path: Path, address: str, engine: WatchedEngine) -> None:
    engine.latency_s = NEVER_S
    outcome = await generate(share(tmp_path, address, deadline_s=0.1))
    assert outcome.goodput == 0
    assert sum(outcome.by_status[each] for each in ("DEADLINE_EXCEEDED", "PARTLY")) == CALLS


async def test_a_fan_out_of_which_one_classifier_failed_is_no_goodput(
    tmp_path: Path, address: str, engine: WatchedEngine, registry: Registry
) -> None:
    fails = asks(PLAIN, registry)
    engine.fault = lambda request: EngineError("No.") if fails(request) else None
    outcome = await generate(share(tmp_path, address))
    assert outcome.by_status == {"PARTLY": CALLS}
    assert outcome.goodput == 0


async def test_calls_that_the_server_turns_away_are_shed(
    tmp_path: Path, address: str, client: FantailClient, engine: WatchedEngine, admission: Admission
) -> None:
    engine.gate.clear()
    admission.max_calls = 1
    only = asyncio.create_task(client.fan_out(HELLO, timeout=DEADLINE_S))
    await engine.begun(len(NAMES))
    outcome = await generate(share(tmp_path, address))
    engine.gate.set()
    await only
    assert outcome.by_status == {"RESOURCE_EXHAUSTED": CALLS}
    assert (outcome.shed_share, outcome.goodput) == (1.0, 0.0)


async def test_calls_to_a_server_that_is_not_there_are_counted(tmp_path: Path) -> None:
    outcome = await generate(share(tmp_path, "127.0.0.1:1", steady_s=0.1))
    assert outcome.by_status == {"UNAVAILABLE": 5}
    assert outcome.latency.get_total_count() == 0


@pytest.mark.usefixtures("no_wait")
async def test_several_processes_send_one_schedule_together(tmp_path: Path, address: str, listener: Listener) -> None:
    path = write_profile(tmp_path, steady_s=STEADY_S, deadline_s=DEADLINE_S, fan_out=0.5)
    outcome = await run(path, Target(address, tuple(NAMES)), RATE, 1, 2)
    assert asked(listener) == due(path)
    assert outcome.by_status == {"OK": CALLS}


@pytest.mark.usefixtures("no_wait")
async def test_a_generator_that_fails_fails_the_run(tmp_path: Path, address: str) -> None:
    with pytest.raises(RuntimeError, match="a generator ended with 1"):
        await run(tmp_path / "nowhere.toml", Target(address, tuple(NAMES)), RATE, 1, 1)


async def test_a_server_is_asked_for_its_classifiers(address: str) -> None:
    assert await asked_of(Target(address)) == Target(address, tuple(NAMES))


@pytest.mark.usefixtures("no_wait")
async def test_a_server_that_wants_a_key_and_certificates_is_put_under_load(tmp_path: Path, serve: Serve) -> None:
    authority = Authority()
    ring, caller = ring_of(tmp_path, {"secret": 'name = "load"'}), authority.caller()
    address = await serve(keys=ring, tls=install(tmp_path, authority.server(), authority.pem))
    for name, pem in (("ca", authority.pem), ("cert", caller.certificate), ("key", caller.key)):
        (tmp_path / f"{name}.pem").write_bytes(pem)
    files = (str(tmp_path / f"{name}.pem") for name in ("ca", "cert", "key"))
    target = await asked_of(Target(address, key="secret", tls=Credentials(*files)))
    path = write_profile(tmp_path, steady_s=STEADY_S, deadline_s=DEADLINE_S)
    assert (await run(path, target, RATE, 1, 1)).by_status == {"OK": CALLS}


async def test_the_first_rate_is_found_by_asking_one_after_the_other(address: str, listener: Listener) -> None:
    assert await first_rate(Target(address, tuple(NAMES)), seed=1) > 0
    assert len(asked(listener)) == len(listener.heard) == 3


def two_rates(address: str, output: Path, overload: bool = False) -> argparse.Namespace:
    """What the command line says."""
    return argparse.Namespace(
        rate=[20.0, 40.0], address=address, key=None, processes=1, rounds=1, seed=1, output=output,
        overload=overload, tls=False, ca=None, cert=None, cert_key=None,
    )  # fmt: skip


@pytest.mark.usefixtures("no_wait")
async def test_the_command_prints_and_writes_what_became_of_each_run(
    tmp_path: Path, address: str, listener: Listener
) -> None:
    path = write_profile(tmp_path, steady_s=0.2, deadline_s=DEADLINE_S)
    options = two_rates(address, tmp_path / "report")
    console = Console(file=io.StringIO(), width=160)
    await load(path, load_profile(path), options, console)
    assert isinstance(console.file, io.StringIO)
    printed = console.file.getvalue()
    assert "20.00 calls a second: 20.00 answered in time" in printed
    assert "knee: 40.00 calls a second" in printed
    value = json.loads((tmp_path / "report" / "loadtest.json").read_text(encoding="utf-8"))
    assert [Outcome.from_json(each).by_status for each in value["runs"]] == [{"OK": 4}, {"OK": 8}]
    assert (value["server"], json.loads(value["steady_s"])) == (address, 0.2)
    assert "torch" in value["generator versions"]
    assert (tmp_path / "report" / "report.html").is_file()
    assert len(asked(listener)) == len(listener.heard) == 12  # no run asks what another has asked


async def test_a_server_that_does_not_start_says_why_at_once(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="FANTAIL_NONSENSE: unknown setting"):
        async with fresh_server(tmp_path / "log", FANTAIL_NONSENSE="1"):
            pass


@pytest.mark.usefixtures("no_wait")
async def test_a_server_that_is_not_overloaded_breaks_what_an_overload_is_to_show(tmp_path: Path, address: str) -> None:
    path = write_profile(tmp_path)
    options = two_rates(address, tmp_path / "report", overload=True)
    with pytest.raises(SystemExit, match=r"not as promised: .*40\.00 a second are no 9\.5 times the 20\.00"):
        await load(path, load_profile(path), options, Console(file=io.StringIO(), width=160))
