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
from tests.support import CLASSIFIERS, MANIFEST, talk
from tools.tune import BARE, results_in, run_digest, words_of
from tools.tuning import BESIDE_PLAIN, PLAIN, VARIANTS, Variant, base_dtype, plain_section

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


def task(name: str, builder: PromptBuilder) -> Task:
    return Task(Path(name), Manifest.model_validate({**MANIFEST, "words": " why?"}), (), builder)


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
def test_words_are_known_for_every_classifier(name: str, words: str, expected: str, builder: PromptBuilder) -> None:
    assert words_of(task(name, builder), Variant("tail", "some", words=words)) == expected


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


PLAIN_TWO = PLAIN_ALONE | {PLAIN[0].key: {"dev_macro_f1": 0.8, "base_dtype": "float32"}}


def test_the_standard_error_is_that_of_the_differences_mean() -> None:
    text = plain_section(PLAIN_TWO | activated(topic=0.8, **{PLAIN[0].name: 0.84}))
    assert "The standard error of the mean difference, over these 2, is 0.030." in text.splitlines()


def test_one_difference_has_no_standard_error() -> None:
    assert "mean difference" not in plain_section(PLAIN_ALONE | activated(topic=0.8))


def test_the_plain_ones_are_said_to_be_chosen_beforehand_and_how_many_are_measured() -> None:
    text = " ".join(plain_section(PLAIN_TWO | activated(topic=0.8, urgency=0.7, sentiment=0.8)).split())
    assert f"6 were chosen beforehand ({', '.join(v.name for v in PLAIN)}); 3 of them are measured." in text


def test_all_are_said_to_be_measured() -> None:
    every = {each.key: {"dev_macro_f1": 0.8, "base_dtype": "float32"} for each in PLAIN}
    text = " ".join(plain_section(every | activated(**{each.name: 0.8 for each in PLAIN})).split())
    assert "; all of them are measured." in text


def test_each_side_is_said_to_be_multiplied_in_what_it_was() -> None:
    beside = activated(topic=0.8)
    assert "multiplied in bfloat16, that of the plain ones in float32." in " ".join(
        plain_section(PLAIN_ALONE | beside).split()
    )
    anew = {BESIDE_PLAIN: beside[BESIDE_PLAIN] | {"base_dtype": "float32"}}
    assert "multiplied in float32, that of the plain ones in float32." in " ".join(
        plain_section(PLAIN_ALONE | anew).split()
    )


def test_the_shipped_learning_rate_is_tried_and_nothing_that_was_never_measured_is_listed() -> None:
    (shipped,) = (each for each in VARIANTS if each.config == {"learning_rate": 0.0015})
    assert (shipped.name, shipped.share) == ("learning rate 0.0015", 0.25)
    assert not any("dropout" in each.config for each in VARIANTS)


def test_every_variant_is_measured() -> None:
    assert results_in(CLASSIFIERS / "tuning.json").keys() == {each.key for each in (*VARIANTS, *PLAIN)}


def test_every_result_says_or_is_known_to_be_of_some_arithmetic() -> None:
    every = {each.key: {} for each in (*VARIANTS, *PLAIN)}
    assert {base_dtype(each, every) for each in VARIANTS[:6]} == {"bfloat16"}
    assert {base_dtype(each, every) for each in (*VARIANTS[6:], *PLAIN)} == {"float32"}
