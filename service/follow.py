"""A live conversation: turns as they happen, answers after each message. Knows neither gRPC nor the engine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from service.call import Call
from service.classify import Answers, Classify
from service.domain import Conversation, Role, Turn
from service.reading import prefix_of


@dataclass(slots=True)
class LiveConversation:
    """What has been said so far, and which classifiers are asked (none: all).

    `hold`: is told how many bytes of memory that takes. Raises OverloadedError when they are too many.
    """

    classify: Classify
    hold: Callable[[int], None]
    id: str = ""
    turns: list[Turn] = field(default_factory=list)
    names: tuple[str, ...] = ()
    text_bytes: int = 0
    message_bytes: int = 0

    def received(self, message_bytes: int) -> None:
        """A message has come, which gRPC keeps in memory until the next one. Raises OverloadedError."""
        self.message_bytes = message_bytes
        self.hold(message_bytes + size_of(self.id, self.turns, self.names))

    def require_memory(self, id: str, new: Sequence[Turn], names: Sequence[str] | None) -> None:
        """Raise OverloadedError for what there is no memory for. Arguments: those of `take_over`."""
        later = size_of(self.id or id, [*self.turns, *new], self.names if names is None else names)
        self.hold(self.message_bytes + later)

    async def require_room(self, new: Sequence[Turn]) -> None:
        """Raise TurnTooLongError for turns that do not fit the context, whatever else is said."""
        await prefix_of(self.classify.builder, Conversation(self.id, tuple(new)))

    def take_over(self, id: str, new: Sequence[Turn], names: Sequence[str] | None) -> None:
        """Go on with what a message brings. `id`: of the first message alone; `names`: None for those as before."""
        if not self.turns:
            self.id = id
        self.turns = [*self.turns, *new]
        self.text_bytes += sum(len(turn.text.encode()) for turn in new)
        if names is not None:
            self.names = tuple(names)

    def wants_answers(self, new: Sequence[Turn]) -> bool:
        """Whether a message with these turns is answered: the customer spoke last, or nobody and it merely asks."""
        return not new or new[-1].role is Role.CUSTOMER

    async def answers(self, call: Call) -> Answers:
        """The fan-out about the conversation as it stands. Raises what `Classify.fan_out` raises."""
        return await self.classify.fan_out(Conversation(self.id, tuple(self.turns)), self.names, call)


def size_of(id: str, turns: Sequence[Turn], names: Sequence[str]) -> int:
    """Bytes of memory: a text's are up to four times as many as it was sent in, and a turn has some beside its text."""
    return sum(map(sys.getsizeof, (id, *turns, *(turn.text for turn in turns), *names)))
