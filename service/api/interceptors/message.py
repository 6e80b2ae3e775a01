"""Waits for the request of a call, after the caller's key was looked at, and not for ever."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from service.api.interceptors.around import FACTORIES, Context, Handler, WrappingInterceptor
from service.errors import DeadlineExceededError, MalformedRequestError

MESSAGE_SECONDS = 30.0
"""How long a request may take to arrive: the largest does at 1.2 Mbit/s."""

GONE_SECONDS = 1.0
"""Within which gRPC cancels a call that has no request because it is over."""


class MessageInterceptor(WrappingInterceptor):
    """Reads requests in gRPC's place, which would do it before any interceptor is asked, however long it takes.

    Stands outside of what is made of coroutines, as every `AroundInterceptor` is. Streams of requests are left alone.
    """

    def wrapped(self, method: str, handler: Any) -> Handler:
        if handler.request_streaming:
            return handler  # type: ignore[no-any-return]
        behaviour: Any = handler.unary_stream if handler.response_streaming else handler.unary_unary

        async def answered(requests: Any, context: Context) -> Any:
            return await behaviour(await message(context), context)

        return FACTORIES[True, handler.response_streaming](
            answered, handler.request_deserializer, handler.response_serializer
        )


async def message(context: Context) -> Any:
    """The request. Raises DeadlineExceededError when it does not arrive, MalformedRequestError when none will."""
    try:
        async with asyncio.timeout(MESSAGE_SECONDS):
            request = await context.read()
    except TimeoutError:
        raise DeadlineExceededError(f"The request did not arrive within {MESSAGE_SECONDS:g} s.") from None
    if request is grpc.aio.EOF:
        await asyncio.sleep(GONE_SECONDS)
        raise MalformedRequestError("The call ended without a request.", "")
    return request
