"""Machines, waiting and cost of the same traffic, served in three ways."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from service.errors import ConfigurationError
from service.planning.plan import MAX_BUSY, OURS, SEPARATE, UNSHARED, Way, make_plan
from tests.unit.planned import CPU, deployment


def ways(**changes: Any) -> dict[str, Way]:
    (length,) = make_plan(deployment(**changes), [320]).lengths
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


def test_a_context_without_room_for_a_conversation_is_refused() -> None:
    assert make_plan(deployment(context_tokens=97), [320]).lengths[0].prefix_tokens == 32
    with pytest.raises(ConfigurationError, match="96 tokens"):
        make_plan(deployment(context_tokens=96), [320])
