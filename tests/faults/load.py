"""Steady load whose every call is accounted for: answered rightly, refused with a reason, wrong, or lost."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from google.rpc import code_pb2
from grpc import StatusCode

from service.client import FantailClient, RpcError, Turns
from service.pb.fantail.v1 import classification_service_pb2 as pb

CALL_SECONDS = 20.0
LATE_SECONDS = 5.0
"""A call that is not over so long after its deadline is lost."""

TOLERANCE = 2e-3
"""How far a probability may be from what the same revision answered before: other batches round otherwise."""

HONEST = {"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "CANCELLED"}
"""Codes that tell the caller the truth: not now. Any other refusal of a valid call counts as lost. Each fault says
which of them it may bring about; CANCELLED only a stop, where gRPC ends a call with it that was not accepted."""

TALKS: tuple[Turns, ...] = (
    (("customer", "where is my parcel? it should have been here on monday"),),
    (("customer", "i was charged twice"), ("agent", "I see one charge."), ("customer", "look again. i want it back")),
    (("customer", "my screen cracked, i have your phone protection, how do i claim?"),),
    (("customer", "thanks, that was all, bye!"),),
)  # fmt: skip

Answer = tuple[str, tuple[float, ...]]
"""Label and probabilities."""


@dataclass(slots=True)
class Account:
    """What became of every call. `known`: what each revision answers about each talk, learnt from its first answer, or
    given; an answer of a known revision that differs is wrong. `silence_s`: longest time without an answer of all
    classifiers since `harmed`; `refused`: codes of calls and of single classifiers that got no answer; `refusal_s`: the
    longest that a call waited to be told that there is no room for it."""

    calls: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    known: dict[tuple[int, str, str], Answer] = field(default_factory=dict)
    silence_s: float = 0.0
    refusal_s: float = 0.0
    answered_at: float = field(default_factory=time.monotonic)

    def answered(self, talk: int, response: pb.FanOutResponse) -> None:
        """Hold an answer against what its revisions answered before."""
        failed = [result for result in response.results if result.HasField("status")]
        self.calls["partly answered" if failed else "answered"] += 1
        if not failed:
            self._heard()
        for result in failed:
            self._refused(code_pb2.Code.Name(result.status.code), f"{result.classifier}: {result.status.message}")
        for result in response.results:
            if result in failed:
                continue
            found = result.classification
            answer = (found.label, tuple(score.probability for score in found.scores))
            before = self.known.setdefault((talk, found.classifier, found.revision), answer)
            if _differs(before, answer):
                self.wrong.append(f"{found.classifier}@{found.revision}: {before} and then {answer}")

    def _heard(self) -> None:
        now = time.monotonic()
        self.silence_s = max(self.silence_s, now - self.answered_at)
        self.answered_at = now

    def harmed(self) -> None:
        """Count silence from now on: the fault is brought about."""
        self.silence_s, self.answered_at = 0.0, time.monotonic()

    async def hears_again(self, seconds: float) -> bool:
        """Wait until all classifiers answer a call from now on; False when that takes too long."""
        now = time.monotonic()
        while time.monotonic() < now + seconds:
            if self.answered_at > now:
                return True
            await asyncio.sleep(0.05)
        return False

    def failed(self, error: RpcError, seconds: float) -> None:
        """Take down a call that was refused after so long; one for lack of room must be told when to come again."""
        self.calls[f"{error.code.name} {error.reason}".strip()] += 1
        self._refused(error.code.name, str(error))
        if error.code is StatusCode.RESOURCE_EXHAUSTED:
            self.refusal_s = max(self.refusal_s, seconds)
            if not error.retry_after_s:
                self.lost.append(f"no RetryInfo: {error}")

    def _refused(self, code: str, why: str) -> None:
        self.refused[code] += 1
        if code not in HONEST:
            self.lost.append(why)


def _differs(one: Answer, other: Answer) -> bool:
    return one[0] != other[0] or any(abs(a - b) > TOLERANCE for a, b in zip(one[1], other[1], strict=True))


@contextlib.asynccontextmanager
async def steady_load(client: FantailClient, account: Account, callers: int) -> AsyncIterator[None]:
    """Call again and again from so many callers until the end, where every call under way is waited for."""
    stop = asyncio.Event()

    async def caller(first: int) -> None:
        for number in itertools.count(first):
            if stop.is_set():
                return
            talk, began = number % len(TALKS), time.monotonic()
            try:
                async with asyncio.timeout(CALL_SECONDS + LATE_SECONDS):
                    account.answered(talk, await client.fan_out(TALKS[talk], timeout=CALL_SECONDS))
            except RpcError as error:
                account.failed(error, time.monotonic() - began)
                await asyncio.sleep(min(0.2, error.retry_after_s or 0.2))
            except TimeoutError:
                account.lost.append("a call did not end")

    async with asyncio.TaskGroup() as group:
        for first in range(callers):
            group.create_task(caller(first))
        try:
            yield
        finally:
            stop.set()


def summary(calls: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in sorted(calls.items(), key=lambda each: -each[1]))
