"""What is said of the machine that figures come from."""

from __future__ import annotations

import os

import pytest

from loadtest.server import machine, provenance


@pytest.mark.parametrize(
    ("ours", "said"), [({0, 1, 2, 3}, "4 CPUs, "), ({1}, "bound to 1 of 4 CPUs, ")], ids=["unbound", "taskset"]
)
def test_a_process_that_is_bound_does_not_pass_its_cores_off_as_the_machines(
    monkeypatch: pytest.MonkeyPatch, ours: set[int], said: str
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: ours)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert machine().startswith(said)
    assert provenance()["machine"] == machine()
