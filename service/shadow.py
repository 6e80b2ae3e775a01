"""Revisions in the shadow: asked about what was answered, compared and logged, never answered themselves."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

from service.admission import Admission, Job
from service.asking import answer, scoring_request
from service.call import Call
from service.catalogue import Catalogue
from service.deadline import Deadline
from service.domain import Classification, Classifier
from service.engine.base import ScoringEngine
from service.errors import EngineError, FantailError
from service.observer import Observer
from service.reading import Reading

logger = logging.getLogger(__name__)

MOST_UNDER_WAY = 32
"""Shadow answers under way at once; more are left out, so that shadows never pile up behind real work."""

SHADOW_SECONDS = 30.0


class Shadows:
    """Asks in the background. What is under way keeps its revision loaded, and is cancelled by `aclose`."""

    def __init__(self, catalogue: Catalogue, engine: ScoringEngine, admission: Admission, observer: Observer) -> None:
        self._catalogue, self._engine, self._admission, self._observer = catalogue, engine, admission, observer
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, reading: Reading, shadow: Classifier, answered: Classification, call: Call) -> None:
        """Ask a shadow for the answer it would have given, unless too many are being asked."""
        if len(self._tasks) >= MOST_UNDER_WAY:
            self._observer.shadowed(answered, None)
            return
        terms = replace(call, background=True, deadline=Deadline.after(SHADOW_SECONDS))
        task = asyncio.create_task(self._compare(reading, shadow, answered, terms))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def aclose(self) -> None:
        """Cancel what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _compare(self, reading: Reading, shadow: Classifier, answered: Classification, call: Call) -> None:
        try:
            async with asyncio.timeout(call.deadline.timeout()):
                prefix = reading.prefix_for(shadow)
                has_been_read = shadow.shares_reading and prefix is reading.shared
                tokens = len(shadow.tail_ids) + (0 if has_been_read else len(prefix.token_ids))
                async with self._admission.admit_in_background(0, [Job(tokens)]):
                    with self._catalogue.lease() as registry:  # only now: who waits for room must not hold up a reload
                        if all(each is not shadow for each in registry.loaded):
                            raise EngineError("It has been replaced meanwhile.")
                        scored = await self._engine.score(scoring_request(prefix, shadow, call))
                found = answer(prefix, shadow, scored)
        except (FantailError, TimeoutError) as error:
            why = str(error) or "there was no time"
            logger.warning("request %s: shadow %s@%s: %s", call.request_id, shadow.name, shadow.revision, why)
            self._observer.shadowed(answered, None)
            return
        logger.info(
            "request %s: shadow %s@%s says %s at %.3f, answered was %s at %.3f by %s",
            *(call.request_id, shadow.name, shadow.revision, found.label, found.confidence),
            *(answered.label, answered.confidence, answered.revision),
        )
        self._observer.shadowed(answered, found)
