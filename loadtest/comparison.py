"""What was measured of all contestants, and the table that is made of it: medians, and ratios against the fan-out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table


@dataclass(frozen=True, slots=True)
class Cell:
    """Median seconds of so many measurements, and how often it holds the reference's median of the same length."""

    median: float
    measurements: int
    ratio: float | None

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f"  {rounded(self.ratio)} ×"
        return f"{rounded(self.median)} ({self.measurements}){ratio}"


@dataclass(slots=True)
class Comparison:
    """Seconds by contestant and length (tokens), resident bytes by contestant. `reference`: whom ratios are against."""

    reference: str
    seconds: dict[str, dict[int, list[float]]] = field(default_factory=dict)
    resident_bytes: dict[str, int] = field(default_factory=dict)

    def add(self, contestant: str, length: int, seconds: float) -> None:
        self.seconds.setdefault(contestant, {}).setdefault(length, []).append(seconds)

    def weigh(self, contestant: str, resident: int) -> None:
        """Keep the most that a contestant was seen to hold."""
        self.resident_bytes[contestant] = max(resident, self.resident_bytes.get(contestant, 0))

    def taken(self, contestant: str, length: int) -> Sequence[float]:
        return self.seconds.get(contestant, {}).get(length, [])

    def cell(self, contestant: str, length: int) -> Cell | None:
        """None where nothing was measured; without a ratio for the reference itself and where it has nothing."""
        taken, against = self.taken(contestant, length), self.taken(self.reference, length)
        if not taken:
            return None
        median = statistics.median(taken)
        is_against = bool(against) and contestant != self.reference
        return Cell(median, len(taken), median / statistics.median(against) if is_against else None)

    def with_multiple(self, contestant: str, count: int, title: str) -> Comparison:
        """The same and, under `title`, `count` times all that was measured of a contestant."""
        times = {length: [count * each for each in taken] for length, taken in self.seconds[contestant].items()}
        return Comparison(
            self.reference,
            self.seconds | {title: times},
            self.resident_bytes | {title: count * self.resident_bytes[contestant]},
        )

    def to_json(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "resident_bytes": self.resident_bytes}

    def table(self, title: str) -> Table:
        lengths = sorted({length for taken in self.seconds.values() for length in taken})
        table = Table(title=title)
        table.add_column("median seconds (measurements), × fan-out")
        for heading in ("GB resident", *(f"{length:,} tokens" for length in lengths)):
            table.add_column(heading, justify="right")
        for contestant in self.seconds:
            cells = [self.cell(contestant, length) for length in lengths]
            memory = self.resident_bytes.get(contestant)
            table.add_row(
                contestant,
                "–" if memory is None else f"{memory / 1e9:.2f}",
                *("–" if cell is None else str(cell) for cell in cells),
            )
        return table


def rounded(value: float) -> str:
    """To three digits, and to no more than a thousandth."""
    return f"{value:,.{0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3}f}"


def has_time_left(taken: Sequence[float], budget: float) -> bool:
    """Whether a contestant takes part in the next round: always in the first, and until it has used up `budget`."""
    return sum(taken) < budget or not taken


def worst_difference(ours: Sequence[Sequence[float]], theirs: Sequence[Sequence[float]]) -> float:
    """The largest between two fan-outs' probabilities. Raises ValueError when they are of different classifiers."""
    return max(
        abs(mine - other)
        for some, others in zip(ours, theirs, strict=True)
        for mine, other in zip(some, others, strict=True)
    )
