"""Revisions in the shadow: asked about what was answered, compared and logged; callers notice nothing of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service import shadow as module
from service.admission import Job
from service.call import Call
from service.deadline import Deadline
from service.engine.base import EngineAdapter, engine_adapter
from service.errors import EngineError
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.reading import read
from service.registry.loader import RegistryLoader
from service.shadow import MOST_UNDER_WAY
from tests.deployment import ACTIVATED, BARE, KINDS, PLAIN, Served
from tests.integration.asking import answer
from tests.integration.harness import DEADLINE_S, HELLO, NEVER_S, classify_request, fan_out_request
from tests.integration.operated import Operated, operating, traffic
from tests.support import talk

REQUEST_ID = "call-17"
ASKING = {
    "Classify": classify_request(ACTIVATED),
    "FanOut": fan_out_request(ACTIVATED),
    "StreamFanOut": fan_out_request(ACTIVATED),
    "ClassifyBatch": pb.ClassifyBatchRequest(conversations=[fan_out_request().conversation], classifiers=[ACTIVATED]),
}


@pytest.fixture
async def operated(tmp_path: Path, loader: RegistryLoader) -> AsyncIterator[Operated]:
    async with operating(tmp_path, loader) as found:
        yield found


@pytest.fixture
def served(operated: Operated) -> Served:
    return operated.served


@pytest.fixture
async def shadow(operated: Operated, served: Served) -> str:
    """The revision of a candidate that is in the shadow."""
    revision = await operated.load(served.candidate(2))
    await operated.admin.SetTraffic(traffic({}, revision), timeout=DEADLINE_S)
    served.engine.requests.clear()
    return revision


async def ask(operated: Operated, name: str = ACTIVATED) -> str:
    """Ask with a request id; returns the revision that answers."""
    metadata = [("x-request-id", REQUEST_ID)]
    response = await operated.stub.Classify(classify_request(name), timeout=DEADLINE_S, metadata=metadata)
    return str(response.classification.revision)


def compared(served: Served, outcome: str) -> float:
    labels = {"classifier": ACTIVATED, "outcome": outcome}
    return served.metrics.registry.get_sample_value("fantail_shadowed_total", labels) or 0.0


def _adapter(served: Served, revision: str) -> EngineAdapter | None:
    return engine_adapter(served.catalogue.current.revision(ACTIVATED, revision))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged of shadows."""
    return [each.getMessage() for each in caplog.records if each.name == module.__name__]


@pytest.mark.parametrize(("method", "request_"), ASKING.items(), ids=ASKING)
async def test_the_shadow_is_asked_the_same_and_the_answer_is_the_others(
    operated: Operated, served: Served, shadow: str, method: str, request_: object
) -> None:
    response = await answer(operated.stub, method, request_)
    found = await served.metrics.shadow()
    assert found is not None
    assert found.revision == shadow
    assert served.current().revision in str(response)
    assert shadow not in str(response)
    first, second = served.engine.requests
    assert (first.token_ids, first.label_ids) == (second.token_ids, second.label_ids)
    assert (first.adapter, second.adapter) == (_adapter(served, served.current().revision), _adapter(served, shadow))


async def test_a_fan_out_has_one_result_for_a_classifier_with_a_shadow(
    operated: Operated, served: Served, shadow: str
) -> None:
    response = await operated.client.fan_out(HELLO, timeout=DEADLINE_S)
    assert [each.classifier for each in response.results] == sorted(KINDS)
    await served.metrics.shadow()
    assert served.metrics.shadows.empty()


async def test_a_shadow_that_answers_itself_is_not_asked_again(operated: Operated, served: Served, shadow: str) -> None:
    own = served.current().revision
    await operated.admin.SetTraffic(traffic({own: 0, shadow: 100}, shadow), timeout=DEADLINE_S)
    await ask(operated)
    await operated.admin.SetTraffic(traffic({}, shadow), timeout=DEADLINE_S)
    await ask(operated)
    await served.metrics.shadow()
    assert len(served.engine.requests) == 3


async def test_others_have_no_shadow(operated: Operated, served: Served, shadow: str) -> None:
    await ask(operated, PLAIN)
    await ask(operated)
    await served.metrics.shadow()
    assert len(served.engine.requests) == 3


async def test_all_of_several_shadows_are_asked(operated: Operated, served: Served, shadow: str) -> None:
    second = await operated.load(served.candidate(3))
    await operated.admin.SetTraffic(traffic({}, shadow, second), timeout=DEADLINE_S)
    await ask(operated)
    found = [await served.metrics.shadow() for _ in range(2)]
    assert {each.revision for each in found if each} == {shadow, second}


