"""One process of the generator: sends its share of a run's calls when each is due, however slow the answers are.

Open loop: a call is due at a time that was fixed before, and its latency counts from then. A slow server delays no
later call, so nothing of its slowness is hidden.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtest.outcome import GOOD, STAGES, Outcome
from loadtest.profile import Profile, load_profile
from loadtest.schedule import Call, calls
from loadtest.target import Target
from service.client import FantailClient, RpcError

LATE_SEND_S = 0.01
"""A call sent so long after it was due says that the generator, not the server, is the limit."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one process is told on its standard input.

    It sends every call whose number is `index` modulo `processes`; `begins_at`: on `time.time`'s clock, for all alike.
    """

    profile: str
    target: Target
    rate: float
    seed: int
    index: int
    processes: int
    begins_at: float


async def generate(share: Share) -> Outcome:
    """Send the calls; returns once the last is answered."""
    profile = load_profile(Path(share.profile))
    outcome = Outcome(steady_s=profile.steady_s)
    begins = time.perf_counter() + share.begins_at - time.time()
    async with share.target.connect(retries=False) as client, asyncio.TaskGroup() as group:
        for number, call in enumerate(calls(profile, share.rate, share.target.classifiers, share.seed)):
            if number % share.processes != share.index:
                continue
            due = begins + call.at_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(_send(client, profile, call, due, outcome))
    return outcome


async def _send(client: FantailClient, profile: Profile, call: Call, due: float, outcome: Outcome) -> None:
    counted = call.at_s >= profile.warm_up_s
    late = time.perf_counter() - due > LATE_SEND_S
    status, response = await _ask(client, profile, call, due)
    latency_s = time.perf_counter() - due
    if response is not None and latency_s > profile.deadline_s:
        status, response = "DEADLINE_EXCEEDED", None  # gRPC keeps deadlines to some milliseconds only
    if not counted:
        return
    outcome.ended(call.length, status, late)
    if response is not None:
        durations = {stage: getattr(response.durations, stage).ToNanoseconds() / 1e9 for stage in STAGES}
        usage = response.usage
        answers = 1 if call.classifiers else sum(each.HasField("classification") for each in response.results)
        outcome.answered(call.length, latency_s, durations, usage.computed_tokens, usage.reused_tokens, answers)


async def _ask(client: FantailClient, profile: Profile, call: Call, due: float) -> tuple[str, Any]:
    """How a call ended, and its response where there is one. Its deadline too counts from when it was due."""
    timeout = due + profile.deadline_s - time.perf_counter()
    try:
        if call.classifiers:
            return GOOD, await client.classify(call.turns, call.classifiers[0], timeout=timeout)
        response = await client.fan_out(call.turns, timeout=timeout)
    except RpcError as error:
        return error.code.name, None
    whole = all(result.HasField("classification") for result in response.results)
    return GOOD if whole else "PARTLY", response


def main() -> None:
    told = json.load(sys.stdin)
    share = Share(**told | {"target": Target.from_json(told["target"])})
    json.dump(asyncio.run(generate(share)).to_json(), sys.stdout)


def told(share: Share) -> bytes:
    """What a process reads."""
    return json.dumps(asdict(share)).encode()


if __name__ == "__main__":
    main()
