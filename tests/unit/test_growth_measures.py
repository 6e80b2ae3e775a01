"""How `loadtest.growth` and `loadtest.limit` measure, without an engine: what is asked in which order, and refused."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.rpc import status_pb2

from loadtest.baselines.prompts import Task
from loadtest.contestants import timed_fan_out
from loadtest.growth import __main__ as command
from loadtest.growth import adapters, requests
from loadtest.growth.adapters import BLOCK, waits
from loadtest.growth.curve import Curve
from loadtest.limit import Taken, measure
from service.client import FantailAdminClient, FantailClient
from service.pb.fantail.v1 import admin_service_pb2 as admin_pb
from service.pb.fantail.v1 import classification_service_pb2 as pb

NAMES = [f"classifier_{number}" for number in range(64)]
SLOTS, NEVER = 16, -1


class StubClient(FantailClient, FantailAdminClient):
    """Both clients of a server with sixteen slots, which go to whoever was asked last; answers at once.

    `failing`: who does not answer live, nor in fan-outs, or in the one after `fails_after` others; `fan_outs`: how many
    were asked in each.
    """

    def __init__(self, failing: Sequence[str] = (), slots: int = SLOTS, fails_after: int | None = None) -> None:
        self._failing, self._slots, self._fails_after = failing, slots, fails_after
        self._held: OrderedDict[str, None] = OrderedDict()
        self.loads, self.asked = 0, list[str]()
        self.fan_outs = list[int]()

    async def classify(self, turns: Any, classifier: str, **options: Any) -> pb.ClassifyResponse:
        await asyncio.sleep(0)  # others ask meanwhile
        self.asked.append(classifier)
        self.loads += classifier not in self._held
        self._held[classifier] = None
        self._held.move_to_end(classifier)
        if len(self._held) > self._slots:
            self._held.popitem(last=False)
        return pb.ClassifyResponse()

    async def fan_out(self, turns: Any, classifiers: Sequence[str] = (), **options: Any) -> pb.FanOutResponse:
        names = classifiers or NAMES[:SLOTS]
        response = pb.FanOutResponse(results=[self._result(name) for name in names])
        self.fan_outs.append(len(names))
        return response

    @contextlib.asynccontextmanager
    async def follow(self, **options: Any) -> AsyncIterator[argparse.Namespace]:
        yield argparse.Namespace(tell=self._tell)

    async def _tell(self, turns: Any, **options: Any) -> pb.FanOutResponse:
        return pb.FanOutResponse(results=[pb.FanOutResult(classifier=name) for name in self._failing])

    async def list_revisions(self, *, timeout: float) -> Sequence[admin_pb.Revision]:
        adapter = admin_pb.AdapterStatus(slot_loads=self.loads)
        return [admin_pb.Revision(adapter=adapter), admin_pb.Revision()]

    def _result(self, name: str) -> pb.FanOutResult:
        if name in self._failing and self._fails_after in (None, len(self.fan_outs)):
            return pb.FanOutResult(classifier=name, status=status_pb2.Status(code=8))
        return pb.FanOutResult(classifier=name, classification=pb.Classification())


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Callable[[StubClient], None]:
    """Let the curves' servers be a stub."""

    def serve(client: StubClient) -> None:
        @contextlib.asynccontextmanager
        async def serving(**settings: str) -> AsyncIterator[StubClient]:
            yield client

        async def names(client: StubClient) -> list[str]:
            return NAMES

        @contextlib.contextmanager
        def folder(count: int) -> Iterator[Path]:
            yield Path("many")

        @contextlib.asynccontextmanager
        async def administered(**settings: str) -> AsyncIterator[tuple[None, StubClient, StubClient]]:
            yield None, client, client

        for name, stub in (("serving", serving), ("classifiers", names), ("many_classifiers", folder)):
            monkeypatch.setattr(requests, name, stub)
            monkeypatch.setattr(adapters, name, stub, raising=False)
        monkeypatch.setattr(adapters, "administered", administered)

    return serve


def nothing() -> None:
    pass


async def test_a_fan_out_is_measured_only_when_all_have_answered() -> None:
    _, reply = await timed_fan_out(StubClient(), [], NAMES[:3])
    assert len(reply.results) == 3
    with pytest.raises(RuntimeError, match="no answer of classifier_1, classifier_2; nothing is measured"):
        await timed_fan_out(StubClient(failing=NAMES[1:3]), [], NAMES[:3])


@pytest.mark.parametrize("curve_of", [requests.per_token, requests.per_classifier, requests.per_call])
async def test_a_curve_refuses_a_fan_out_that_is_answered_in_part(
    served: Callable[[StubClient], None], curve_of: command.Measure
) -> None:
    served(StubClient(failing=NAMES[:1]))
    with pytest.raises(RuntimeError, match="no answer of classifier_0"):
        await curve_of(Curve("cost", "call", "s"), 1, nothing)


async def test_a_turn_of_a_live_conversation_is_measured_only_when_all_have_answered(
    served: Callable[[StubClient], None],
) -> None:
    served(StubClient(failing=NAMES[:1], fails_after=NEVER))
    with pytest.raises(RuntimeError, match="no answer of classifier_0"):
        await requests.per_turn(Curve("cost", "turn", "s"), 1, nothing)


