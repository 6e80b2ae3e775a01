"""Turns whatever a handler raises into a status; the only place that aborts a call."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import code_pb2

from service.api.status import DEFECT, DETAILS_KEY, rpc_status
from service.errors import FantailError, MalformedRequestError
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

        async def guarded(data: bytes, context: Context) -> Any:
            with new_request_id():
                try:
                    # The types of grpc know only handlers that return, not those that are awaited.
                    return await cast(Any, behaviour)(decode(data, handler), context)
                except FantailError as error:
                    await abort(context, error)
                except grpc.aio.AbortError:
                    raise
                except Exception:
                    logger.exception("request %s: %s failed", request_id(), method)
                    await abort(context, DEFECT)

        # Requests are decoded in here, not by gRPC, which would tell the caller how decoding failed.
        return grpc.unary_unary_rpc_method_handler(cast(Any, guarded), None, handler.response_serializer)


def decode(data: bytes, handler: Handler) -> Any:
    """The request message. Raises MalformedRequestError."""
    assert handler is not None
    try:
        return handler.request_deserializer(data) if handler.request_deserializer else data
    except DecodeError as error:
        raise MalformedRequestError("The request's bytes are not the message that this method takes.", "") from error


async def abort(context: Context, error: FantailError) -> None:
    """End the call with the error's status and its details as trailing metadata."""
    status = rpc_status(error, request_id())
    assert status.code != code_pb2.OK
    await context.abort(CODES[status.code], status.message, ((DETAILS_KEY, status.SerializeToString()),))
