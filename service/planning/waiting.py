"""Calls that come at random to a machine that takes equally long for each: how many it turns away, and who waits."""

from __future__ import annotations

import math
from dataclasses import dataclass

MANY = 20
"""Calls at once beyond which nobody is taken to be turned away: at 70 % busy that would be one in a million, and the
terms of the sum below cancel each other's digits."""


@dataclass(frozen=True, slots=True)
class Load:
    """`turned_away`: share of the calls; `under_way`: mean number of those let in, waiting ones included."""

    turned_away: float
    under_way: float


def load_of(offered: float, let_in: float) -> Load:
    """Of a machine that lets in so many calls at once, which bring `offered` seconds of work a second, less
    than one where nobody is turned away.

    M/D/1/N: Brun and Garcia, "Analytical solution of finite capacity M/D/1 queues", J. Appl. Probab. 37 (2000), 1092 to
    1098. With one call at once it is Erlang's loss formula for one server, with many it is M/D/1.
    """
    if let_in > MANY:
        return Load(0.0, offered * (1 + offered / (2 * (1 - offered))))
    sums = [_sum(offered, number) for number in range(int(let_in))]
    scale = 1 + offered * sums[-1]
    return Load(max(0.0, 1 - sums[-1] / scale), let_in - sum(sums) / scale)


def most_offered(let_in: float, most_turned_away: float, limit: float) -> float:
    """The most work that may be offered so that no larger share is turned away, up to `limit`."""
    low, high = 0.0, limit
    if load_of(limit, let_in).turned_away <= most_turned_away:
        return limit
    for _ in range(50):  # halvings, down to the last digit
        middle = (low + high) / 2
        low, high = (middle, high) if load_of(middle, let_in).turned_away <= most_turned_away else (low, middle)
    return low


def _sum(offered: float, number: int) -> float:
    """Probability of at most `number` under way, as a multiple of that of none."""
    return sum(
        (-offered * (number - k)) ** k / math.factorial(k) * math.exp(offered * (number - k)) for k in range(number + 1)
    )
