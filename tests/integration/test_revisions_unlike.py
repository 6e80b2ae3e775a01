"""Two revisions that answer unlike, in each other's place under load: each answer is that of the revision it names."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from service.client import FantailClient
from service.engine.base import EngineAdapter, LabelLogprobs, ScoringRequest
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.registry.adapter import CONFIG_FILE
from service.registry.calibration import CALIBRATION_FILE
from service.registry.loader import RegistryLoader
from service.scoring.calibration import calibrate as recalibrated
from tests.deployment import ACTIVATED, PLAIN, ReadingEngine, Served, calibrate
from tests.integration.harness import DEADLINE_S, HELLO
from tests.integration.operated import Operated, operating, traffic

RELOADS = 20
CALLERS_EACH = 2
CONVERSATIONS = 40
NAMES = [ACTIVATED, PLAIN]

BASE, FIRST, SECOND = 0.5, 0.8, 0.3
"""Probability of the first of two labels: without an adapter, with one of an even number, with one of an odd number."""

SCALE = 2.0
"""Of a calibration."""


@dataclass
class WeighingEngine(ReadingEngine):
    """Answers by the weights that it holds under an adapter's name at the moment of the answer.

    `weights`: by name, the probability of the first label.
    """

    weights: dict[str, float] = field(default_factory=dict)

    async def load(self, adapter: EngineAdapter) -> None:
        await super().load(adapter)
        alpha = json.loads((adapter.adapter.path / CONFIG_FILE).read_text())["lora_alpha"]
        self.weights[adapter.name] = SECOND if (alpha - 1) % 2 else FIRST

    async def unload(self, name: str) -> None:
        await super().unload(name)
        self.weights.pop(name, None)

    async def score(self, request: ScoringRequest) -> LabelLogprobs:
        answer = await super().score(request)
        first = BASE if request.adapter is None else self.weights[request.adapter.name]
        return replace(answer, logprobs=(math.log(self.mass * first), math.log(self.mass * (1 - first))))


@pytest.fixture
async def operated(tmp_path: Path, loader: RegistryLoader, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Operated]:
    monkeypatch.setattr("tests.deployment.ReadingEngine", WeighingEngine)
    async with operating(tmp_path, loader, *NAMES) as found:
        yield found


def probe(first: float) -> dict[str, tuple[float, float]]:
    """What the probe of an adapter says that answers so."""
    mass = WeighingEngine().mass
    return {"probabilities": (mass * first, mass * (1 - first))}


def change_weights(served: Served, name: str, odd: bool) -> None:
    served.write(name, int(odd), **probe(SECOND if odd else FIRST))


def change_calibration(served: Served, name: str, odd: bool) -> None:
    if odd:
        calibrate(served.loader, served.classifiers / name, SCALE)
    else:
        (served.classifiers / name / CALIBRATION_FILE).unlink(missing_ok=True)


@dataclass(frozen=True)
class Change:
    """`make`: one classifier's other revision, or its first again; `answers`: of the first and of the other."""

    make: Callable[[Served, str, bool], None]
    answers: tuple[float, float]


CHANGES = {
    "other weights": Change(change_weights, (FIRST, SECOND)),
    "another calibration": Change(change_calibration, (FIRST, recalibrated((FIRST, 1 - FIRST), SCALE, (0.0, 0.0))[0])),
}
BY_CHANGE = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


async def _classify(client: FantailClient) -> Iterable[pb.Classification]:
    return [(await client.classify(HELLO, name, timeout=DEADLINE_S)).classification for name in NAMES]


async def _fan_out(client: FantailClient) -> Iterable[pb.Classification]:
    return [each.classification for each in (await client.fan_out(HELLO, timeout=DEADLINE_S)).results]


async def _stream(client: FantailClient) -> Iterable[pb.Classification]:
    return [each.classification async for each in client.stream_fan_out(HELLO, timeout=DEADLINE_S)]


async def _batch(client: FantailClient) -> Iterable[pb.Classification]:
    response = await client.classify_batch([HELLO] * 3, timeout=DEADLINE_S)
    return [each.classification for item in response.items for each in item.fan_out.results]


async def _follow(client: FantailClient) -> Iterable[pb.Classification]:
    answers = []
    async with client.follow(timeout=DEADLINE_S) as live:
        for _ in range(3):
            response = await live.tell(HELLO)
            assert response
            answers += [each.classification for each in response.results]
    return answers


ASKING: list[Callable[[FantailClient], Awaitable[Iterable[pb.Classification]]]] = [
    _classify, _fan_out, _stream, _batch, _follow,
]  # fmt: skip

Seen = set[tuple[str, str, float]]
"""Classifier, revision, and the probability of its first label."""


def seen(answers: Iterable[pb.Classification]) -> Seen:
    return {(each.classifier, each.revision, round(each.scores[0].probability, 6)) for each in answers}


@BY_CHANGE
async def test_under_reloads_every_answer_is_that_of_the_revision_it_names(operated: Operated, change: Change) -> None:
    served, stop = operated.served, asyncio.Event()
    answered: list[Seen] = [set() for _ in ASKING]
    expected = {(name, served.current(name).revision, round(FIRST, 6)) for name in NAMES}

    async def call(way: int) -> None:
        while not stop.is_set():
            answered[way] |= seen(await ASKING[way](operated.client))

    async with asyncio.TaskGroup() as callers:
        for way in range(len(ASKING)):
            for _ in range(CALLERS_EACH):
                callers.create_task(call(way))
        for number in range(1, RELOADS + 1):
            for name in NAMES:
                change.make(served, name, odd := bool(number % 2))
            results = await operated.reload()
            assert [problem for each in results for problem in each.problems] == []
            expected |= {(each.classifier, each.revision, round(change.answers[odd], 6)) for each in results}
        stop.set()
    assert len(expected) == 2 * len(NAMES)
    assert set().union(*answered) == expected
    assert all(answered)


