"""Log lines for people and for machines, and who logs what customers write."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from service.call import Call, changed_call
from service.classify import Classify
from service.engine.fake_engine import FakeEngine
from service.errors import EngineError, FantailError
from service.logs import NOISY, TextLog, log_unhandled, set_up_logging
from service.observer import Observer
from service.prompt.builder import PromptBuilder
from tests.integration.harness import NAMES, small_registry
from tests.support import classify_with, talk

SPOKEN = "my card is 4929-1111-2222-3333"
FORGED = "hi\n2026-01-01 00:00:00,000 ERROR service: all is lost \x1b[31m | agent: 'yes'"

logger = logging.getLogger("service.somewhere")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """Undo what `set_up_logging` does to the whole process."""
    root, levels = logging.getLogger(), {name: logging.getLogger(name).level for name in ("root", *NOISY)}
    handlers = list(root.handlers)
    yield
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


Captured = pytest.CaptureFixture[str]


def records(capsys: Captured) -> list[dict[str, Any]]:
    """What each line of standard error says, as JSON."""
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_json_record_says_when_where_what_and_for_whom(capsys: Captured) -> None:
    set_up_logging("info", "json")
    with changed_call(request_id="r-1", caller="support"):
        logger.warning("%d of %s", 3, "them")
    (record,) = records(capsys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", record.pop("time"))
    assert record == {
        "level": "WARNING", "logger": "service.somewhere", "message": "3 of them", "request_id": "r-1",
        "caller": "support",
    }  # fmt: skip


def test_a_json_record_outside_of_calls_has_neither_request_nor_caller(capsys: Captured) -> None:
    set_up_logging("info", "json")
    logger.info("hello")
    (record,) = records(capsys)
    assert (record["request_id"], record["caller"]) == ("", "")


def test_a_json_record_of_an_exception_has_its_traceback(capsys: Captured) -> None:
    set_up_logging("info", "json")
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        logger.exception("it failed")
    (record,) = records(capsys)
    assert (record["message"], record["level"]) == ("it failed", "ERROR")
    assert record["traceback"].startswith("Traceback (most recent call last):\n")
    assert record["traceback"].endswith("ValueError: first\nsecond")


def fail() -> None:
    """As a library would that quotes what it was given, within our own failure and beside others."""
    try:
        raise ValueError(f"cannot read {SPOKEN!r}")
    except ValueError as error:
        raise ExceptionGroup(SPOKEN, [KeyError(SPOKEN), EngineError("The engine failed.")]) from error


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("texts", [False, True])
def test_a_traceback_in_a_call_quotes_nothing_unless_texts_are_logged(capsys: Captured, form: Any, texts: bool) -> None:
    set_up_logging("info", form, texts)
    with changed_call(request_id="r-1"):
        try:
            fail()
        except ExceptionGroup:
            logger.exception("it failed")
    said = capsys.readouterr().err
    assert (SPOKEN in said) is texts
    assert re.search("ValueError.*in fail.*ExceptionGroup.*KeyError.*EngineError: The engine failed", said, re.DOTALL)
    assert len(said.splitlines()) == 1 or form == "text"


@pytest.mark.parametrize("texts", [False, True])
async def test_a_task_that_failed_unheard_quotes_nothing_unless_texts_are_logged(capsys: Captured, texts: bool) -> None:
    set_up_logging("info", "json", texts)
    asyncio.get_running_loop().set_exception_handler(log_unhandled)

    async def failing() -> None:
        fail()

    await asyncio.wait({asyncio.create_task(failing())})
    gc.collect()
    (record,) = records(capsys)
    assert (SPOKEN in str(record)) is texts
    assert record["message"] == "Task exception was never retrieved"
    assert re.search("ValueError.*in fail.*KeyError.*EngineError: The engine failed", record["traceback"], re.DOTALL)


def test_an_exception_that_comes_from_itself_is_told_once(capsys: Captured) -> None:
    set_up_logging("info", "json")
    with changed_call(request_id="r-1"):
        try:
            error = ValueError(SPOKEN)
            raise error from error
        except ValueError:
            logger.exception("it failed")
    (record,) = records(capsys)
    assert record["traceback"].count("ValueError") == 1
    assert SPOKEN not in str(record)


AWKWARD = [
    "two\nlines",
    'a "quote"',
    "back\\slash",
    "\u2028\u2029\x85\x0b",
    "grüße 🙂",
    "\ud800",
    "\x00\x1b[31m",
    '{"a": 1}',
    "",
]


@pytest.mark.parametrize("message", AWKWARD, ids=ascii)
def test_whatever_a_json_record_says_it_is_one_line(capsys: Captured, message: str) -> None:
    set_up_logging("info", "json")
    logger.info("%s", message)
    with changed_call(request_id=message, caller=message):
        logger.info("next")
    assert [(each["message"], each["request_id"]) for each in records(capsys)] == [(message, ""), ("next", message)]


def test_a_line_for_people_says_when_how_bad_where_and_what(capsys: Captured) -> None:
    set_up_logging("info", "text")
    logger.warning("%d of %s", 3, "them")
    line = capsys.readouterr().err
    assert re.fullmatch(r"[\d-]{10} [\d:]{8},\d{3} WARNING service\.somewhere: 3 of them\n", line)


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_records_below_the_level_are_left_out(capsys: Captured, level: str, form: Any) -> None:
    set_up_logging(level, form)
    levels = ["debug", "info", "warning", "error"]
    for each in levels:
        logger.log(getattr(logging, each.upper()), "said at %s", each)
    said = re.findall(r"said at (\w+)", capsys.readouterr().err)
    assert said == levels[levels.index(level) :]


@pytest.mark.parametrize("name", NOISY)
def test_libraries_that_talk_much_are_heard_from_warnings_on(capsys: Captured, name: str) -> None:
    set_up_logging("debug", "text")
    logging.getLogger(name).info("chatter")
    logging.getLogger(name).warning("trouble")
    assert re.findall("chatter|trouble", capsys.readouterr().err) == ["trouble"]


def test_setting_up_again_replaces_what_was_set_up(capsys: Captured) -> None:
    set_up_logging("info", "text")
    set_up_logging("info", "json")
    logger.info("hello")
    assert len(records(capsys)) == 1


async def ask(builder: PromptBuilder, engine: FakeEngine, *observers: Observer) -> None:
    """One fan-out about what was spoken, and one question to a classifier that is not there."""
    observer = observers[0] if observers else None
    classify: Classify = classify_with(small_registry(builder), builder, engine, observer=observer)
    call = Call(request_id="r-1")
    await classify.fan_out(talk(SPOKEN, "which one?"), (), call)
    with pytest.raises(FantailError):
        await classify.one(talk(SPOKEN), "nobody", call)


async def test_the_text_log_says_who_said_what_in_which_request(
    builder: PromptBuilder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await ask(builder, FakeEngine(), TextLog())
    assert [each.getMessage() for each in caplog.records if each.name == "service.logs"] == [
        f"request r-1 asks about: customer: {SPOKEN!r} | agent: 'which one?'",
        f"request r-1 asks about: customer: {SPOKEN!r}",
    ]


def test_no_text_passes_for_a_line_or_a_turn_of_the_log(capsys: Captured) -> None:
    set_up_logging("info", "text")
    TextLog().asked(talk(FORGED), Call(request_id="r-1"))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"INFO service.logs: request r-1 asks about: customer: {FORGED!r}")
    assert line.isprintable()


@pytest.mark.parametrize("fault", [None, EngineError("The engine failed.")], ids=["an answer", "an engine failure"])
async def test_nothing_but_the_text_log_logs_texts_at_any_level(
    builder: PromptBuilder, caplog: pytest.LogCaptureFixture, fault: Exception | None
) -> None:
    caplog.set_level(logging.DEBUG)
    engine = FakeEngine(fault=lambda request: fault)
    await ask(builder, engine)
    assert len(engine.requests) == len(NAMES)
    assert SPOKEN not in caplog.text
