"""The index of hard look-alikes: of every classifier, in both directions, and each really labelled otherwise."""

from __future__ import annotations

import json

import pytest

from service.registry.manifest import load_manifest
from service.training.records import Record, read_records
from tests.support import CLASSIFIERS

INDEX: dict[str, list[dict[str, str]]] = json.loads(
    (CLASSIFIERS / "data" / "look_alikes.json").read_text(encoding="utf-8")
)
NAMES = sorted(path.parent.name for path in CLASSIFIERS.glob("*/classifier.toml"))


@pytest.fixture(scope="module")
def records() -> dict[str, Record]:
    labels = {name: list(manifest.labels) for name in NAMES if (manifest := load_manifest(CLASSIFIERS / name)[0])}
    read = read_records(sorted((CLASSIFIERS / "data").glob("*.jsonl")), labels)
    return {record.conversation.id: record for record in read}


def test_every_classifier_has_some() -> None:
    assert sorted(INDEX) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_is_labelled_otherwise_than_it_looks(name: str, records: dict[str, Record]) -> None:
    manifest, _ = load_manifest(CLASSIFIERS / name)
    assert manifest is not None
    assert len({each["id"] for each in INDEX[name]}) == len(INDEX[name]) >= 6
    for each in INDEX[name]:
        assert each["looks_like"] in manifest.labels
        assert records[each["id"]].labels[name] != each["looks_like"]
        assert each["why"]
    assert len({each["looks_like"] for each in INDEX[name]}) >= 2, "they are mistaken in one direction only"
    assert sum(records[each["id"]].split == "test" for each in INDEX[name]) >= 2


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        pytest.param("sentiment", "sarcas", id="sarcasm"),
        pytest.param("fraud_attempt", "scam", id="an honest customer quotes a scam"),
        pytest.param("issue_resolved", "claim", id="an agent claims success"),
        pytest.param("suspicious_message", "assistant", id="text that steers an assistant"),
    ],
)
def test_what_is_known_to_be_hard_is_among_them(name: str, kind: str) -> None:
    assert any(kind in each["why"].lower() for each in INDEX[name])
