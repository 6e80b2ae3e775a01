"""A reload makes what is served what the folder holds, and leaves nothing behind of what was served before."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service.errors import EngineError, UnknownClassifierError
from service.registry.loader import RegistryLoader
from service.revisions import ReloadOutcome
from tests.deployment import (
    ACTIVATED,
    BARE,
    PLAIN,
    Served,
    calibrate,
    change_adapter,
    change_manifest,
    serving,
    write_probe,
)
from tests.support import talk
from tests.unit.shifting_engine import ADAPTED

LOADED, REMOVED = ReloadOutcome.LOADED, ReloadOutcome.REMOVED


@pytest.fixture
async def served(tmp_path: Path, loader: RegistryLoader) -> AsyncIterator[Served]:
    async with serving(tmp_path, loader) as found:
        yield found


async def all_that_can_go_on() -> None:
    """Let every task go on that waits for nobody."""
    for _ in range(20):
        await asyncio.sleep(0)


Change = Callable[[Served], None]

CHANGES: dict[str, Change] = {
    "description": lambda served: change_manifest(served.classifiers / ACTIVATED, description="Another."),
    "words": lambda served: change_manifest(served.classifiers / ACTIVATED, words="money back?"),
    "a label's token": lambda served: change_manifest(
        served.classifiers / ACTIVATED, labels={"yes": " true", "no": " false"}
    ),
    "priority": lambda served: change_manifest(served.classifiers / ACTIVATED, priority="critical"),
    "calibration": lambda served: calibrate(served.loader, served.classifiers / ACTIVATED),
    "adapter": lambda served: change_adapter(served.classifiers / ACTIVATED, lora_alpha=9),
}
CHANGED = pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)


async def test_folders_that_did_not_change_are_left_alone(served: Served) -> None:
    registry, copies = served.catalogue.current, served.copies()
    assert await served.deployer.reload() == []
    assert (served.catalogue.current, served.copies()) == (registry, copies)
    assert served.engine.requests == []
    served.require_tidy()


async def test_a_file_that_decides_nothing_is_no_change(served: Served) -> None:
    (served.classifiers / ACTIVATED / "CARD.md").write_text("# a card")
    assert await served.deployer.reload() == []


@CHANGED
async def test_what_changed_takes_over_at_a_new_revision(served: Served, change: Change) -> None:
    before = served.current().revision
    change(served)
    (result,) = await served.deployer.reload()
    assert (result.classifier, result.outcome, result.problems) == (ACTIVATED, LOADED, ())
    assert (result.previous_revision, result.revision) == (before, served.current().revision)
    assert result.revision != before
    served.require_tidy()


@CHANGED
async def test_what_takes_over_is_what_the_folder_holds(served: Served, change: Change) -> None:
    change(served)
    await served.deployer.reload()
    expected, _ = served.loader.load_one(served.classifiers / ACTIVATED)
    assert expected is not None
    found = served.current()
    assert (found.revision, found.labels, found.priority) == (expected.revision, expected.labels, expected.priority)
    assert (found.tail_ids, found.calibration) == (expected.tail_ids, expected.calibration)


async def test_new_probes_are_proven_and_served_at_the_same_revision(served: Served) -> None:
    near = (ADAPTED[0] + 0.001, ADAPTED[1])
    write_probe(served.classifiers / ACTIVATED, near)
    (result,) = await served.deployer.reload()
    assert (result.outcome, result.revision) == (LOADED, result.previous_revision)
    assert served.current().probes[0].probabilities == near
    served.require_tidy()


async def test_a_new_revision_answers(served: Served) -> None:
    change_manifest(served.classifiers / ACTIVATED, labels={"sure": " yes", "never": " no"})
    write_probe(served.classifiers / ACTIVATED, labels=("sure", "never"))
    await served.deployer.reload()
    answer, _ = await served.classify.one(talk("hi"), ACTIVATED)
    assert (answer.label, answer.revision) == ("sure", served.current().revision)


@pytest.mark.parametrize("name", [ACTIVATED, PLAIN, BARE])
async def test_a_new_folder_is_served(served: Served, name: str) -> None:
    shutil.copytree(served.classifiers / name, served.classifiers / "spam")
    (result,) = await served.deployer.reload()
    assert (result.classifier, result.outcome, result.previous_revision) == ("spam", LOADED, "")
    answer, _ = await served.classify.one(talk("hi"), "spam")
    assert answer.revision == result.revision
    served.require_tidy()


@pytest.mark.parametrize("name", [ACTIVATED, PLAIN, BARE])
async def test_a_folder_that_is_gone_takes_its_classifier_along(served: Served, name: str) -> None:
    before = served.current(name).revision
    shutil.rmtree(served.classifiers / name)
    (result,) = await served.deployer.reload()
    assert (result.classifier, result.outcome) == (name, REMOVED)
    assert (result.previous_revision, result.revision) == (before, "")
    assert name not in served.catalogue.current.classifiers
    served.require_tidy()


async def test_only_the_named_are_looked_at(served: Served) -> None:
    for name in (ACTIVATED, PLAIN, BARE):
        change_manifest(served.classifiers / name, description="Another.")
    assert [each.classifier for each in await served.deployer.reload([PLAIN, PLAIN])] == [PLAIN]
    assert [each.classifier for each in await served.deployer.reload([BARE, ACTIVATED])] == [ACTIVATED, BARE]


@pytest.mark.parametrize("name", ["spam", "", "data", ".", "..", "refund/adapter"])
async def test_a_name_that_is_neither_served_nor_a_folder_is_unknown_and_nothing_is_reloaded(
    served: Served, name: str
) -> None:
    change_manifest(served.classifiers / ACTIVATED, description="Another.")
    before = served.catalogue.current
    with pytest.raises(UnknownClassifierError):
        await served.deployer.reload([ACTIVATED, name])
    assert served.catalogue.current is before


async def test_the_old_adapter_goes_when_the_calls_that_hold_it_are_done(served: Served) -> None:
    old = served.adapter()
    change_adapter(served.classifiers / ACTIVATED, lora_alpha=9)
    served.engine.front.clear()
    call = asyncio.create_task(served.classify.one(talk("hi"), ACTIVATED))
    await served.engine.until("front", 1)
    reload = asyncio.create_task(served.deployer.reload())
    await served.catalogue.until_replaced()
    await all_that_can_go_on()
    assert not reload.done()
    assert old in served.engine.loaded
    served.engine.front.set()
    answer, _ = await call
    await reload
    assert answer.revision != served.current().revision
    assert served.engine.unloaded == [old]
    served.require_tidy()


async def test_calls_that_begin_meanwhile_are_answered_by_the_new_revision(served: Served) -> None:
    change_adapter(served.classifiers / ACTIVATED, lora_alpha=9)
    with served.catalogue.lease():
        reload = asyncio.create_task(served.deployer.reload())
        await served.catalogue.until_replaced()
        answer, _ = await served.classify.one(talk("hi"), ACTIVATED)
    (result,) = await reload
    assert answer.revision == result.revision


@pytest.mark.parametrize("change", [CHANGES["calibration"], CHANGES["description"]], ids=["calibration", "manifest"])
async def test_an_adapter_that_the_new_revision_has_too_stays(served: Served, change: Change) -> None:
    change(served)
    await served.deployer.reload()
    assert served.engine.unloaded == []
    served.require_tidy()


async def test_an_adapter_that_came_back_is_loaded_again(served: Served) -> None:
    first = served.current().revision
    for alpha in (9, 1):
        change_adapter(served.classifiers / ACTIVATED, lora_alpha=alpha)
        await served.deployer.reload()
    assert served.current().revision == first
    served.require_tidy()


async def test_what_a_restart_would_read_does_not_change_with_the_folder(served: Served) -> None:
    shutil.rmtree(served.classifiers / ACTIVATED)
    folder = served.engine.folders[served.adapter()]
    assert (folder / "adapter_model.safetensors").exists()


async def test_a_new_revision_drops_the_further_ones_and_their_traffic(served: Served) -> None:
    candidate = await served.load(2)
    await served.deployer.route(ACTIVATED, [(candidate, 100)], [served.current().revision])
    change_adapter(served.classifiers / ACTIVATED, lora_alpha=9)
    (result,) = await served.deployer.reload()
    assert served.catalogue.current.shares(ACTIVATED) == {result.revision: 100}
    assert served.catalogue.current.revisions(ACTIVATED) == (served.current(),)
    served.require_tidy()


async def test_a_candidate_that_becomes_the_folders_own_keeps_its_adapter(served: Served) -> None:
    candidate = await served.load(2)
    served.write(number=2)
    (result,) = await served.deployer.reload()
    assert result.revision == candidate
    assert len(served.engine.unloaded) == 1
    served.require_tidy()


async def test_a_folder_that_did_not_change_keeps_its_traffic(served: Served) -> None:
    candidate = await served.load(2)
    await served.deployer.route(ACTIVATED, [(candidate, 100)], [])
    assert await served.deployer.reload() == []
    assert served.catalogue.current.shares(ACTIVATED) == {candidate: 100}


async def test_what_was_withheld_is_proven_again_though_nothing_changed(served: Served) -> None:
    served.catalogue.replace(served.catalogue.current.without({ACTIVATED: "The engine was not well."}))
    (result,) = await served.deployer.reload()
    assert (result.outcome, result.previous_revision) == (LOADED, "")
    assert served.catalogue.current.withheld == {}
    served.require_tidy()


async def test_a_change_is_proven_beside_three_that_serve_its_predecessor_among_them(
    tmp_path: Path, loader: RegistryLoader
) -> None:
    async with serving(tmp_path, loader, "ask", "bill", "cash", "deal", ACTIVATED) as served:
        served.catalogue.replace(served.catalogue.current.without({"ask": "It is off."}))
        old = served.adapter()
        change_adapter(served.classifiers / ACTIVATED, lora_alpha=9)
        await served.deployer.reload([ACTIVATED])
        asked = Counter(each.adapter.name for each in served.engine.requests if each.adapter)
        assert [name for name, count in asked.items() if count == 2] == [
            old, served.adapter("bill"), served.adapter("cash"),
        ]  # fmt: skip


async def test_reloads_at_once_run_one_after_the_other(served: Served) -> None:
    change_adapter(served.classifiers / ACTIVATED, lora_alpha=9)
    first, *others = await asyncio.gather(*(served.deployer.reload() for _ in range(5)))
    assert [each.outcome for each in first] == [LOADED]
    assert others == [[]] * 4
    served.require_tidy()


async def test_a_reload_that_its_caller_gives_up_is_made_to_its_end(served: Served) -> None:
    old = served.adapter()
    change_adapter(served.classifiers / ACTIVATED, lora_alpha=9)
    served.engine.back.clear()
    reload = asyncio.create_task(served.deployer.reload())
    await served.engine.until("back", 1)
    reload.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await reload
    served.engine.back.set()
    assert await served.deployer.reload() == []
    assert served.adapter() != old
    served.require_tidy()


async def test_an_adapter_that_the_engine_will_not_give_back_is_in_the_log(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    old = served.adapter()
    served.engine.stuck = EngineError("The engine still holds it.")
    change_adapter(served.classifiers / ACTIVATED, lora_alpha=9)
    (result,) = await served.deployer.reload()
    assert result.outcome is LOADED
    errors = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert errors == [f"{old} stays in the engine: The engine still holds it."]
