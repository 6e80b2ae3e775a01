"""Copies of folders: they stay as they were taken, hold nothing from outside, and go when nobody serves them."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from service.errors import StartError
from service.registry.loader import RegistryLoader
from service.registry.snapshots import LOCK, PREFIX, Snapshots, leading_outside, snapshots
from tests.support import REPOSITORY

HOLD = "import sys; from pathlib import Path; from service.registry.snapshots import snapshots\n"
HOLD += "with snapshots(Path(sys.argv[1])):\n    print(flush=True); sys.stdin.read()"
"""A process that holds a scratch folder until its input ends."""

Link = Callable[[str, str], None]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two folders of classifiers, and a file and a folder outside."""
    for name in ("refund", "fraud"):
        (tmp_path / f"root/{name}/adapter").mkdir(parents=True)
        (tmp_path / f"root/{name}/classifier.toml").write_text(name)
        (tmp_path / f"root/{name}/adapter/weights").write_text(f"weights of {name}")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").write_text("secret")
    return tmp_path / "root"


@pytest.fixture
def link(root: Path) -> Link:
    """Make a link at a path in the root; call with the path and where it leads."""

    def make(path: str, target: str) -> None:
        place = root / path
        shutil.rmtree(place, ignore_errors=True)
        place.symlink_to(target)

    return make


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def copies(cache: Path) -> Iterator[Snapshots]:
    with snapshots(cache) as made:
        yield made


@contextlib.contextmanager
def another_process(cache: Path) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", HOLD, str(cache)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_copy_is_like_its_folder(copies: Snapshots, root: Path) -> None:
    copy = copies.take(root / "refund")
    assert copy.name == "refund"
    assert (copy / "classifier.toml").read_text() == "refund"
    assert (copy / "adapter/weights").read_text() == "weights of refund"


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("other")], ids=["removed", "written"])
def test_a_copy_stays_when_its_folder_changes(copies: Snapshots, root: Path, change: Callable[[Path], object]) -> None:
    copy = copies.take(root / "refund")
    change(root / "refund/adapter/weights")
    assert (copy / "adapter/weights").read_text() == "weights of refund"


def test_a_copy_holds_what_links_lead_to(copies: Snapshots, root: Path, link: Link) -> None:
    link("refund/adapter", "../fraud/adapter")
    copy = copies.take(root / "refund")
    (root / "fraud/adapter/weights").write_text("other")
    assert (copy / "adapter/weights").read_text() == "weights of fraud"
    assert not any(path.is_symlink() for path in copy.rglob("*"))


def test_what_is_hidden_is_not_copied(copies: Snapshots, root: Path) -> None:
    (root / "refund/.classifier.toml").write_text("half written")
    assert sorted(path.name for path in copies.take(root / "refund").iterdir()) == ["adapter", "classifier.toml"]


def test_two_copies_of_a_folder_are_two(copies: Snapshots, root: Path) -> None:
    first, second = copies.take(root / "refund"), copies.take(root / "refund")
    copies.drop(first)
    assert not first.exists()
    assert (second / "classifier.toml").exists()


def test_what_is_no_copy_is_not_dropped(copies: Snapshots, root: Path) -> None:
    copies.drop(root / "refund")
    assert (root / "refund/classifier.toml").exists()


def test_a_folder_that_cannot_be_copied_whole_leaves_no_copy(
    copies: Snapshots, root: Path, cache: Path, link: Link
) -> None:
    link("refund/adapter/more", "nowhere")
    with pytest.raises(OSError, match="adapter/more"):
        copies.take(root / "refund")
    assert list(cache.glob(f"{PREFIX}*/*")) == list(cache.glob(f"{PREFIX}*/{LOCK}"))


INSIDE = {
    "no links": None,
    "a folder": ("refund/adapter", "../fraud/adapter"),
    "a file": ("refund/x", "../fraud/classifier.toml"),
}
OUTSIDE = {
    "a file": ("refund/secret", "../../outside/secret", "refund/secret"),
    "a folder": ("refund/adapter", "../../outside", "refund/adapter"),
    "an absolute path": ("refund/adapter/secret", "/etc/passwd", "refund/adapter/secret"),
    "itself": ("refund", "../outside", "refund"),
    "nowhere outside": ("refund/secret", "../../missing", "refund/secret"),
    "the root itself": ("refund/all", "..", "refund/all"),
    "in a circle": ("refund/adapter/again", "..", "refund/adapter/again"),
    "hidden": ("refund/.secret", "../../outside/secret", "refund/.secret"),
}  # fmt: skip


