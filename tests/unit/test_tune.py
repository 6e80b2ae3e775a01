"""`tools/tune.py`: what an interrupted run is known by, the words of each variant, and the tables of what is there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from service.prompt.builder import PromptBuilder
from service.prompt.format import PromptFormat
from service.prompt.tokenizer import PromptTokenizer
from service.registry.manifest import Manifest
from service.training.loop import TrainingConfig
from service.training.records import Record
from service.training.train import Task
from tests.conftest import CONTEXT_TOKENS
from tests.support import MANIFEST, talk
from tools.tune import BARE, BESIDE_PLAIN, PLAIN, VARIANTS, Variant, plain_section, run_digest, words_of

RUN: dict[str, Any] = {
    "config": TrainingConfig(),
    "base": "a base",
    "prompt_format": "a format",
    "asked": [(" refund?", [1, 2])],
    "records": [Record(talk("where is it?", id="r-1"), {"refund": "no"})],
}


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"config": replace(TrainingConfig(), seed=8)}, id="the configuration"),
        pytest.param({"base": "another base"}, id="the base"),
        pytest.param({"prompt_format": "another format"}, id="the prompt format"),
        pytest.param({"asked": [(" money?", [1, 2])]}, id="the words"),
        pytest.param({"asked": [(" refund?", [1, 3])]}, id="a label's token"),
        pytest.param({"records": [Record(talk("where is it now?", id="r-1"), {"refund": "no"})]}, id="a text"),
        pytest.param({"records": [Record(talk("where is it?", id="r-2"), {"refund": "no"})]}, id="an id"),
        pytest.param({"records": [Record(talk("where is it?", id="r-1"), {"refund": "yes"})]}, id="a label"),
    ],
)
def test_a_run_is_another_when_one_thing_is_changed(change: dict[str, Any]) -> None:
    assert run_digest(**RUN) != run_digest(**(RUN | change))


def test_the_same_run_is_known_again() -> None:
    assert run_digest(**RUN) == run_digest(**RUN)


@pytest.mark.parametrize("piece", ["filler", "invocation", "preamble"])
def test_every_piece_of_the_prompt_format_makes_another_run(
    tokenizer: PromptTokenizer, prompt_format: PromptFormat, piece: str
) -> None:
    changes = {"filler": ".", "invocation": "<|im_start|>assistant\n", "preamble": prompt_format.preamble + "hello"}
    changed = prompt_format.model_copy(update={piece: changes[piece]})
    one, other = (PromptBuilder(tokenizer, each, CONTEXT_TOKENS).prompt_digest for each in (prompt_format, changed))
    assert run_digest(**(RUN | {"prompt_format": one})) != run_digest(**(RUN | {"prompt_format": other}))


def task(name: str) -> Task:
    return Task(Path(name), Manifest.model_validate({**MANIFEST, "words": " why?"}), ())


@pytest.mark.parametrize(
    ("name", "words", "expected"),
    [
        pytest.param("topic", "manifest", " why?", id="of the manifest"),
        pytest.param("topic", "one word", " why", id="without question mark"),
        pytest.param("topic", "bare", BARE["topic"], id="bare"),
        pytest.param("churn_risk", "manifest", " why?", id="of a seventeenth classifier"),
        pytest.param("churn_risk", "one word", " why", id="without question mark of a seventeenth"),
        pytest.param("churn_risk", "bare", "why?", id="bare of a seventeenth"),
    ],
)
def test_words_are_known_for_every_classifier(name: str, words: str, expected: str) -> None:
    assert words_of(task(name), Variant("tail", "some", words=words)) == expected


PLAIN_ALONE = {each.key: {"dev_macro_f1": 0.7} for each in PLAIN if each.name in ("topic", "urgency")}


def activated(**by_classifier: float) -> dict[str, Any]:
    return {BESIDE_PLAIN: {"by_classifier": by_classifier}}


@pytest.mark.parametrize(
    ("results", "rows"),
    [
        pytest.param({}, [], id="nothing"),
        pytest.param(PLAIN_ALONE, [], id="plain ones alone"),
        pytest.param(activated(topic=0.8), [], id="activated ones alone"),
        pytest.param(
            PLAIN_ALONE | activated(topic=0.8),
            ["| topic | 0.800 | 0.700 | +0.100 |", "| mean | 0.800 | 0.700 | +0.100 |"],
            id="one of both",
        ),
    ],
)
def test_plain_stands_beside_activated_where_both_were_trained(results: dict[str, Any], rows: list[str]) -> None:
    lines = plain_section(results).splitlines()
    assert [line for line in lines if line.startswith(("| topic", "| urgency", "| mean"))] == rows
    assert bool(lines) == bool(rows)


def test_the_variant_beside_the_plain_ones_is_there() -> None:
    assert BESIDE_PLAIN in {each.key for each in VARIANTS}
