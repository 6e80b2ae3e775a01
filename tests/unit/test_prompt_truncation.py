"""Too long conversations: which turns go, that the cut is told, and that it stays where it is for many turns."""

from __future__ import annotations

from itertools import pairwise

import pytest

from service.domain import Conversation, Role, Truncation, Turn
from service.errors import TurnTooLongError
from service.prompt.builder import MAX_CHARACTERS_PER_TOKEN, PromptBuilder
from service.prompt.format import PromptFormat
from service.prompt.tokenizer import PromptTokenizer
from service.prompt.truncation import STEP_TOKENS, turns_to_drop

CONTEXT_TOKENS = 4096


@pytest.fixture(scope="module")
def small(tokenizer: PromptTokenizer, prompt_format: PromptFormat) -> PromptBuilder:
    """A builder for a small context, so that little text is too long."""
    return PromptBuilder(tokenizer, prompt_format, CONTEXT_TOKENS)


@pytest.fixture(scope="module")
def budget(small: PromptBuilder, tokenizer: PromptTokenizer, prompt_format: PromptFormat) -> int:
    """Tokens left for turns."""
    return small.max_prefix_tokens - len(tokenizer.encode_control(prompt_format.preamble))


@pytest.fixture(scope="module")
def delimiters(tokenizer: PromptTokenizer, prompt_format: PromptFormat) -> int:
    """Tokens of a customer's turn beside its text."""
    return len(tokenizer.encode_control(prompt_format.turn_start.customer + prompt_format.turn_end))


def turns_of(delimiters: int, *tokens: int) -> Conversation:
    """Customer turns of so many tokens each, delimiters included."""
    return Conversation("", tuple(Turn(Role.CUSTOMER, " a" * (each - delimiters)) for each in tokens))


@pytest.mark.parametrize(
    ("turns", "budget", "dropped"),
    [
        pytest.param([10, 10, 10], 31, 0, id="one below the budget"),
        pytest.param([10, 10, 10], 30, 0, id="at the budget"),
        pytest.param([10, 10, 10], 29, 2, id="one above drops a step"),
        pytest.param([20, 10, 10], 39, 1, id="a turn as long as the step"),
        pytest.param([19, 1, 10, 10], 39, 2, id="turns that make up the step"),
        pytest.param([25, 10, 10], 39, 1, id="a turn longer than the step"),
        pytest.param([10] * 10, 80, 2, id="excess of exactly one step"),
        pytest.param([10] * 10, 79, 4, id="one more than a step"),
        pytest.param([10] * 10, 10, 9, id="the last turn stays"),
        pytest.param([30, 30], 30, 1, id="two turns that fill the budget each"),
        pytest.param([30], 30, 0, id="one turn"),
        pytest.param([], 30, 0, id="no turns"),
    ],
)
def test_the_oldest_turns_go_in_steps(turns: list[int], budget: int, dropped: int) -> None:
    assert turns_to_drop(turns, budget, step=20) == dropped


def test_a_turn_above_the_budget_is_our_own_defect() -> None:
    with pytest.raises(AssertionError):
        turns_to_drop([31], 30)


@pytest.mark.parametrize("over", [-1, 0])
def test_a_conversation_up_to_the_limit_is_kept_whole(
    small: PromptBuilder, budget: int, delimiters: int, over: int
) -> None:
    prefix = small.prefix(turns_of(delimiters, 100, budget - 100 + over))
    assert prefix.truncation == Truncation(0, 0)
    assert len(prefix.token_ids) == small.max_prefix_tokens


