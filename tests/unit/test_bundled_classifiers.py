"""The classifiers in this repository: every manifest is valid for the bundled base, and every folder is servable."""

from __future__ import annotations

import inspect
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import pytest

from service.cli.adapters import train
from service.evaluation.data_files import digest_of
from service.prompt.builder import PromptBuilder
from service.prompt.format import MAX_TAIL_TOKENS
from service.prompt.labels import prove_labels
from service.prompt.tokenizer import PromptTokenizer
from service.registry.loader import RegistryLoader
from service.registry.manifest import load_manifest
from service.training.loop import TrainingConfig
from service.training.records import Record, read_records
from tests.support import CLASSIFIERS
from tools.data import least_share, near_duplicates

README = CLASSIFIERS.parent / "README.md"
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


def test_all_are_served(loader: RegistryLoader) -> None:
    registry = loader.load(CLASSIFIERS)
    assert (list(registry.serving_names), dict(registry.withheld)) == ([folder.name for folder in FOLDERS], {})


@dataclass(frozen=True)
class Card:
    """What a CARD.md says: the revision and the data that it is of, and measures by system."""

    revision: str
    data: str
    measures: dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def cards() -> dict[str, Card]:
    found = {}
    for folder in FOLDERS:
        text = (folder / "CARD.md").read_text(encoding="utf-8")
        (revision,) = re.findall(r"Revision `([0-9a-f]{16})`", text)
        (data,) = re.findall(r" records of \d+ files in data/, split test \(data `([0-9a-f]{16})`\)", text)
        rows = re.findall(r"^\| (fantail|TF-IDF|MiniLM|zero-shot) \| (.*) \|$", text, re.MULTILINE)
        names = ("accuracy", "macro-F1", "AUC", "ECE", "Brier")
        measures = {
            system: dict(zip(names, (float(cell.split()[0]) for cell in cells.split(" | ")), strict=True))
            for system, cells in rows
        }
        found[folder.name] = Card(revision, data, measures)
    return found


def test_every_card_is_of_the_shipped_revision(cards: dict[str, Card], loader: RegistryLoader) -> None:
    registry = loader.load(CLASSIFIERS)
    assert {name: card.revision for name, card in cards.items()} == {
        each.name: each.revision for each in registry.select(())
    }


def test_every_card_was_measured_on_the_records_as_they_are(cards: dict[str, Card]) -> None:
    now = digest_of(sorted((CLASSIFIERS / "data").glob("*.jsonl")))[:16]
    assert {card.data for card in cards.values()} == {now}


@pytest.mark.parametrize(
    ("system", "row"),
    [
        ("fantail", "Fantail, calibrated"),
        ("TF-IDF", "TF-IDF + logistic regression, same records"),
        ("MiniLM", "MiniLM embeddings + logistic regression, same records"),
        ("zero-shot", "the base model, zero-shot"),
    ],
)
def test_the_readmes_figures_are_the_means_of_the_cards(cards: dict[str, Card], system: str, row: str) -> None:
    (cells,) = re.findall(rf"^\| {re.escape(row)} \| (.*) \|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    said = [float(cell.strip("*").split("*")[0].split()[0]) for cell in cells.split(" | ")]
    names = ("accuracy", "macro-F1", "AUC", "ECE", "Brier")
    means = [mean(card.measures[system][name] for card in cards.values()) for name in names]
    assert said == pytest.approx(means, abs=0.001)  # a card's figures are rounded


def test_by_their_cards_the_shipped_classifiers_are_good_enough_and_ahead_of_every_baseline(
    cards: dict[str, Card],
) -> None:
    ours = [card.measures["fantail"] for card in cards.values()]
    assert min(each["macro-F1"] for each in ours) >= 0.65
    assert mean(each["macro-F1"] for each in ours) >= 0.80
    assert mean(each["ECE"] for each in ours) <= 0.05
    for baseline in ("TF-IDF", "MiniLM", "zero-shot"):
        theirs = mean(card.measures[baseline]["macro-F1"] for card in cards.values())
        assert theirs < mean(each["macro-F1"] for each in ours)


@pytest.fixture(scope="module")
def labels() -> dict[str, list[str]]:
    return {f.name: list(m.labels) for f, (m, _) in zip(FOLDERS, map(load_manifest, FOLDERS), strict=True) if m}


@pytest.fixture(scope="module")
def records(labels: dict[str, list[str]]) -> list[Record]:
    return read_records(sorted((CLASSIFIERS / "data").glob("*.jsonl")), labels)


def test_every_conversation_has_every_label_and_no_label_is_rare(
    labels: dict[str, list[str]], records: list[Record]
) -> None:
    assert len(records) >= 900
    for name, known in labels.items():
        counts = Counter(record.labels[name] for record in records)
        for label in known:
            assert counts[label] / len(records) >= least_share(known), f"{name}: {label}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_drift_is_measured_from_answers_like_the_labels_of_the_calibration_split(
    folder: Path, loader: RegistryLoader, records: list[Record]
) -> None:
    classifier, _ = loader.load_one(folder)
    assert classifier is not None
    assert classifier.calibration is not None
    reference = classifier.calibration.reference
    assert reference is not None
    labelled = Counter(each.labels[folder.name] for each in records if each.split == "calibration")
    wanted = [labelled[label.name] / labelled.total() for label in classifier.labels]
    assert reference.shares == pytest.approx(wanted, abs=0.1)


def test_conversations_are_of_1_to_25_turns(records: list[Record]) -> None:
    lengths = {len(record.conversation.turns) for record in records}
    assert (min(lengths), max(lengths)) == (1, 25)


def test_no_two_splits_share_what_is_nearly_one_conversation(records: list[Record]) -> None:
    assert near_duplicates(records) == []


def test_nearly_one_conversation_is_seen_in_another_split(records: list[Record]) -> None:
    one = next(record for record in records if record.split == "train" and len(record.conversation.turns) > 3)
    turns = one.conversation.turns[:-1]
    other = next(record for record in records if record.split == "test")
    copied = replace(other, conversation=replace(other.conversation, turns=turns))
    ((first, second, _),) = near_duplicates([one, copied])
    assert {first, second} == {one.conversation.id, other.conversation.id}


def test_the_labelled_conversations_fit_the_manifests(labels: dict[str, list[str]], records: list[Record]) -> None:
    for name, known in labels.items():
        for split in ("train", "dev"):
            found = {record.labels.get(name) for record in records if record.split == split}
            assert set(known) <= found, f"{name}: {split} lacks {set(known) - found}"
