"""Turns whatever a handler raises into a status; the only place that aborts a call."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, cast

import grpc
from google.rpc import code_pb2

from service.api.status import DEFECT, DETAILS_KEY, rpc_status
from service.errors import EngineError, FantailError
from service.request_id import new_request_id, request_id

logger = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
CODES = {code.value[0]: code for code in grpc.StatusCode}


Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Gives each call a request id and each failure a status with details; keeps the traceback in the log."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        if handler is None or handler.unary_unary is None:
            return handler
        method, behaviour = handler_call_details.method, handler.unary_unary

        async def guarded(request: Any, context: Context) -> Any:
            with new_request_id():
                try:
                    # The types of grpc know only handlers that return, not those that are awaited.
                    return await cast(Any, behaviour)(request, context)
                except FantailError as error:
                    if isinstance(error, EngineError):
                        logger.exception("request %s: %s failed in the engine", request_id(), method)
                    await abort(context, error)
                except grpc.aio.AbortError:
                    raise
                except Exception:
                    logger.exception("request %s: %s failed", request_id(), method)
                    await abort(context, DEFECT)

        return grpc.unary_unary_rpc_method_handler(
            cast(Any, guarded), handler.request_deserializer, handler.response_serializer
        )


async def abort(context: Context, error: FantailError) -> None:
    """End the call with the error's status and its details as trailing metadata."""
    status = rpc_status(error, request_id())
    assert status.code != code_pb2.OK
    await context.abort(CODES[status.code], status.message, ((DETAILS_KEY, status.SerializeToString()),))
