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

    def wants_answers(self, new: Sequence[Turn]) -> bool:
        """Whether a message with these turns is answered: the customer spoke last, or nobody and it merely asks."""
        return not new or new[-1].role is Role.CUSTOMER

    async def answers(self, call: Call) -> Answers:
        """The fan-out about the conversation as it stands. Raises what `Classify.fan_out` raises."""
        return await self.classify.fan_out(Conversation(self.id, tuple(self.turns)), self.names, call)
