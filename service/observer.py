"""What the way of a request tells those who watch it. Here nobody does; `metrics.py` counts."""

from __future__ import annotations

from service.call import Call
from service.domain import Classification, Classifier, Conversation, StageSeconds


class Observer:
    """Is told what happens; does nothing."""

    def asked(self, conversation: Conversation, call: Call) -> None:
        """A fan-out is about to begin."""

    def answered(self, classifier: Classifier, answer: Classification) -> None:
        """A classifier gave an answer."""

    def finished(self, stages: StageSeconds) -> None:
        """A fan-out is done."""

    def reloaded(self, classifier: str, outcome: str) -> None:
        """A reload changed or refused a classifier."""

    def failed(self, classifier: Classifier) -> None:
        """The engine failed on a classifier."""

    def shed(self, classifier: Classifier) -> None:
        """A classifier was left out of a fan-out for want of room."""

    def late(self, classifier: Classifier) -> None:
        """A classifier was not ready at the deadline."""

    def part_failed(self, method: str, reason: str) -> None:
        """A message of a live conversation or an item of a batch got an error in the place of all its answers."""

    def shadowed(self, answer: Classification, shadow: Classification | None) -> None:
        """A revision in the shadow answered too; None: it could not, or there was no room for it."""


class Observers(Observer):
    """Tells everything to each of several."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def asked(self, conversation: Conversation, call: Call) -> None:
        for each in self._observers:
            each.asked(conversation, call)

    def answered(self, classifier: Classifier, answer: Classification) -> None:
        for each in self._observers:
            each.answered(classifier, answer)

    def finished(self, stages: StageSeconds) -> None:
        for each in self._observers:
            each.finished(stages)

    def failed(self, classifier: Classifier) -> None:
        for each in self._observers:
            each.failed(classifier)

    def shed(self, classifier: Classifier) -> None:
        for each in self._observers:
            each.shed(classifier)

    def late(self, classifier: Classifier) -> None:
        for each in self._observers:
            each.late(classifier)

    def part_failed(self, method: str, reason: str) -> None:
        for each in self._observers:
            each.part_failed(method, reason)

    def shadowed(self, answer: Classification, shadow: Classification | None) -> None:
        for each in self._observers:
            each.shadowed(answer, shadow)

    def reloaded(self, classifier: str, outcome: str) -> None:
        for each in self._observers:
            each.reloaded(classifier, outcome)
