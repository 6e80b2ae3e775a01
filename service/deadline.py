"""A deadline as a value that is handed down with the work it bounds."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deadline:
    """When an answer is no longer wanted. `at`: seconds on `time.monotonic`'s clock, infinity for never."""

    at: float = math.inf

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """So many seconds from now; None: never."""
        return cls() if seconds is None else cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """Seconds left: 0 once it has passed, infinity without a deadline."""
        return max(0.0, self.at - time.monotonic())

    def timeout(self) -> float | None:
        """Seconds left as most functions take a timeout: None without a deadline."""
        return None if math.isinf(self.at) else self.remaining()

    def earlier(self, seconds: float) -> Deadline:
        """The deadline of what must be done so many seconds before this one."""
        return Deadline(self.at - seconds)

    def no_later_than(self, other: Deadline) -> Deadline:
        """Whichever comes first."""
        return min(self, other, key=lambda each: each.at)
