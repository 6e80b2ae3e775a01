"""Which oldest turns a too long conversation loses. Pure numbers."""

from __future__ import annotations

from collections.abc import Sequence

STEP_TOKENS = 512
"""Cuts are made in steps of this many tokens, so that a growing conversation keeps its prefix for many turns."""


def turns_to_drop(turn_tokens: Sequence[int], budget: int, step: int = STEP_TOKENS) -> int:
    """How many of the oldest turns to drop so that the rest fits `budget` tokens; the last turn always stays.

    What is dropped amounts to at least the excess rounded up to `step`, so the cut moves only once per `step`
    tokens of growth. Every single turn must fit the budget by itself.
    """
    assert all(tokens <= budget for tokens in turn_tokens), "a turn longer than the budget is refused before"
    excess = sum(turn_tokens) - budget
    if excess <= 0:
        return 0
    wanted = -(-excess // step) * step
    dropped_tokens = 0
    for dropped, tokens in enumerate(turn_tokens[:-1]):
        if dropped_tokens >= wanted:
            return dropped
        dropped_tokens += tokens
    return len(turn_tokens) - 1
