"""The bundled base: converted once, atomically, to exactly the expected weights, and verified whenever it is used."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from service import base_model
from service.base_model import BUNDLED, RECORD_FILE, describe_base, prepare_bundled, resolve_base, weights_digest
from service.errors import BaseModelError

pytestmark = [pytest.mark.engine, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A conversion into an empty cache in which an earlier one was interrupted."""
    cache = tmp_path_factory.mktemp("cache")
    (cache / BUNDLED).mkdir()
    (cache / BUNDLED / "config.json").write_text("half wri")
    return prepare_bundled(cache)


def test_the_conversion_gives_exactly_the_expected_weights(prepared: Path) -> None:
    assert weights_digest(prepared / "model.safetensors") == base_model.WEIGHTS_SHA256
    assert describe_base(prepared).linears["model.layers.29.mlp.down_proj"] == (576, 1536)
    assert [path.name for path in prepared.parent.iterdir()] == [BUNDLED], "nothing half-written is left beside it"


def test_it_is_converted_once(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_model, "_convert", lambda *_: pytest.fail("converted again"))
    assert prepare_bundled(prepared.parent) == prepared


@pytest.mark.parametrize("harm", ["changed", "missing"])
def test_a_damaged_file_is_named_with_what_to_do(prepared: Path, tmp_path: Path, harm: str) -> None:
    folder = tmp_path / BUNDLED
    shutil.copytree(prepared, folder)
    tokenizer = folder / "tokenizer.json"
    if harm == "changed":
        tokenizer.write_text(tokenizer.read_text(encoding="utf-8") + " ", encoding="utf-8")
    else:
        tokenizer.unlink()
    with pytest.raises(BaseModelError, match=r"tokenizer\.json is damaged; delete .* and run `fantail base` again"):
        prepare_bundled(tmp_path)


def test_other_weights_than_expected_are_not_kept(
    tmp_path: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base_model, "_convert", lambda gguf, made: shutil.copytree(prepared, made))
    monkeypatch.setattr(base_model, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(BaseModelError, match="gave other weights than expected"):
        prepare_bundled(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_record_names_every_file(prepared: Path) -> None:
    files = {path.name for path in prepared.iterdir()} - {RECORD_FILE}
    assert set(json.loads((prepared / RECORD_FILE).read_text())) == files


@pytest.mark.parametrize("model", ["no-such-folder", "/no/such/folder", "a/b/c"], ids=["name", "path", "nested"])
def test_a_base_that_is_neither_folder_nor_hub_name_is_refused(model: str) -> None:
    with pytest.raises(BaseModelError, match="set FANTAIL_MODEL"):
        resolve_base(model)


def test_a_folder_that_is_no_language_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BaseModelError, match="not a causal language model"):
        describe_base(tmp_path)
