"""Who calls, and whether they may: keys in the header `authorization`, scopes by service, rates by caller."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from service.api.interceptors.around import AroundInterceptor, Context
from service.call import changed_call
from service.errors import KeyInvalidError, ScopeMissingError
from service.keys import ADMIN, CLASSIFY, KeyRing

HEADER = "authorization"
SCHEME = "bearer "
OPEN = "/grpc.health.v1.Health/"
"""What needs no key: whoever watches over a server has none."""


class AuthInterceptor(AroundInterceptor):
    """`keys`: None lets everybody classify, under no name, and nobody administer."""

    def __init__(self, keys: KeyRing | None) -> None:
        self._keys = keys

    @contextlib.asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        if self._keys is None or method.startswith(OPEN):
            yield
            return
        key = self._keys.find(presented(context))
        if key is None:
            raise KeyInvalidError("The call needs a valid key; send the header `authorization: Bearer KEY`.")
        scope = ADMIN if ".AdminService/" in method else CLASSIFY
        if scope not in key.scopes:
            raise ScopeMissingError(f"The key does not have the scope {scope!r}.", {"scope": scope})
        self._keys.count(key)
        with changed_call(caller=key.name, cache_salt=self._keys.salt(key)):
            yield


def presented(context: Context) -> str:
    """The key in the call's metadata; empty when there is none."""
    value = next((value for key, value in context.invocation_metadata() or () if key == HEADER), "")
    return value[len(SCHEME) :] if isinstance(value, str) and value.lower().startswith(SCHEME) else ""