def test_one_token_over_the_limit_cuts_a_step(small: PromptBuilder, budget: int, delimiters: int) -> None:
    turns = turns_of(delimiters, *[64] * (budget // 64), budget % 64 + 1)
    assert small.prefix(turns).truncation == Truncation(STEP_TOKENS // 64, STEP_TOKENS)


def test_what_is_left_reads_as_if_the_rest_had_never_been(small: PromptBuilder, budget: int, delimiters: int) -> None:
    long = turns_of(delimiters, *range(40, 200))
    prefix = small.prefix(long)
    dropped = prefix.truncation.dropped_turns
    assert 0 < dropped < len(long.turns) - 1
    assert prefix.token_ids == small.prefix(Conversation("", long.turns[dropped:])).token_ids
    assert prefix.truncation.dropped_tokens == sum(range(40, 40 + dropped))


def test_the_last_turn_is_kept_however_long_the_rest(small: PromptBuilder, budget: int, delimiters: int) -> None:
    prefix = small.prefix(turns_of(delimiters, *[500] * 20, budget))
    assert prefix.truncation == Truncation(20, 20 * 500)
    assert len(prefix.token_ids) == small.max_prefix_tokens


def test_a_growing_conversation_keeps_its_prefix_for_a_whole_step(
    small: PromptBuilder, budget: int, delimiters: int
) -> None:
    size = 64
    prefixes = [small.prefix(turns_of(delimiters, *[size] * count)) for count in range(budget // size, 100)]
    cuts = [prefix.truncation.dropped_turns for prefix in prefixes]
    assert cuts == sorted(cuts)
    assert {after - before for before, after in pairwise(cuts)} == {0, STEP_TOKENS // size}
    moved = [index for index, (before, after) in enumerate(pairwise(cuts)) if before != after]
    assert {after - before for before, after in pairwise(moved)} == {STEP_TOKENS // size}
    for before, after in pairwise(prefixes):
        if before.truncation == after.truncation:
            kept = len(before.token_ids) - size
            assert after.token_ids[:kept] == before.token_ids[:kept]


@pytest.mark.parametrize("over", [-1, 0])
def test_a_turn_up_to_the_limit_is_accepted(small: PromptBuilder, budget: int, delimiters: int, over: int) -> None:
    assert len(small.prefix(turns_of(delimiters, budget + over)).token_ids) == small.max_prefix_tokens


def test_a_turn_over_the_limit_is_refused(small: PromptBuilder, budget: int, delimiters: int) -> None:
    with pytest.raises(TurnTooLongError) as caught:
        small.prefix(turns_of(delimiters, 40, budget + 1))
    assert caught.value.message == (
        f"Turn 1 has {budget + 1} tokens and the context leaves room for {budget} tokens; shorten it."
    )
    assert caught.value.metadata == {"field": "conversation.turns[1].text", "max_tokens": str(budget)}
    assert caught.value.others == ()


def test_every_turn_over_the_limit_is_reported(small: PromptBuilder, budget: int, delimiters: int) -> None:
    with pytest.raises(TurnTooLongError) as caught:
        small.prefix(turns_of(delimiters, budget + 1, 40, budget + 2))
    assert [each.field for each in caught.value.others] == ["conversation.turns[2].text"]


@pytest.mark.parametrize(
    ("over", "unit"),
    [
        pytest.param(-1, "tokens", id="one below"),
        pytest.param(0, "tokens", id="at the limit"),
        pytest.param(1, "characters", id="one above"),
    ],
)
def test_absurdly_long_text_is_refused_before_it_is_encoded(
    small: PromptBuilder, budget: int, over: int, unit: str
) -> None:
    text = "x " * (budget * MAX_CHARACTERS_PER_TOKEN)
    with pytest.raises(TurnTooLongError, match=rf"Turn 0 has \d+ {unit} and"):
        small.prefix(Conversation("", (Turn(Role.CUSTOMER, text[: budget * MAX_CHARACTERS_PER_TOKEN + over]),)))


def test_turns_too_long_by_characters_and_by_tokens_are_reported_together(
    small: PromptBuilder, budget: int, delimiters: int
) -> None:
    absurd = Turn(Role.CUSTOMER, "x" * (budget * MAX_CHARACTERS_PER_TOKEN + 1))
    with pytest.raises(TurnTooLongError) as caught:
        small.prefix(Conversation("", (absurd, *turns_of(delimiters, budget + 1).turns)))
    assert [each.field for each in (caught.value, *caught.value.others)] == [
        "conversation.turns[0].text",
        "conversation.turns[1].text",
    ]


def test_a_refusal_holds_nothing_of_the_text(small: PromptBuilder, budget: int) -> None:
    with pytest.raises(TurnTooLongError) as caught:
        small.prefix(Conversation("", (Turn(Role.CUSTOMER, "secret " * (budget + 1)),)))
    assert "secret" not in f"{caught.value} {caught.value.metadata}"


def test_a_small_context_does_not_lose_everything_for_one_token(
    tokenizer: PromptTokenizer, prompt_format: PromptFormat, delimiters: int
) -> None:
    tiny = PromptBuilder(tokenizer, prompt_format, 512)
    room = tiny.max_prefix_tokens - len(tokenizer.encode_control(prompt_format.preamble))
    turns = turns_of(delimiters, *[16] * (room // 16 + 1))
    assert tiny.prefix(turns).truncation.dropped_turns < len(turns.turns) // 2
