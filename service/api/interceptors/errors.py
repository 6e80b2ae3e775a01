"""Turns whatever a handler raises into a status; the only place that aborts a call."""

from __future__ import annotations

import contextlib
import logging
import re
import uuid
from collections.abc import AsyncIterator

import grpc
from google.rpc import code_pb2

from service.api.interceptors.around import AroundInterceptor, Context
from service.api.status import DEFECT, DETAILS_KEY, rpc_status
from service.call import changed_call, current_call
from service.errors import FantailError

logger = logging.getLogger(__name__)

REQUEST_ID_KEY = "x-request-id"
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
CODES = {code.value[0]: code for code in grpc.StatusCode}


class ErrorInterceptor(AroundInterceptor):
    """Gives each call a request id and each failure a status with details; keeps the traceback in the log."""

    @contextlib.asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        with changed_call(request_id=request_id_of(context)):
            try:
                yield
            except FantailError as error:
                logger.info("request %s: %s: %s", current_call().request_id, method, type(error).__name__)
                await abort(context, error)
            except grpc.aio.AbortError:
                raise
            except Exception:
                logger.exception("request %s: %s failed", current_call().request_id, method)
                await abort(context, DEFECT)


def request_id_of(context: Context) -> str:
    """The caller's own id from the header `x-request-id`, where it is one that a log can hold; else a new one."""
    given = next((value for key, value in context.invocation_metadata() or () if key == REQUEST_ID_KEY), "")
    return given if isinstance(given, str) and REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


async def abort(context: Context, error: FantailError) -> None:
    """End the call with the error's status and its details as trailing metadata."""
    status = rpc_status(error, current_call().request_id)
    assert status.code != code_pb2.OK
    await context.abort(CODES[status.code], status.message, ((DETAILS_KEY, status.SerializeToString()),))
