"""A revision names exactly what answers: it changes with every byte that decides an answer and with nothing else."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from service.domain import Calibration, Probe
from service.engine.base import engine_adapter
from service.prompt.builder import PromptBuilder
from service.prompt.format import PromptFormat
from service.prompt.tokenizer import PromptTokenizer
from service.registry.calibration import CALIBRATION_FILE, write_calibration
from service.registry.loader import RegistryLoader
from service.registry.probes import write_probes
from tests.conftest import CONTEXT_TOKENS
from tests.support import talk

LABELS = ("yes", "no")


@pytest.fixture
def directory(tmp_path: Path, make_classifier_folder: Callable[..., Path]) -> Path:
    make_classifier_folder(tmp_path / "first", "refund")
    return tmp_path / "first"


def revision(loader: RegistryLoader, directory: Path) -> str:
    return loader.load(directory).get("refund").revision


def engine_name(loader: RegistryLoader, directory: Path) -> str:
    adapter = engine_adapter(loader.load(directory).get("refund"))
    assert adapter is not None
    return adapter.name


def change_a_byte(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_revision_is_16_hexadecimal_digits(loader: RegistryLoader, directory: Path) -> None:
    assert re.fullmatch("[0-9a-f]{16}", revision(loader, directory))


def test_loading_again_gives_the_same_revision(loader: RegistryLoader, directory: Path) -> None:
    assert revision(loader, directory) == revision(loader, directory)


def test_a_copy_elsewhere_has_the_same_revision(loader: RegistryLoader, directory: Path, tmp_path: Path) -> None:
    shutil.copytree(directory, tmp_path / "second")
    assert revision(loader, tmp_path / "second") == revision(loader, directory)


def test_a_file_that_decides_nothing_leaves_the_revision(loader: RegistryLoader, directory: Path) -> None:
    before = revision(loader, directory)
    (directory / "refund/CARD.md").write_text("# a card")
    (directory / "refund/adapter/README.md").write_text("# by PEFT")
    assert revision(loader, directory) == before


def test_probes_leave_the_revision(loader: RegistryLoader, directory: Path) -> None:
    before = revision(loader, directory)
    write_probes(directory / "refund", LABELS, [Probe(talk("money back"), (0.75, 0.125))])
    assert revision(loader, directory) == before


def test_a_calibration_changes_the_revision_and_not_the_engines_name(loader: RegistryLoader, directory: Path) -> None:
    before, name = revision(loader, directory), engine_name(loader, directory)
    write_calibration(directory / "refund", LABELS, Calibration(1.0, (0.0, 0.0), (0.0, 0.0)), "0" * 64, {})
    assert revision(loader, directory) != before
    assert engine_name(loader, directory) == name


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param('"scale": 1.0', '"scale": 1.5', id="scale"),
        pytest.param('"no": 0.0', '"no": 0.5', id="bias"),
        pytest.param('"thresholds": {}', '"thresholds": {"yes": 0.5}', id="threshold"),
        pytest.param('"records": 200', '"records": 201', id="what it was fitted on"),
        pytest.param("{", "{ ", id="a blank"),
    ],
)
def test_any_byte_of_the_calibration_changes_the_revision(
    loader: RegistryLoader, directory: Path, old: str, new: str
) -> None:
    calibration = Calibration(1.0, (0.0, 0.0), (0.0, 0.0))
    write_calibration(directory / "refund", LABELS, calibration, "0" * 64, {"records": 200})
    before = revision(loader, directory)
    path = directory / "refund" / CALIBRATION_FILE
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert revision(loader, directory) != before


@pytest.mark.parametrize("position", [-1, -100_000, -552_960], ids=["last byte", "in the middle", "first weight"])
def test_any_byte_of_the_weights_changes_the_revision(loader: RegistryLoader, directory: Path, position: int) -> None:
    before, name = revision(loader, directory), engine_name(loader, directory)
    change_a_byte(directory / "refund/adapter/adapter_model.safetensors", position)
    assert revision(loader, directory) != before
    assert engine_name(loader, directory) != name


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        pytest.param("adapter/adapter_config.json", '"lora_alpha": 4', '"lora_alpha": 8', id="alpha"),
        pytest.param("adapter/adapter_config.json", "{", "{ ", id="a blank in the config"),
        pytest.param("classifier.toml", "refund?", "refund!", id="words"),
        pytest.param("classifier.toml", '" yes"', '" Yes"', id="a label's token"),
        pytest.param("classifier.toml", "money", "Money", id="description"),
        pytest.param("classifier.toml", "[labels]", "min_label_mass = 0.4\n[labels]", id="least label mass"),
        pytest.param("classifier.toml", "[labels]", "[labels] ", id="a blank in the manifest"),
    ],
)
def test_any_byte_of_config_and_manifest_changes_the_revision(
    loader: RegistryLoader, directory: Path, file: str, old: str, new: str
) -> None:
    before = revision(loader, directory)
    path = directory / "refund" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    assert revision(loader, directory) != before


def test_losing_the_adapter_changes_the_revision(
    loader: RegistryLoader, directory: Path, make_classifier_folder: Callable[..., Path], tmp_path: Path
) -> None:
    make_classifier_folder(tmp_path / "second", "refund", adapter="none")
    assert revision(loader, tmp_path / "second") != revision(loader, directory)


@pytest.mark.parametrize("piece", ["preamble", "turn_end", "filler"])
def test_another_prompt_format_changes_the_revision(
    loader: RegistryLoader, directory: Path, tokenizer: PromptTokenizer, prompt_format: PromptFormat, piece: str
) -> None:
    changed = prompt_format.model_copy(update={piece: {"filler": " "}.get(piece, "x" + getattr(prompt_format, piece))})
    other = replace(loader, builder=PromptBuilder(tokenizer, changed, CONTEXT_TOKENS))
    assert revision(other, directory) != revision(loader, directory)


def test_another_base_changes_the_revision(loader: RegistryLoader, directory: Path) -> None:
    other = replace(loader, base=replace(loader.base, identity="0" * 64))
    assert revision(other, directory) != revision(loader, directory)


def test_the_context_size_leaves_the_revision(
    loader: RegistryLoader, directory: Path, tokenizer: PromptTokenizer, prompt_format: PromptFormat
) -> None:
    other = replace(loader, builder=PromptBuilder(tokenizer, prompt_format, 1024))
    assert revision(other, directory) == revision(loader, directory)
