"""Making classifier folders: wholly or not at all, from a template or around a saved adapter."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from service.domain import AdapterKind
from service.errors import RegistryError
from service.registry.adapter import CONFIG_FILE, WEIGHTS_FILE
from service.registry.folders import copy_adapter, copy_prompt, manifest_text, new_folder, say_activated
from service.registry.loader import RegistryLoader
from service.registry.manifest import MANIFEST_FILE, AdapterChoice, load_manifest
from tests.support import manifest_toml

YES_NO = {"yes": " yes", "no": " no"}


def everything_in(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_a_new_folder_is_there_with_its_files_at_the_end(tmp_path: Path) -> None:
    with new_folder(tmp_path, "refund") as folder:
        (folder / "inner").mkdir()
        (folder / "inner/file").write_text("x")
    assert everything_in(tmp_path) == {"refund", "refund/inner", "refund/inner/file"}


def test_a_folder_being_filled_has_its_own_name_and_is_no_classifier_yet(
    tmp_path: Path, loader: RegistryLoader, make_classifier_folder: Callable[..., Path]
) -> None:
    make_classifier_folder(tmp_path, "topic", adapter="none")
    with new_folder(tmp_path, "refund") as folder:
        assert folder.name == "refund"
        assert list(loader.load(tmp_path).classifiers) == ["topic"]


def fill_and_fail(directory: Path) -> None:
    with new_folder(directory, "refund") as folder:
        (folder / "file").write_text("x")
        raise KeyboardInterrupt


def test_a_folder_is_gone_when_filling_it_is_interrupted(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fill_and_fail(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("is_folder", [True, False], ids=["folder", "file"])
def test_what_is_there_already_is_refused_and_left_alone(tmp_path: Path, is_folder: bool) -> None:
    before = tmp_path / "refund" / "file" if is_folder else tmp_path / "refund"
    before.parent.mkdir(exist_ok=True)
    before.write_text("mine")
    with pytest.raises(RegistryError, match="refund is there already; remove it or choose another name"):
        fill_and_fail(tmp_path)
    assert before.read_text() == "mine"


@pytest.mark.parametrize("name", ["../refund", "group/refund", "/refund", ".", ""])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "classifiers"
    directory.mkdir()
    with pytest.raises(RegistryError, match="is a path; name a folder in"), new_folder(directory, name):
        pass
    assert everything_in(tmp_path) == {"classifiers"}


@pytest.mark.parametrize("adapter", AdapterChoice)
def test_a_written_manifest_reads_back(tmp_path: Path, adapter: AdapterChoice) -> None:
    text = manifest_text("refund", "Whether money is wanted back.", "refund?", YES_NO, adapter)
    (tmp_path / MANIFEST_FILE).write_text(text, encoding="utf-8")
    manifest, problems = load_manifest(tmp_path)
    assert problems == []
    assert manifest is not None
    assert (manifest.description, manifest.words) == ("Whether money is wanted back.", "refund?")
    assert (manifest.adapter, list(manifest.labels.items())) == (adapter, list(YES_NO.items()))


@pytest.mark.parametrize(
    "text",
    ['the "word"', "a\\b", "one\ntwo\tthree", "{braces} {0}", "grüße 🙂", "'single'", "# no comment", "\x01"],
    ids=["quotes", "backslash", "whitespace", "braces", "beyond ASCII", "apostrophes", "hash", "control character"],
)
def test_any_text_reads_back_from_a_written_manifest(text: str) -> None:
    read = tomllib.loads(manifest_text("refund", text, text, {"yes": text, "no": " no"}))
    assert (read["description"], read["words"], read["labels"]["yes"]) == (text, text, text)


def test_the_targets_that_a_manifest_offers_are_valid_when_uncommented(tmp_path: Path) -> None:
    text = manifest_text("refund", "Whether.", "refund?", YES_NO)
    offered = text.replace("# [targets.yes]\n# precision", "[targets.yes]\nprecision")
    assert offered != text
    (tmp_path / MANIFEST_FILE).write_text(offered, encoding="utf-8")
    assert load_manifest(tmp_path)[1] == []


def test_a_folder_made_from_the_template_is_served_by_the_base(tmp_path: Path, loader: RegistryLoader) -> None:
    with new_folder(tmp_path, "refund") as folder:
        (folder / MANIFEST_FILE).write_text(manifest_text("refund", "Whether.", "refund?", YES_NO), encoding="utf-8")
    assert loader.load(tmp_path).serving("refund").adapter is None


@pytest.mark.parametrize("kind", AdapterKind)
def test_a_copied_adapter_is_the_same_bytes_and_says_its_kind(
    tmp_path: Path, make_adapter: Callable[..., Path], kind: AdapterKind
) -> None:
    saved = make_adapter(tmp_path / "saved", kind=kind)
    (saved / "README.md").write_text("# by PEFT")
    (tmp_path / "refund").mkdir()
    assert copy_adapter(saved, tmp_path / "refund").value == kind.value
    made = tmp_path / "refund/adapter"
    assert everything_in(made) == {CONFIG_FILE, WEIGHTS_FILE}
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        assert (made / name).read_bytes() == (saved / name).read_bytes()


@pytest.mark.parametrize(
    "missing",
    [(CONFIG_FILE,), (WEIGHTS_FILE,), (CONFIG_FILE, WEIGHTS_FILE)],
    ids=["config", "weights", "both"],
)
def test_a_folder_without_an_adapters_files_is_refused_with_each_missing_one(
    tmp_path: Path, make_adapter: Callable[..., Path], missing: tuple[str, ...]
) -> None:
    saved = make_adapter(tmp_path / "saved")
    for name in missing:
        (saved / name).unlink()
    with pytest.raises(RegistryError) as caught:
        copy_adapter(saved, tmp_path)
    says = [f"{saved} has no {name}; save it with PEFT's save_pretrained" for name in missing]
    assert list(caught.value.problems) == says


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError) as caught:
        copy_adapter(tmp_path / "nowhere", tmp_path)
    assert len(caught.value.problems) == 2


@pytest.mark.parametrize("config", [b"", b"{", b"[]", b'"\xff"'], ids=["empty", "cut short", "a list", "not UTF-8"])
def test_a_config_that_is_no_json_object_is_refused(
    tmp_path: Path, make_adapter: Callable[..., Path], config: bytes
) -> None:
    saved = make_adapter(tmp_path / "saved")
    (saved / CONFIG_FILE).write_bytes(config)
    with pytest.raises(RegistryError) as caught:
        copy_adapter(saved, tmp_path)
    assert caught.value.problems == (f"{saved / CONFIG_FILE} is not a JSON object",)


def test_an_imported_adapter_is_served(
    tmp_path: Path, loader: RegistryLoader, make_adapter: Callable[..., Path]
) -> None:
    saved, directory = make_adapter(tmp_path / "saved"), tmp_path / "classifiers"
    directory.mkdir()
    with new_folder(directory, "refund") as folder:
        text = manifest_text("refund", "Whether.", "refund?", YES_NO, copy_adapter(saved, folder))
        (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")
    adapter = loader.load(directory).get("refund").adapter
    assert adapter is not None
    assert adapter.kind is AdapterKind.ACTIVATED


def test_a_prompt_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match=r"mine\.toml cannot be read: No such file"):
        copy_prompt(tmp_path / "mine.toml", tmp_path)


NONE = manifest_toml(adapter="none")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param('adapter = "none"\n', 'adapter = "activated"\n', id="as in the template"),
        pytest.param("adapter='none'\n", 'adapter="activated"\n', id="apostrophes, no blanks"),
        pytest.param('  adapter\t= "none" # base\n', '  adapter\t= "activated" # base\n', id="with a comment"),
        pytest.param('x = 1\r\nadapter = "none"\r\n', 'x = 1\r\nadapter = "activated"\r\n', id="lines with CRLF"),
        pytest.param('adapter = "none"', 'adapter = "activated"', id="no newline at the end"),
        pytest.param('adapter = "activated"\n', 'adapter = "activated"\n', id="activated already"),
        pytest.param('adapter = "plain"\n', 'adapter = "plain"\n', id="plain"),
        pytest.param('# adapter = "none"\n', '# adapter = "none"\n', id="in a comment"),
        pytest.param(
            'adapter = "none"\n[labels]\nadapter = "none"\n',
            'adapter = "activated"\n[labels]\nadapter = "none"\n',
            id="a label of that name",
        ),
    ],
)
def test_saying_activated_changes_that_value_alone(tmp_path: Path, before: str, after: str) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(before.encode())
    say_activated(tmp_path)
    assert (tmp_path / MANIFEST_FILE).read_bytes() == after.encode()
    assert everything_in(tmp_path) == {MANIFEST_FILE}


def test_a_manifest_from_the_template_says_activated_and_keeps_the_rest(tmp_path: Path) -> None:
    text = manifest_text("refund", "Whether [it] is.", "refund?", YES_NO)
    (tmp_path / MANIFEST_FILE).write_text(text, encoding="utf-8")
    say_activated(tmp_path)
    changed = (tmp_path / MANIFEST_FILE).read_text(encoding="utf-8")
    assert changed == manifest_text("refund", "Whether [it] is.", "refund?", YES_NO, AdapterChoice.ACTIVATED)
