"""An engine that is started again when it dies: who notices, who is answered meanwhile, and what the first one owes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from service.domain import Adapter, AdapterKind
from service.engine import supervised
from service.engine.base import EngineAdapter, ScoringRequest
from service.engine.supervised import State, SupervisedEngine
from service.errors import EngineDeadError, EngineError, StartError, StartingError
from tests.unit.supervision import Engine, Supervision, until

NEVER_S = 3600.0
REQUEST = ScoringRequest((1, 2, 3), (11, 12), None, None)
ADAPTER = EngineAdapter("refund@0", Adapter(Path("nowhere"), AdapterKind.PLAIN, 4, ("q_proj",), "0"))
ASKED: dict[str, Callable[[SupervisedEngine], Awaitable[Any]]] = {
    "score": lambda engine: engine.score(REQUEST),
    "check": lambda engine: engine.check(),
    "load": lambda engine: engine.load(ADAPTER),
    "unload": lambda engine: engine.unload(ADAPTER),
    "places": lambda engine: engine.places(),
    "counters": lambda engine: engine.counters(),
}
EVERY_METHOD = pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are asked for their health all the time, and started again at once."""
    monkeypatch.setattr(supervised, "CHECK_SECONDS", 0.0001)
    monkeypatch.setattr(supervised, "FIRST_DELAY_S", 0.0)


@pytest.fixture
async def supervision() -> AsyncIterator[Supervision]:
    made = Supervision([Engine() for _ in range(3)])
    yield made
    await made.end()


@EVERY_METHOD
async def test_nobody_is_answered_before_the_first_engine_is_proven(
    supervision: Supervision, ask: Callable[[SupervisedEngine], Awaitable[Any]]
) -> None:
    supervision.proving.clear()
    supervision.begin()
    await until(lambda: bool(supervision.open))
    assert supervision.engine.state is State.STARTING
    assert not supervision.started.is_set()
    with pytest.raises(StartingError):
        await ask(supervision.engine)


@EVERY_METHOD
async def test_a_proven_engine_serves(
    supervision: Supervision, ask: Callable[[SupervisedEngine], Awaitable[Any]]
) -> None:
    engine = supervision.plan[0]
    supervision.begin()
    await supervision.serving()
    assert supervision.started.is_set()
    assert await ask(supervision.engine) == await ask(engine)


@EVERY_METHOD
async def test_nobody_is_answered_between_two_engines(
    supervision: Supervision, ask: Callable[[SupervisedEngine], Awaitable[Any]]
) -> None:
    first, second, *_ = supervision.plan
    supervision.begin()
    await supervision.serving()
    supervision.proving.clear()
    first.dead = True
    await until(lambda: supervision.open == [second])
    assert supervision.engine.state is State.DEAD
    with pytest.raises(EngineDeadError):
        await ask(supervision.engine)


async def test_a_death_that_asking_notices_is_followed_by_the_next_engine(supervision: Supervision) -> None:
    first, second, *_ = supervision.plan
    supervision.begin()
    await supervision.serving()
    first.dead = True
    await supervision.serving(restarts=1)
    await supervision.engine.score(REQUEST)
    assert (first.asked, second.asked) == (0, 1)


async def test_a_death_that_a_request_notices_is_followed_by_the_next_engine(
    supervision: Supervision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "CHECK_SECONDS", NEVER_S)
    first = supervision.plan[0]
    supervision.begin()
    await supervision.serving()
    await until(lambda: first.checks == 1)
    first.dead = True
    with pytest.raises(EngineDeadError):
        await supervision.engine.score(REQUEST)
    await supervision.serving(restarts=1)


@EVERY_METHOD
async def test_an_engine_that_anybody_finds_dead_serves_no_more(
    supervision: Supervision, monkeypatch: pytest.MonkeyPatch, ask: Callable[[SupervisedEngine], Awaitable[Any]]
) -> None:
    async def dead(*_: Any) -> None:
        raise EngineDeadError("The engine is not running.")

    monkeypatch.setattr(supervised, "CHECK_SECONDS", NEVER_S)
    first = supervision.plan[0]
    supervision.begin()
    await supervision.serving()
    await until(lambda: first.checks == 1)
    for method in ASKED:
        monkeypatch.setattr(first, method, dead)
    with pytest.raises(EngineDeadError):
        await ask(supervision.engine)
    assert not supervision.engine.is_serving
    await supervision.serving(restarts=1)


async def test_the_dead_engine_is_closed_before_the_next_is_started(supervision: Supervision) -> None:
    first, second, third = supervision.plan
    supervision.begin()
    for restarts, dying in enumerate((first, second)):
        await supervision.serving(restarts)
        dying.dead = True
    await supervision.serving(restarts=2)
    assert supervision.open == [third]
    assert supervision.most_open == 1


async def test_an_engine_that_fails_on_a_prompt_lives_on(supervision: Supervision) -> None:
    first = supervision.plan[0]
    first.fault = lambda request: EngineError("The engine failed on this prompt.")
    supervision.begin()
    await supervision.serving()
    with pytest.raises(EngineError):
        await supervision.engine.score(REQUEST)
    await first.looked_after()
    assert (supervision.engine.restarts, supervision.open) == (0, [first])


async def test_a_request_that_the_dead_engine_ends_late_leaves_the_next_one_alone(supervision: Supervision) -> None:
    first, second, *_ = supervision.plan
    first.gate.clear()
    supervision.begin()
    await supervision.serving()
    late = asyncio.create_task(supervision.engine.score(REQUEST))
    await until(lambda: first.asked == 1)
    first.dead = True
    await supervision.serving(restarts=1)
    first.gate.set()
    with pytest.raises(EngineDeadError):
        await late
    await second.looked_after()
    assert (supervision.engine.restarts, supervision.serves) == (1, True)


@pytest.mark.parametrize("failure", [StartError("no"), RuntimeError("no")], ids=lambda each: type(each).__name__)
async def test_the_first_engines_failure_to_start_is_raised(supervision: Supervision, failure: Exception) -> None:
    supervision.plan = [failure]
    with pytest.raises(type(failure), match="no"):
        await supervision.engine.run(supervision.started)
    assert (supervision.started.is_set(), supervision.engine.restarts) == (False, 0)


async def test_the_first_engines_failure_to_be_proven_is_raised_and_the_engine_closed(supervision: Supervision) -> None:
    supervision.unproven = StartError("unproven")
    with pytest.raises(StartError, match="unproven"):
        await supervision.engine.run(supervision.started)
    assert (supervision.started.is_set(), supervision.open, supervision.attempts) == (False, [], 1)
