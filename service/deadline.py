"""A deadline as a value that is handed down with the work it bounds."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Deadline:
    """When an answer is no longer wanted.

    `at`: seconds on `time.monotonic`'s clock, infinity for never; `name`: what callers know it as, who set one or not.
    """

    at: float = math.inf
    name: str = "the deadline"

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """So many seconds from now; None: never."""
        return cls() if seconds is None else cls(time.monotonic() + seconds)

    def named(self, name: str) -> Deadline:
        """The same, by another name."""
        return replace(self, name=name)

    def remaining(self) -> float:
        """Seconds left: 0 once it has passed, infinity without a deadline."""
        return max(0.0, self.at - time.monotonic())

    def timeout(self) -> float | None:
        """Seconds left as most functions take a timeout: None without a deadline."""
        return None if math.isinf(self.at) else self.remaining()

    def earlier(self, seconds: float) -> Deadline:
        """The deadline of what must be done so many seconds before this one."""
        return replace(self, at=self.at - seconds)

    def no_later_than(self, other: Deadline) -> Deadline:
        """Whichever comes first."""
        return min(self, other, key=lambda each: each.at)
