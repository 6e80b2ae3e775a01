"""A label is one token at the answer position, or is refused with tokens that would work."""

from __future__ import annotations

import re

import pytest

from service.prompt.labels import prove_labels
from service.prompt.tokenizer import PromptTokenizer


def problem_of(tokenizer: PromptTokenizer, words: str, name: str, text: str) -> str:
    labels, (problem,) = prove_labels(tokenizer, words, {name: text})
    assert labels == ()
    return problem


def test_labels_keep_their_order_and_get_their_tokens(tokenizer: PromptTokenizer) -> None:
    labels, problems = prove_labels(tokenizer, "mood?", {"positive": " positive", "negative": " negative"})
    assert problems == []
    assert [label.name for label in labels] == ["positive", "negative"]
    assert [(label.token_id,) for label in labels] == [
        tokenizer.encode_text(" positive"),
        tokenizer.encode_text(" negative"),
    ]


@pytest.mark.parametrize(
    ("words", "name", "text"),
    [
        pytest.param("mood?", "sad", " heartbrokenly", id="several tokens"),
        pytest.param("re", "fund", "fund", id="one token that merges with the words"),
        pytest.param("mood?", "end", "<|im_end|>", id="a control token"),
        pytest.param("mood?", "space", " yes ", id="a trailing space"),
        pytest.param("mood?", "both", " yes no", id="two words"),
    ],
)
def test_a_label_that_is_not_one_token_is_refused(tokenizer: PromptTokenizer, words: str, name: str, text: str) -> None:
    problem = problem_of(tokenizer, words, name, text)
    assert problem.startswith(f"label {name!r}: {text!r} is not a single token after {words!r}; ")


@pytest.mark.parametrize(
    ("words", "name", "text", "offered"),
    [
        pytest.param("topic?", "refund_request", " refund request", " refund", id="a word of the text"),
        pytest.param("topic?", "billing", " billingwise-ish", " billing", id="the label's name"),
        pytest.param("topic?", "yes", " yes ", " yes", id="without the trailing space"),
        pytest.param("re", "fund", "fund", " fund", id="with a leading space"),
    ],
)
def test_tokens_that_would_work_are_offered(
    tokenizer: PromptTokenizer, words: str, name: str, text: str, offered: str
) -> None:
    assert repr(offered) in problem_of(tokenizer, words, name, text).partition("these would work: ")[2]


@pytest.mark.parametrize(("words", "name", "text"), [("re", "fund", "fund"), ("x?", "a_refund_of_money", " a refund")])
def test_every_offer_is_itself_accepted(tokenizer: PromptTokenizer, words: str, name: str, text: str) -> None:
    offers = re.findall(r"'([^']*)'", problem_of(tokenizer, words, name, text).partition("these would work: ")[2])
    assert offers
    for offer in offers:
        assert prove_labels(tokenizer, words, {name: offer})[1] == []


def test_without_an_offer_a_common_word_is_advised(tokenizer: PromptTokenizer) -> None:
    assert problem_of(tokenizer, "x?", "xqzjv", " xqzjvkw").endswith("; try a shorter common word")


def test_two_labels_with_one_token_are_refused(tokenizer: PromptTokenizer) -> None:
    _, problems = prove_labels(tokenizer, "x?", {"yes": " yes", "no": " no", "sure": " yes"})
    assert problems == ["label 'sure': its token ' yes' already scores label 'yes'"]


def test_every_faulty_label_is_reported(tokenizer: PromptTokenizer) -> None:
    labels, problems = prove_labels(tokenizer, "x?", {"a": " heartbrokenly", "no": " no", "b": " unimaginatively"})
    assert [label.name for label in labels] == ["no"]
    assert len(problems) == 2
