"""Tokenises conversations without holding up other calls. Knows how long that takes, and nothing of how it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from service.domain import Conversation, Turn
from service.prompt.builder import Prefix, PromptBuilder

LONG_BYTES = 6_000
"""Text from which on tokenising it may take more than 5 ms: by the bundled tokenizer 0.35 ms per 1,000 bytes of
English, up to 0.8 of what it has no words for."""

TURN_BYTES = 10
"""As how much text a turn counts beside its own."""


def is_long(turns: Sequence[Turn]) -> bool:
    """Whether tokenising them takes so long that other calls would wait."""
    return sum(len(turn.text.encode()) + TURN_BYTES for turn in turns) >= LONG_BYTES


async def prefix_of(builder: PromptBuilder, conversation: Conversation) -> Prefix:
    """The prompt's shared part. A long one is made in a thread: the tokenizer leaves the interpreter to others.

    Raises InvalidRequestError for a conversation that has none.
    """
    if is_long(conversation.turns):
        return await asyncio.to_thread(builder.prefix, conversation)
    return builder.prefix(conversation)
