"""vLLM behind the scoring interface: starts it, proves its patches, keeps its adapters resident, and scores prompts."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import multiprocessing
import os
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Iterator, Mapping
from typing import Any, TypeVar

from service.domain import TokenUsage
from service.engine.base import AdapterPlace, EngineAdapter, EngineCounters, LabelLogprobs, ScoringRequest
from service.engine.handover import Handover
from service.engine.launch import VllmConfig, engine_args, missing_on_cpu, process_environment
from service.errors import EngineDeadError, EngineError, PluginInactiveError, StartError

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

REPLY_SECONDS = 300.0
"""How long the engine may take over what it is told or asked beside scoring. It does so between two steps."""

CHECK_SECONDS = 0.5
"""How often it is looked meanwhile whether it lives."""

SHUTDOWN_SECONDS = 0.0
"""How long vLLM's processes may take to end before they are killed. They ignore signals (`vllm_plugin/lifetime.py`),
and by then their requests are finished or given up."""


class VllmEngine:
    """A running vLLM. Made by `start_vllm`, which also closes it."""

    def __init__(self, engine: Any, config: VllmConfig) -> None:
        self._engine, self._config = engine, config
        self._loras: dict[str, Any] = {}

    async def score(self, request: ScoringRequest) -> LabelLogprobs:
        from vllm.exceptions import VLLMValidationError
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError
        from vllm.v1.engine.exceptions import EngineGenerateError

        # A raw prompt would be read in a thread of a pool, and a fan-out's requests no longer be asked in one turn.
        prompt = tokens_input(list(request.token_ids), cache_salt=request.cache_salt or None)
        output: Any = None
        try:
            lora = self._loras[request.adapter.name] if request.adapter else None
            async for output in self._engine.generate(  # noqa: B007  (the last one is the answer)
                prompt,
                sampling_params(request),
                uuid.uuid4().hex,
                lora_request=lora,
                priority=request.priority,
                trace_headers=request.trace_headers or None,
            ):
                pass
        except KeyError as error:
            raise EngineError("The classifier's adapter is not loaded.") from error
        except VllmDeadError as error:
            raise EngineDeadError("The engine is not running.") from error
        except (EngineGenerateError, VLLMValidationError, ValueError) as error:
            raise EngineError("The engine could not score this prompt.") from error
        if output is None or not output.outputs[0].logprobs:
            raise EngineError("The engine gave no answer to this prompt.")
        by_token = output.outputs[0].logprobs[0]
        reused = output.num_cached_tokens or 0
        return LabelLogprobs(
            tuple(by_token[token].logprob for token in request.label_ids),
            TokenUsage(len(request.token_ids) - reused, reused),
        )

    async def check(self) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError

        try:
            await self._engine.check_health()
        except VllmDeadError as error:
            raise EngineDeadError("The engine is not running.") from error

    async def load(self, adapter: EngineAdapter) -> None:
        from vllm.lora.request import LoRARequest

        lora = LoRARequest(adapter.name, adapter_id(adapter), str(adapter.adapter.path))
        if adapter.name not in self._loras:
            self._require_fitting(adapter)
            with asking("The engine cannot load the adapter; the server's log says why."):
                await self._told(self._engine.add_lora(lora))
        self._loras[adapter.name] = lora  # the same bytes may come from another folder now

    def _require_fitting(self, adapter: EngineAdapter) -> None:
        """Raise EngineError for what this engine was not started for: it would be cut, left out, or evict another."""
        config = self._config
        room = len(config.adapters) + config.spare_adapters
        if len(self._loras) >= room:
            raise EngineError(f"The engine has room for {room} adapters; start it with more FANTAIL_SPARE_ADAPTERS.")
        if adapter.adapter.rank > config.rank:
            raise EngineError(
                f"The adapter's rank is {adapter.adapter.rank}, the engine has room for {config.rank}; "
                "start it with a larger FANTAIL_MAX_RANK."
            )
        if strange := set(adapter.adapter.target_modules) - config.target_modules:
            raise EngineError(
                f"The adapter changes {', '.join(sorted(strange))}, which no adapter did when the engine started; "
                "restart the server."
            )
        if any(lora.lora_int_id == adapter_id(adapter) for lora in self._loras.values()):
            raise EngineError("The ids of two adapters collide; rename one of the classifiers.")

    async def unload(self, name: str) -> None:
        lora = self._loras.get(name)
        if lora is None:
            return
        with asking("The engine cannot unload the adapter; the server's log says why."):
            await self._told(self._engine.remove_lora(lora.lora_int_id))
            if lora.lora_int_id in await self._told(self._engine.list_loras()):
                raise EngineError("The engine still holds an adapter that it was told to unload.")
        del self._loras[name]  # only now: until then it takes room

    async def places(self) -> Mapping[str, AdapterPlace]:
        from service.vllm_plugin.report import ADAPTERS

        with asking("The engine cannot say which adapters it holds."):
            found = (await self._told(self._engine.collective_rpc(ADAPTERS)))[0]
        names = {lora.lora_int_id: name for name, lora in self._loras.items()}
        return {names[each]: AdapterPlace(*place) for each, place in found.items() if each in names}

    async def counters(self) -> EngineCounters:
        from service.vllm_plugin.report import COUNTERS

        with asking("The engine cannot say what it is doing."):
            return EngineCounters(**await self._told(self._engine.engine_core.call_utility_async(COUNTERS)))

    async def prove_patches(self) -> None:
        """Ask every process of the engine which patches are inactive in it.

        Raises PluginInactiveError, EngineDeadError.
        """
        from service.vllm_plugin.ledger import inactive_patches
        from service.vllm_plugin.report import INACTIVE_PATCHES

        answers: dict[str, Mapping[str, str]] = {"API": inactive_patches()}
        try:
            with asking("The engine cannot say which patches are inactive."):
                core = self._engine.engine_core.call_utility_async(INACTIVE_PATCHES)
                answers["engine core"] = await self._told(core)
                for rank, answer in enumerate(await self._told(self._engine.collective_rpc(INACTIVE_PATCHES))):
                    answers[f"worker {rank}"] = answer
        except EngineDeadError:
            raise
        except EngineError as error:  # a process without the plugin lacks the method, and says so in its own way
            raise PluginInactiveError(
                "An engine process did not load Fantail's vLLM plugin, so its answers would be wrong. Is VLLM_PLUGINS "
                "set without 'fantail', or the package not installed in this environment?"
            ) from error
        problems = [
            f"{process} process: {patch}: {why}" for process, found in answers.items() for patch, why in found.items()
        ]
        if problems:
            raise PluginInactiveError(
                "Patches to vLLM are not active, so answers would be wrong: " + "; ".join(problems)
            )
        logger.info("vLLM patches active in: %s", ", ".join(answers))

    async def _told(self, question: Awaitable[Answer]) -> Answer:
        """What the engine's processes say. vLLM itself waits for ever for one that has died over it.

        Raises vLLM's EngineDeadError, TimeoutError, and whatever they raise.
        """
        answer = asyncio.ensure_future(question)
        try:
            async with asyncio.timeout(REPLY_SECONDS):
                while not (await asyncio.wait({answer}, timeout=CHECK_SECONDS))[0]:
                    await self._engine.check_health()
            return answer.result()
        finally:
            answer.cancel()


async def give_up(starting: asyncio.Task[Any]) -> None:
    """End a start that nobody waits for any more: without its processes it fails at once."""
    while not starting.done():  # it may come to start them only now
        for process in multiprocessing.active_children():
            process.kill()
        await asyncio.wait({starting}, timeout=CHECK_SECONDS)
    with contextlib.suppress(Exception):
        engine = await starting
        await asyncio.to_thread(engine.shutdown, timeout=SHUTDOWN_SECONDS)


@contextlib.contextmanager
def asking(failure: str) -> Iterator[None]:
    """Turn whatever vLLM raises when it is asked for something into one of our errors."""
    from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError

    try:
        yield
    except EngineError:
        raise
    except VllmDeadError as error:
        raise EngineDeadError("The engine is not running.") from error
    except Exception as error:  # vLLM hands back whatever its worker raised, as a plain Exception
        raise EngineError(failure) from error


def adapter_id(adapter: EngineAdapter) -> int:
    """A positive 31-bit id from the adapter's name: the same in every process and on every start."""
    return int.from_bytes(hashlib.sha256(adapter.name.encode()).digest()[:4], "big") >> 1 or 1


