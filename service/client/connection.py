"""How a client reaches its server: channel, certificates and key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import grpc

KEEPALIVE = (
    # What drops a quiet connection on the way tells neither side; a ping finds it out.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # gRPC (1.85) never begins to count that timeout and waits for this one, a minute unless it is set. It can go when
    # `tests/integration/test_keepalive.py` passes without it (https://github.com/grpc/grpc/pull/39239).
    ("grpc.http2.ping_timeout_ms", 20_000),
)

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM bytes. `roots`: who signs the server's certificate, None for the system's; `certificate`, `key`: the
    caller's own, for servers that want one."""

    roots: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None


class Connection:
    """A channel to one server, open as long as the context lasts, and the metadata that calls over it carry.

    `key`: an API key; `tls`: None talks in the clear; `options`: of the channel. Raises ValueError for an unusable key.
    """

    def __init__(self, address: str, key: str | None, tls: Tls | None, options: Sequence[tuple[str, Any]] = ()) -> None:
        if key is not None and not (key.isascii() and key.isprintable()):
            raise ValueError("a key consists of printable ASCII characters")
        options = [*KEEPALIVE, *options]
        self._metadata: Metadata = (("authorization", f"Bearer {key}"),) if key else ()
        if tls is None:
            self._channel = grpc.aio.insecure_channel(address, options)
        else:
            credentials = grpc.ssl_channel_credentials(tls.roots, tls.key, tls.certificate)
            self._channel = grpc.aio.secure_channel(address, credentials, options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._channel.close()
