"""From settings to something that classifies: loads, starts the engine, warms it. The wiring of the whole service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass

from service.api.server import listen
from service.base_model import BaseModel, describe_base, resolve_base
from service.classify import Classify
from service.domain import Conversation, Role, Turn
from service.engine.base import engine_adapter
from service.engine.hardware import choose, detect_hardware
from service.engine.vllm_engine import VllmConfig, start_vllm
from service.errors import ConfigurationError, FantailError, StartError
from service.gate import Gate
from service.prompt.builder import PromptBuilder
from service.prompt.format import load_prompt_format
from service.prompt.tokenizer import PromptTokenizer
from service.registry.registry import Registry, RegistryLoader
from service.settings import Settings

logger = logging.getLogger(__name__)

GATE_TOLERANCE = {"float32": 0.02, "float16": 0.1, "bfloat16": 0.5}
"""How far rounding may take a log probability from PEFT's float32 answer, by the engine's arithmetic: logits of size 20
carry 24, 11 and 8 bits. float32's is measured (under 0.001 on the shipped probes), the others are not yet."""

WARM_UP = Conversation("", (Turn(Role.CUSTOMER, "hi, is anybody there?"),))


@dataclass(frozen=True, slots=True)
class Prompting:
    """A base model with the tokenizer and prompt builder that fit it."""

    base: BaseModel
    tokenizer: PromptTokenizer
    builder: PromptBuilder
    context_tokens: int


def load_prompting(settings: Settings) -> Prompting:
    """Find the base and make its prompts. Raises StartError."""
    path = resolve_base(settings.model)
    base = describe_base(path, settings.model.rstrip("/").rsplit("/", 1)[-1])
    context = settings.context_tokens or base.context_tokens
    if base.context_tokens and context > base.context_tokens:
        raise ConfigurationError(
            f"FANTAIL_CONTEXT_TOKENS: {context} is more than the {base.context_tokens} of {base.name}"
        )
    tokenizer = PromptTokenizer.from_model(path)
    return Prompting(
        base, tokenizer, PromptBuilder(tokenizer, load_prompt_format(settings.classifiers), context), context
    )


def loader_of(prompting: Prompting, *ignore: str) -> RegistryLoader:
    """Loads classifier folders for this base; `ignore`: names of files that are about to be written anew."""
    return RegistryLoader(prompting.base, prompting.tokenizer, prompting.builder, frozenset(ignore))


def load_registry(settings: Settings, prompting: Prompting, *ignore: str) -> Registry:
    """Load and check every classifier. Raises RegistryError with the problems of all."""
    return loader_of(prompting, *ignore).load(settings.classifiers)


@contextlib.asynccontextmanager
async def start_classify(settings: Settings, *ignore: str) -> AsyncIterator[Classify]:
    """A warmed service on the real engine, closed at the end. Raises StartError.

    `ignore`: names of files in classifier folders that are about to be written anew.
    """
    prompting = load_prompting(settings)
    registry = load_registry(settings, prompting, *ignore)
    adapters = tuple(filter(None, map(engine_adapter, registry.select(()))))
    config = VllmConfig(
        model=prompting.base.path,
        adapters=adapters,
        choice=choose(detect_hardware(), settings.dtype, settings.cores, settings.kv_gib),
        context_tokens=prompting.context_tokens,
        step_tokens=settings.step_tokens,
        slots=settings.slots,
        concurrent_sequences=settings.concurrent_sequences,
        gpu_memory_share=settings.gpu_memory_share,
    )
    async with start_vllm(config) as engine:
        gate = Gate(prompting.builder, engine, settings.gate_tolerance or GATE_TOLERANCE[config.choice.dtype])
        registry = registry.without(await gate.check(registry.select(())))
        for name, why in registry.withheld.items():
            logger.error("%s is withheld: %s", name, why)
        classify = Classify(registry, prompting.builder, engine)
        await warm_up(classify)
        yield classify


async def warm_up(classify: Classify) -> None:
    """Ask every classifier that is not withheld once. Raises StartError when one cannot answer or none is left."""
    serving = classify.registry.serving_names
    if not serving:
        raise StartError("Every classifier is withheld, so there is nothing to serve; the log above says why.")
    answers = await classify.fan_out(WARM_UP, serving)
    failed = [name for name, outcome in answers.results if isinstance(outcome, FantailError)]
    if failed:
        raise StartError(f"These classifiers give no usable answer: {', '.join(failed)}; the log above says why.")
    logger.info("%d of %d classifiers passed their gate and answer", len(serving), len(classify.registry.classifiers))


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted. Raises StartError."""
    stop = asyncio.Event()
    for each in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    async with (
        start_classify(settings) as classify,
        listen(
            classify, settings.address, settings.max_turns, settings.max_message_bytes, settings.grace_seconds
        ) as port,
    ):
        logger.info("serving on %s", settings.address.rsplit(":", 1)[0] + f":{port}")
        await stop.wait()
        logger.info("stopping")
