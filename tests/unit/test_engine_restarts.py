"""When a dead engine is started again, and how supervision ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from service.engine import supervised
from service.engine.base import ScoringRequest
from service.errors import EngineDeadError, StartError
from tests.unit.supervision import Engine, Supervise, Supervision, TurnedLoop, supervising, tick, turned_loop, until

FIRST_S, MOST_S, STEADY_S = 1.0, 10.0, 60.0
GROWING = [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
REQUEST = ScoringRequest((1, 2, 3), (11, 12), None, None)
NO = StartError("no")


@pytest.fixture(autouse=True)
def delays(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each restart was put off; nobody really waits. Engines are asked for their health all the time."""
    found: list[float] = []

    async def sleep(seconds: float) -> None:
        found.append(seconds)
        await tick(0)

    monkeypatch.setattr(supervised, "CHECK_SECONDS", 0.0001)
    monkeypatch.setattr(supervised, "FIRST_DELAY_S", FIRST_S)
    monkeypatch.setattr(supervised, "MAX_DELAY_S", MOST_S)
    monkeypatch.setattr(supervised, "STEADY_SECONDS", STEADY_S)
    monkeypatch.setattr(supervised.asyncio, "sleep", sleep)
    return found


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> TurnedLoop:
    return turned_loop(monkeypatch)


@pytest.fixture
async def supervise(clock: TurnedLoop) -> AsyncIterator[Supervise]:
    async with supervising() as begin:
        yield begin


async def test_failures_to_start_again_are_retried_ever_later_up_to_the_longest_delay(
    supervise: Supervise, delays: list[float]
) -> None:
    supervision = supervise(Engine(), *[NO] * 5, Engine())
    await supervision.serving()
    supervision.open[0].dead = True
    await supervision.serving(restarts=6)
    assert delays == GROWING


async def test_engines_that_die_soon_are_started_again_ever_later(supervise: Supervise, delays: list[float]) -> None:
    supervision = supervise(*[Engine() for _ in range(7)])
    for restarts in range(6):
        await supervision.serving(restarts)
        supervision.open[0].dead = True
    await supervision.serving(restarts=6)
    assert delays == GROWING


async def test_an_engine_that_cannot_be_proven_again_is_retried(supervise: Supervise, delays: list[float]) -> None:
    supervision = supervise(*[Engine() for _ in range(4)])
    await supervision.serving()
    supervision.unproven = NO
    supervision.open[0].dead = True
    await until(lambda: supervision.attempts == 3)
    supervision.unproven = None
    await until(lambda: supervision.serves)
    assert delays == GROWING[: supervision.engine.restarts]
    assert supervision.most_open == 1


async def test_an_engine_that_cannot_be_started_again_for_a_reason_nobody_thought_of_is_retried(
    supervise: Supervise, delays: list[float]
) -> None:
    supervision = supervise(Engine(), KeyError("a defect"), Engine())
    await supervision.serving()
    supervision.open[0].dead = True
    await supervision.serving(restarts=2)
    assert len(delays) == 2


async def test_an_engine_that_hangs_over_its_proof_is_given_up_and_another_started(
    supervise: Supervise, delays: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    supervision = supervise(*[Engine() for _ in range(4)])
    await supervision.serving()
    monkeypatch.setattr(supervised, "PROVE_SECONDS", 0.05)
    supervision.proving.clear()
    supervision.open[0].dead = True
    await until(lambda: supervision.attempts == 3)
    supervision.proving.set()
    await until(lambda: supervision.serves)
    assert delays == GROWING[: supervision.engine.restarts]
    assert supervision.most_open == 1


async def test_a_first_engine_that_hangs_over_its_proof_is_a_start_that_failed(
    supervise: Supervise, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "PROVE_SECONDS", 0.05)
    supervision = supervise(Engine())
    supervision.proving.clear()
    assert supervision.task is not None
    with pytest.raises(StartError, match="did not answer its probes"):
        await supervision.task
    assert supervision.open == []


@pytest.mark.parametrize(
    ("lived", "delay"),
    [
        pytest.param(STEADY_S - 1, 8.0, id="limit-1"),
        pytest.param(STEADY_S, 0.0, id="limit"),
        pytest.param(STEADY_S + 1, 0.0, id="limit+1"),
    ],
)
async def test_an_engine_that_has_lived_long_is_started_again_at_once(
    supervise: Supervise, delays: list[float], clock: TurnedLoop, lived: float, delay: float
) -> None:
    supervision = supervise(Engine(), NO, NO, Engine(), Engine())
    await supervision.serving()
    supervision.open[0].dead = True
    await supervision.serving(restarts=3)
    clock.now += lived
    supervision.open[0].dead = True
    await supervision.serving(restarts=4)
    assert delays == [1.0, 2.0, 4.0, delay]


async def test_after_a_long_life_delays_grow_from_the_first_again(
    supervise: Supervise, delays: list[float], clock: TurnedLoop
) -> None:
    supervision = supervise(Engine(), NO, Engine(), NO, NO, Engine())
    await supervision.serving()
    supervision.open[0].dead = True
    await supervision.serving(restarts=2)
    clock.now += STEADY_S
    supervision.open[0].dead = True
    await supervision.serving(restarts=5)
    assert delays == [1.0, 2.0, 0.0, 1.0, 2.0]


async def test_restarts_are_counted_from_none(supervise: Supervise) -> None:
    supervision = supervise(Engine(), Engine(), Engine())
    for restarts in range(3):
        await supervision.serving(restarts)
        assert supervision.engine.restarts == restarts
        supervision.open[0].dead = True


async def while_serving(supervision: Supervision) -> None:
    await supervision.serving()


async def while_proving(supervision: Supervision) -> None:
    await until(lambda: supervision.attempts == 1)


async def while_waiting_to_start_again(supervision: Supervision) -> None:
    await supervision.serving()
    supervision.open[0].dead = True
    await until(lambda: supervision.engine.restarts == 1)


@pytest.mark.parametrize("moment", [while_serving, while_proving, while_waiting_to_start_again])
async def test_cancelling_closes_the_engine_and_starts_no_other(
    supervise: Supervise, monkeypatch: pytest.MonkeyPatch, moment: Callable[[Supervision], Awaitable[None]]
) -> None:
    monkeypatch.setattr(supervised.asyncio, "sleep", lambda seconds: asyncio.Event().wait())
    supervision = supervise(Engine(), Engine())
    if moment is while_proving:
        supervision.proving.clear()
    await moment(supervision)
    assert supervision.task is not None
    supervision.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await supervision.task
    assert (supervision.open, supervision.attempts) == ([], 1)


async def test_after_cancelling_nobody_is_answered(supervise: Supervise) -> None:
    supervision = supervise(Engine())
    await supervision.serving()
    await supervision.end()
    with pytest.raises(EngineDeadError):
        await supervision.engine.score(REQUEST)
