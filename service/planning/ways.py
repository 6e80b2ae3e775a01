"""Ways to answer the same traffic: how many machines each needs, how long it takes, what it costs."""

from __future__ import annotations

import bisect
import math
from dataclasses import dataclass

from service.admission import Job, choose
from service.domain import Priority
from service.planning.classifiers import Fan
from service.planning.deployment import Deployment
from service.planning.waiting import load_of, most_offered
from service.planning.work import work_of

MAX_BUSY = 0.7
"""Share of its time that a machine is planned to compute; nearer to 1, waiting grows without bound."""

MAX_TURNED_AWAY = 0.05
"""Share of the calls that a server is planned to turn away: one in 400 is turned away twice."""

OURS, SEPARATE, PACKED, UNSHARED = "Fantail", "separate servers", "merged, packed", "unshared LoRA"
"""One reading for all; a merged model and a machine for each classifier; merged models that share machines; one server
that reads once per adapter. The last three turn nobody away, and their queue has no bound."""


@dataclass(frozen=True, slots=True)
class Way:
    """A way to answer the traffic.

    `machines`: enough that none is busy beyond `MAX_BUSY` nor turns away more than `MAX_TURNED_AWAY`; `let_in`: calls
    under way on one at most, None without a bound; `turned_away`: share of the calls; `latency_s`: mean of a fan-out
    that is let in, waiting included; `under_way`: fan-outs at once on average; `cost`: of a million classifications.
    """

    name: str
    machines: int
    busy: float
    let_in: int | None
    turned_away: float
    latency_s: float
    under_way: float
    cost: float


def ways_of(deployment: Deployment, prefix_tokens: int, let_in: int) -> tuple[Way, ...]:
    """All of them, ours first, which lets in so many fan-outs at once."""
    size = deployment.served.fan.size
    ours, merged, unshared = (
        work_of(deployment, fan, prefix_tokens).seconds for fan in (deployment.served.fan, Fan(bare=1), Fan(plain=size))
    )
    return (
        _way(deployment, OURS, ours, let_in=let_in),
        _way(deployment, SEPARATE, merged, size),
        min(_packings(deployment, merged, prefix_tokens), key=lambda way: (way.machines, way.latency_s)),
        _way(deployment, UNSHARED, unshared),
    )


def let_in_of(tokens: int, bound: int) -> int:
    """How many calls with so many tokens to compute are under way when the server turns the next one away, with so many
    tokens in flight at most; of calls that ask a critical classifier, as a fan-out of all does."""
    call = [Job(tokens, Priority.CRITICAL)]
    return 1 + bisect.bisect(
        range(1, bound + 1), False, key=lambda calls: not any(choose(0, call, calls * tokens, bound))
    )


def _packings(deployment: Deployment, seconds: float, prefix_tokens: int) -> list[Way]:
    """One merged model on a machine, two, and so on, up to as many as memory holds with a conversation's KV for each.

    `seconds`: one model's; those on a machine answer one after the other.
    """
    size, memory = deployment.served.fan.size, deployment.memory
    room = deployment.usable_bytes - memory.step - memory.runtime
    fitting = int(room // (memory.weights + prefix_tokens * deployment.kv_token_bytes))
    return [
        _way(deployment, PACKED, count * seconds, math.ceil(size / count))
        for count in range(1, min(size, max(1, fitting)) + 1)
    ]


def _way(deployment: Deployment, name: str, seconds: float, servers: int = 1, let_in: int | None = None) -> Way:
    """`seconds`: one server's for its part of a fan-out; `servers`: that a fan-out needs, each on its own machine."""
    rate, room = deployment.calls_per_s, math.inf if let_in is None else let_in
    copies = math.ceil(rate * seconds / most_offered(room, MAX_TURNED_AWAY, MAX_BUSY))
    load = load_of(rate * seconds / copies, room)
    answered = rate * (1 - load.turned_away)
    price_per_s = servers * copies * deployment.machine.price_per_hour / 3600
    return Way(
        name=name,
        machines=servers * copies,
        busy=answered * seconds / copies,
        let_in=let_in,
        turned_away=load.turned_away,
        latency_s=copies * load.under_way / answered,  # Little's law
        under_way=copies * load.under_way,
        cost=1e6 * price_per_s / (answered * deployment.served.fan.size),
    )
