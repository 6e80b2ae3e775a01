"""The classifiers in this repository: every manifest is valid for the bundled base, and every folder is servable."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from service.cli.adapters import train
from service.prompt.builder import PromptBuilder
from service.prompt.format import MAX_TAIL_TOKENS
from service.prompt.labels import prove_labels
from service.prompt.tokenizer import PromptTokenizer
from service.registry.loader import RegistryLoader
from service.registry.manifest import load_manifest
from service.training.loop import TrainingConfig
from service.training.records import read_records
from tests.support import CLASSIFIERS

FOLDERS = sorted(path.parent for path in CLASSIFIERS.glob("*/classifier.toml"))


def test_there_are_sixteen() -> None:
    assert len(FOLDERS) == 16


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_its_labels_are_proven_and_its_tail_is_short(
    folder: Path, tokenizer: PromptTokenizer, builder: PromptBuilder
) -> None:
    manifest, problems = load_manifest(folder)
    assert problems == []
    assert manifest is not None
    labels, problems = prove_labels(tokenizer, manifest.words, manifest.labels)
    assert problems == []
    assert len({label.token_id for label in labels}) == len(manifest.labels)
    assert len(builder.tail(manifest.words)) <= MAX_TAIL_TOKENS // 4


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_it_was_trained_by_the_commands_defaults(folder: Path) -> None:
    config = json.loads((folder / "training.json").read_text(encoding="utf-8"))["config"]
    for option in ("rank", "epochs", "learning_rate", "seed", "base_dtype"):
        default = inspect.signature(train).parameters[option].default
        assert default == config[option] == getattr(TrainingConfig(), option)


def test_no_two_ask_in_the_same_words() -> None:
    words = [manifest.words for manifest, _ in map(load_manifest, FOLDERS) if manifest is not None]
    assert len(set(words)) == len(FOLDERS)


def test_all_are_servable(loader: RegistryLoader) -> None:
    assert list(loader.load(CLASSIFIERS).classifiers) == [folder.name for folder in FOLDERS]


def test_the_labelled_conversations_fit_the_manifests() -> None:
    labels = {f.name: list(m.labels) for f, (m, _) in zip(FOLDERS, map(load_manifest, FOLDERS), strict=True) if m}
    records = read_records(sorted((CLASSIFIERS / "data").glob("*.jsonl")), labels)
    for name, known in labels.items():
        for split in ("train", "dev"):
            found = {record.labels.get(name) for record in records if record.split == split}
            assert set(known) <= found, f"{name}: {split} lacks {set(known) - found}"
