"""Machines, waiting and cost of the same traffic, served in four ways."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

import pytest

from service.admission import Admission, Job
from service.deadline import Deadline
from service.domain import Priority
from service.errors import ConfigurationError, OverloadedError
from service.planning.plan import make_plan
from service.planning.ways import MAX_BUSY, MAX_TURNED_AWAY, OURS, PACKED, SEPARATE, UNSHARED, Way, let_in_of
from tests.unit.planned import CPU, deployment

GIB = 1 << 30


def ways(tokens: int = 320, **changes: Any) -> dict[str, Way]:
    (length,) = make_plan(deployment(**changes), [tokens]).lengths
    return {way.name: way for way in length.ways}


def seconds() -> float:
    (length,) = make_plan(deployment(), [320]).lengths
    return length.fan_out.seconds


def test_sixteen_separate_servers_cost_sixteen_times_as_much_while_one_suffices() -> None:
    found = ways(calls_per_s=0.01)
    assert (found[OURS].machines, found[SEPARATE].machines) == (1, 16)
    assert found[SEPARATE].cost == pytest.approx(16 * found[OURS].cost)


def test_the_cost_of_a_million_is_that_of_the_hours_they_take() -> None:
    cost = ways(calls_per_s=0.5, machine=replace(CPU, price_per_hour=3.6))[OURS].cost
    assert cost == pytest.approx(3.6 * 1_000_000 / (0.5 * 16 * 3600))


@pytest.mark.parametrize(("share", "machines"), [(0.999, 1), (1.001, 2), (1.999, 2), (2.001, 3)], ids=str)
def test_there_are_as_many_machines_as_keep_each_below_the_limit(share: float, machines: int) -> None:
    ours = ways(calls_per_s=share * MAX_BUSY / seconds())[OURS]
    assert ours.machines == machines
    assert ours.busy == pytest.approx(share * MAX_BUSY / machines)


def test_a_call_alone_takes_its_time_and_a_busy_machine_lets_it_wait() -> None:
    alone, busy = (ways(calls_per_s=rate)[OURS] for rate in (1e-6, 0.5 / seconds()))
    assert alone.latency_s == pytest.approx(seconds(), rel=1e-3)
    assert busy.latency_s == pytest.approx(1.5 * seconds())  # half busy: half as long again


def test_under_way_is_how_many_come_while_one_is_answered() -> None:
    ours = ways(calls_per_s=0.5)[OURS]
    assert ours.under_way == pytest.approx(0.5 * ours.latency_s)


def test_a_server_that_reads_once_per_adapter_needs_more_machines_for_the_same_traffic() -> None:
    found = ways(calls_per_s=0.5)
    assert found[UNSHARED].machines > 5 * found[OURS].machines


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [(383, 3), (384, 3), (385, 2), (767, 2), (768, 2), (769, 1), (2064, 1)],
    ids=lambda value: f"{value:,}",
)
def test_as_many_calls_are_let_in_as_admission_lets_in(tokens: int, expected: int) -> None:
    admission = Admission(max_calls=100, max_tokens=1536)
    job = Job(tokens, Priority.CRITICAL)
    with contextlib.ExitStack() as calls:
        for _ in range(expected):
            calls.enter_context(admission.admit(0, [job], Deadline()))
        with pytest.raises(OverloadedError):
            calls.enter_context(admission.admit(0, [job], Deadline()))
    assert let_in_of(tokens, 1536) == expected


def test_machines_are_enough_to_turn_away_few_where_the_bound_lets_in_one_call_at_a_time() -> None:
    found = ways(2000, calls_per_s=0.1, max_tokens_in_flight=1536)
    ours, unbounded = found[OURS], ways(2000, calls_per_s=0.1)[OURS]
    assert (ours.let_in, unbounded.machines) == (1, 1)
    assert 0.9 * MAX_TURNED_AWAY < ours.turned_away <= MAX_TURNED_AWAY
    assert ours.machines > 10 * unbounded.machines
    assert ours.cost / unbounded.cost == pytest.approx(ours.machines / (1 - ours.turned_away))
    assert ours.latency_s < unbounded.latency_s  # nobody waits for another


def test_what_has_no_bound_turns_nobody_away() -> None:
    found = ways(2000, calls_per_s=0.1, max_tokens_in_flight=1536)
    assert {name: (found[name].let_in, found[name].turned_away) for name in (SEPARATE, PACKED, UNSHARED)} == {
        SEPARATE: (None, 0.0),
        PACKED: (None, 0.0),
        UNSHARED: (None, 0.0),
    }


def test_merged_models_share_one_machine_while_there_is_little_to_do() -> None:
    found = ways(calls_per_s=0.001)
    assert (found[PACKED].machines, found[SEPARATE].machines) == (1, 16)
    assert found[PACKED].cost == pytest.approx(found[OURS].cost)


@pytest.mark.parametrize(("models", "machines"), [(16, 1), (15.99, 2), (5, 4), (0.5, 16)], ids=str)
def test_so_many_merged_models_share_a_machine_as_its_memory_holds(models: float, machines: int) -> None:
    memory = deployment().memory
    one = memory.weights + 320 * deployment().kv_token_bytes
    small = replace(CPU, memory_bytes=memory.step + memory.runtime + models * one)
    assert ways(machine=small, calls_per_s=1e-4)[PACKED].machines == machines


@pytest.mark.parametrize("calls_per_s", [0.01, 0.1, 0.3, 1.0, 3.0])
def test_merged_models_are_packed_so_that_the_fewest_machines_do(calls_per_s: float) -> None:
    found = ways(calls_per_s=calls_per_s)
    work = found[SEPARATE].busy * found[SEPARATE].machines / 16  # of one model
    packings = [math.ceil(16 / count) * math.ceil(work * count / MAX_BUSY) for count in range(1, 17)]
    assert found[PACKED].machines == min(packings)
    assert found[PACKED].busy <= MAX_BUSY


def test_a_context_without_room_for_a_conversation_is_refused() -> None:
    assert make_plan(deployment(context_tokens=97), [320]).lengths[0].prefix_tokens == 32
    with pytest.raises(ConfigurationError, match="96 tokens"):
        make_plan(deployment(context_tokens=96), [320])
