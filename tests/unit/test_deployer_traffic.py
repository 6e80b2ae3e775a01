"""Further revisions: loaded from candidates, given traffic or shadows, unloaded once nobody needs them."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.errors import (
    EngineDeadError,
    FolderOutsideError,
    InvalidTrafficError,
    RevisionInUseError,
    RevisionRefusedError,
    UnknownClassifierError,
    UnknownRevisionError,
)
from service.registry.loader import RegistryLoader
from tests.deployment import ACTIVATED, BARE, PLAIN, Served, calibrate, serving
from tests.support import talk


@pytest.fixture
async def served(tmp_path: Path, loader: RegistryLoader) -> AsyncIterator[Served]:
    async with serving(tmp_path, loader) as found:
        yield found


async def answering(served: Served, name: str = ACTIVATED) -> set[str]:
    """Revisions that answer about one of twenty conversations."""
    answers = [await served.classify.one(talk("hi", id=f"{number}"), name) for number in range(20)]
    return {answer.revision for answer, _ in answers}


@pytest.mark.parametrize("name", [ACTIVATED, PLAIN, BARE])
async def test_a_candidate_is_loaded_and_answers_nothing(served: Served, name: str) -> None:
    own = served.current(name).revision
    revision = await served.load(2, name, description="Another.")
    assert [each.revision for each in served.catalogue.current.revisions(name)] == [own, revision]
    assert await answering(served, name) == {own}
    served.require_tidy()


async def test_a_candidates_folder_may_have_any_name(served: Served) -> None:
    written = served.candidates / served.candidate(2)
    written.rename(served.candidates / "Best So Far")
    found = await served.deployer.load(ACTIVATED, "Best So Far")
    assert found.name == ACTIVATED
    served.require_tidy()


async def test_a_revision_that_is_loaded_already_is_not_loaded_twice(served: Served) -> None:
    first = await served.load(2)
    before = served.catalogue.current
    assert await served.load(2) == first
    assert served.catalogue.current is before
    served.require_tidy()


async def test_the_folders_own_revision_is_loaded_already(served: Served) -> None:
    assert await served.load(0) == served.current().revision
    assert len(served.catalogue.current.revisions(ACTIVATED)) == 1
    served.require_tidy()


async def test_candidates_are_loaded_beside_each_other(served: Served) -> None:
    revisions = [await served.load(number) for number in (2, 3)]
    assert [each.revision for each in served.catalogue.current.revisions(ACTIVATED)][1:] == revisions
    served.require_tidy()


async def test_a_candidate_stays_as_it_was_loaded(served: Served) -> None:
    revision = await served.load(2)
    await served.deployer.route(ACTIVATED, [(revision, 100)], [])
    shutil.rmtree(served.candidates)
    assert await answering(served) == {revision}
    served.require_tidy()


async def test_a_candidate_of_a_classifier_that_is_not_served_is_refused(served: Served) -> None:
    with pytest.raises(UnknownClassifierError):
        await served.load(2, "spam")


OUTSIDE = ["", ".", "..", "../classifiers/refund", "2/../../classifiers/refund", "/etc", "a\0b", "link", "link/refund"]
TOO_LONG = ["x" * 4097, "2/x" * 2000]
NOT_THERE = ["missing", "file", "x" * 300, "2/x" * 1365, "x" * 4096]


@pytest.mark.parametrize("folder", [*OUTSIDE, *TOO_LONG], ids=lambda folder: repr(folder)[:30])
async def test_a_folder_outside_the_candidates_is_refused(served: Served, folder: str) -> None:
    (served.candidates / "link").symlink_to(served.classifiers)
    with pytest.raises(FolderOutsideError) as caught:
        await served.deployer.load(ACTIVATED, folder)
    assert caught.value.field == "folder"
    assert str(served.root) not in caught.value.message
    served.require_tidy()


@pytest.mark.parametrize("folder", NOT_THERE, ids=lambda folder: folder[:8])
async def test_a_folder_that_is_not_there_is_refused(served: Served, folder: str) -> None:
    (served.candidates / "file").write_text("")
    with pytest.raises(RevisionRefusedError) as caught:
        await served.deployer.load(ACTIVATED, folder)
    assert caught.value.message.startswith("the folder cannot be read: ")
    assert str(served.root) not in caught.value.message
    served.require_tidy()


async def test_a_load_that_its_caller_gives_up_is_made_to_its_end(served: Served) -> None:
    candidate = served.candidate(2)
    served.engine.back.clear()
    load = asyncio.create_task(served.deployer.load(ACTIVATED, candidate))
    await served.engine.until("back", 1)
    load.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await load
    served.engine.back.set()
    await served.catalogue.until_replaced()
    assert len(served.catalogue.current.revisions(ACTIVATED)) == 2
    served.require_tidy()


async def test_shares_divide_the_conversations(served: Served) -> None:
    own, revision = served.current().revision, await served.load(2)
    assert await served.deployer.route(ACTIVATED, [(own, 50), (revision, 50)], []) == (
        {own: 50, revision: 50},
        frozenset(),
    )
    assert await answering(served) == {own, revision}


async def test_no_shares_give_all_to_the_folders_own_revision(served: Served) -> None:
    own, revision = served.current().revision, await served.load(2)
    await served.deployer.route(ACTIVATED, [(revision, 100)], [])
    assert await served.deployer.route(ACTIVATED, [], []) == ({own: 100}, frozenset())
    assert await answering(served) == {own}


async def test_shadows_are_those_that_were_set_last(served: Served) -> None:
    first, second = await served.load(2), await served.load(3)
    await served.deployer.route(ACTIVATED, [], [first])
    _, shadows = await served.deployer.route(ACTIVATED, [], [second, second])
    assert set(shadows) == {second}
    assert [each.revision for each in served.catalogue.current.shadows(ACTIVATED)] == [second]


@pytest.mark.parametrize(
    "shares",
    [
        pytest.param((50, 49), id="99 in all"),
        pytest.param((50, 51), id="101 in all"),
        pytest.param((-1, 101), id="below 0"),
        pytest.param((100, 100), id="200 in all"),
        pytest.param((0, 0), id="nothing"),
    ],
)
async def test_shares_that_are_no_percentages_of_a_whole_are_refused(served: Served, shares: tuple[int, int]) -> None:
    revisions = (served.current().revision, await served.load(2))
    before = served.catalogue.current
    with pytest.raises(InvalidTrafficError) as caught:
        await served.deployer.route(ACTIVATED, list(zip(revisions, shares, strict=True)), [])
    assert caught.value.field == "shares"
    assert served.catalogue.current is before


async def test_a_revision_with_two_shares_is_refused(served: Served) -> None:
    own = served.current().revision
    with pytest.raises(InvalidTrafficError):
        await served.deployer.route(ACTIVATED, [(own, 100), (own, 100)], [])


@pytest.mark.parametrize(
    ("shares", "shadows"), [([("f" * 16, 100)], []), ([], ["f" * 16])], ids=["a share", "a shadow"]
)
async def test_traffic_for_a_revision_that_is_not_loaded_is_refused(
    served: Served, shares: list[tuple[str, int]], shadows: list[str]
) -> None:
    before = served.catalogue.current
    with pytest.raises(UnknownRevisionError):
        await served.deployer.route(ACTIVATED, shares, shadows)
    assert served.catalogue.current is before


@pytest.mark.parametrize("shares", [[], [("f" * 16, 100)]], ids=["without shares", "with shares"])
async def test_traffic_of_a_classifier_that_is_not_served_is_refused(
    served: Served, shares: list[tuple[str, int]]
) -> None:
    before = served.catalogue.current
    with pytest.raises(UnknownClassifierError):
        await served.deployer.route("spam", shares, [])
    assert served.catalogue.current is before


@pytest.mark.parametrize("share", [None, 0], ids=["without a share", "with a share of 0"])
async def test_a_revision_that_nobody_needs_is_unloaded(served: Served, share: int | None) -> None:
    own, revision = served.current().revision, await served.load(2)
    if share is not None:
        await served.deployer.route(ACTIVATED, [(own, 100 - share), (revision, share)], [])
    await served.deployer.unload(ACTIVATED, revision)
    assert served.catalogue.current.revisions(ACTIVATED) == (served.current(),)
    assert served.catalogue.current.shares(ACTIVATED) == {own: 100}
    assert len(served.engine.unloaded) == 1
    served.require_tidy()


async def test_unloading_waits_for_the_calls_that_hold_it(served: Served) -> None:
    revision = await served.load(2)
    with served.catalogue.lease():
        served.catalogue.replaced.clear()
        unload = asyncio.create_task(served.deployer.unload(ACTIVATED, revision))
        await served.catalogue.until_replaced()
        assert served.engine.unloaded == []
    await unload
    assert len(served.engine.unloaded) == 1


async def test_an_adapter_that_another_revision_has_too_stays(served: Served) -> None:
    candidate = served.candidate(0)
    calibrate(served.loader, served.candidates / candidate)
    found = await served.deployer.load(ACTIVATED, candidate)
    await served.deployer.unload(ACTIVATED, found.revision)
    assert served.engine.unloaded == []
    served.require_tidy()


@pytest.mark.parametrize(
    ("share", "shadows"), [(1, False), (100, False), (0, True)], ids=["a share of 1", "a share of 100", "a shadow"]
)
async def test_a_revision_in_use_is_not_unloaded(served: Served, share: int, shadows: bool) -> None:
    own, revision = served.current().revision, await served.load(2)
    await served.deployer.route(ACTIVATED, [(own, 100 - share), (revision, share)], [revision] if shadows else [])
    await require_in_use(served, revision)


@pytest.mark.parametrize("share", [100, 0], ids=["that answers all", "that answers nothing"])
async def test_the_folders_own_revision_is_not_unloaded(served: Served, share: int) -> None:
    own, revision = served.current().revision, await served.load(2)
    await served.deployer.route(ACTIVATED, [(own, share), (revision, 100 - share)], [])
    await require_in_use(served, own)


async def require_in_use(served: Served, revision: str) -> None:
    before = served.catalogue.current
    with pytest.raises(RevisionInUseError) as caught:
        await served.deployer.unload(ACTIVATED, revision)
    assert caught.value.metadata == {"classifier": ACTIVATED, "revision": revision}
    assert served.catalogue.current is before


@pytest.mark.parametrize(
    ("name", "error"), [("spam", UnknownClassifierError), (ACTIVATED, UnknownRevisionError)], ids=["name", "revision"]
)
async def test_what_is_unknown_is_not_unloaded(served: Served, name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await served.deployer.unload(name, "f" * 16)


async def test_places_are_listed_by_classifier_and_revision(served: Served) -> None:
    for number in range(2, 7):
        await served.load(number)
    listed = [(each.classifier.name, each.classifier.revision) for each in await served.deployer.places()]
    assert listed == sorted(listed)
    assert len(listed) == 8


async def test_a_dead_engine_has_no_places(served: Served) -> None:
    served.engine.dead = True
    with pytest.raises(EngineDeadError):
        await served.deployer.places()
