"""Folders that are watched: what changes in them is served without anybody asking, and no change ends the watch."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import watchfiles.main

from service import watch
from service.errors import UnknownClassifierError
from service.registry.loader import RegistryLoader
from service.revisions import Reloaded
from tests.deployment import ACTIVATED, BARE, KINDS, PLAIN, WAIT_S, Served, change_adapter, change_manifest, serving

QUIET_MS = 50
"""Shorter than a server's, so that no test waits long."""


@dataclass(frozen=True)
class Watched:
    """What is served from folders that are watched. `reloads`: which were asked for, and what came of each."""

    served: Served
    task: asyncio.Task[None]
    reloads: asyncio.Queue[tuple[Collection[str], list[Reloaded]]]

    async def reload(self) -> tuple[Collection[str], list[Reloaded]]:
        """The next one."""
        getting = asyncio.ensure_future(self.reloads.get())
        await asyncio.wait({getting, self.task}, timeout=WAIT_S, return_when=asyncio.FIRST_COMPLETED)
        assert getting.done(), "the watch has ended"
        return getting.result()

    async def outcome(self, name: str) -> str:
        """What became of a classifier, in the next reload that has anything to say of it."""
        while True:
            _, results = await self.reload()
            for each in results:
                if each.classifier == name:
                    return each.outcome.value

    async def refused(self) -> str:
        """The name of the next classifier that is refused."""
        while True:
            _, results = await self.reload()
            for each in results:
                if each.outcome.value == "refused":
                    return each.classifier


Watch = Callable[[Path], Awaitable[Watched]]


@pytest.fixture
async def served(tmp_path: Path, loader: RegistryLoader) -> AsyncIterator[Served]:
    async with serving(tmp_path, loader) as found:
        yield found


@pytest.fixture
async def start(served: Served, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Watch]:
    """Watch a folder; returns once every change to come is noticed."""
    watching, reloads, real = asyncio.Event(), asyncio.Queue[Any](), served.deployer.reload
    notify = watchfiles.main.RustNotify

    def notified(*arguments: Any) -> Any:
        made = notify(*arguments)
        watching.set()
        return made

    async def reload(names: Collection[str] = ()) -> list[Reloaded]:
        results = await real(names)
        reloads.put_nowait((names, results))
        return results

    monkeypatch.setattr(watch, "QUIET_MS", QUIET_MS)
    monkeypatch.setattr(watch, "LOOK_MS", QUIET_MS)
    monkeypatch.setattr(watchfiles.main, "RustNotify", notified)
    monkeypatch.setattr(served.deployer, "reload", reload)
    tasks: list[asyncio.Task[None]] = []

    async def begin(folder: Path) -> Watched:
        tasks.append(asyncio.create_task(watch.reload_changed(folder, served.deployer, served.catalogue, lambda: True)))
        await asyncio.wait_for(watching.wait(), WAIT_S)
        return Watched(served, tasks[0], reloads)

    yield begin
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def watched(start: Watch, served: Served) -> Watched:
    return await start(served.classifiers)


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: change_adapter(folder, lora_alpha=9),
        lambda folder: change_manifest(folder, description="Another."),
    ],
    ids=["adapter", "manifest"],
)
async def test_a_folder_that_changes_is_reloaded(watched: Watched, change: Callable[[Path], None]) -> None:
    before = watched.served.current().revision
    change(watched.served.classifiers / ACTIVATED)
    assert await watched.outcome(ACTIVATED) == "loaded"
    assert watched.served.current().revision != before


async def test_a_new_folder_is_served(watched: Watched) -> None:
    shutil.copytree(watched.served.classifiers / ACTIVATED, watched.served.candidates / "spam")
    (watched.served.candidates / "spam").rename(watched.served.classifiers / "spam")
    assert await watched.outcome("spam") == "loaded"


async def test_a_folder_that_is_removed_is_served_no_longer(watched: Watched) -> None:
    (watched.served.classifiers / BARE).rename(watched.served.candidates / BARE)
    assert await watched.outcome(BARE) == "removed"


async def test_only_what_changed_is_reloaded(watched: Watched) -> None:
    (watched.served.classifiers / "data").mkdir()
    (watched.served.classifiers / "data/more.jsonl").write_text("{}")
    (watched.served.classifiers / "prompt.toml").write_text("")
    change_manifest(watched.served.classifiers / ACTIVATED, description="Another.")
    names, _ = await watched.reload()
    assert set(names) == {ACTIVATED}


