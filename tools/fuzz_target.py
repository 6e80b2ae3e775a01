"""What hostile calls are sent to: a real server in this process around an engine without a model, with keys, an admin
service, traces and metrics. Knows how to send a call, and what must not come of one."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from opentelemetry.sdk.trace import TracerProvider

from service.admission import Admission
from service.api.interceptors.around import OURS
from service.api.server import Listening, listen
from service.catalogue import Catalogue
from service.classify import Classify
from service.client import FantailClient
from service.deploy import Deployer
from service.engine.base import LabelLogprobs, ScoringRequest
from service.engine.fake_engine import FakeEngine
from service.gate import Gate
from service.keys import KeyRing
from service.metrics import Metrics
from service.registry.folders import manifest_text
from service.registry.manifest import MANIFEST_FILE
from service.registry.snapshots import snapshots
from service.revisions import Folders
from service.settings import Settings
from service.start import assemble, load_prompting, loader_of
from service.tracing import Tracing
from tools import fuzz_raw
from tools.fuzz_inputs import CALLER, CLASSIFIERS, HURRIED, METHODS, OPERATOR, Input

REPLY_SECONDS = 5.0
ENDLESS = "/grpc.health.v1.Health/Watch"
HANGS_UP_SECONDS = 0.05
"""Of a call of the endless method its caller hears so long; whatever it has not failed with by then is no failure."""

IDLE_LOOKS = 100
MOST_MESSAGE_BYTES = 4 << 20
MOST_METADATA_BYTES = 8 << 10
TOKENS_IN_FLIGHT = 65_536

DETAILS_KEY = "grpc-status-details-bin"
NO_REPLY = "no reply"
HUNG_UP = "hung up"
BY_GRPC = "refused by gRPC"
"""How a call ends that gRPC's core refuses before the service sees it: a malformed header, for instance."""

LOST = "Internal error from Core"
"""What gRPC's asyncio client makes of a status that reaches it while it writes, if it does not cancel the call itself:
https://github.com/grpc/grpc/issues/36066. Such calls are made again by hand. Remove with the release that closes it."""

NEVER = (NO_REPLY, "INTERNAL", "UNKNOWN", "UNIMPLEMENTED", "DATA_LOSS", "reset", "goaway", "closed")
DEFECTS = (b"ERROR_REASON_DEFECT", b"ERROR_REASON_ENGINE_FAILED")
"""Reasons that have no place in any answer, not even in one of many results."""

CODES = {str(code.value[0]): code.name for code in grpc.StatusCode}
KEYS = f"""
[[key]]
name = "operator"
sha256 = "{hashlib.sha256(OPERATOR.encode()).hexdigest()}"
scopes = ["admin", "classify"]
[[key]]
name = "caller"
sha256 = "{hashlib.sha256(CALLER.encode()).hexdigest()}"
scopes = ["classify"]
isolated = true
[[key]]
name = "hurried"
sha256 = "{hashlib.sha256(HURRIED.encode()).hexdigest()}"
scopes = ["classify"]
calls_per_second = 0.1
"""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call ended.

    `how`: a status code's name, or what happened instead of one; `detailed`: whether the status came with the details
    that the service gives every failure; `message`: the status's.
    """

    how: str
    replies: tuple[bytes, ...] = ()
    detailed: bool = False
    message: str = ""


class ForgetfulEngine(FakeEngine):
    """Remembers nothing that it was asked, so that memory that grows is the server's."""

    async def score(self, request: ScoringRequest) -> LabelLogprobs:
        try:
            return await super().score(request)
        finally:
            self.requests.clear()
            self._cached.clear()


@dataclass(frozen=True, slots=True)
class Target:
    """A server that listens.

    `revisions`: that it has loaded or can load; `copies`: where its snapshots are; `tasks`: how many there are while
    nobody calls.
    """

    port: int
    channel: grpc.aio.Channel
    classify: Classify
    engine: ForgetfulEngine
    revisions: tuple[str, ...]
    copies: Path
    tasks: int = 0

    async def send(self, each: Input) -> Ended:
        """Make the call; a status is an end like any other."""
        seconds, unanswered = (HANGS_UP_SECONDS, HUNG_UP) if each.method == ENDLESS else (REPLY_SECONDS, NO_REPLY)
        try:
            async with asyncio.timeout(seconds):
                return await (self._raw(each) if each.raw else self._gentle(each))
        except TimeoutError:
            return Ended(unanswered)

    async def wrong_when_idle(self) -> list[str]:
        """What calls have left behind, a sentence each; waits a little for those that were just cancelled."""
        for _ in range(IDLE_LOOKS):
            if not self._left():
                break
            await asyncio.sleep(0.05)
        left = self._left()
        async with FantailClient(f"127.0.0.1:{self.port}", key=OPERATOR) as client:
            answer = await client.fan_out([("customer", "where is my refund??")], timeout=REPLY_SECONDS)
        names = sorted(each.classifier for each in answer.results if each.WhichOneof("outcome") == "classification")
        return left if names == sorted(CLASSIFIERS) else [*left, f"only {names} still answer"]

    def _left(self) -> list[str]:
        admission, catalogue = self.classify.admission, self.classify.catalogue
        copies = sum(1 for path in self.copies.glob("serving-*/*") if path.is_dir())
        counts = {
            "calls in flight": admission.calls,
            "live conversations": admission.follows,
            "tokens in flight": admission.tokens,
            "prompts in the engine": self.engine.under_way,
            "copies of folders that nobody serves": copies - len(catalogue.current.loaded),
            "tasks": len(asyncio.all_tasks()) - self.tasks,
        }
        return [f"{count} {what}" for what, count in counts.items() if count > 0]

    async def _raw(self, each: Input) -> Ended:
        metadata = [(name.encode(), value if each.raw else _on_the_wire(name, value)) for name, value in each.metadata]
        reply = await fuzz_raw.call(self.port, each.method, metadata, each.messages)
        code, detailed = CODES.get(reply.how, reply.how), fuzz_raw.DETAILS in reply.trailers
        return Ended(BY_GRPC if each.raw and code == "INTERNAL" and not detailed else code, reply.messages, detailed)

    async def _gentle(self, each: Input) -> Ended:
        method = METHODS[each.method]
        made: Any = {
            (False, False): self.channel.unary_unary,
            (False, True): self.channel.unary_stream,
            (True, True): self.channel.stream_stream,
        }[method.client_streaming, method.server_streaming](each.method)
        metadata = [(name, value if name.endswith("-bin") else value.decode()) for name, value in each.metadata]
        request = _one_by_one(each.messages) if method.client_streaming else each.messages[0]
        call = made(request, timeout=each.seconds, metadata=metadata)
        try:
            return Ended("OK", tuple([reply async for reply in call] if method.server_streaming else [await call]))
        except asyncio.CancelledError:
            if not method.client_streaming or is_being_cancelled():
                raise
            return await self._raw(each)
        except grpc.aio.AioRpcError as error:
            if method.client_streaming and error.details() == LOST:
                return await self._raw(each)
            trailing: Any = error.trailing_metadata() or ()
            detailed = any(key == DETAILS_KEY for key, _ in trailing)
            return Ended(error.code().name, (), detailed, error.details() or "")
        finally:
            call.cancel()  # gRPC does not when its caller is cancelled in the very moment that the request is sent


