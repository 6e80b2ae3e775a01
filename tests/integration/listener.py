"""An observer that keeps what it is told."""

from __future__ import annotations

from service.call import Call
from service.domain import Conversation
from service.observer import Observer


class Listener(Observer):
    """`heard`: the conversations that were asked about; `calls`: on what terms, one for each."""

    def __init__(self) -> None:
        self.heard: list[Conversation] = []
        self.calls: list[Call] = []

    def asked(self, conversation: Conversation, call: Call) -> None:
        self.heard.append(conversation)
        self.calls.append(call)
