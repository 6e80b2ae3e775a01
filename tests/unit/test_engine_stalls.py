"""How an engine that stands still is noticed, and one that is merely slow is not taken for it."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Iterator

import pytest

from service.engine import supervised
from service.engine.base import LabelLogprobs, ScoringRequest
from service.errors import EngineError
from tests.unit.supervision import Engine, Supervise, Supervision, TurnedLoop, supervising, tick, turned_loop, until

STALL_S = 30.0
REQUEST = ScoringRequest((1, 2, 3), (11, 12), None, None)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines are asked for their health all the time, and started again at once; a turned clock is no pause."""
    monkeypatch.setattr(supervised, "CHECK_SECONDS", 0.0001)
    monkeypatch.setattr(supervised, "FIRST_DELAY_S", 0.0)
    monkeypatch.setattr(supervised, "PAUSE_SECONDS", math.inf)


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> TurnedLoop:
    return turned_loop(monkeypatch)


@pytest.fixture
async def supervise(clock: TurnedLoop) -> AsyncIterator[Supervise]:
    async with supervising(STALL_S) as begin:
        yield begin


def stuck_engine() -> Engine:
    """One that answers nothing until its gate is opened."""
    engine = Engine()
    engine.gate.clear()
    return engine


def hung_engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    """One that does not say how far it is either."""
    engine = stuck_engine()
    monkeypatch.setattr(engine, "counters", lambda: asyncio.Event().wait())
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


async def test_an_engine_is_not_blamed_for_the_time_in_which_its_server_stood_still(
    supervise: Supervise, clock: TurnedLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervised, "PAUSE_SECONDS", 2.0)
    engine, then = hung_engine(monkeypatch), Engine()
    supervision = supervise(engine, then)
    await supervision.serving()
    with asked(supervision):
        await until(lambda: engine.asked == 1)
        for _ in range(3):
            clock.now += 10 * STALL_S
            await engine.looked_after()
        assert supervision.engine.restarts == 0
        assert "this server stood still for 300 s" in caplog.text
        while supervision.serves and clock.now < 32 * STALL_S:  # a server that runs notices a hung engine as ever
            clock.now += 1.0
            await tick(0.001)
        await supervision.serving(restarts=1)


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
    assert supervision.open == [then]


async def test_an_engine_that_does_not_say_how_far_it_is_is_started_again(
    supervise: Supervise, clock: TurnedLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, then = hung_engine(monkeypatch), Engine()
    supervision = supervise(engine, then)
    await supervision.serving()
    with asked(supervision):
        await until(lambda: engine.asked == 1)
        clock.now += STALL_S / 2
        await engine.looked_after()
        clock.now += STALL_S / 2 + 1.0
        await supervision.serving(restarts=1)
    assert supervision.open == [then]


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


async def test_an_engine_that_hangs_is_noticed_though_each_caller_gives_up_before(
    supervise: Supervise, clock: TurnedLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, then = hung_engine(monkeypatch), Engine()
    supervision = supervise(engine, then)
    await supervision.serving()
    for number in range(1, 5):
        with asked(supervision) as waiting:
            await until(lambda asked=number: engine.asked == asked)
            clock.now += STALL_S / 4
            await engine.looked_after()
        await asyncio.wait([waiting])
    clock.now += 1.0
    await supervision.serving(restarts=1)
    assert supervision.open == [then]


async def test_an_engine_whose_callers_all_give_up_is_let_live_once_it_has_nothing_to_do(
    supervise: Supervise, clock: TurnedLoop
) -> None:
    engine = stuck_engine()
    supervision = supervise(engine)
    await supervision.serving()
    for number in range(1, 9):
        with asked(supervision) as waiting:
            await until(lambda asked=number: engine.asked == asked)
            clock.now += STALL_S / 4
        await asyncio.wait([waiting])
        clock.now += STALL_S / 4
        await engine.looked_after()
    assert supervision.engine.restarts == 0
