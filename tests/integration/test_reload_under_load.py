"""Folders that change and are reloaded under a steady stream of fan-outs: no call fails and none mixes revisions."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.registry.loader import RegistryLoader
from service.registry.registry import Registry
from tests.deployment import ACTIVATED, BARE, PLAIN, Served, change_manifest
from tests.integration.harness import DEADLINE_S, HELLO
from tests.integration.operated import Operated, operating, traffic

RELOADS = 50
CALLERS = 8
COMING_AND_GOING = "spam"

Answer = dict[str, tuple[str, tuple[str, ...]]]
"""By classifier: the revision that answered, and its labels."""


@dataclass
class Load:
    """Callers that ask for everything, again and again, until `stop`.

    `moments`: what was served, one registry after the other; `calls`: each one's answers, and the first and the last
    moment that it can have seen.
    """

    operated: Operated
    moments: list[Registry]
    calls: list[tuple[int, int, Answer]] = field(default_factory=list)
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self) -> None:
        while not self.stop.is_set():
            first = len(self.moments) - 1
            response = await self.operated.client.fan_out(HELLO, timeout=DEADLINE_S)
            self.calls.append((first, len(self.moments) - 1, _answer(response)))


def _answer(response: pb.FanOutResponse) -> Answer:
    """Raises ValueError for a classifier that has a status instead of an answer."""
    for each in response.results:
        if each.WhichOneof("outcome") != "classification":
            raise ValueError(f"{each.classifier}: {each.status}")
    answered = [each.classification for each in response.results]
    return {each.classifier: (each.revision, tuple(score.label for score in each.scores)) for each in answered}


def _served(registry: Registry) -> Answer:
    return {
        name: (each.revision, tuple(label.name for label in each.labels)) for name, each in registry.classifiers.items()
    }


@pytest.fixture
async def load(tmp_path: Path, loader: RegistryLoader, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Load]:
    async with operating(tmp_path, loader) as operated:
        catalogue = operated.served.catalogue
        moments, replace = [catalogue.current], catalogue.replace

        def replaced(registry: Registry) -> None:
            moments.append(registry)
            replace(registry)

        monkeypatch.setattr(catalogue, "replace", replaced)
        yield Load(operated, moments)


def change(served: Served, number: int) -> None:
    """Another adapter and other labels for one, another manifest for a second, and a third that comes and goes."""
    served.write(ACTIVATED, number, labels={f"yes_{number}": " yes", f"no_{number}": " no"})
    change_manifest(served.classifiers / (BARE, PLAIN)[number % 2], description=f"Number {number}.")
    if number % 2:
        served.write(COMING_AND_GOING, number)
    else:
        shutil.rmtree(served.classifiers / COMING_AND_GOING, ignore_errors=True)


async def reload_under(load: Load) -> None:
    """Change and reload so often while callers ask, and hear that every change was made."""
    async with asyncio.TaskGroup() as callers:
        for _ in range(CALLERS):
            callers.create_task(load.call())
        for number in range(1, RELOADS + 1):
            change(load.operated.served, number)
            results = await load.operated.reload()
            assert len(results) == 3
            assert [problem for each in results for problem in each.problems] == []
        load.stop.set()


async def test_no_call_fails_and_each_is_answered_by_what_was_served_at_one_moment_of_it(load: Load) -> None:
    await reload_under(load)
    assert len({first for first, _, _ in load.calls}) > RELOADS
    assert any(first < last for first, last, _ in load.calls)
    for first, last, answer in load.calls:
        assert answer in [_served(registry) for registry in load.moments[first : last + 1]]


async def test_afterwards_the_engine_and_the_disk_hold_what_is_served_and_nothing_else(load: Load) -> None:
    await reload_under(load)
    assert set(load.operated.served.catalogue.current.classifiers) == {ACTIVATED, PLAIN, BARE}
    load.operated.served.require_tidy()


async def test_traffic_that_changes_under_load_fails_no_call(load: Load) -> None:
    served = load.operated.served
    own, other = served.current().revision, await load.operated.load(served.candidate(2))
    async with asyncio.TaskGroup() as callers:
        for _ in range(CALLERS):
            callers.create_task(load.call())
        for number in range(RELOADS):
            percent = 100 * (number % 2)
            request = traffic({own: percent, other: 100 - percent})
            await load.operated.admin.SetTraffic(request, timeout=DEADLINE_S)
        load.stop.set()
    assert {answer[ACTIVATED][0] for _, _, answer in load.calls} == {own, other}
