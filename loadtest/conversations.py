"""Conversations of a wanted length that nobody has seen before. Knows no tokenizer: a common word is about a token."""

from __future__ import annotations

import random
from typing import Literal

Turns = list[tuple[Literal["customer", "agent"], str]]

WORDS = ("order", "parcel", "late", "invoice", "refund", "login", "screen", "phone", "week", "please", "help", "again")
TURN_TOKENS = 6
"""What a turn costs beside its words."""


def conversation(tokens: int, seed: str) -> Turns:
    """Turns of about `tokens` tokens that no other seed gives; with fewer than 20 tokens some seeds give the same."""
    rng = random.Random(seed)
    turns: Turns = []
    room = tokens - 2 * TURN_TOKENS
    while room > 0:
        words = min(room, rng.randint(8, 40))
        turns.append(("agent" if len(turns) % 2 else "customer", " ".join(rng.choices(WORDS, k=words))))
        room -= words + TURN_TOKENS
    return turns or [("customer", rng.choice(WORDS))]


def with_next_turn(turns: Turns, seed: str) -> Turns:
    """The same conversation after the agent has answered and the customer has spoken again."""
    rng = random.Random(seed)
    said = [" ".join(rng.choices(WORDS, k=rng.randint(6, 20))) for _ in range(2)]
    return [*turns, ("agent", said[0]), ("customer", said[1])]
