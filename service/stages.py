"""Times the stages of one fan-out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from service.domain import StageSeconds


class Clock:
    """Begins with the request; the stages are building the prompt, the engine's work, and scoring."""

    def __init__(self) -> None:
        self._began = self._prompted = time.perf_counter()
        self._scoring = 0.0

    def prompted(self) -> None:
        """The prompt is built from now on."""
        self._prompted = time.perf_counter()

    @contextlib.contextmanager
    def scoring(self) -> Iterator[None]:
        """What happens inside is scoring."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._scoring += time.perf_counter() - began

    def stages(self) -> StageSeconds:
        """Up to now."""
        now = time.perf_counter()
        engine = now - self._prompted - self._scoring
        return StageSeconds(self._prompted - self._began, engine, self._scoring, now - self._began)
