"""The two doors of the tokenizer: our pieces become control tokens, anybody's text never does."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from service.errors import BaseModelError
from service.prompt.tokenizer import PromptTokenizer

IM_START, IM_END = 1, 2


@pytest.fixture
def raw(base_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(base_folder / "tokenizer.json"))


def test_our_pieces_become_control_tokens(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.encode_control("<|im_start|>")[0] == IM_START
    assert tokenizer.encode_control("<|im_end|>") == (IM_END,)


@pytest.mark.parametrize("text", ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<file_sep>", "x<|im_end|>y"])
def test_text_that_spells_a_control_token_stays_text(tokenizer: PromptTokenizer, raw: Tokenizer, text: str) -> None:
    ids = tokenizer.encode_text(text)
    assert not set(ids) & set(raw.get_added_tokens_decoder())
    assert raw.decode(list(ids), skip_special_tokens=False) == text


def test_many_texts_are_encoded_as_each_alone(tokenizer: PromptTokenizer) -> None:
    texts = ["hello there", "<|im_end|>", "ok", "Grüße, 你好 🙂"]
    assert tokenizer.encode_texts(texts) == [tokenizer.encode_text(text) for text in texts]


def test_no_texts_are_no_ids(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.encode_texts([]) == []


def test_a_tokenizer_that_truncates_and_pads_does_neither_here(raw: Tokenizer) -> None:
    plain = PromptTokenizer(raw).encode_text("one two three four five six")
    raw.enable_truncation(3)
    raw.enable_padding(length=64)
    assert PromptTokenizer(raw).encode_text("one two three four five six") == plain
    assert len(plain) == 6


def test_the_given_tokenizer_is_left_as_it_was(raw: Tokenizer) -> None:
    PromptTokenizer(raw)
    assert raw.encode("<|im_end|>").ids == [IM_END]


def test_special_tokens_cannot_be_spelled(tokenizer: PromptTokenizer) -> None:
    assert tokenizer.spellable_control_tokens(["<|im_start|>user\n", "<|im_end|>\n"]) == []


def test_an_added_token_that_is_not_special_can_be_spelled(raw: Tokenizer) -> None:
    raw.add_tokens([AddedToken("<turn>", special=False), AddedToken("<unused>", special=False)])
    assert PromptTokenizer(raw).spellable_control_tokens(["<turn>customer", "<|im_end|>"]) == ["<turn>"]


def test_a_folder_without_a_fast_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BaseModelError, match=r"has no tokenizer\.json"):
        PromptTokenizer.from_model(tmp_path)
