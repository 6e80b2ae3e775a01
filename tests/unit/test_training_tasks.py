"""Which classifiers are trained at once: those that read a conversation in the same prompt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from service.errors import RegistryError
from service.prompt.builder import PromptBuilder
from service.prompt.format import FORMAT_FILE
from service.prompt.tokenizer import PromptTokenizer
from service.training.train import load_tasks, together
from tests.support import OWN_PROMPT


@pytest.fixture
def directory(tmp_path: Path, make_classifier_folder: Callable[..., Path]) -> Path:
    """Two that share a prompt, two plain ones, and two with the same prompt of their own."""
    for name, kind in {
        "a": "activated",
        "b": "plain",
        "c": "none",
        "d": "activated",
        "e": "plain",
        "f": "none",
    }.items():
        folder = make_classifier_folder(tmp_path, name, adapter=kind)
        if name in "def":
            (folder / FORMAT_FILE).write_text(OWN_PROMPT)
    return tmp_path


def test_those_of_one_prompt_are_trained_together_and_plain_ones_alone(
    directory: Path, tokenizer: PromptTokenizer, builder: PromptBuilder
) -> None:
    tasks = load_tasks(directory, [*"abcdef"], tokenizer, builder)
    assert [[task.name for task in group] for group in together(tasks)] == [["a", "c"], ["d", "f"], ["b"], ["e"]]


def test_each_has_the_prompt_of_its_folder(directory: Path, tokenizer: PromptTokenizer, builder: PromptBuilder) -> None:
    tasks = load_tasks(directory, [*"abcdef"], tokenizer, builder)
    assert [task.name for task in tasks if task.builder is builder] == [*"abc"]
    assert len({task.builder.prompt_digest for task in tasks}) == 2


def test_a_faulty_prompt_is_refused_with_its_classifier(
    directory: Path, tokenizer: PromptTokenizer, builder: PromptBuilder
) -> None:
    (directory / "d" / FORMAT_FILE).write_text("preamble = 1")
    with pytest.raises(RegistryError) as caught:
        load_tasks(directory, [*"ad"], tokenizer, builder)
    assert all(problem.startswith("d: prompt.toml: ") for problem in caught.value.problems)
    assert any("preamble: Input should be a valid string" in problem for problem in caught.value.problems)
