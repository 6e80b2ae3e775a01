"""Who calls, and whether they may: keys in the header `authorization`, scopes by service, rates by caller."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from service.api.interceptors.around import OPERATING, AroundInterceptor, Context
from service.call import learn_of_call
from service.errors import KeyInvalidError, ScopeMissingError
from service.keys import ADMIN, CLASSIFY, Key, KeyRing

HEADER = "authorization"
SCHEME = "bearer "
OPEN = "/grpc.health.v1.Health/"
"""What needs no key: whoever watches over a server has none."""


class AuthInterceptor(AroundInterceptor):
    """`keys`: None lets everybody in, under no name; settings allow no AdminService without keys."""

    def __init__(self, keys: KeyRing | None) -> None:
        self._keys = keys

    @contextlib.asynccontextmanager
    async def around(self, method: str, context: Context) -> AsyncIterator[None]:
        if self._keys is None or method.startswith(OPEN):
            yield
            return
        keys, secret = self._keys, presented(context)
        scope = ADMIN if OPERATING in method else CLASSIFY
        key = allowed(keys, secret, scope)
        keys.count(key)
        # A long call is asked again on its way: its key may have been taken back, and its work counts as calls do.
        again = lambda work: keys.count_more(allowed(keys, secret, scope), work)  # noqa: E731
        learn_of_call(caller=key.name, cache_salt=keys.salt(key), toll=again)
        yield


def allowed(keys: KeyRing, presented: str, scope: str) -> Key:
    """The key that was presented. Raises KeyInvalidError, ScopeMissingError."""
    key = keys.find(presented)
    if key is None:
        raise KeyInvalidError("The call needs a valid key; send the header `authorization: Bearer KEY`.")
    if scope not in key.scopes:
        raise ScopeMissingError(f"The key does not have the scope {scope!r}.", {"scope": scope})
    return key


def presented(context: Context) -> str:
    """The key in the call's metadata; empty when there is none."""
    value = next((value for key, value in context.invocation_metadata() or () if key == HEADER), "")
    return value[len(SCHEME) :] if isinstance(value, str) and value.lower().startswith(SCHEME) else ""
