"""Hands the requests of one turn of the event loop to vLLM's engine core in one message, and so to one engine step."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

logger = logging.getLogger(__name__)


class Handover:
    """Stands in for the way on which an AsyncLLM sends its engine core one request at a time.

    A fan-out's classifiers all ask in the same turn of the event loop; what they ask is sent when the turn is over.
    """

    def __init__(self, engine: Any) -> None:
        self._core, self._output = engine.engine_core, engine.output_processor
        self._asked: list[Any] = []
        self._sending: set[asyncio.Task[None]] = set()
        self._core.add_request_async = self._add

    async def _add(self, request: Any) -> None:
        self._core.ensure_alive()
        request.client_index = self._core.client_index
        if not self._asked:
            asyncio.get_running_loop().call_soon(self._start_sending)
        self._asked.append(request)

    def close(self) -> None:
        """Send no more, and wait no longer for what was sent: an engine core that has died never confirms it."""
        self._core.resources.engine_dead = True
        for task in self._sending:
            task.cancel()

    def _start_sending(self) -> None:
        asked, self._asked = self._asked, []
        task = asyncio.create_task(self._send(asked))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _send(self, asked: list[Any]) -> None:
        """Send what has not been given up since; whoever waits is told when that fails."""
        from service.vllm_plugin.handover import ADD_REQUESTS, Requests

        wanted = [request for request in asked if request.request_id in self._output.request_states]
        try:
            if wanted:
                await self._core.call_utility_async(ADD_REQUESTS, Requests(wanted))
        except Exception as error:
            logger.warning("could not hand %d requests to the engine core: %s", len(wanted), type(error).__name__)
            for request in wanted:
                if (waiting := self._output.request_states.get(request.request_id)) is not None:
                    waiting.queue.put(error)
