"""Logging as lines for people or JSON for machines, each record with the request it belongs to."""

from __future__ import annotations

import asyncio
import copy
import logging
import traceback
from collections.abc import Iterator
from typing import Any, Literal, TextIO

from service.call import Call, current_call
from service.domain import Conversation
from service.errors import FantailError
from service.observer import Observer

logger = logging.getLogger(__name__)

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
NOISY = ("httpx", "urllib3", "asyncio", "watchfiles")
UNHEARD = logging.getLogger("asyncio")
"""Tells of tasks that failed outside every call, though what they worked on may be a call's."""

QUIET = ("opentelemetry",)
"""Tells of whatever callers send as trace context, as a warning."""


def set_up_logging(level: str, form: Literal["text", "json"], texts: bool = False) -> None:
    """Send every record to standard error in that form. `texts`: exceptions may quote what customers write."""
    handler = logging.StreamHandler() if texts else _WithoutTexts()
    handler.addFilter(_with_request)
    handler.setFormatter(_json_formatter() if form == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)


def _with_request(record: logging.LogRecord) -> bool:
    call = current_call()
    record.request_id, record.caller = call.request_id, call.caller
    return True


class _WithoutTexts(logging.StreamHandler[TextIO]):
    """Writes of a call's exception only what `told` says. Other handlers get the record as it was logged."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and (current_call().request_id or record.name == UNHEARD.name):
            record = copy.copy(record)
            record.exc_info, record.exc_text = None, "".join(told(error))
        return super().format(record)


def told(error: BaseException, *after: BaseException) -> Iterator[str]:
    """An exception's traceback, with all it came from. Only our own errors say more than their type: any other may
    quote what it was given. `after`: what came from it, which is not told again where a chain is a ring."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None and before not in (error, *after):
        yield from told(before, error, *after)
        yield "\n\nfrom which came:\n\n"
    yield "Traceback (most recent call last):\n"
    yield from traceback.format_tb(error.__traceback__)
    yield type(error).__qualname__ + (f": {error}" if isinstance(error, FantailError) else "")
    for each in error.exceptions if isinstance(error, BaseExceptionGroup) else ():
        yield "\n\nof which one is:\n\n"
        yield from told(each, error, *after)


def log_unhandled(loop: asyncio.AbstractEventLoop, about: dict[str, Any]) -> None:
    """Says that a task failed and nobody asked; asyncio's own words quote the exception beside its traceback."""
    UNHEARD.error(about["message"], exc_info=about.get("exception"))


def _json_formatter() -> logging.Formatter:
    """time, level, logger, message, request_id, caller, and the traceback where there is one."""
    from pythonjsonlogger.json import JsonFormatter

    return JsonFormatter(
        "{asctime}{levelname}{name}{message}{request_id}{caller}",
        style="{",
        rename_fields={"asctime": "time", "levelname": "level", "name": "logger", "exc_info": "traceback"},
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )


class TextLog(Observer):
    """Logs what customers write. Only where an operator has switched it on: nothing else in Fantail does.

    Texts are quoted, so that none can pass for a line of the log.
    """

    def asked(self, conversation: Conversation, call: Call) -> None:
        said = " | ".join(f"{turn.role.value}: {turn.text!r}" for turn in conversation.turns)
        logger.info("request %s asks about: %s", call.request_id, said)
