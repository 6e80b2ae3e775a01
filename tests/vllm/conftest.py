"""The real engine, started once for each variant, and everything it is compared with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from service.asking import scoring_request
from service.client import FantailClient
from service.domain import AdapterKind, Classifier, Conversation, Role, Turn
from service.engine.base import EngineAdapter, engine_adapter
from service.engine.hardware import choose, detect_hardware
from service.engine.vllm_engine import VllmConfig, VllmEngine, start_vllm
from service.registry.loader import RegistryLoader
from service.registry.registry import Registry
from service.settings import Settings
from service.start import Prompting, load_prompting, load_registry
from service.training.reference import Reference
from tests.conftest import RECORD_OPTION
from tests.faults.server import Server, running_server
from tests.integration.collecting import Collector, collecting
from tests.vllm.adapters import random_adapter
from tests.vllm.comparing import conversation_of
from tests.vllm.faults import plant
from tests.vllm.parity import Expected
from tests.vllm.recorded import Recorded

ROOT = Path(__file__).parents[2]
LENGTHS = (1, 8, 20, 40, 80, 160, 320, 1000)
STEP_TOKENS = 256
"""Of the whole server, so that a long conversation takes it several steps."""

APART = 293
"""How many records lie between the beginnings of two conversations, which so are of other people and matters."""


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings(classifiers=ROOT / "classifiers")


@pytest.fixture(scope="session")
def prompting(settings: Settings) -> Prompting:
    return load_prompting(settings)


@pytest.fixture(scope="session")
def registry(settings: Settings, prompting: Prompting) -> Registry:
    return load_registry(settings, prompting)


@pytest.fixture(scope="session")
def classifiers(registry: Registry) -> tuple[Classifier, ...]:
    return registry.select(())


@dataclass(frozen=True, slots=True)
class Strangers:
    """Adapters beside the shipped ones: a plain one, one activated, and one that takes the plain one's place."""

    plain: EngineAdapter
    activated: EngineAdapter
    replacement: EngineAdapter


@pytest.fixture(scope="session")
def strangers(prompting: Prompting, tmp_path_factory: pytest.TempPathFactory) -> Strangers:
    def make(name: str, kind: AdapterKind, seed: int) -> EngineAdapter:
        folder = tmp_path_factory.mktemp(name)
        return random_adapter(folder, prompting.base, prompting.builder.invocation_ids, kind, seed)

    return Strangers(
        make("plain", AdapterKind.PLAIN, 1),
        make("activated", AdapterKind.ACTIVATED, 2),
        make("replacement", AdapterKind.PLAIN, 3),
    )


@pytest.fixture(scope="session")
def adapters(classifiers: tuple[Classifier, ...], strangers: Strangers) -> tuple[EngineAdapter, ...]:
    shipped = tuple(filter(None, map(engine_adapter, classifiers)))
    return (*shipped, strangers.plain, strangers.activated, strangers.replacement)


@pytest.fixture(scope="session")
def reference(prompting: Prompting, adapters: tuple[EngineAdapter, ...]) -> Reference:
    return Reference(prompting.base, adapters)


@pytest.fixture(scope="session")
def recorded(
    prompting: Prompting, classifiers: tuple[Classifier, ...], reference: Reference, pytestconfig: pytest.Config
) -> Iterator[Recorded]:
    shipped = frozenset(each.name for each in filter(None, map(engine_adapter, classifiers)))
    anew = bool(pytestconfig.getoption(RECORD_OPTION))
    answers = Recorded(reference, prompting.base.identity, shipped, anew)
    yield answers
    if anew:
        answers.write()


@pytest.fixture(scope="session")
def fan_outs(
    prompting: Prompting, classifiers: tuple[Classifier, ...], strangers: Strangers, recorded: Recorded
) -> list[Expected]:
    """For conversations of 1 to 1,000 tokens, one request per classifier, one of a plain adapter and one of the base
    alone, each with PEFT's answer."""
    made = []
    for place, length in enumerate(LENGTHS):
        prefix = prompting.builder.prefix(conversation_of(prompting.builder, length, place * APART))
        shipped = [scoring_request(prefix, classifier) for classifier in classifiers]
        plain = replace(shipped[0], adapter=strangers.plain, activation_index=None)
        requests = [*shipped[:8], plain, *shipped[8:], replace(plain, adapter=None)]
        made.append(Expected(requests, dict(enumerate(recorded.probabilities(requests)))))
    return made


