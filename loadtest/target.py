"""What is put under load, and how the processes that send calls connect to it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.client import FantailClient, Tls


@dataclass(frozen=True, slots=True)
class Credentials:
    """How a server is talked to over TLS: PEM files of who signs its certificate (None: whom the system trusts), and of
    the caller's own certificate and key, for servers that want one."""

    roots: str | None = None
    certificate: str | None = None
    key: str | None = None

    def read(self) -> Tls:
        """Raises OSError."""
        files = (self.roots, self.certificate, self.key)
        return Tls(*(Path(path).read_bytes() if path else None for path in files))


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and which of its classifiers are asked. `key`: an API key; `tls`: None talks in the clear."""

    address: str
    classifiers: tuple[str, ...] = ()
    key: str | None = None
    tls: Credentials | None = None

    def connect(self, *, retries: bool = True) -> FantailClient:
        """A client of it. Raises OSError for a file of TLS that cannot be read, ValueError for an unusable key."""
        tls = self.tls.read() if self.tls else None
        return FantailClient(self.address, key=self.key, tls=tls, retries=retries)

    @staticmethod
    def from_json(value: dict[str, Any]) -> Target:
        tls = value["tls"] and Credentials(**value["tls"])
        return Target(**value | {"classifiers": tuple(value["classifiers"]), "tls": tls})
