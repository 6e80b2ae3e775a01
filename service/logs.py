"""Logging as lines for people or JSON for machines, each record with the request it belongs to."""

from __future__ import annotations

import logging
from typing import Literal

from service.call import Call, current_call
from service.domain import Conversation
from service.observer import Observer

logger = logging.getLogger(__name__)

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
NOISY = ("httpx", "urllib3", "asyncio", "watchfiles")
QUIET = ("opentelemetry",)
"""Tells of whatever callers send as trace context, as a warning."""


def set_up_logging(level: str, form: Literal["text", "json"]) -> None:
    """Send every record to standard error in that form."""
    handler = logging.StreamHandler()
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