@pytest.mark.parametrize("made", INSIDE.values(), ids=INSIDE)
def test_what_stays_inside_is_not_named(root: Path, link: Link, made: tuple[str, str] | None) -> None:
    if made is not None:
        link(*made)
    assert leading_outside(root / "refund", root) == []


@pytest.mark.parametrize(("path", "target", "named"), OUTSIDE.values(), ids=OUTSIDE)
def test_a_link_that_leads_outside_is_named(root: Path, link: Link, path: str, target: str, named: str) -> None:
    link(path, target)
    assert leading_outside(root / "refund", root) == [named]


def test_a_link_that_leads_outside_behind_another_is_named(root: Path, link: Link) -> None:
    link("refund/adapter", "../fraud/adapter")
    link("fraud/adapter/secret", "../../../outside/secret")
    assert leading_outside(root / "refund", root) == ["refund/adapter/secret"]


def test_folders_that_lead_to_each_other_are_named(root: Path, link: Link) -> None:
    link("refund/other", "../fraud")
    link("fraud/other", "../refund")
    assert leading_outside(root / "refund", root) == ["refund/other/other"]


def test_all_links_that_lead_outside_are_named(root: Path, link: Link) -> None:
    link("refund/b", "/etc/passwd")
    link("refund/a", "/etc/passwd")
    assert leading_outside(root / "refund", root) == ["refund/a", "refund/b"]


def test_a_root_may_be_a_link_itself(root: Path) -> None:
    (root.parent / "link").symlink_to(root)
    assert leading_outside(root.parent / "link/refund", root.parent / "link") == []


def test_links_in_a_circle_are_no_folder_to_load(root: Path, link: Link, loader: RegistryLoader, cache: Path) -> None:
    link("refund/adapter/a", "b")
    link("refund/adapter/b", "a")
    with snapshots(cache) as copies:
        classifier, problems = loader.load_confined(root / "refund", root, copies)
    assert classifier is None
    assert problems[0].startswith("the folder cannot be read: ")


def test_everything_is_gone_at_the_end(cache: Path, root: Path) -> None:
    with snapshots(cache) as copies:
        copies.take(root / "refund")
    assert list(cache.glob(f"{PREFIX}*")) == []


def test_the_end_waits_for_a_copy_under_way_and_none_is_made_after_it(
    cache: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, copytree = threading.Event(), threading.Event(), shutil.copytree

    def slow(*of: Any, **settings: Any) -> None:
        begun.set()
        assert go_on.wait(20)
        copytree(*of, **settings)

    monkeypatch.setattr(shutil, "copytree", slow)
    with ThreadPoolExecutor() as threads:
        with snapshots(cache) as copies:
            taken = threads.submit(copies.take, root / "refund")
            assert begun.wait(20)
            threading.Timer(0.2, go_on.set).start()
        assert taken.result(20).name == "refund"
    assert not list(cache.glob(f"{PREFIX}*"))
    with pytest.raises(OSError, match="the server is stopping"):
        copies.take(root / "refund")
    assert not list(cache.glob(f"{PREFIX}*"))


def test_copies_of_a_process_that_was_killed_go_with_the_next_start(cache: Path) -> None:
    with another_process(cache) as process:
        process.kill()
        process.wait()
        (left,) = cache.glob(f"{PREFIX}*")
        with snapshots(cache):
            assert not left.exists()


def test_copies_of_a_living_process_stay(cache: Path) -> None:
    with another_process(cache), snapshots(cache):
        assert len(list(cache.glob(f"{PREFIX}*/{LOCK}"))) == 2
    assert len(list(cache.glob(f"{PREFIX}*"))) == 1


def test_a_folder_of_somebody_else_stays(cache: Path) -> None:
    (cache / f"{PREFIX}theirs").mkdir(parents=True)
    with snapshots(cache):
        assert (cache / f"{PREFIX}theirs").exists()


def test_nobody_looks_for_what_was_left_while_a_folder_is_there_and_not_yet_locked(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process would take the new folder for abandoned."""
    real, seen = fcntl.flock, []

    def flock(lock: int, operation: int) -> None:
        """Before each lock: whether a new folder is there, and whether another process may look."""
        with (cache / LOCK).open() as another:
            try:
                real(another, fcntl.LOCK_EX | fcntl.LOCK_NB)
                may_look = True
            except BlockingIOError:
                may_look = False
        seen.append((any(cache.glob(f"{PREFIX}*")), may_look))
        real(lock, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with snapshots(cache):
        assert seen == [(False, True), (True, False)]


def test_a_cache_that_cannot_be_written_to_is_told_with_the_variable_that_moves_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=r"cannot be written to .* set XDG_CACHE_HOME"), snapshots(tmp_path / "file/x"):
        raise AssertionError("it was made")