@pytest.mark.parametrize("path", ["classifiers", "link", "candidates/../classifiers"])
async def test_a_folder_is_watched_however_it_is_named(
    start: Watch, served: Served, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(served.root)
    (served.root / "link").symlink_to("classifiers")
    watched = await start(Path(path))
    change_manifest(served.classifiers / ACTIVATED, description="Another.")
    assert await watched.outcome(ACTIVATED) == "loaded"


async def test_a_change_that_is_refused_ends_nothing(watched: Watched) -> None:
    manifest = watched.served.classifiers / ACTIVATED / "classifier.toml"
    text = manifest.read_text()
    manifest.write_text("nonsense")
    assert await watched.outcome(ACTIVATED) == "refused"
    manifest.write_text(text.replace("money", "cash"))
    assert await watched.outcome(ACTIVATED) == "loaded"


async def test_a_reload_that_fails_is_in_the_log_and_ends_nothing(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    failed, reload = asyncio.Event(), watched.served.deployer.reload

    async def fail(names: Collection[str] = ()) -> list[Reloaded]:
        failed.set()
        raise UnknownClassifierError("It is gone again.")

    monkeypatch.setattr(watched.served.deployer, "reload", fail)
    change_manifest(watched.served.classifiers / ACTIVATED, description="Another.")
    await asyncio.wait_for(failed.wait(), WAIT_S)
    monkeypatch.setattr(watched.served.deployer, "reload", reload)
    change_manifest(watched.served.classifiers / PLAIN, description="Another.")
    assert await watched.outcome(PLAIN) == "loaded"
    errors = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert "reload: It is gone again." in errors


async def test_the_last_folder_that_is_removed_ends_nothing(watched: Watched) -> None:
    for name in KINDS:
        (watched.served.classifiers / name).rename(watched.served.candidates / name)
    kept = await watched.refused()
    other = next(name for name in KINDS if name != kept)
    change_manifest(watched.served.candidates / other, description="Another.")
    (watched.served.candidates / other).rename(watched.served.classifiers / other)
    assert await watched.outcome(other) == "loaded"


async def test_a_root_that_is_removed_ends_nothing(watched: Watched) -> None:
    shutil.rmtree(watched.served.classifiers)
    await watched.refused()
    assert not watched.task.done()


async def test_a_root_whose_mount_is_lost_ends_nothing_and_is_watched_anew(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    root, stat = watched.served.classifiers, Path.stat

    def lost(path: Path, **options: Any) -> os.stat_result:
        if path == root:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", lost)
    change_manifest(root / ACTIVATED, description="Another.")
    await watched.refused()
    async with asyncio.timeout(WAIT_S):
        while "cannot be watched" not in caplog.text:  # noqa: ASYNC110  (a log tells nobody)
            await asyncio.sleep(0.01)
    assert not watched.task.done()
    monkeypatch.setattr(Path, "stat", stat)
    assert await watched.outcome(ACTIVATED) == "loaded"


async def test_a_system_that_has_no_watch_left_ends_nothing(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = asyncio.Event()

    def none_left(*arguments: Any, **options: Any) -> Any:
        tried.set()
        raise RuntimeError("Error creating recommended watcher: Too many open files")

    with monkeypatch.context() as exhausted:
        exhausted.setattr("watchfiles.main.RustNotify", none_left)
        shutil.copytree(watched.served.classifiers, kept := watched.served.candidates / "kept")
        shutil.rmtree(watched.served.classifiers)  # so that it is watched anew
        shutil.copytree(kept, watched.served.classifiers)
        async with asyncio.timeout(WAIT_S):
            await tried.wait()
    assert not watched.task.done()
    change_manifest(watched.served.classifiers / ACTIVATED, description="Another.")
    assert await watched.outcome(ACTIVATED) == "loaded"


async def test_a_root_that_is_made_again_is_watched_anew(watched: Watched) -> None:
    before = watched.served.current().revision
    root = watched.served.classifiers
    shutil.copytree(root, watched.served.candidates / "kept")
    shutil.rmtree(root)
    await watched.refused()
    change_manifest(watched.served.candidates / "kept" / ACTIVATED, description="Another.")
    shutil.move(watched.served.candidates / "kept", root)
    assert await watched.outcome(ACTIVATED) == "loaded"
    assert watched.served.current().revision != before
    change_manifest(root / PLAIN, description="Another.")
    assert await watched.outcome(PLAIN) == "loaded"


async def test_a_root_that_is_replaced_in_one_instant_is_watched_anew(watched: Watched) -> None:
    root = watched.served.classifiers
    shutil.copytree(root, watched.served.candidates / "new")
    change_manifest(watched.served.candidates / "new" / ACTIVATED, description="Another.")
    root.rename(watched.served.candidates / "old")
    (watched.served.candidates / "new").rename(root)
    assert await watched.outcome(ACTIVATED) == "loaded"
    change_manifest(root / PLAIN, description="Another.")
    assert await watched.outcome(PLAIN) == "loaded"


async def test_a_link_that_is_turned_to_another_release_is_followed(start: Watch, served: Served) -> None:
    shutil.copytree(served.classifiers, served.root / "release-2")
    change_manifest(served.root / "release-2" / ACTIVATED, description="Another.")
    served.classifiers.rename(served.root / "release-1")
    served.classifiers.symlink_to("release-1")
    watched = await start(served.classifiers)
    (served.root / "next").symlink_to("release-2")
    (served.root / "next").rename(served.classifiers)
    assert await watched.outcome(ACTIVATED) == "loaded"
    change_manifest(served.root / "release-2" / PLAIN, description="Another.")
    assert await watched.outcome(PLAIN) == "loaded"
