"""The stages of a fan-out add up to the whole."""

from __future__ import annotations

import contextlib

import pytest

from service.domain import StageSeconds
from service.stages import Clock
from tests.clock import HandTurned, hand_turned


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> HandTurned:
    return hand_turned(monkeypatch, "service.stages")


@pytest.fixture
def clock(time: HandTurned) -> Clock:
    return Clock()


def test_what_comes_before_the_prompt_is_built_is_the_prompt(clock: Clock, time: HandTurned) -> None:
    time.now += 2.0
    clock.prompted()
    assert clock.stages() == StageSeconds(prompt=2.0, engine=0.0, scoring=0.0, total=2.0)


def test_what_comes_after_it_is_the_engine(clock: Clock, time: HandTurned) -> None:
    clock.prompted()
    time.now += 3.0
    assert clock.stages() == StageSeconds(prompt=0.0, engine=3.0, scoring=0.0, total=3.0)


def test_scoring_is_taken_out_of_the_engines_time_however_often_it_happens(clock: Clock, time: HandTurned) -> None:
    time.now += 1.0
    clock.prompted()
    for _ in range(2):
        time.now += 4.0
        with clock.scoring():
            time.now += 0.5
    assert clock.stages() == StageSeconds(prompt=1.0, engine=8.0, scoring=1.0, total=10.0)


def test_scoring_that_fails_is_counted(clock: Clock, time: HandTurned) -> None:
    clock.prompted()
    with contextlib.suppress(ValueError), clock.scoring():
        time.now += 0.5
        raise ValueError
    assert clock.stages().scoring == 0.5


def test_a_stage_may_be_looked_at_before_the_end(clock: Clock, time: HandTurned) -> None:
    clock.prompted()
    time.now += 1.0
    first = clock.stages()
    time.now += 1.0
    assert (first.engine, clock.stages().engine) == (1.0, 2.0)
