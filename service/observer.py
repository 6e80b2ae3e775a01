"""What the way of a request tells those who watch it. Here nobody does; `metrics.py` counts."""

from __future__ import annotations

from service.domain import Classification, Classifier, StageSeconds


class Observer:
    """Is told what happens; does nothing."""

    def answered(self, classifier: Classifier, answer: Classification) -> None:
        """A classifier gave an answer."""

    def finished(self, stages: StageSeconds) -> None:
        """A fan-out is done."""

    def reloaded(self, classifier: str, outcome: str) -> None:
        """A reload changed or refused a classifier."""

    def shed(self, classifier: Classifier) -> None:
        """A classifier was left out of a fan-out for want of room."""

    def late(self, classifier: Classifier) -> None:
        """A classifier was not ready at the deadline."""

    def shadowed(self, answer: Classification, shadow: Classification | None) -> None:
        """A revision in the shadow answered too; None: it could not, or there was no room for it."""
