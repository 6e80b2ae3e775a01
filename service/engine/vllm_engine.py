"""vLLM behind the scoring interface: starts it, proves its patches, keeps its adapters resident, and scores prompts."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.domain import TokenUsage
from service.engine.base import EngineAdapter, LabelLogprobs, ScoringRequest
from service.engine.hardware import Choice
from service.errors import EngineDeadError, EngineError, PluginInactiveError, StartError

logger = logging.getLogger(__name__)

RANK_SLOTS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks vLLM can size its adapter slots for."""

SHUTDOWN_SECONDS = 10.0
"""How long vLLM's processes may take to end before they are killed; requests are finished or aborted by then."""


@dataclass(frozen=True, slots=True)
class VllmConfig:
    """What an engine is started with.

    `adapters`: all that will be asked for; `slots`: how many are resident at once (None: all of them);
    `context_tokens`: longest prompt and answer; `step_tokens`: most tokens computed in one engine step (None: vLLM's
    own choice); `concurrent_sequences`: most prompts in one step; `gpu_memory_share`: of a GPU's memory.
    """

    model: Path
    adapters: tuple[EngineAdapter, ...]
    choice: Choice
    context_tokens: int
    step_tokens: int | None = None
    slots: int | None = None
    concurrent_sequences: int = 256
    prefix_caching: bool = True
    gpu_memory_share: float = 0.9


class VllmEngine:
    """A running vLLM. Made by `start_vllm`, which also closes it."""

    def __init__(self, engine: Any, config: VllmConfig) -> None:
        from vllm.lora.request import LoRARequest

        self._engine = engine
        self._loras = {
            each.name: LoRARequest(each.name, lora_id, str(each.adapter.path))
            for each, lora_id in zip(config.adapters, adapter_ids(config.adapters), strict=True)
        }

    async def score(self, request: ScoringRequest) -> LabelLogprobs:
        from vllm.exceptions import VLLMValidationError
        from vllm.inputs import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError as VllmDeadError
        from vllm.v1.engine.exceptions import EngineGenerateError

        lora = self._loras[request.adapter.name] if request.adapter else None
        output: Any = None
        try:
            async for output in self._engine.generate(  # noqa: B007  (the last one is the answer)
                TokensPrompt(prompt_token_ids=list(request.token_ids)),
                sampling_params(request),
                uuid.uuid4().hex,
                lora_request=lora,
            ):
                pass
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

    async def preload(self) -> None:
        """Load every adapter now, so that no request waits for one. Raises StartError."""
        for name, lora in self._loras.items():
            try:
                await self._engine.add_lora(lora)
            except Exception as error:  # vLLM hands back whatever its worker raised, as a plain Exception
                raise StartError(f"The engine cannot load adapter {name}; the log above says why.") from error

    async def prove_patches(self) -> None:
        """Ask every process of the engine which patches are inactive in it. Raises PluginInactiveError."""
        from service.vllm_plugin.ledger import inactive_patches
        from service.vllm_plugin.report import METHOD

        answers: dict[str, Mapping[str, str]] = {"API": inactive_patches()}
        try:
            answers["engine core"] = await self._engine.engine_core.call_utility_async(METHOD)
            for rank, answer in enumerate(await self._engine.collective_rpc(METHOD)):
                answers[f"worker {rank}"] = answer
        except Exception as error:  # a process without the plugin lacks the method, and says so in its own way
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


def adapter_ids(adapters: Sequence[EngineAdapter]) -> list[int]:
    """A positive 31-bit id for each adapter, from its name: the same in every process and on every start."""
    ids = [int.from_bytes(hashlib.sha256(each.name.encode()).digest()[:4], "big") >> 1 or 1 for each in adapters]
    if len(set(ids)) != len(ids):
        raise StartError("The ids of two adapters collide; rename one of the classifiers.")
    return ids


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


@contextlib.asynccontextmanager
async def start_vllm(config: VllmConfig) -> AsyncIterator[VllmEngine]:
    """Start vLLM, prove its patches, preload its adapters; close it at the end.

    Raises PluginInactiveError, StartError.
    """
    for reason in config.choice.reasons:
        logger.info("engine: %s", reason)
    os.environ.update(process_environment(config.choice))
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    try:
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**engine_args(config)))
    except (RuntimeError, ValueError, OSError) as error:
        raise StartError(f"vLLM did not start: {type(error).__name__}; the log above says why.") from error
    try:
        served = VllmEngine(engine, config)
        await served.prove_patches()
        await served.preload()
        yield served
    finally:
        engine.shutdown(timeout=SHUTDOWN_SECONDS)
        # AsyncLLM.__del__ shuts down once more, at exit, when the modules it needs are gone: a traceback in the log.
        engine.shutdown = lambda: None


def process_environment(choice: Choice) -> dict[str, str]:
    """Environment that vLLM's processes inherit."""
    variables = {
        "VLLM_USE_V2_MODEL_RUNNER": "0",  # the plugin's token mapping is written for the V1 runner
        # vLLM's warnings at start are about choices that are made here on purpose.
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "VLLM_NO_USAGE_STATS": "1",
    }
    if choice.cores is not None:
        variables["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, choice.cores))
        openmp = intel_openmp()
        preloaded = os.environ.get("LD_PRELOAD", "")
        if openmp is not None and "libiomp5" not in preloaded:
            variables["LD_PRELOAD"] = ":".join(filter(None, (str(openmp), preloaded)))
    return variables


def intel_openmp() -> Path | None:
    """libiomp5.so of the intel-openmp package, without which vLLM computes on one core; None where there is none."""
    from importlib.metadata import PackageNotFoundError, files

    try:
        found: Iterable[Any] = files("intel-openmp") or ()
    except PackageNotFoundError:
        return None
    return next((Path(str(file.locate())).resolve() for file in found if file.name == "libiomp5.so"), None)


def engine_args(config: VllmConfig) -> dict[str, Any]:
    """Arguments of vLLM's engine; slots and ranks follow from the adapters."""
    arguments: dict[str, Any] = {
        "model": str(config.model),
        "dtype": config.choice.dtype,
        "max_model_len": config.context_tokens,
        "block_size": config.choice.block_tokens,
        "enable_prefix_caching": config.prefix_caching,
        "max_num_seqs": config.concurrent_sequences,
        "max_num_batched_tokens": config.step_tokens,
        "gpu_memory_utilization": config.gpu_memory_share,
        "kv_cache_memory_bytes": config.choice.kv_bytes,
        "enforce_eager": config.choice.cores is not None,
        "disable_log_stats": True,
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "use_tqdm_on_load": False,
    }
    if config.adapters:
        rank = max(each.adapter.rank for each in config.adapters)
        arguments |= {
            "enable_lora": True,
            "max_loras": min(config.slots or len(config.adapters), len(config.adapters)),
            "max_cpu_loras": len(config.adapters),
            "max_lora_rank": next(slot for slot in RANK_SLOTS if slot >= rank),
            "lora_target_modules": sorted(
                {module for each in config.adapters for module in each.adapter.target_modules}
            ),
        }
    return {name: value for name, value in arguments.items() if value is not None}
