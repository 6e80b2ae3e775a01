"""Folders that are no base model, and caches that hold none: each is told with what to do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from service.base_model import BUNDLED, RECORD_FILE, cache_folder, describe_base, prepare_bundled, resolve_base
from service.errors import BaseModelError
from service.files import sha256
from service.prompt.tokenizer import PromptTokenizer


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    return tmp_path


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    with pytest.raises(BaseModelError, match=r"has no \*\.safetensors weights"):
        describe_base(folder)


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1", b"\xff" * 64])
def test_weights_that_cannot_be_read_are_named(folder: Path, content: bytes) -> None:
    (folder / "model-00001-of-00002.safetensors").write_bytes(content)
    with pytest.raises(
        BaseModelError, match=r"model-00001-of-00002\.safetensors cannot be read .*; get the model again"
    ):
        describe_base(folder)


def test_a_configuration_that_cannot_be_read_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(BaseModelError, match=r"config\.json cannot be read"):
        describe_base(folder)


def test_a_fine_tune_of_the_same_shape_is_another_base(folder: Path) -> None:
    tensors = {"model.norm.weight": np.ones(8, np.float32), "lm_head.weight": np.zeros((2048, 1024), np.float32)}
    save_file(tensors, folder / "model.safetensors")
    before = describe_base(folder)
    assert describe_base(folder) == before
    for name, tensor in tensors.items():  # as a fine-tune does, which changes all of a tensor, however small it is
        save_file({**tensors, name: tensor + 1e-3}, folder / "model.safetensors")
        after = describe_base(folder)
        assert replace(after, identity=before.identity) == before
        assert after.identity != before.identity


def test_a_copy_of_the_bundled_base_that_was_changed_is_refused(folder: Path) -> None:
    save_file({"lm_head.weight": np.zeros((4, 4), np.float32)}, folder / "model.safetensors")
    record = {each.name: sha256(each) for each in folder.iterdir()}
    (folder / RECORD_FILE).write_text(json.dumps(record))
    assert resolve_base(str(folder)) == folder
    save_file({"lm_head.weight": np.ones((4, 4), np.float32)}, folder / "model.safetensors")
    with pytest.raises(BaseModelError, match=r"model\.safetensors is damaged"):
        resolve_base(str(folder))


@pytest.mark.parametrize("text", ["", "{}", "version https://git-lfs.github.com/spec/v1"])
def test_a_tokenizer_that_cannot_be_read_is_named(folder: Path, text: str) -> None:
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(BaseModelError, match=r"tokenizer\.json cannot be read .*; get the model again"):
        PromptTokenizer.from_model(folder)


def test_a_folder_without_a_fast_tokenizer_is_refused(folder: Path) -> None:
    with pytest.raises(BaseModelError, match=r"has no tokenizer\.json"):
        PromptTokenizer.from_model(folder)


def test_a_cache_that_cannot_be_made_is_told_with_the_variable_that_moves_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BaseModelError, match=r"cannot be written to .* set XDG_CACHE_HOME"):
        prepare_bundled(tmp_path / "file" / "fantail")


@pytest.mark.parametrize("record", ["", "{", "[]", "{}"])
def test_a_damaged_record_of_a_prepared_base_is_told_with_what_to_do(tmp_path: Path, record: str) -> None:
    (tmp_path / BUNDLED).mkdir()
    (tmp_path / BUNDLED / RECORD_FILE).write_text(record)
    with pytest.raises(BaseModelError, match=r"damaged|cannot be read"):
        prepare_bundled(tmp_path)


def test_a_user_without_a_home_is_told_which_variable_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(BaseModelError, match="has no home; set XDG_CACHE_HOME"):
        cache_folder()
