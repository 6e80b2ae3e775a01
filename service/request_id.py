"""The id of the request that the current task works for, for logs and error details."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from contextvars import ContextVar

_current: ContextVar[str] = ContextVar("request_id", default="")


def request_id() -> str:
    """The current request's id; empty outside of one."""
    return _current.get()


@contextlib.contextmanager
def new_request_id() -> Iterator[str]:
    """Give the current task, and the tasks it starts, a new id."""
    token = _current.set(uuid.uuid4().hex)
    try:
        yield _current.get()
    finally:
        _current.reset(token)
