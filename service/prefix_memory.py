"""What the engine's prefix cache probably holds, told from the outside: which part of a prompt is new work.

An estimate for admission alone. The engine counts for itself; when the two differ, only the estimate was wrong.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from service.prompt.format import PREFIX_MULTIPLE


class PrefixMemory:
    """Remembers the last `capacity_tokens` worth of prefixes, block by block, as a prefix cache would."""

    def __init__(self, capacity_tokens: int) -> None:
        self._capacity = capacity_tokens // PREFIX_MULTIPLE
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def new_tokens(self, prefix: Sequence[int], salt: str) -> int:
        """Tokens of a prefix behind the last block that is known."""
        known = 0
        for key in _chain(prefix, salt):
            if key not in self._blocks:
                break
            known += PREFIX_MULTIPLE
        return len(prefix) - known

    def remember(self, prefix: Sequence[int], salt: str) -> None:
        """The engine has computed this prefix; what was used longest ago is forgotten for it."""
        # The end is forgotten before the beginning: no block is of use without those before it.
        for key in reversed([*_chain(prefix, salt)]):
            self._blocks[key] = None
            self._blocks.move_to_end(key)
        while len(self._blocks) > self._capacity:
            self._blocks.popitem(last=False)

    def forget(self, capacity_tokens: int) -> None:
        """The engine was started anew, with room for so many tokens."""
        self._blocks.clear()
        self._capacity = capacity_tokens // PREFIX_MULTIPLE


def _chain(prefix: Sequence[int], salt: str) -> Iterator[int]:
    """A key for each whole block that stands for everything up to its end."""
    key = hash(salt)
    for start in range(0, len(prefix) - PREFIX_MULTIPLE + 1, PREFIX_MULTIPLE):
        key = hash((key, tuple(prefix[start : start + PREFIX_MULTIPLE])))
        yield key
