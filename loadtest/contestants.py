"""Who is measured: Fantail and its peers, each started, asked and weighed in the same way."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from loadtest.baselines.stock_vllm import stock_vllm
from loadtest.baselines.worker import Worker
from loadtest.conversations import Turns
from loadtest.server import ROOT, free_port, started_server
from service.client import FantailClient

CALL_SECONDS = 600
CLASSIFIERS = ROOT / "classifiers"

KV_GIB = 2
"""Memory for keys and values of both engines. Sixteen plain prompts of 2,000 tokens need 1.5; it is resident from the
start, so it is made equal."""

Reply = TypeVar("Reply")

Answer = tuple[float, list[list[float]]]
"""Seconds, and the label probabilities of each classifier by name."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """What takes part. `pid`: the first of its processes; `remark`: what there is to say about its run, or nothing."""

    title: str
    ask: Callable[[Turns], Awaitable[Answer]]
    pid: int
    remark: Callable[[], str] = str


@dataclass(frozen=True, slots=True)
class Peer:
    """A baseline that can be started. `start`: takes the title, the base model's folder and a folder for logs."""

    title: str
    note: str
    start: Callable[[str, Path, Path], AbstractAsyncContextManager[Contestant]]


@contextlib.asynccontextmanager
async def fantail(scratch: Path) -> AsyncIterator[tuple[Contestant, Contestant]]:
    """A fresh server, asked for its first classifier and for all of them."""
    async with (
        started_server(scratch / "fantail.log", FANTAIL_KV_GIB=str(KV_GIB)) as server,
        FantailClient(server.address) as client,
    ):
        names = [each.name for each in await client.list_classifiers(timeout=CALL_SECONDS)]

        async def one(turns: Turns) -> Answer:
            seconds, reply = await timed(client.classify(turns, names[0], timeout=CALL_SECONDS))
            return seconds, [[score.raw_probability for score in reply.classification.scores]]

        async def fan_out(turns: Turns) -> Answer:
            seconds, reply = await timed_fan_out(client, turns)
            return seconds, [[score.raw_probability for score in r.classification.scores] for r in reply.results]

        yield (
            Contestant("one classification", one, server.pid),
            Contestant(f"fan-out of {len(names)}", fan_out, server.pid),
        )


async def timed(asked: Awaitable[Reply]) -> tuple[float, Reply]:
    """Seconds until the reply, and the reply."""
    began = time.perf_counter()
    reply = await asked
    return time.perf_counter() - began, reply


async def timed_fan_out(client: FantailClient, turns: Turns, names: Sequence[str] = ()) -> tuple[float, Any]:
    """The same of a fan-out of these classifiers, or all."""
    seconds, reply = await timed(client.fan_out(turns, names, timeout=CALL_SECONDS))
    return seconds, whole(reply)


def whole(reply: Any) -> Any:
    """The reply to a fan-out. Raises RuntimeError when a classifier has not answered: less work is no measurement."""
    if failed := [each.classifier for each in reply.results if not each.HasField("classification")]:
        raise RuntimeError(f"the fan-out has no answer of {', '.join(failed)}; nothing is measured of a part of it")
    return reply


def worker(module: str) -> Callable[[str, Path, Path], AbstractAsyncContextManager[Contestant]]:
    """How to start a module of `loadtest.baselines` that is fed through its standard input."""

    @contextlib.asynccontextmanager
    async def start(title: str, model: Path, scratch: Path) -> AsyncIterator[Contestant]:
        log = scratch / f"{module}.log"
        started = await asyncio.to_thread(Worker, f"loadtest.baselines.{module}", model, CLASSIFIERS, log)
        with started as baseline:

            async def ask(turns: Turns) -> Answer:
                return await asyncio.to_thread(baseline.ask, turns)

            yield Contestant(title, ask, baseline.pid, lambda: baseline.remark)

    return start


@contextlib.asynccontextmanager
async def stock(title: str, model: Path, scratch: Path) -> AsyncIterator[Contestant]:
    log = scratch / "stock_vllm.log"
    async with stock_vllm(model, CLASSIFIERS, free_port(), KV_GIB << 30, log) as server:
        yield Contestant(
            title, server.ask, server.pid, lambda: f"{server.missing} label tokens missing" if server.missing else ""
        )


MERGED = "merged"
PEERS = {
    "peft": Peer(
        "PEFT, one by one",
        "transformers and PEFT, float32: set_adapter and a forward pass over the whole prompt for each classifier.",
        worker("peft_sequential"),
    ),
    "peft-mixed": Peer(
        "PEFT, one mixed batch",
        "transformers and PEFT, float32: all prompts in one forward pass, an adapter for each row (adapter_names).",
        worker("peft_mixed"),
    ),
    "peft-shared": Peer(
        "PEFT, one reading",
        "transformers and PEFT, float32: the conversation read once by the base, then set_adapter and a forward pass "
        "over the tail alone for each classifier, on the cached KV. No call of PEFT's, but what can be written around "
        "it.",
        worker("peft_shared"),
    ),
    "stock-vllm": Peer(
        "stock vLLM server",
        "vLLM's OpenAI server without the plugin, float32, prefix caching: a completion of one token for each plain "
        f"copy of an adapter, all at once over HTTP. {KV_GIB} GiB of its memory, as of Fantail's, are for keys and "
        "values.",
        stock,
    ),
    MERGED: Peer(
        "one merged model",
        "one plain adapter merged into its own copy of the base by PEFT, one prompt; an activated adapter cannot be "
        "merged. All of them as so many such processes, one after the other: computed from this one, not measured.",
        worker("merged"),
    ),
    "minilm": Peer(
        "MiniLM + regression",
        "sentence embeddings and a logistic regression for each classifier. It reads the last 256 of its tokens at "
        "most. How well it answers: `fantail evaluate --baseline MiniLM`, and the README's table of quality.",
        worker("minilm"),
    ),
}


def base_model() -> Path:
    """The folder of the base model, which the peers share with the server."""
    command = [sys.executable, "-m", "service", "base"]
    return Path(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip())
