"""How a client reaches its server: channel, certificates and key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM bytes. `roots`: who signs the server's certificate, None for the system's; `certificate`, `key`: the
    caller's own, for servers that want one."""

    roots: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None


def open_channel(address: str, tls: Tls | None, options: Sequence[tuple[str, Any]] = ()) -> grpc.aio.Channel:
    """A channel, in the clear without `tls`; the caller closes it."""
    if tls is None:
        return grpc.aio.insecure_channel(address, options)
    credentials = grpc.ssl_channel_credentials(tls.roots, tls.key, tls.certificate)
    return grpc.aio.secure_channel(address, credentials, options)


def metadata_with(key: str | None) -> Metadata:
    """What every call carries of a caller with this API key. Raises ValueError."""
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ValueError("a key consists of printable ASCII characters")
    return (("authorization", f"Bearer {key}"),) if key else ()
