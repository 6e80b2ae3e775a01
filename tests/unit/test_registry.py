"""What a directory of valid classifier folders loads to, and how broken ones are reported beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.domain import AdapterKind, Label
from service.errors import ClassifierWithheldError, RegistryError, UnknownClassifierError
from service.prompt.tokenizer import PromptTokenizer
from service.registry.adapter import adapter_digest
from service.registry.loader import RegistryLoader
from service.registry.registry import Registry
from tests.support import ABSENT, TARGET_MODULES, adapter_tensors

Make = Callable[..., Path]


@pytest.fixture
def registry(tmp_path: Path, loader: RegistryLoader, make_classifier_folder: Make) -> Registry:
    make_classifier_folder(tmp_path, "refund")
    make_classifier_folder(tmp_path, "fraud", adapter="plain", words="fraud?")
    make_classifier_folder(tmp_path, "topic", adapter="none", words="topic?", min_label_mass=0.25)
    return loader.load(tmp_path)


def problems_of(loader: RegistryLoader, directory: Path) -> tuple[str, ...]:
    with pytest.raises(RegistryError) as caught:
        loader.load(directory)
    return caught.value.problems


def test_classifiers_are_served_by_name(registry: Registry) -> None:
    assert list(registry.classifiers) == ["fraud", "refund", "topic"]


def test_a_classifier_carries_its_manifest(registry: Registry, tokenizer: PromptTokenizer) -> None:
    refund = registry.get("refund")
    assert refund.description == "Whether the customer asks for money back."
    assert refund.labels == (Label("yes", *tokenizer.encode_text(" yes")), Label("no", *tokenizer.encode_text(" no")))
    assert refund.label_ids == tokenizer.encode_text(" yes") + tokenizer.encode_text(" no")
    assert refund.tail_ids[-len(tokenizer.encode_text("refund?")) :] == tokenizer.encode_text("refund?")
    assert refund.min_label_mass == 0.5
    assert registry.get("topic").min_label_mass == 0.25


@pytest.mark.parametrize(("name", "kind"), [("refund", AdapterKind.ACTIVATED), ("fraud", AdapterKind.PLAIN)])
def test_a_classifier_carries_its_adapter(registry: Registry, tmp_path: Path, name: str, kind: AdapterKind) -> None:
    adapter = registry.get(name).adapter
    assert adapter is not None
    assert (adapter.kind, adapter.rank, adapter.path) == (kind, 2, tmp_path / name / "adapter")
    assert adapter.target_modules == tuple(sorted(TARGET_MODULES))
    assert adapter.digest == adapter_digest(tmp_path / name / "adapter")


def test_a_classifier_without_adapter_is_answered_by_the_base(registry: Registry) -> None:
    assert registry.get("topic").adapter is None


def test_all_are_selected_when_none_is_named(registry: Registry) -> None:
    assert [each.name for each in registry.select(())] == ["fraud", "refund", "topic"]


def test_the_named_are_selected_in_the_order_asked(registry: Registry) -> None:
    assert [each.name for each in registry.select(("topic", "fraud"))] == ["topic", "fraud"]


def test_an_unknown_name_is_refused(registry: Registry) -> None:
    with pytest.raises(UnknownClassifierError) as caught:
        registry.select(("refund", "refunds"))
    assert caught.value.metadata == {"classifier": "refunds"}


def test_an_unknown_name_is_quoted_up_to_64_characters(registry: Registry) -> None:
    with pytest.raises(UnknownClassifierError) as caught:
        registry.get("x" * 65)
    assert caught.value.metadata == {"classifier": "x" * 64}


def test_the_registry_cannot_be_changed(registry: Registry) -> None:
    with pytest.raises(TypeError):
        registry.classifiers["x"] = registry.get("refund")  # type: ignore[index]


def test_a_withheld_classifier_is_there_and_not_served(registry: Registry) -> None:
    registry = registry.without({"refund": "It is off."})
    assert registry.get("refund").name == "refund"
    with pytest.raises(ClassifierWithheldError) as caught:
        registry.serving("refund")
    assert caught.value.metadata == {"classifier": "refund"}


def test_withholding_one_leaves_the_others_served(registry: Registry) -> None:
    assert registry.without({"refund": "It is off."}).serving("fraud") == registry.get("fraud")


def test_an_unknown_name_is_not_served_either(registry: Registry) -> None:
    with pytest.raises(UnknownClassifierError):
        registry.without({"refunds": "It is off."}).serving("refunds")


def test_what_is_withheld_is_what_failed_last_and_what_has_a_flaw(registry: Registry) -> None:
    flawed = replace(registry.get("fraud"), flaw="Its calibration is stale.")
    again = registry.with_classifier(flawed).without({"refund": "First."}).without({"topic": "Second."})
    assert again.withheld == {"fraud": "Its calibration is stale.", "topic": "Second."}


@pytest.mark.parametrize("dtype", ["f4", "f2"])
def test_every_served_dtype_is_loaded(
    tmp_path: Path, loader: RegistryLoader, make_classifier_folder: Make, dtype: str
) -> None:
    tensors = adapter_tensors(loader.base, dtype=np.dtype(dtype))
    make_classifier_folder(tmp_path, "refund", tensors=tensors)
    assert loader.load(tmp_path).get("refund").adapter is not None


@pytest.mark.parametrize("rank", [1, 512])
def test_every_rank_within_the_bounds_is_loaded(
    tmp_path: Path, loader: RegistryLoader, make_classifier_folder: Make, rank: int
) -> None:
    absent = dict.fromkeys(adapter_tensors(loader.base), ABSENT)
    wanted = {key: value for key, value in adapter_tensors(loader.base, rank, ("q_proj",)).items() if ".29." in key}
    config = {"r": rank, "target_modules": ["q_proj"]}
    make_classifier_folder(tmp_path, "refund", config=config, tensors=absent | wanted)
    adapter = loader.load(tmp_path).get("refund").adapter
    assert adapter is not None
    assert adapter.rank == rank


def test_the_longest_allowed_name_is_loaded(
    tmp_path: Path, loader: RegistryLoader, make_classifier_folder: Make
) -> None:
    make_classifier_folder(tmp_path, "r" * 64)
    assert list(loader.load(tmp_path).classifiers) == ["r" * 64]


@pytest.mark.parametrize(("words", "tokens"), [pytest.param(62, 63, id="limit-1"), pytest.param(63, 64, id="limit")])
def test_a_tail_up_to_the_limit_is_loaded(
    tmp_path: Path, loader: RegistryLoader, make_classifier_folder: Make, words: int, tokens: int
) -> None:
    make_classifier_folder(tmp_path, "refund", words=" a" * words)
    assert len(loader.load(tmp_path).get("refund").tail_ids) == tokens


def test_a_tail_one_over_the_limit_is_refused(
    tmp_path: Path, loader: RegistryLoader, make_classifier_folder: Make
) -> None:
    make_classifier_folder(tmp_path, "refund", words=" a" * 64)
    assert problems_of(loader, tmp_path) == (
        "refund: invocation and words are 65 tokens, more than 64; shorten `words`",
    )


def test_several_broken_folders_are_reported_together(
    tmp_path: Path, loader: RegistryLoader, make_classifier_folder: Make
) -> None:
    make_classifier_folder(tmp_path, "fraud", config={"r": 0, "use_dora": True})
    make_classifier_folder(tmp_path, "refund")
    make_classifier_folder(tmp_path, "topic", labels={"yes": " yes"})
    (tmp_path / "urgency").mkdir()
    problems = problems_of(loader, tmp_path)
    assert [problem.split(":")[0] for problem in problems] == ["fraud", "fraud", "topic", "urgency"]


def test_the_error_prints_every_problem(tmp_path: Path, loader: RegistryLoader) -> None:
    for name in ("fraud", "refund"):
        (tmp_path / name).mkdir()
    with pytest.raises(RegistryError) as caught:
        loader.load(tmp_path)
    assert str(caught.value) == (
        "2 problem(s) in the classifier folders:\n"
        "  - fraud: classifier.toml is missing\n"
        "  - refund: classifier.toml is missing"
    )


@pytest.mark.parametrize("beside", ["data", ".git", ".adapter-x1"])
def test_a_folder_that_is_no_classifier_is_left_alone(
    tmp_path: Path, loader: RegistryLoader, make_classifier_folder: Make, beside: str
) -> None:
    make_classifier_folder(tmp_path, "refund")
    (tmp_path / beside).mkdir()
    (tmp_path / "prompt.toml").write_text("")
    assert list(loader.load(tmp_path).classifiers) == ["refund"]


def test_a_directory_without_classifiers_is_refused(tmp_path: Path, loader: RegistryLoader) -> None:
    (tmp_path / "data").mkdir()
    assert problems_of(loader, tmp_path) == (f"{tmp_path} has no classifier folders",)


def test_a_directory_that_is_not_there_is_refused(tmp_path: Path, loader: RegistryLoader) -> None:
    assert problems_of(loader, tmp_path / "x") == (f"{tmp_path / 'x'} is not a folder; set FANTAIL_CLASSIFIERS",)
