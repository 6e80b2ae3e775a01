"""Reads the request: innermost, so that only what may be asked and has room is read at all."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from google.protobuf.message import DecodeError

from service.api.interceptors.around import AroundInterceptor, Context, Handler
from service.errors import MalformedRequestError


class DecodeInterceptor(AroundInterceptor):
    """Decodes requests in gRPC's place, which would do it before anything else, and tell the caller how it failed."""

    @contextlib.asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        yield

    def decoder(self, handler: Handler) -> Callable[[Any], Any]:
        return lambda data: decode(data, handler)


def decode(data: bytes, handler: Any) -> Any:
    """The request message. Raises MalformedRequestError."""
    try:
        return handler.request_deserializer(data) if handler.request_deserializer else data
    except DecodeError as error:
        raise MalformedRequestError("The request's bytes are not the message that this method takes.", "") from error
