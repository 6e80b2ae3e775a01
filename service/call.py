"""What is known of the call that the current task works for. Set by interceptors, handed down by the servicers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

from service.deadline import Deadline


@dataclass(frozen=True, slots=True)
class Call:
    """On what terms somebody asks.

    `request_id`: names the call in logs and error details; `caller`: name of the key it came with, empty without keys;
    `deadline`: when its answer is no longer wanted; `cache_salt`: callers with different salts share no KV;
    `background`: nobody waits for it, so it gives way to the others; `trace_headers`: W3C trace context for the engine;
    `toll`: counts so much more work of the same call against the caller's rate. Raises RateLimitedError, and
    KeyInvalidError once the caller's key is known no longer.
    """

    request_id: str = ""
    caller: str = ""
    deadline: Deadline = Deadline()
    cache_salt: str = ""
    background: bool = False
    trace_headers: Mapping[str, str] = field(default_factory=dict)
    toll: Callable[[int], None] = lambda work: None


_current: ContextVar[Call] = ContextVar("call", default=Call())


def current_call() -> Call:
    """The call that the current task works for; one without an id outside of calls."""
    return _current.get()


@contextlib.contextmanager
def changed_call(**changes: Any) -> Iterator[Call]:
    """Change what is known of the call, for the current task and the tasks it starts."""
    token = _current.set(replace(_current.get(), **changes))
    try:
        yield _current.get()
    finally:
        _current.reset(token)


def learn_of_call(**facts: Any) -> None:
    """Add to what is known of the call until its task ends, so that also those know who tell how it ended."""
    _current.set(replace(_current.get(), **facts))
