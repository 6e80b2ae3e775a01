"""Tokenises conversations without holding up other calls. Knows how long that takes, and nothing of how it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from service.domain import Classifier, Conversation, Prefix, Prompt, Turn

LONG_BYTES = 6_000
"""Text from which on tokenising it may take more than 5 ms: by the bundled tokenizer 0.35 ms per 1,000 bytes of
English, up to 0.8 of what it has no words for."""

TURN_BYTES = 10
"""As how much text a turn counts beside its own."""


def is_long(turns: Sequence[Turn]) -> bool:
    """Whether tokenising them takes so long that other calls would wait."""
    return sum(len(turn.text.encode()) + TURN_BYTES for turn in turns) >= LONG_BYTES


@dataclass(frozen=True, slots=True)
class Reading:
    """A conversation for whoever asks about it. `shared`: its prefix in the prompt that classifiers share."""

    conversation: Conversation
    shared: Prefix

    def prefix_for(self, classifier: Classifier) -> Prefix:
        """Raises InvalidRequestError for a conversation that the classifier's own prompt has no room for."""
        own = classifier.own_prompt
        return self.shared if own is None else own.prefix(self.conversation, self.shared.texts)


async def read(prompt: Prompt, conversation: Conversation) -> Reading:
    """Read a conversation in the prompt that classifiers share. Raises InvalidRequestError for one that has none."""
    return Reading(conversation, await prefix_of(prompt, conversation))


async def prefix_of(prompt: Prompt, conversation: Conversation) -> Prefix:
    """A conversation's prefix. A long one is made in a thread: the tokenizer leaves the interpreter to others.

    Raises InvalidRequestError for a conversation that has none.
    """
    if is_long(conversation.turns):
        return await asyncio.to_thread(prompt.prefix, conversation)
    return prompt.prefix(conversation)
