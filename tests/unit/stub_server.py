"""A server that only the load generator sees: stands for the client, answers by the clock of a jumping loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from google.rpc import status_pb2

from loadtest.generator import Share, generate
from loadtest.outcome import Outcome
from loadtest.target import Target
from service.client import RpcError
from service.pb.fantail.v1 import classification_service_pb2 as pb
from tests.traffic import write_profile
from tests.unit.jumping_loop import JumpingLoop

NAMES = ("refund", "topic")


def durations(seconds: float) -> pb.StageDurations:
    found = pb.StageDurations()
    for stage in (found.prompt, found.engine, found.scoring, found.total):
        stage.FromNanoseconds(round(seconds * 1e9))
    return found


USAGE = pb.TokenUsage(computed_tokens=40, reused_tokens=60)
ANSWERED = pb.FanOutResult(classifier=NAMES[0], classification=pb.Classification())
FAILED = pb.FanOutResult(classifier=NAMES[1], status=status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0]))
WHOLE = pb.FanOutResponse(results=[ANSWERED, ANSWERED], durations=durations(0.03), usage=USAGE)
PARTLY = pb.FanOutResponse(results=[ANSWERED, FAILED], durations=durations(0.03), usage=USAGE)
ONE = pb.ClassifyResponse(classification=pb.Classification(), durations=durations(0.02), usage=USAGE)


def failure(code: grpc.StatusCode) -> RpcError:
    return RpcError(code, "No.", status_pb2.Status())


@dataclass(frozen=True)
class Sent:
    """`at_s`: since the run began; `classifier`: empty for all."""

    at_s: float
    turns: Any
    classifier: str
    timeout_s: float


@dataclass
class StubServer:
    """`takes_s`: how long a call that is sent at a moment waits for its answer; `hold_up_s`: for how long sending it
    holds up the whole generator; `answer`: to a call to all classifiers, or what it raises; `sent`: calls in order;
    `options`: of the client; `began`: when the run did."""

    loop: JumpingLoop
    takes_s: Callable[[float], float] = lambda at_s: 0.001
    hold_up_s: Callable[[float], float] = lambda at_s: 0.0
    answer: Callable[[float], pb.FanOutResponse | RpcError] = lambda at_s: WHOLE
    sent: list[Sent] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    began: float = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *ended: object) -> None:
        pass

    async def classify(self, turns: Any, classifier: str, *, timeout: float) -> pb.ClassifyResponse:
        await self._take(Sent(self.loop.now - self.began, turns, classifier, timeout))
        return ONE

    async def fan_out(self, turns: Any, *, timeout: float) -> pb.FanOutResponse:
        at_s = self.loop.now - self.began
        await self._take(Sent(at_s, turns, "", timeout))
        answer = self.answer(at_s)
        if isinstance(answer, RpcError):
            raise answer
        return answer

    async def _take(self, call: Sent) -> None:
        self.sent.append(call)
        self.loop.now += self.hold_up_s(call.at_s)
        await asyncio.sleep(min(self.takes_s(call.at_s), call.timeout_s))
        if self.takes_s(call.at_s) > call.timeout_s:
            raise failure(grpc.StatusCode.DEADLINE_EXCEEDED)


@dataclass
class Generating:
    """A generator process in this one, and the server that it finds."""

    server: StubServer
    folder: Path
    loop: JumpingLoop

    def run(
        self, rate: float = 10.0, *, seed: int = 1, index: int = 0, processes: int = 1, starts_late_s: float = 0.0,
        key: str | None = None, **profile: Any,
    ) -> Outcome:  # fmt: skip
        """Generate the share of one process. `starts_late_s`: after the run has begun; `profile`: changes to it."""
        path = write_profile(self.folder, **profile)
        begins_at = self.server.began = self.loop.now - starts_late_s
        share = Share(str(path), Target("nowhere", NAMES, key), rate, seed, index, processes, begins_at)
        return self.loop.run_until_complete(generate(share))


def generating(folder: Path, monkeypatch: pytest.MonkeyPatch, loop: JumpingLoop) -> Generating:
    """Let generators run in this loop, by its clock, against a server that answers all calls at once."""
    server = StubServer(loop)

    def connect(address: str, **options: Any) -> StubServer:
        server.options = options
        return server

    monkeypatch.setattr("loadtest.target.FantailClient", connect)
    monkeypatch.setattr("loadtest.generator.time", loop)
    return Generating(server, folder, loop)
