"""An event loop on which waiting takes no time: its clock jumps to when the next thing is due."""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class JumpingLoop(asyncio.SelectorEventLoop):
    """Stands for the module `time` too. `now`: what every clock of it says, in seconds; the test may turn it on."""

    def __init__(self) -> None:
        self.now = 1000.0
        super().__init__(_Jumping(self))

    def time(self) -> float:
        return self.now

    perf_counter = time


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: JumpingLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, Any]]:
        assert timeout is not None, "everything waits, and nothing is due"
        self._loop.now += timeout
        return super().select(0)
