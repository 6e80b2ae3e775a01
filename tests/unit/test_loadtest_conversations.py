"""Conversations of a load test are as long as wanted, and new."""

from __future__ import annotations

import pytest

from loadtest.conversations import conversation, with_next_turn
from service.domain import Conversation, Role, Turn
from service.prompt.builder import PromptBuilder

PADDING_TOKENS = 32
"""A prompt's prefix is filled up to a multiple of so many."""


@pytest.mark.parametrize("tokens", [100, 320, 1000, 2000])
def test_a_conversation_costs_about_the_wanted_tokens(builder: PromptBuilder, tokens: int) -> None:
    for seed in range(5):
        turns = tuple(Turn(Role(role), text) for role, text in conversation(tokens, f"seed {seed}"))
        assert abs(len(builder.prefix(Conversation("", turns)).token_ids) - tokens) <= PADDING_TOKENS + 0.05 * tokens


@pytest.mark.parametrize("tokens", [20, 100, 1000])
def test_no_two_seeds_give_the_same_conversation(tokens: int) -> None:
    assert len({str(conversation(tokens, f"1 {number}")) for number in range(500)}) == 500


@pytest.mark.parametrize("tokens", [1, 12, 13, 19, 2000])
def test_the_customer_begins_and_something_is_said_however_short_it_is(tokens: int) -> None:
    turns = conversation(tokens, "seed")
    assert [role for role, _ in turns] == [("customer", "agent")[place % 2] for place in range(len(turns))]
    assert all(text for _, text in turns)


def test_equal_seeds_give_equal_conversations_that_go_on_equally() -> None:
    one, same = conversation(100, "seed"), conversation(100, "seed")
    assert one == same
    assert with_next_turn(one, "next") == with_next_turn(same, "next")


def test_a_conversation_goes_on_after_all_that_was_said() -> None:
    turns = conversation(100, "seed")
    later = with_next_turn(turns, "next")
    assert later[: len(turns)] == turns
    assert [role for role, _ in later[len(turns) :]] == ["agent", "customer"]
