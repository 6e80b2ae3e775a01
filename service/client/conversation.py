"""What is said, as callers write it and as the contract has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from google.protobuf.duration_pb2 import Duration

from service.pb.fantail.v1 import classification_service_pb2 as pb

ROLES = {"customer": pb.ROLE_CUSTOMER, "agent": pb.ROLE_AGENT, "system": pb.ROLE_SYSTEM}

Turns = Sequence[tuple[Literal["customer", "agent", "system"], str]]
"""A conversation as (role, text) pairs, oldest first."""


def conversation(turns: Turns, id: str = "") -> pb.Conversation:
    """Turns as a message; a role it does not know is left for the server to refuse."""
    return pb.Conversation(
        id=id, turns=[pb.Turn(role=ROLES.get(role, pb.ROLE_UNSPECIFIED), text=text) for role, text in turns]
    )


def duration(seconds: float) -> Duration:
    """Seconds as the contract has them."""
    found = Duration()
    found.FromNanoseconds(round(seconds * 1e9))
    return found