@BY_CHANGE
async def test_of_two_calls_at_once_each_is_answered_by_the_revision_with_which_it_began(
    operated: Operated, change: Change
) -> None:
    served, before = operated.served, operated.served.current().revision
    served.engine.front.clear()
    first = asyncio.create_task(operated.client.fan_out(HELLO, [ACTIVATED], timeout=DEADLINE_S))
    await served.engine.until("front", 1)
    change.make(served, ACTIVATED, True)
    reload = asyncio.create_task(operated.reload(ACTIVATED))
    await served.catalogue.until_replaced()
    second = asyncio.create_task(operated.client.fan_out(HELLO, [ACTIVATED], timeout=DEADLINE_S))
    await served.engine.until("front", 2)
    served.engine.front.set()
    answers = [seen([(await call).results[0].classification]) for call in (first, second)]
    (result,) = await reload
    assert answers == [
        {(ACTIVATED, before, round(change.answers[0], 6))},
        {(ACTIVATED, result.revision, round(change.answers[1], 6))},
    ]


async def test_with_divided_traffic_every_answer_is_that_of_the_revision_it_names(operated: Operated) -> None:
    own = operated.served.current().revision
    other = await operated.load(operated.served.candidate(1, **probe(SECOND)))
    await operated.admin.SetTraffic(traffic({own: 50, other: 50}), timeout=DEADLINE_S)
    calls = (
        operated.client.classify(HELLO, ACTIVATED, timeout=DEADLINE_S, id=str(number))
        for number in range(CONVERSATIONS)
    )
    answers = [each.classification for each in await asyncio.gather(*calls)]
    assert seen(answers) == {(ACTIVATED, own, FIRST), (ACTIVATED, other, SECOND)}


Ids = Sequence[str]
Told = list[tuple[str, str]]


async def _classify_each(client: FantailClient, turns: Told, ids: Ids) -> list[pb.Classification]:
    asked = (client.classify(turns, ACTIVATED, timeout=DEADLINE_S, id=each) for each in ids)
    return [each.classification for each in await asyncio.gather(*asked)]


async def _fan_out_each(client: FantailClient, turns: Told, ids: Ids) -> list[pb.Classification]:
    asked = (client.fan_out(turns, [ACTIVATED], timeout=DEADLINE_S, id=each) for each in ids)
    return [each.results[0].classification for each in await asyncio.gather(*asked)]


async def _stream_each(client: FantailClient, turns: Told, ids: Ids) -> list[pb.Classification]:
    return [
        result.classification
        for each in ids
        async for result in client.stream_fan_out(turns, [ACTIVATED], timeout=DEADLINE_S, id=each)
    ]


async def _batch_all(client: FantailClient, turns: Told, ids: Ids) -> list[pb.Classification]:
    response = await client.classify_batch([turns] * len(ids), [ACTIVATED], timeout=DEADLINE_S, ids=ids)
    return [item.fan_out.results[0].classification for item in response.items]


async def _follow_each(client: FantailClient, turns: Told, ids: Ids) -> list[pb.Classification]:
    answers = []
    for each in ids:
        async with client.follow([ACTIVATED], timeout=DEADLINE_S, id=each) as live:
            response = await live.tell(turns)
            assert response
            answers.append(response.results[0].classification)
    return answers


WAYS = {each.__name__: each for each in (_classify_each, _fan_out_each, _stream_each, _batch_all, _follow_each)}


async def divided(operated: Operated) -> None:
    """Half of the traffic to another revision."""
    own, other = operated.served.current().revision, await operated.load(operated.served.candidate(1, **probe(SECOND)))
    await operated.admin.SetTraffic(traffic({own: 50, other: 50}), timeout=DEADLINE_S)


async def test_a_conversation_stays_with_its_revision_however_it_is_asked_and_while_it_grows(
    operated: Operated,
) -> None:
    await divided(operated)
    ids, turns = [f"conversation {number}" for number in range(20)], list(HELLO)
    expected = [each.revision for each in await _classify_each(operated.client, turns, ids)]
    assert len(set(expected)) == 2
    for way in WAYS.values():
        turns = [*turns, ("agent", "let me see"), ("customer", f"and now, {len(turns)}?")]
        assert [each.revision for each in await way(operated.client, turns, ids)] == expected


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_one_without_an_id_stays_with_its_revision_by_its_first_turn(
    operated: Operated, way: Callable[[FantailClient, Told, Ids], Awaitable[list[pb.Classification]]]
) -> None:
    await divided(operated)
    found = []
    for number in range(12):
        begun: Told = [("customer", f"hello, this is number {number}")]
        grown = [*begun, ("agent", "hi"), ("customer", "thanks")]
        (first,), (later,) = await way(operated.client, begun, [""]), await way(operated.client, grown, [""])
        assert first.revision == later.revision
        found.append(first.revision)
    assert len(set(found)) == 2