@pytest.fixture(scope="session")
def crowd(
    prompting: Prompting, classifiers: tuple[Classifier, ...], recorded: Recorded, fan_outs: list[Expected]
) -> Expected:
    """Fan-outs of 32 different conversations: of 1 to 1,000 tokens, every answer of which is compared, and of 24 short
    ones, where it is a quarter, of other adapters each time."""
    things = ["parcel", "lamp", "sofa", "phone", "ticket", "refund", "book", "card"] * 3
    texts = [f"order {n} is late, where is my {thing}?" for n, thing in enumerate(things)]
    prefixes = [prompting.builder.prefix(Conversation("", (Turn(Role.CUSTOMER, text),))) for text in texts]
    assert len({prefix.token_ids for prefix in prefixes}) == 24
    requests = [scoring_request(prefix, classifier) for prefix in prefixes for classifier in classifiers]
    compared = [place for place in range(len(requests)) if (place + place // len(classifiers)) % 4 == 0]
    answers = recorded.probabilities([requests[place] for place in compared])
    probabilities = dict(zip(compared, answers, strict=True))
    for fan_out in fan_outs:
        probabilities |= {len(requests) + place: answer for place, answer in fan_out.probabilities.items()}
        requests += fan_out.requests
    return Expected(requests, probabilities)


CACHE_OFF, CRAMPED = "prefix cache off", "prefill in chunks, fewer slots than adapters"
VARIANTS: dict[str, dict[str, Any]] = {
    CACHE_OFF: {"prefix_caching": False},
    CRAMPED: {"step_tokens": 96, "concurrent_sequences": 48, "slots": 5},
}
"""Of the engine; no more than these two, for each start takes half a minute."""


@pytest.fixture(scope="session")
def engine_config(prompting: Prompting, adapters: tuple[EngineAdapter, ...]) -> VllmConfig:
    hardware = detect_hardware()
    choice = choose(hardware, "float32", None, None if hardware.gpu else 2.0)
    return VllmConfig(prompting.base.path, adapters, choice, context_tokens=4096)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def variant_engine(request: pytest.FixtureRequest, engine_config: VllmConfig) -> AsyncIterator[VllmEngine]:
    async with start_vllm(replace(engine_config, **VARIANTS[request.param])) as engine:
        yield engine


@pytest.fixture(scope="session")
def faulty(prompting: Prompting, tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """A shipped classifier as it is, and under its fault's name a copy of it with each planted fault."""
    directory = tmp_path_factory.mktemp("faults") / "classifiers"
    directory.mkdir()
    plant(ROOT / "classifiers", directory, prompting)
    return RegistryLoader(prompting.base, prompting.tokenizer, prompting.builder).load(directory)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine(engine_config: VllmConfig, faulty: Registry) -> AsyncIterator[VllmEngine]:
    """The engine with default settings, which also has the faulty adapters."""
    harmed = tuple(filter(None, map(engine_adapter, faulty.select(()))))
    known = {adapter.name for adapter in engine_config.adapters}
    planted = tuple(adapter for adapter in harmed if adapter.name not in known)
    config = replace(engine_config, adapters=(*engine_config.adapters, *planted))
    async with start_vllm(config) as engine:
        yield engine


@dataclass(frozen=True)
class Served:
    """A server, and what it sends its spans to."""

    server: Server
    collector: Collector


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with collecting() as collector:
        settings = {"OTLP_ENDPOINT": collector.address, "STEP_TOKENS": str(STEP_TOKENS), "LOG_FORMAT": "json"}
        settings["LOG_LEVEL"] = "debug"  # at no level is there anything of what was said
        with running_server(**{f"FANTAIL_{name}": value for name, value in settings.items()}) as server:
            yield Served(server, collector)


@pytest.fixture
async def client(served: Served) -> AsyncIterator[FantailClient]:
    async with FantailClient(served.server.address, key=served.server.key) as connected:
        async with asyncio.timeout(300):
            await connected.wait_until_serving()
        yield connected
