"""A server around the way of a request: wires everything that lives as long as it does, and ends it in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from typing import Any

from service.admission import Admission
from service.api.server import Listening, listen
from service.api.servicer import Limits
from service.api.tls import TlsFiles
from service.base_model import cache_folder
from service.catalogue import Catalogue
from service.deploy import Deployer
from service.engine.base import ScoringEngine
from service.engine.hardware import Choice
from service.engine.supervised import SupervisedEngine
from service.engine.vllm_engine import start_vllm
from service.keys import KeyRing
from service.logs import TextLog, log_unhandled
from service.metrics import Metrics, serve_metrics
from service.observer import Observer, Observers
from service.registry.snapshots import snapshots
from service.revisions import Folders
from service.settings import Settings
from service.start import assemble, choice_of, gate_of, load_prompting, loader_of, prove, vllm_config
from service.tracing import tracing
from service.watch import reload_changed, report

logger = logging.getLogger(__name__)

STOPPING = (signal.SIGTERM, signal.SIGINT)

CPU_TOKENS_IN_FLIGHT, GPU_TOKENS_IN_FLIGHT = 1_536, 65_536
"""On a CPU one and a half long conversations, so that an accepted call takes at most about one and a half times as long
as a long one alone (docs/performance.md has the figures); enough to keep a GPU's steps full."""


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted. Raises StartError."""
    for each in STOPPING:  # a base may be downloaded first, in which time nobody asks an event; and no pid 1 is ended
        signal.signal(each, lambda *_: sys.exit(0))
    prompting, choice, metrics = load_prompting(settings), choice_of(settings), Metrics()
    listening, loader = listening_of(settings), loader_of(prompting)
    with (
        snapshots(cache_folder()) as copies,
        serve_metrics(metrics, settings.metrics_address),
        tracing(settings.otlp_endpoint) as traces,
    ):
        extra: list[Observer] = [*([traces] if traces else []), *([TextLog()] if settings.log_texts else [])]
        observer = Observers(metrics, *extra)
        catalogue = Catalogue(loader.load(settings.classifiers, copies))
        most_tokens, follow_bytes = tokens_in_flight(settings, choice), settings.max_follow_mib << 20
        admission = Admission(settings.max_calls, most_tokens, settings.max_follows, follow_bytes)
        metrics.watch_admission(admission)

        async def proven(started: ScoringEngine) -> None:
            unwatched = replace(classify, engine=started, observer=Observer())
            async with deployer.no_change():
                await prove(unwatched, gate_of(settings, prompting, choice, started))

        engine = SupervisedEngine(
            lambda: start_vllm(vllm_config(settings, prompting, choice, catalogue.current)),
            proven,
            settings.stall_seconds,
        )
        classify = assemble(catalogue, prompting, engine, admission, observer)
        gate = gate_of(settings, prompting, choice, engine)
        folders = Folders(settings.classifiers, settings.candidates)
        deployer = Deployer(catalogue, engine, gate, loader, copies, folders, observer)
        background = [engine.run(asyncio.Event()), report(engine, catalogue, metrics)]
        if settings.watch:
            background.append(reload_changed(settings.classifiers, deployer, catalogue, lambda: engine.is_serving))
        stop = asyncio.Event()
        asyncio.get_running_loop().set_exception_handler(log_unhandled)
        for each in STOPPING:
            asyncio.get_running_loop().add_signal_handler(each, stop.set)
        async with (
            beside(*background),
            contextlib.aclosing(classify.shadows),
            listen(classify, listening, metrics, deployer if settings.admin else None, traces) as port,
        ):
            logger.info("listening on %s", settings.address.rsplit(":", 1)[0] + f":{port}")
            await stop.wait()
            logger.info("stopping")


def listening_of(settings: Settings) -> Listening:
    """How the server is reached. Raises ConfigurationError for files that cannot be used."""
    tls = None
    if settings.tls_certificate is not None and settings.tls_key is not None:
        tls = TlsFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
    return Listening(
        address=settings.address,
        max_message_bytes=settings.max_message_bytes,
        longest_seconds=settings.longest_seconds,
        longest_batch_seconds=settings.longest_batch_seconds,
        grace_seconds=settings.grace_seconds,
        limits=Limits(
            settings.max_turns, settings.max_batch, settings.longest_seconds, follow_bytes=settings.max_message_bytes
        ),
        reflection=settings.reflection,
        keys=KeyRing(settings.keys, settings.isolate_callers) if settings.keys else None,
        tls=tls,
    )


def tokens_in_flight(settings: Settings, choice: Choice) -> int:
    """From how many tokens on calls are turned away."""
    return settings.max_tokens_in_flight or (CPU_TOKENS_IN_FLIGHT if choice.on_cpu else GPU_TOKENS_IN_FLIGHT)


@contextlib.asynccontextmanager
async def beside(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do the work as long as the body lasts. When some of it fails, the body is cancelled and the failure raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
            yield
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
