"""When a dead engine is started again, how an engine that stands still is noticed, and how supervision ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import pytest

from service.engine import supervised
from service.engine.base import LabelLogprobs, ScoringRequest
from service.errors import EngineDeadError, EngineError, StartError
from tests.unit.supervision import Engine, Supervision, TurnedLoop, tick, until

FIRST_S, MOST_S, STEADY_S, STALL_S = 1.0, 10.0, 60.0, 30.0
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
    loop = TurnedLoop()
    monkeypatch.setattr(supervised.asyncio, "get_running_loop", lambda: loop)
    return loop


@pytest.fixture
async def supervise(clock: TurnedLoop) -> AsyncIterator[Callable[..., Supervision]]:
    """A supervision that runs until the test ends; call with what it starts."""
    made: list[Supervision] = []

    def begin(*plan: Engine | Exception) -> Supervision:
        made.append(Supervision(list(plan), STALL_S))
        made[-1].begin()
        return made[-1]

    yield begin
    for each in made:
        await each.end()


Supervise = Callable[..., Supervision]


def stuck_engine() -> Engine:
    """One that answers nothing until its gate is opened."""
    engine = Engine()
    engine.gate.clear()
    return engine


def open_gate() -> asyncio.Event:
    gate = asyncio.Event()
    gate.set()
    return gate


@contextlib.contextmanager
def asked(supervision: Supervision) -> Iterator[asyncio.Task[LabelLogprobs]]:
    """A request that waits as long as the body lasts, unless it is answered."""
    task = asyncio.create_task(supervision.engine.score(REQUEST))
    try:
        yield task
    finally:
        task.cancel()


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


@pytest.mark.parametrize(
    ("silent", "restarts"),
    [
        pytest.param(STALL_S - 1, 0, id="limit-1"),
        pytest.param(STALL_S, 0, id="limit"),
        pytest.param(STALL_S + 1, 1, id="limit+1"),
    ],
)
async def test_an_engine_that_has_work_and_does_none_of_it_is_started_again(
    supervise: Supervise, clock: TurnedLoop, silent: float, restarts: int
) -> None:
    stuck, then = stuck_engine(), Engine()
    supervision = supervise(stuck, then)
    await supervision.serving()
    clock.now += 1000.0  # without work, which is no stall
    with asked(supervision):
        await until(lambda: stuck.asked == 1)
        clock.now += silent
        await (then if restarts else stuck).looked_after()
    assert supervision.engine.restarts == restarts


async def test_an_engine_without_work_does_not_stall(supervise: Supervise, clock: TurnedLoop) -> None:
    supervision = supervise(Engine())
    await supervision.serving()
    await supervision.engine.score(REQUEST)
    clock.now += STALL_S + 1
    await supervision.open[0].looked_after()
    assert supervision.engine.restarts == 0


async def test_an_engine_that_finishes_some_of_its_work_does_not_stall(supervise: Supervise, clock: TurnedLoop) -> None:
    engine = stuck_engine()
    supervision = supervise(engine)
    await supervision.serving()
    with asked(supervision):
        await until(lambda: engine.asked == 1)
        for _ in range(3):
            clock.now += STALL_S
            engine.gate = open_gate()
            await supervision.engine.score(REQUEST)
            await engine.looked_after()
    assert supervision.engine.restarts == 0


async def test_an_engine_that_computes_without_finishing_anything_does_not_stall(
    supervise: Supervise, clock: TurnedLoop
) -> None:
    engine = stuck_engine()
    supervision = supervise(engine)
    await supervision.serving()
    with asked(supervision):
        await until(lambda: engine.asked == 1)
        for _ in range(20):
            clock.now += STALL_S / 2
            await engine.looked_after()
            engine.computed += 1
            await engine.looked_after()
    assert supervision.engine.restarts == 0


async def test_an_engine_that_answers_how_far_it_is_and_gets_no_further_is_started_again(
    supervise: Supervise, clock: TurnedLoop
) -> None:
    engine, then = stuck_engine(), Engine()
    supervision = supervise(engine, then)
    await supervision.serving()
    with asked(supervision):
        await until(lambda: engine.asked == 1)
        for computed in (5, 5, 3):  # less: a caller has given up
            engine.computed = computed
            clock.now += STALL_S / 3
            await engine.looked_after()
        clock.now += 1.0
        await supervision.serving(restarts=1)


async def test_an_engine_that_does_not_say_how_far_it_is_is_started_again(
    supervise: Supervise, clock: TurnedLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, then = stuck_engine(), Engine()
    monkeypatch.setattr(engine, "counters", lambda: asyncio.Event().wait())
    supervision = supervise(engine, then)
    await supervision.serving()
    with asked(supervision):
        await until(lambda: engine.asked == 1)
        clock.now += STALL_S / 2
        await engine.looked_after()
        clock.now += STALL_S / 2 + 1.0
        await supervision.serving(restarts=1)


async def test_a_request_that_fails_is_no_work_any_more(supervise: Supervise, clock: TurnedLoop) -> None:
    engine = Engine(fault=lambda request: EngineError("no"))
    supervision = supervise(engine)
    await supervision.serving()
    with pytest.raises(EngineError):
        await supervision.engine.score(REQUEST)
    clock.now += STALL_S + 1
    await engine.looked_after()
    assert supervision.engine.restarts == 0


async def test_a_request_that_is_cancelled_is_no_work_any_more(supervise: Supervise, clock: TurnedLoop) -> None:
    engine = stuck_engine()
    supervision = supervise(engine)
    await supervision.serving()
    with asked(supervision) as waiting:
        await until(lambda: engine.asked == 1)
    await asyncio.wait([waiting])
    clock.now += STALL_S + 1
    await engine.looked_after()
    assert supervision.engine.restarts == 0


async def test_a_request_that_still_waits_for_a_stalled_engine_is_no_work_of_the_next(
    supervise: Supervise, clock: TurnedLoop
) -> None:
    stuck, then = stuck_engine(), Engine()
    supervision = supervise(stuck, then)
    await supervision.serving()
    with asked(supervision) as waiting:
        await until(lambda: stuck.asked == 1)
        clock.now += STALL_S + 1
        await supervision.serving(restarts=1)
        clock.now += STALL_S + 1
        await then.looked_after()
        assert (supervision.engine.restarts, waiting.done()) == (1, False)


async def test_a_request_that_a_stalled_engine_gives_up_late_is_no_work_given_back_by_the_next(
    supervise: Supervise, clock: TurnedLoop
) -> None:
    stuck, then, last = stuck_engine(), stuck_engine(), Engine()
    supervision = supervise(stuck, then, last)
    await supervision.serving()
    with asked(supervision) as late:
        await until(lambda: stuck.asked == 1)
        clock.now += STALL_S + 1
        await supervision.serving(restarts=1)
        with asked(supervision):
            await until(lambda: then.asked == 1)
            stuck.gate.set()
            await late
            clock.now += STALL_S + 1
            await last.looked_after()
    assert supervision.engine.restarts == 2


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
