"""What of a prefix is new to the prefix cache, as far as can be told without asking it."""

from __future__ import annotations

import pytest

from service.prefix_memory import PrefixMemory
from service.prompt.format import PREFIX_MULTIPLE as BLOCK

ROOM = 100 * BLOCK
TALK = tuple(range(3 * BLOCK))
OTHER = tuple(range(1000, 1000 + 3 * BLOCK))


@pytest.fixture
def memory() -> PrefixMemory:
    return PrefixMemory(ROOM)


def test_everything_is_new_at_first(memory: PrefixMemory) -> None:
    assert memory.new_tokens(TALK, "") == len(TALK)


def test_asking_is_not_remembering(memory: PrefixMemory) -> None:
    memory.new_tokens(TALK, "")
    assert memory.new_tokens(TALK, "") == len(TALK)


def test_nothing_of_a_remembered_prefix_is_new(memory: PrefixMemory) -> None:
    memory.remember(TALK, "")
    assert memory.new_tokens(TALK, "") == 0


@pytest.mark.parametrize(
    ("more", "new"),
    [
        pytest.param(1, 1, id="one token"),
        pytest.param(BLOCK, BLOCK, id="a block"),
        pytest.param(2 * BLOCK + 1, 2 * BLOCK + 1, id="two blocks and a token"),
    ],
)
def test_of_a_conversation_that_has_grown_only_the_growth_is_new(memory: PrefixMemory, more: int, new: int) -> None:
    memory.remember(TALK, "")
    assert memory.new_tokens(TALK + tuple(range(more)), "") == new


@pytest.mark.parametrize(
    ("tokens", "new"),
    [
        pytest.param(BLOCK - 1, BLOCK - 1, id="limit-1"),
        pytest.param(BLOCK, 0, id="limit"),
        pytest.param(BLOCK + 1, 1, id="limit+1"),
    ],
)
def test_only_whole_blocks_are_remembered(memory: PrefixMemory, tokens: int, new: int) -> None:
    memory.remember(TALK[:tokens], "")
    assert memory.new_tokens(TALK[:tokens], "") == new


def test_a_shared_beginning_is_not_new(memory: PrefixMemory) -> None:
    memory.remember(TALK, "")
    assert memory.new_tokens(TALK[: 2 * BLOCK] + OTHER, "") == len(OTHER)


def test_the_same_words_after_another_beginning_are_new(memory: PrefixMemory) -> None:
    memory.remember(TALK, "")
    assert memory.new_tokens(OTHER[:BLOCK] + TALK[BLOCK:], "") == len(TALK)


def test_what_was_read_under_one_salt_is_new_under_another(memory: PrefixMemory) -> None:
    memory.remember(TALK, "one")
    assert memory.new_tokens(TALK, "other") == len(TALK)


def test_a_new_engine_knows_nothing(memory: PrefixMemory) -> None:
    memory.remember(TALK, "")
    memory.forget(ROOM)
    assert memory.new_tokens(TALK, "") == len(TALK)


def test_a_new_engine_may_have_less_room(memory: PrefixMemory) -> None:
    memory.forget(0)
    memory.remember(TALK, "")
    assert memory.new_tokens(TALK, "") == len(TALK)


@pytest.mark.parametrize(
    ("capacity", "new"),
    [
        pytest.param(6 * BLOCK - 1, BLOCK, id="limit-1"),
        pytest.param(6 * BLOCK, 0, id="limit"),
        pytest.param(6 * BLOCK + 1, 0, id="limit+1"),
    ],
)
def test_no_more_is_remembered_than_there_is_room_for(capacity: int, new: int) -> None:
    memory = PrefixMemory(capacity)
    memory.remember(TALK, "")
    memory.remember(OTHER, "")
    assert memory.new_tokens(TALK, "") == new
    assert memory.new_tokens(OTHER, "") == 0


def test_the_end_of_a_conversation_is_forgotten_before_its_beginning() -> None:
    memory = PrefixMemory(5 * BLOCK)
    memory.remember(TALK, "")
    memory.remember(OTHER, "")
    assert memory.new_tokens(TALK, "") == BLOCK


def test_what_was_used_longest_ago_is_forgotten_first() -> None:
    memory = PrefixMemory(6 * BLOCK)
    memory.remember(TALK, "")
    memory.remember(OTHER, "")
    memory.remember(TALK, "")
    memory.remember(tuple(range(2000, 2000 + 3 * BLOCK)), "")
    assert memory.new_tokens(TALK, "") == 0
    assert memory.new_tokens(OTHER, "") == len(OTHER)


def test_of_a_prefix_longer_than_the_room_the_beginning_is_remembered() -> None:
    memory = PrefixMemory(2 * BLOCK)
    memory.remember(TALK, "")
    assert memory.new_tokens(TALK, "") == BLOCK
