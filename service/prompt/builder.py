"""Conversation to token ids, once per conversation. Knows the tokenizer and the format, not classifiers or engines."""

from __future__ import annotations

from collections.abc import Sequence

from service.domain import Conversation, Prefix, Role, Truncation, Turn
from service.errors import InvalidRequestError, RegistryError, TurnTooLongError, raise_all
from service.prompt.format import PREFIX_MULTIPLE, PromptFormat, max_prefix_tokens
from service.prompt.tokenizer import PromptTokenizer
from service.prompt.truncation import STEP_TOKENS, turns_to_drop

MAX_CHARACTERS_PER_TOKEN = 32
"""Text with more characters per token than this is refused before it costs tokenizer time (usual: 3 to 5)."""


class PromptBuilder:
    """Builds prefixes and tails as token ids; what it returns is never tokenised again.

    `context_tokens`: the most tokens that prompt and answer may have together.
    """

    def __init__(self, tokenizer: PromptTokenizer, prompt_format: PromptFormat, context_tokens: int) -> None:
        starts = prompt_format.turn_start
        pieces = [prompt_format.preamble, starts.customer, starts.agent, starts.system]
        pieces += [prompt_format.turn_end, prompt_format.invocation]
        if forgeable := tokenizer.spellable_control_tokens(pieces):
            raise RegistryError(
                [f"customer text can spell the control token(s) {forgeable}: choose others in prompt.toml"]
            )
        filler = tokenizer.encode_control(prompt_format.filler)
        if prompt_format.filler and len(filler) != 1:
            raise RegistryError(
                [f"the filler {prompt_format.filler!r} in prompt.toml is {len(filler)} tokens, not one"]
            )
        self._tokenizer = tokenizer
        self._context_tokens = context_tokens
        self._preamble = tokenizer.encode_control(prompt_format.preamble)
        self._starts = {role: tokenizer.encode_control(starts.of(role)) for role in Role}
        self._end = tokenizer.encode_control(prompt_format.turn_end)
        self._filler = filler
        self.prompt_digest = prompt_format.digest
        self.invocation_ids = tokenizer.encode_control(prompt_format.invocation)
        self.max_prefix_tokens = max_prefix_tokens(context_tokens)
        if self.max_prefix_tokens < PREFIX_MULTIPLE + len(self._preamble):
            raise RegistryError([f"a context of {context_tokens} tokens leaves no room for a conversation"])

    def in_format(self, prompt_format: PromptFormat) -> PromptBuilder:
        """The same for another format, which must leave half of the room to a conversation. Raises RegistryError."""
        other = PromptBuilder(self._tokenizer, prompt_format, self._context_tokens)
        around = len(other._preamble) + max(map(len, other._starts.values())) + len(other._end)
        if around > other.max_prefix_tokens // 2:
            room = f"{other.max_prefix_tokens} tokens that there is room for"
            raise RegistryError([f"prompt.toml: preamble and what stands around a turn take {around} of the {room}"])
        return other

    def prefix(self, conversation: Conversation, texts: Sequence[tuple[int, ...]] | None = None) -> Prefix:
        """Preamble, turns, and filler up to a multiple of `PREFIX_MULTIPLE` tokens.

        Cuts the oldest turns when the context is too small, and says so. Raises TurnTooLongError for all that are.
        `texts`: of a prefix that another format has made of it, so that they are not encoded again.
        """
        endless = [len(turn.text) > self._room * MAX_CHARACTERS_PER_TOKEN for turn in conversation.turns]
        if texts is None:
            texts = self._tokenizer.encode_texts(
                "" if skip else turn.text for turn, skip in zip(conversation.turns, endless, strict=True)
            )
        turns = self._delimited(conversation.turns, texts, endless)
        lengths = [len(turn) for turn in turns]
        dropped = turns_to_drop(lengths, self._room, min(STEP_TOKENS, self._room // 4))
        ids = list(self._preamble)
        for turn in turns[dropped:]:
            ids += turn
        ids += self._filler * (-len(ids) % PREFIX_MULTIPLE)
        return Prefix(tuple(ids), Truncation(dropped, sum(lengths[:dropped])), tuple(texts))

    def tail(self, words: str) -> tuple[int, ...]:
        """Invocation and the task's own words; the answer is read at its last token."""
        return self.invocation_ids + self._tokenizer.encode_text(words)

    @property
    def _room(self) -> int:
        """Tokens that a conversation may take."""
        return self.max_prefix_tokens - len(self._preamble)

    def _delimited(
        self, turns: Sequence[Turn], texts: Sequence[tuple[int, ...]], endless: Sequence[bool]
    ) -> list[tuple[int, ...]]:
        """Ids of each turn with its delimiters, each proven to fit the context alone."""
        limit = self._room
        encoded = [self._starts[turn.role] + text + self._end for turn, text in zip(turns, texts, strict=True)]
        raise_all(
            [
                too_long(index, f"{len(turn.text)} characters" if skip else f"{len(ids)} tokens", limit)
                for index, (turn, ids, skip) in enumerate(zip(turns, encoded, endless, strict=True))
                if skip or len(ids) > limit
            ]
        )
        return encoded


def too_long(index: int, size: str, limit: int) -> InvalidRequestError:
    """The refusal of a turn that cannot fit the context alone."""
    message = f"Turn {index} has {size} and the context leaves room for {limit} tokens; shorten it."
    return TurnTooLongError(message, f"conversation.turns[{index}].text", {"max_tokens": str(limit)})
