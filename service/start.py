"""From settings to something that classifies: loads, starts the engine, proves it. `serve.py` makes a server of it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from service.admission import Admission
from service.base_model import BaseModel, describe_base, resolve_base
from service.catalogue import Catalogue
from service.classify import Classify
from service.domain import Conversation, Role, Turn
from service.engine.base import ScoringEngine
from service.engine.hardware import Choice, choose, detect_hardware
from service.engine.launch import VllmConfig
from service.engine.vllm_engine import start_vllm
from service.errors import ConfigurationError, FantailError, StartError
from service.gate import Gate
from service.observer import Observer
from service.prefix_memory import PrefixMemory
from service.prompt.builder import PromptBuilder
from service.prompt.format import load_prompt_format
from service.prompt.tokenizer import PromptTokenizer
from service.registry.loader import RegistryLoader
from service.registry.registry import Deployment, Registry
from service.revisions import adapters_of
from service.settings import Settings
from service.shadow import Shadows

logger = logging.getLogger(__name__)

GATE_TOLERANCE = {"float32": 0.02, "float16": 0.1, "bfloat16": 0.5}
"""How far rounding may take a log probability from PEFT's float32 answer, by the engine's arithmetic: logits of size 20
carry 24, 11 and 8 bits. float32's is measured (under 0.001 on the shipped probes), the others are not yet."""

UNBOUNDED = 1 << 62

WARM_UP = Conversation("", (Turn(Role.CUSTOMER, "hi, is anybody there? " * 20),))


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


def vllm_config(settings: Settings, prompting: Prompting, choice: Choice, registry: Registry) -> VllmConfig:
    """What vLLM is started with to serve a registry."""
    return VllmConfig(
        model=prompting.base.path,
        adapters=adapters_of(registry),
        choice=choice,
        context_tokens=prompting.context_tokens,
        step_tokens=settings.step_tokens,
        slots=settings.slots,
        concurrent_sequences=settings.concurrent_sequences,
        gpu_memory_share=settings.gpu_memory_share,
        spare_adapters=settings.spare_adapters,
        max_rank=settings.max_rank,
        otlp_endpoint=settings.otlp_endpoint,
        json_logs=settings.log_format == "json",
    )


def choice_of(settings: Settings) -> Choice:
    """The engine's settings for this machine. Raises ConfigurationError."""
    return choose(detect_hardware(), settings.dtype, settings.cores, settings.kv_gib)


@contextlib.asynccontextmanager
async def start_classify(settings: Settings, *ignore: str) -> AsyncIterator[Classify]:
    """Proven classifiers on the real engine for a command of this process, closed at the end. Raises StartError.

    `ignore`: names of files in classifier folders that are about to be written anew.
    """
    prompting = load_prompting(settings)
    choice = choice_of(settings)
    catalogue = Catalogue(load_registry(settings, prompting, *ignore))
    config = replace(vllm_config(settings, prompting, choice, catalogue.current), spare_adapters=0)
    async with start_vllm(config) as engine:
        classify = assemble(catalogue, prompting, engine, unbounded(), Observer())
        await prove(classify, gate_of(settings, prompting, choice, engine))
        yield classify


def assemble(
    catalogue: Catalogue, prompting: Prompting, engine: ScoringEngine, admission: Admission, observer: Observer
) -> Classify:
    """The way of a request, wired."""
    shadows = Shadows(catalogue, engine, admission, observer)
    memory = PrefixMemory(0)  # until an engine is proven, whose room is known then
    return Classify(catalogue, prompting.builder, engine, admission, memory, shadows, observer)


def unbounded() -> Admission:
    """Admits everything: for work that no caller waits for."""
    return Admission(UNBOUNDED, UNBOUNDED)


def gate_of(settings: Settings, prompting: Prompting, choice: Choice, engine: ScoringEngine) -> Gate:
    return Gate(prompting.builder, engine, settings.gate_tolerance or GATE_TOLERANCE[choice.dtype])


async def prove(classify: Classify, gate: Gate) -> None:
    """Pass everything that is loaded through the gate, withhold what fails, and warm the engine up.

    A further revision that fails loses its traffic. Raises StartError when no classifier is left or one cannot answer.
    """
    catalogue = classify.catalogue
    await fit(classify.engine, catalogue.current)
    registry = catalogue.current.without(await gate.check(catalogue.current.select(())))
    for name, deployment in registry.deployments.items():
        for candidate in deployment.candidates:
            if failures := await gate.check([candidate], beside=registry.neighbours_of(candidate)):
                logger.error("%s loses its further revisions: %s", name, failures[name])
                registry = registry.with_deployment(name, Deployment())
                break
    catalogue.replace(registry)
    await fit(classify.engine, registry)  # what has lost its traffic takes no room any more
    for name, why in registry.withheld.items():
        logger.error("%s is withheld: %s", name, why)
    counters = await classify.engine.counters()
    classify.memory.forget(counters.kv_blocks * counters.block_tokens)
    await warm_up(replace(classify, admission=unbounded()))  # callers who come too early must not push it out


async def fit(engine: ScoringEngine, registry: Registry) -> None:
    """Give an engine the adapters of a registry that has changed since it was started. Raises EngineError."""
    wanted = {each.name: each for each in adapters_of(registry)}
    for adapter in wanted.values():
        await engine.load(adapter)
    for name in set(await engine.places()) - set(wanted):
        await engine.unload(name)


async def warm_up(classify: Classify) -> None:
    """Ask every classifier that is not withheld once. Raises StartError when one cannot answer or none is left."""
    registry = classify.catalogue.current
    if not registry.serving_names:
        raise StartError("Every classifier is withheld, so there is nothing to serve; the log above says why.")
    answers = await classify.fan_out(WARM_UP, registry.serving_names)
    failed = [name for name, outcome in answers.results if isinstance(outcome, FantailError)]
    if failed:
        raise StartError(f"These classifiers give no usable answer: {', '.join(failed)}; the log above says why.")
    logger.info(
        "%d of %d classifiers passed their gate and answer", len(registry.serving_names), len(registry.classifiers)
    )