@pytest.mark.parametrize("fails_after", [0, 1], ids=["the first", "the same again"])
async def test_the_limit_refuses_a_fan_out_that_is_answered_in_part(fails_after: int) -> None:
    task = Task(NAMES[0], Path("adapter"), 4, [1, 2, 3], ("yes", "no"), [7, 9])
    rate = argparse.Namespace(ask=lambda turns: (0.1, [[1.0]]))
    client = StubClient(failing=NAMES[3:4], fails_after=fails_after)
    with pytest.raises(RuntimeError, match="no answer of classifier_3"):
        await measure(client, [task], rate, 100, 1, Taken())


async def test_sixteen_and_seventeen_are_asked_beside_each_other_in_either_order(
    served: Callable[[StubClient], None],
) -> None:
    client = StubClient()
    served(client)
    curve, steps = Curve("cost", "classifier", "s"), list[None]()
    await requests.per_classifier(curve, 2, lambda: steps.append(None))
    pair = [count for count in client.fan_outs if count in (16, 17)]
    assert pair == [16, 17, 17, 16] * 4
    assert len(steps) == len(client.fan_outs) == 2 * command.CURVES["classifiers"][4]


def test_the_17th_classifier_costs_the_median_difference_of_the_pairs() -> None:
    curve = Curve("cost", "classifier", "s", {"fan-out": {1: [2.0], 64: [4.0]}})
    for slow, more in ((0.0, 0.1), (1.0, 0.02), (5.0, 0.04), (0.5, 0.06)):  # the machine changes more than a classifier
        curve.add("fan-out", 16, 2.5 + slow)
        curve.add("fan-out", 17, 2.5 + slow + more)
    requests.note_classifiers(curve)
    assert "the 17th classifier costs 2.50 (quartiles 1.00 and 3.00, 4 pairs) % of one classification" in curve.notes


async def test_swaps_and_calm_take_turns_and_are_told_with_their_difference() -> None:
    client = StubClient()
    swaps, calm, difference = await waits(client, client, NAMES, 5)
    assert f"of {5 * BLOCK}" in swaps
    assert f"of {5 * BLOCK}" in calm
    assert "5 pairs" in difference
    assert "(0 swaps)" not in swaps
    others = [name for name in client.asked if name != NAMES[0]]
    alone = [place for place, name in enumerate(others) if name == NAMES[1]]
    assert {place + 1 for place in alone} & set(alone), "one adapter alone beside a calm block"
    assert len(set(others)) > SLOTS, "further ones in each block, or they would all find their slots"


async def test_swaps_are_not_measured_where_every_adapter_has_a_slot() -> None:
    client = StubClient(slots=len(NAMES))
    for name in NAMES:
        await client.classify([], name)
    with pytest.raises(RuntimeError, match="no adapter was put into a slot"):
        await waits(client, client, NAMES, 2)


async def test_a_round_of_swaps_that_were_none_ends_the_curve(served: Callable[[StubClient], None]) -> None:
    client, steps = StubClient(slots=len(NAMES)), list[None]()
    for name in NAMES:
        await client.classify([], name)
    served(client)
    with pytest.raises(RuntimeError, match="no adapter was put into a slot"):
        await adapters.per_adapter(Curve("swaps", "adapter", "s"), 1, lambda: steps.append(None))
    assert not steps


async def test_the_curve_of_swaps_tells_what_one_costs_pair_by_pair(served: Callable[[StubClient], None]) -> None:
    served(StubClient())
    curve = Curve("swaps", "adapter", "s")
    await adapters.per_adapter(curve, 2, nothing)
    assert {len(each) for series in (adapters.HOT, adapters.COLD) for each in curve.values[series].values()} == {2}
    assert f"{2 * len(NAMES)} pairs) ms" in curve.notes[0]


async def test_memory_is_weighed_once_and_its_bar_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.asynccontextmanager
    async def started(*log: Path, **settings: str) -> AsyncIterator[argparse.Namespace]:
        yield argparse.Namespace(pid=1)

    @contextlib.contextmanager
    def folder(count: int) -> Iterator[Path]:
        yield Path("many")

    monkeypatch.setattr(adapters, "started_server", started)
    monkeypatch.setattr(adapters, "many_classifiers", folder)
    monkeypatch.setattr(adapters, "resident_bytes", lambda pid: 2**30)
    curve, steps = Curve("resident memory", "adapter", "GiB"), list[None]()
    await adapters.memory(curve, 5, lambda: steps.append(None))
    assert [len(values) for values in curve.values["GiB"].values()] == [1] * 4
    assert command.steps("memory", 5) == len(steps) == 4
    assert command.steps("tokens", 5) == 35


def test_figures_are_written_with_what_must_stand_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def line(curve: Curve, rounds: int, advance: Callable[[], None]) -> None:
        for x in (1, 2):
            curve.add("one", x, float(x))

    monkeypatch.setattr(command, "CURVES", {"tokens": ("cost", "token", "s", line, 1)})
    monkeypatch.setattr(sys, "argv", ["growth", "tokens", "--rounds", "1", "--output", str(tmp_path / "growth.json")])
    command.main()
    written = json.loads((tmp_path / "growth.json").read_text(encoding="utf-8"))
    assert {"machine", "commit", "date", "versions"} <= set(written)
    assert written["curves"]["tokens"]["values"] == {"one": {"1": [1.0], "2": [2.0]}}
