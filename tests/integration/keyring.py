"""Files of API keys, and the header that presents one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from service.keys import KeyRing

Metadata = tuple[tuple[str, str], ...]


def write_keys(path: Path, keys: Mapping[str, str]) -> None:
    """Write a file of keys. `keys`: what callers present, to what the file says of it beside the hash."""
    entries = [f'[[key]]\nsha256 = "{sha256(key)}"\n{more}\n' for key, more in keys.items()]
    path.write_text("\n".join(entries), encoding="utf-8")


def ring_of(folder: Path, keys: Mapping[str, str], isolate_all: bool = False) -> KeyRing:
    """The ring of a new file of these keys that may classify."""
    path = folder / "keys.toml"
    write_keys(path, {key: f'scopes = ["classify"]\n{more}' for key, more in keys.items()})
    return KeyRing(path, isolate_all)


def bearer(key: str) -> Metadata:
    return (("authorization", f"Bearer {key}"),)


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
