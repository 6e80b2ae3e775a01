"""What the integration tests share: a fake engine that can be waited for, a small registry, short-hands."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from service.domain import Adapter, AdapterKind, Classifier, Label
from service.engine.base import LabelLogprobs, ScoringRequest
from service.engine.fake_engine import FakeEngine
from service.engine.vllm_engine import VllmConfig
from service.pb.fantail.v1 import classification_service_pb2 as pb
from service.prompt.builder import PromptBuilder
from service.registry.registry import Registry

DEADLINE_S = 20.0
"""Of calls that are expected to be answered; long enough for a busy machine."""

COMMAND_S = 60.0
"""Of a command that imports much, on a busy machine."""

NEVER_S = 3600.0
"""Latency of an engine that is still at work when the test ends."""

CONTEXT_TOKENS = 512
MIN_LABEL_MASS = 0.5

ACTIVATED, SECOND_ACTIVATED, PLAIN, WITHOUT_ADAPTER = "asking_for_agent", "sentiment", "topic", "urgency"
NAMES = [ACTIVATED, SECOND_ACTIVATED, PLAIN, WITHOUT_ADAPTER]
LABELS = {
    ACTIVATED: ("yes", "no"),
    SECOND_ACTIVATED: ("positive", "neutral", "negative"),
    PLAIN: ("billing", "delivery", "account", "other"),
    WITHOUT_ADAPTER: ("low", "medium", "high"),
}
KINDS = {ACTIVATED: AdapterKind.ACTIVATED, SECOND_ACTIVATED: AdapterKind.ACTIVATED, PLAIN: AdapterKind.PLAIN}

HELLO = (("customer", "where is my refund??"),)
REFUND = [pb.Turn(role=pb.ROLE_CUSTOMER, text="where is my refund??")]


@dataclass
class WatchedEngine(FakeEngine):
    """A fake engine whose work can be awaited, so that no test sleeps.

    `gate`: while it is shut, no request is answered. `distort`: has the last word on what is answered.
    """

    gate: asyncio.Event = field(default_factory=asyncio.Event)
    distort: Callable[[ScoringRequest, LabelLogprobs], LabelLogprobs] = lambda request, answer: answer
    _begun: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))
    _ended: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    def __post_init__(self) -> None:
        self.gate.set()

    async def score(self, request: ScoringRequest) -> LabelLogprobs:
        self._begun.release()
        try:
            await self.gate.wait()
            return self.distort(request, await super().score(request))
        finally:
            self._ended.release()

    async def begun(self, requests: int) -> None:
        """Return once that many more requests are under way."""
        await _acquire(self._begun, requests)

    async def ended(self, requests: int) -> None:
        """Return once that many more requests are no longer under way, however they ended."""
        await _acquire(self._ended, requests)


async def _acquire(semaphore: asyncio.Semaphore, times: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(times):
            await semaphore.acquire()


def small_registry(builder: PromptBuilder) -> Registry:
    """Two activated classifiers, a plain one and one without adapter; their label tokens are mere numbers."""
    made = {}
    for place, name in enumerate(NAMES):
        kind = KINDS.get(name)
        made[name] = Classifier(
            name=name,
            description=f"Decides {name}.",
            labels=tuple(Label(label, 1000 * place + i) for i, label in enumerate(LABELS[name])),
            tail_ids=builder.tail(f"{name}:"),
            adapter=Adapter(Path("nowhere"), kind, 4, ("q_proj",), f"{place}" * 64) if kind else None,
            revision=f"{place:016x}",
            min_label_mass=MIN_LABEL_MASS,
        )
    return Registry(MappingProxyType(made))


def asks(name: str, registry: Registry) -> Callable[[ScoringRequest], bool]:
    """Whether an engine request is the one of that classifier."""
    return lambda request: request.label_ids == registry.classifiers[name].label_ids


@contextlib.asynccontextmanager
async def start_fake(config: VllmConfig) -> AsyncIterator[FakeEngine]:
    """Stands for `start_vllm`."""
    yield FakeEngine()


def fan_out_request(*names: str, turns: list[pb.Turn] | None = None) -> pb.FanOutRequest:
    return pb.FanOutRequest(conversation=pb.Conversation(turns=REFUND if turns is None else turns), classifiers=names)


def classify_request(name: str, turns: list[pb.Turn] | None = None) -> pb.ClassifyRequest:
    return pb.ClassifyRequest(conversation=pb.Conversation(turns=REFUND if turns is None else turns), classifier=name)


@dataclass(frozen=True)
class Ended:
    """How a command ended; `code` is its exit code."""

    code: int
    out: str
    err: str


async def run_command(*command: str, cwd: Path, stdin: str = "", **environment: str) -> Ended:
    """Run a command while this process goes on serving; `FANTAIL_…` comes from `environment` alone."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("FANTAIL_", "COLUMNS"))}
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=cwd,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=inherited | environment,
    )
    try:
        async with asyncio.timeout(COMMAND_S):
            out, err = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Ended(process.returncode or 0, out.decode(), err.decode())