async def test_a_shadow_that_agrees_is_in_the_log_with_the_request_id(
    operated: Operated, served: Served, shadow: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    own = await ask(operated)
    await served.metrics.shadow()
    assert said(caplog) == [
        f"request {REQUEST_ID}: shadow refund@{shadow} says yes at 0.800, answered was yes at 0.800 by {own}"
    ]
    assert (compared(served, "agrees"), compared(served, "differs")) == (1, 0)


async def test_a_shadow_that_differs_is_in_the_log_with_both_labels(
    operated: Operated, served: Served, shadow: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    served.engine.favour = lambda request: int(request.adapter == _adapter(served, shadow))
    own = await ask(operated)
    await served.metrics.shadow()
    assert said(caplog) == [
        f"request {REQUEST_ID}: shadow refund@{shadow} says no at 0.800, answered was yes at 0.800 by {own}"
    ]
    assert (compared(served, "agrees"), compared(served, "differs")) == (0, 1)


async def test_a_shadow_that_fails_is_in_the_log_and_harms_nobody(
    operated: Operated, served: Served, shadow: str, caplog: pytest.LogCaptureFixture
) -> None:
    failing = _adapter(served, shadow)
    served.engine.fault = lambda request: EngineError("It is lost.") if request.adapter == failing else None
    assert await ask(operated) == served.current().revision
    assert await served.metrics.shadow() is None
    assert said(caplog) == [f"request {REQUEST_ID}: shadow refund@{shadow}: It is lost."]
    assert compared(served, "no answer") == 1


async def test_an_answer_does_not_wait_for_its_shadow(operated: Operated, served: Served, shadow: str) -> None:
    served.engine.back.clear()
    assert await ask(operated) == served.current().revision
    await served.engine.until("back", 1)


async def test_a_shadow_goes_on_when_its_call_has_ended(operated: Operated, served: Served, shadow: str) -> None:
    served.engine.back.clear()
    await ask(operated)
    await served.engine.until("back", 1)
    served.engine.back.set()
    assert await served.metrics.shadow() is not None


async def test_a_shadow_has_time_of_its_own(served: Served, shadow: str) -> None:
    answered, _ = await served.classify.one(talk("hi"), BARE)
    reading = await read(served.loader.builder, talk("hi"))
    asked = served.catalogue.current.revision(ACTIVATED, shadow)
    served.classify.shadows.ask(reading, asked, answered, Call(deadline=Deadline.after(0)))
    assert await served.metrics.shadow() is not None


async def test_a_shadow_that_takes_too_long_is_given_up(
    operated: Operated, served: Served, shadow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHADOW_SECONDS", 0.0)
    served.engine.back.clear()
    await ask(operated)
    assert await served.metrics.shadow() is None
    assert served.engine.waiting["back"] == 0


async def test_an_answer_that_fails_has_no_shadow(operated: Operated, served: Served, shadow: str) -> None:
    own = _adapter(served, served.current().revision)
    served.engine.fault = lambda request: EngineError("It is lost.") if request.adapter == own else None
    with pytest.raises(Exception, match="It is lost"):
        await ask(operated)
    served.engine.fault = lambda request: None
    await ask(operated)
    assert await served.metrics.shadow() is not None
    assert served.metrics.shadows.empty()


@pytest.mark.parametrize("more", [-1, 0, 1], ids=["limit-1", "limit", "limit+1"])
async def test_shadows_beyond_the_limit_are_left_out(
    operated: Operated, served: Served, shadow: str, more: int
) -> None:
    served.engine.back.clear()
    for _ in range(MOST_UNDER_WAY + more):
        await ask(operated)
    await served.engine.until("back", min(MOST_UNDER_WAY, MOST_UNDER_WAY + more))
    assert compared(served, "no answer") == max(0, more)


async def test_a_shadow_under_way_keeps_its_adapter(operated: Operated, served: Served, shadow: str) -> None:
    served.engine.back.clear()
    await ask(operated)
    await served.engine.until("back", 1)
    await operated.admin.SetTraffic(traffic({}), timeout=DEADLINE_S)
    served.catalogue.replaced.clear()
    unload = asyncio.create_task(served.deployer.unload(ACTIVATED, shadow))
    await served.catalogue.until_replaced()
    assert served.engine.unloaded == []
    served.engine.back.set()
    await unload
    assert await served.metrics.shadow() is not None
    served.require_tidy()


async def test_a_shadow_that_was_replaced_before_the_answer_is_not_asked(
    operated: Operated, served: Served, shadow: str
) -> None:
    """Nothing would keep its adapter loaded."""
    served.engine.front.clear()
    call = asyncio.create_task(ask(operated))
    await served.engine.until("front", 1)
    await operated.admin.SetTraffic(traffic({}), timeout=DEADLINE_S)
    served.catalogue.replaced.clear()
    unload = asyncio.create_task(served.deployer.unload(ACTIVATED, shadow))
    await served.catalogue.until_replaced()
    served.engine.front.set()
    await call
    assert await served.metrics.shadow() is None
    await unload
    assert len(served.engine.requests) == 1


async def test_a_shadow_that_waits_for_room_holds_up_no_unload(
    operated: Operated, served: Served, shadow: str, caplog: pytest.LogCaptureFixture
) -> None:
    admission, reading = served.classify.admission, await read(served.loader.builder, talk("hi"))
    answered, _ = await served.classify.one(talk("hi"), BARE)
    with admission.admit(0, [Job(admission.max_tokens)], Deadline()):
        served.classify.shadows.ask(reading, served.catalogue.current.revision(ACTIVATED, shadow), answered, Call())
        await operated.admin.SetTraffic(traffic({}), timeout=DEADLINE_S)
        await served.deployer.unload(ACTIVATED, shadow)
    assert await served.metrics.shadow() is None
    assert "It has been replaced meanwhile." in said(caplog)[-1]


async def test_a_server_that_ends_gives_its_shadows_up(
    tmp_path: Path, loader: RegistryLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHADOW_SECONDS", NEVER_S)
    async with operating(tmp_path, loader) as operated:
        revision = await operated.load(operated.served.candidate(2))
        await operated.admin.SetTraffic(traffic({}, revision), timeout=DEADLINE_S)
        operated.served.engine.back.clear()
        await ask(operated)
        await operated.served.engine.until("back", 1)
    assert operated.served.engine.waiting["back"] == 0
