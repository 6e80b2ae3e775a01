"""What every interceptor is made of: something that happens around a call, whichever of the four kinds it is."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, TypeAlias

import grpc

Context = grpc.aio.ServicerContext[Any, Any]
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

OURS = "/fantail."
"""How our own services' methods begin; health and reflection are somebody else's."""

OPERATING = ".AdminService/"
"""What the operator's methods have in their names."""

BATCH = "/ClassifyBatch"
LONG_LIVED = "/Follow"
"""How methods end whose calls last as long as a conversation."""

FACTORIES: dict[tuple[bool, bool], Callable[..., Handler]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class WrappingInterceptor(grpc.aio.ServerInterceptor):
    """Puts another handler in the place of each that there is."""

    def wrapped(self, method: str, handler: Any) -> Handler:
        """What answers calls of a method in its handler's place."""
        raise NotImplementedError

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        return None if handler is None else self.wrapped(handler_call_details.method, handler)


class AroundInterceptor(WrappingInterceptor):
    """Wraps each call in `around`. Each subclass has one job; `server.py` lists them in their order."""

    def around(self, method: str, context: Context) -> AbstractAsyncContextManager[Any]:
        """A context that lasts as long as the call; what is raised in it is what the call raises."""
        raise NotImplementedError

    def decoder(self, handler: Handler) -> Callable[[Any], Any] | None:
        """What turns that which arrives into a request, when this interceptor does it instead of gRPC."""
        return None

    def wrapped(self, method: str, handler: Any) -> Handler:
        behaviour = handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
        decode = self.decoder(handler)

        def opened(request: Any) -> Any:
            if decode is None:
                return request
            return _each(decode, request) if handler.request_streaming else decode(request)

        async def answered(request: Any, context: Context) -> Any:
            async with self.around(method, context):
                return await behaviour(opened(request), context)

        async def streamed(request: Any, context: Context) -> None:
            # Writes instead of yielding: gRPC leaves a generator where it stands when the caller goes away, to be ended
            # at some time by another task, in which the context variables set here are unknown.
            async with self.around(method, context), aclosing(behaviour(opened(request), context)) as answers:
                async for answer in answers:
                    await _write(context, answer)

        return FACTORIES[handler.request_streaming, handler.response_streaming](
            # A handler that answers in a stream yields, or, as gRPC's own health service does, writes to the context.
            streamed if inspect.isasyncgenfunction(behaviour) else answered,
            handler.request_deserializer if decode is None else None,
            handler.response_serializer,
        )


async def _each(decode: Callable[[Any], Any], requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield decode(request)


async def _write(context: Context, answer: Any) -> None:
    try:
        await context.write(answer)
    except grpc.aio.InternalError as error:
        # The caller is gone, and this write knew it before gRPC could cancel the task.
        raise asyncio.CancelledError from error
