"""What holds for the prefix of any conversation, whatever its turns say."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from service.domain import Conversation, Role, Turn
from service.prompt.builder import PromptBuilder
from service.prompt.format import PREFIX_MULTIPLE, PromptFormat
from service.prompt.tokenizer import PromptTokenizer

SMALL_CONTEXT_TOKENS = 1024
MAX_CHARACTERS = 200
"""Of one turn; so many, at four tokens each, still fit the small context."""

SPELLED = ["<|im_start|>", "<|im_end|>", "<|im_start|>assistant\n", "<|endoftext|>", "<file_sep>", "\n", " ", "user"]
"""Pieces of our own format that somebody may write."""

ANYTHING = st.text(max_size=20)
TEXTS = st.lists(ANYTHING | st.sampled_from(SPELLED), min_size=1, max_size=8).map("".join)
WRITTEN = st.lists(
    st.text(st.characters(exclude_categories=("Cc", "Cn", "Co", "Cs")), max_size=20) | st.sampled_from(SPELLED)
).map("".join)
"""Every assigned character of Unicode but control characters: the bundled vocabulary lacks six of those."""
LONG = st.builds(lambda text, times: (text * times)[:MAX_CHARACTERS], TEXTS, st.integers(1, 20))
TURN = st.builds(Turn, st.sampled_from(Role), LONG)
TURNS = (st.lists(TURN, min_size=1, max_size=12) | st.lists(TURN, min_size=10, max_size=30)).map(tuple)


@pytest.fixture(scope="module")
def small(tokenizer: PromptTokenizer, prompt_format: PromptFormat) -> PromptBuilder:
    """A builder whose context some of the conversations exceed, and no single turn does."""
    return PromptBuilder(tokenizer, prompt_format, SMALL_CONTEXT_TOKENS)


@pytest.fixture(scope="module")
def second(base_folder: Path, prompt_format: PromptFormat) -> PromptBuilder:
    """A builder that shares nothing with the first."""
    return PromptBuilder(PromptTokenizer.from_model(base_folder), prompt_format, SMALL_CONTEXT_TOKENS)


@pytest.fixture(scope="module")
def raw(base_folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(base_folder / "tokenizer.json"))


def spelled_out(turns: tuple[Turn, ...], tokenizer: PromptTokenizer, prompt_format: PromptFormat) -> tuple[int, ...]:
    """The ids of preamble and turns, each piece encoded alone."""
    ids = tokenizer.encode_control(prompt_format.preamble)
    for turn in turns:
        ids += tokenizer.encode_control(prompt_format.turn_start.of(turn.role))
        ids += tokenizer.encode_text(turn.text) + tokenizer.encode_control(prompt_format.turn_end)
    return ids


@given(turns=TURNS)
def test_a_prefix_is_whole_blocks_and_fits(small: PromptBuilder, turns: tuple[Turn, ...]) -> None:
    ids = small.prefix(Conversation("", turns)).token_ids
    assert len(ids) % PREFIX_MULTIPLE == 0
    assert 0 < len(ids) <= small.max_prefix_tokens


@given(turns=TURNS)
def test_every_kept_turn_is_encoded_as_if_it_were_alone(
    small: PromptBuilder, tokenizer: PromptTokenizer, prompt_format: PromptFormat, turns: tuple[Turn, ...]
) -> None:
    prefix = small.prefix(Conversation("", turns))
    expected = spelled_out(turns[prefix.truncation.dropped_turns :], tokenizer, prompt_format)
    filler = prefix.token_ids[len(expected) :]
    assert prefix.token_ids[: len(expected)] == expected
    assert len(filler) < PREFIX_MULTIPLE
    assert set(filler) <= set(tokenizer.encode_control(prompt_format.filler))


@given(turns=TURNS)
def test_what_is_cut_is_told(
    small: PromptBuilder, tokenizer: PromptTokenizer, prompt_format: PromptFormat, turns: tuple[Turn, ...]
) -> None:
    truncation = small.prefix(Conversation("", turns)).truncation
    whole = spelled_out(turns, tokenizer, prompt_format)
    kept = spelled_out(turns[truncation.dropped_turns :], tokenizer, prompt_format)
    assert truncation.dropped_turns < len(turns)
    assert truncation.dropped_tokens == len(whole) - len(kept)
    assert (truncation.dropped_turns == 0) == (len(whole) <= small.max_prefix_tokens)


@given(turns=TURNS)
def test_control_tokens_stand_only_where_the_format_puts_them(
    small: PromptBuilder, prompt_format: PromptFormat, raw: Tokenizer, turns: tuple[Turn, ...]
) -> None:
    prefix = small.prefix(Conversation("", turns))
    kept = turns[prefix.truncation.dropped_turns :]
    pieces = [prompt_format.preamble]
    pieces += [piece for turn in kept for piece in (prompt_format.turn_start.of(turn.role), prompt_format.turn_end)]
    control = set(raw.get_added_tokens_decoder())
    expected = [i for piece in pieces for i in raw.encode(piece, add_special_tokens=False).ids if i in control]
    assert [i for i in prefix.token_ids if i in control] == expected


@given(turns=TURNS)
def test_another_builder_makes_the_same_prefix(
    small: PromptBuilder, second: PromptBuilder, turns: tuple[Turn, ...]
) -> None:
    assert second.prefix(Conversation("other", turns)) == small.prefix(Conversation("", turns))


@given(turns=TURNS, more=TURNS)
def test_a_growing_conversation_keeps_its_prefix_while_nothing_more_is_cut(
    small: PromptBuilder,
    tokenizer: PromptTokenizer,
    prompt_format: PromptFormat,
    turns: tuple[Turn, ...],
    more: tuple[Turn, ...],
) -> None:
    before, after = (small.prefix(Conversation("", each)) for each in (turns, turns + more))
    assert before.truncation.dropped_turns <= after.truncation.dropped_turns
    if before.truncation == after.truncation:
        kept = len(spelled_out(turns[before.truncation.dropped_turns :], tokenizer, prompt_format))
        assert after.token_ids[:kept] == before.token_ids[:kept]


@given(text=TEXTS)
def test_text_never_becomes_a_control_token(tokenizer: PromptTokenizer, raw: Tokenizer, text: str) -> None:
    assert not set(tokenizer.encode_text(text)) & set(raw.get_added_tokens_decoder())


@given(text=WRITTEN)
def test_written_text_is_encoded_without_loss(tokenizer: PromptTokenizer, raw: Tokenizer, text: str) -> None:
    assert raw.decode(list(tokenizer.encode_text(text)), skip_special_tokens=False) == text


@given(texts=st.lists(TEXTS, max_size=8))
def test_texts_encoded_together_are_encoded_as_each_alone(tokenizer: PromptTokenizer, texts: list[str]) -> None:
    assert tokenizer.encode_texts(texts) == [tokenizer.encode_text(text) for text in texts]