def sampling_params(request: ScoringRequest) -> Any:
    """One token, and the raw logprobs of exactly the label tokens; the sampled token is ignored."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    from service.vllm_plugin.position import POSITION_KEY

    position = request.activation_index
    return SamplingParams(
        max_tokens=1,
        temperature=0.0,
        logprob_token_ids=list(request.label_ids),
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
        extra_args=None if position is None else {POSITION_KEY: position},
    )


@functools.cache
def sockets_folder() -> tempfile.TemporaryDirectory[str]:
    """Where the sockets between vLLM's processes lie, which it never removes: for this user only, and gone at exit.

    One for all engines of the process: vLLM remembers the first. Raises StartError.
    """
    try:
        return tempfile.TemporaryDirectory(prefix="fantail-", ignore_cleanup_errors=True)
    except OSError as error:
        raise StartError(f"no temporary folder can be written to ({error}); set TMPDIR to one that can") from error


def begin(config: VllmConfig) -> Any:
    """A vLLM with its processes. To import it alone takes seconds."""
    from vllm.config import LoggingConfig
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    logs = LoggingConfig(formatter="json" if config.json_logs else "text")
    return AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_args(config), logging_config=logs))


@contextlib.asynccontextmanager
async def start_vllm(config: VllmConfig) -> AsyncIterator[VllmEngine]:
    """Start vLLM, prove its patches, preload its adapters; close it at the end.

    Raises PluginInactiveError, StartError, EngineError for an adapter that cannot be loaded.
    """
    if config.choice.on_cpu and (missing := missing_on_cpu()):
        raise StartError(f"vLLM needs {' and '.join(missing)} to compute on a CPU")
    for reason in config.choice.reasons:
        logger.info("engine: %s", reason)
    os.environ.update(process_environment(config.choice), VLLM_RPC_BASE_PATH=sockets_folder().name)
    # Both start and end take long and block, and a server has calls to refuse and to watch meanwhile.
    starting = asyncio.create_task(asyncio.to_thread(begin, config))
    try:
        engine = await asyncio.shield(starting)
    except asyncio.CancelledError:
        await give_up(starting)
        raise
    except (RuntimeError, ValueError, OSError) as error:
        raise StartError(f"vLLM did not start: {type(error).__name__}: {error}. The log above may say more.") from error
    from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError

    handover = Handover(engine)
    try:
        served = VllmEngine(engine, config)
        await served.prove_patches()
        for adapter in config.adapters:  # now, so that no request waits for one
            await served.load(adapter)
        yield served
    finally:
        handover.close()
        if engine.output_handler is not None:
            engine.output_handler.cancel()  # or it would log the end that it is about to see as a failure
        engine.output_processor.propagate_error(VllmDeadError())  # or whoever still waits would wait for ever
        await asyncio.to_thread(engine.shutdown, timeout=SHUTDOWN_SECONDS)
        engine.output_processor.propagate_error(VllmDeadError())  # and who was about to wait
        # AsyncLLM.__del__ shuts down once more, at exit, when the modules it needs are gone: a traceback in the log.
        engine.shutdown = lambda: None
