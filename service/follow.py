"""A live conversation: turns as they happen, answers after each message. Knows neither gRPC nor the engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from service.call import Call
from service.classify import Answers, Classify
from service.domain import Conversation, Role, Turn


@dataclass(slots=True)
class LiveConversation:
    """What has been said so far, and which classifiers are asked (none: all)."""

    classify: Classify
    id: str = ""
    turns: list[Turn] = field(default_factory=list)
    names: tuple[str, ...] = ()
    text_bytes: int = 0

    async def require_room(self, new: Sequence[Turn]) -> None:
        """Raise TurnTooLongError for turns that do not fit the context, whatever else is said."""
        await self.classify.prefix(Conversation(self.id, tuple(new)))

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