def problem(each: Input, ended: Ended) -> str | None:
    """What must not come of a call, whatever was sent; None when all is well."""
    if ended.how in NEVER:
        return ended.how
    if any(defect in reply for reply in ended.replies for defect in DEFECTS):
        return "a defect within the answer"
    if ended.how == "OK":
        return None if _readable(each, ended) else "an answer that is not the method's"
    if ended.detailed or ended.how in ("DEADLINE_EXCEEDED", "CANCELLED", HUNG_UP) or each.raw:
        return None
    if not each.method.startswith(OURS):
        return None  # health's own refusals are bare
    return None if _too_large(each) else f"{ended.how} without details"


def _readable(each: Input, ended: Ended) -> bool:
    answer = GetMessageClass(METHODS[each.method].output_type)
    try:
        for reply in ended.replies:
            answer.FromString(reply)
    except DecodeError:
        return False
    return True


def _too_large(each: Input) -> bool:
    """Whether gRPC itself refuses the call for its size."""
    metadata = sum(len(name) + len(value) + 32 for name, value in each.metadata)
    return metadata > MOST_METADATA_BYTES or any(len(message) > MOST_MESSAGE_BYTES for message in each.messages)


def is_being_cancelled() -> bool:
    """Whether somebody wants the current task to end, rather than what it awaits having been cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _on_the_wire(name: str, value: bytes) -> bytes:
    return base64.b64encode(value) if name.endswith("-bin") else value


async def _one_by_one(messages: Iterable[bytes]) -> AsyncIterator[bytes]:
    for message in messages:
        yield message


@contextlib.asynccontextmanager
async def target(scratch: Path) -> AsyncIterator[Target]:
    """Serve three classifiers from a folder that is made in `scratch`, and one further revision of the first."""
    settings = Settings(classifiers=scratch / "classifiers", candidates=scratch / "candidates")
    _make_folders(settings)
    (scratch / "keys.toml").write_text(KEYS, encoding="utf-8")
    prompting, metrics, engine = load_prompting(settings), Metrics(), ForgetfulEngine()
    loader, tracing = loader_of(prompting), Tracing(TracerProvider().get_tracer("fuzz"))
    with snapshots(scratch / "copies") as copies:
        catalogue = Catalogue(loader.load(settings.classifiers, copies))
        classify = assemble(catalogue, prompting, engine, Admission(256, TOKENS_IN_FLIGHT), metrics)
        gate, folders = Gate(prompting.builder, engine, 1.0), Folders(settings.classifiers, settings.candidates)
        deployer = Deployer(catalogue, engine, gate, loader, copies, folders, metrics)
        further = await deployer.load(CLASSIFIERS[0], f"{CLASSIFIERS[0]}-2")
        listening = Listening("127.0.0.1:0", grace_seconds=0.0, keys=KeyRing(scratch / "keys.toml"))
        async with (
            contextlib.aclosing(classify.shadows),
            listen(classify, listening, metrics, deployer, tracing) as port,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            revisions = (*(each.revision for each in catalogue.current.select(())), further.revision)
            serving = Target(port, channel, classify, engine, revisions, scratch / "copies")
            await serving.wrong_when_idle()  # connected and warm
            yield replace(serving, tasks=len(asyncio.all_tasks()))


def _make_folders(settings: Settings) -> None:
    shipped = Path(__file__).resolve().parent.parent / "classifiers" / "prompt.toml"
    labels = {"yes": " yes", "no": " no"}
    places = {settings.classifiers / name: name for name in CLASSIFIERS}
    for folder, name in (places | {settings.candidates / f"{CLASSIFIERS[0]}-2": CLASSIFIERS[0]}).items():
        folder.mkdir(parents=True)
        text = manifest_text(name, f"Decides {folder.name}.", f"{name}?", labels)
        (folder / MANIFEST_FILE).write_text(text, encoding="utf-8")
    (settings.candidates / "broken").mkdir()
    (settings.classifiers / shipped.name).write_bytes(shipped.read_bytes())
