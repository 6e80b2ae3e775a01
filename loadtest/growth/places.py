"""Where a curve is measured: a warm server, more classifiers than are shipped, and somebody else who asks as well."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Iterator
from pathlib import Path
from typing import Any

from loadtest.contestants import CALL_SECONDS, CLASSIFIERS, timed, timed_fan_out
from loadtest.conversations import conversation
from loadtest.server import Server, fresh_server, started_server
from service.client import FantailAdminClient, FantailClient


@contextlib.asynccontextmanager
async def serving(**settings: str) -> AsyncIterator[FantailClient]:
    """A client of a fresh server that has answered once."""
    with tempfile.TemporaryDirectory(prefix="fantail-growth-") as scratch:
        async with fresh_server(Path(scratch) / "log", **settings) as address, FantailClient(address) as client:
            for tokens in (100, 1000):
                await timed_fan_out(client, conversation(tokens, f"warm-up {tokens}"))
            yield client


@contextlib.asynccontextmanager
async def administered(**settings: str) -> AsyncIterator[tuple[Server, FantailClient, FantailAdminClient]]:
    """A fresh server that has not been asked yet, a client of it, and one of those who operate it."""
    key = secrets.token_urlsafe()
    digest = hashlib.sha256(key.encode()).hexdigest()
    with tempfile.TemporaryDirectory(prefix="fantail-growth-") as scratch:
        keys = Path(scratch) / "keys.toml"
        keys.write_text(f'[[key]]\nname = "growth"\nsha256 = "{digest}"\nscopes = ["classify", "admin"]\n')
        settings |= {"FANTAIL_ADMIN": "true", "FANTAIL_KEYS": str(keys)}
        async with (
            started_server(Path(scratch) / "log", **settings) as server,
            FantailClient(server.address, key=key) as client,
            FantailAdminClient(server.address, key=key) as admin,
        ):
            yield server, client, admin


@contextlib.contextmanager
def many_classifiers(count: int) -> Iterator[Path]:
    """A folder with so many classifiers: copies of the shipped ones under other names, each an adapter of its own."""
    sources = shipped()
    with tempfile.TemporaryDirectory(prefix="fantail-many-") as scratch:
        shutil.copy(CLASSIFIERS / "prompt.toml", scratch)
        for number in range(count):
            source = sources[number % len(sources)]
            shutil.copytree(source, Path(scratch) / f"{source.name}_{number // len(sources)}")
        yield Path(scratch)


def shipped() -> list[Path]:
    """The folders of the shipped classifiers, by name."""
    return sorted(path.parent for path in CLASSIFIERS.glob("*/classifier.toml"))


async def classifiers(client: FantailClient) -> list[str]:
    return [each.name for each in await client.list_classifiers(timeout=CALL_SECONDS)]


async def waited_beside(client: FantailClient, others: Iterator[str], name: str, asked: int) -> list[float]:
    """Seconds of so many classifications by `name`, while somebody else asks `others`, who never end, one by one."""
    theirs = conversation(100, "somebody else")

    async def ask_others() -> None:
        for other in others:
            await client.classify(theirs, other, timeout=CALL_SECONDS)

    asking = asyncio.create_task(ask_others())
    try:
        return await waited(client, name, asked)
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)


async def waited(client: FantailClient, name: str, asked: int) -> list[float]:
    """Seconds of so many classifications by `name`."""
    turns = conversation(100, "bystander")
    return [await seconds_of(client.classify(turns, name, timeout=CALL_SECONDS)) for _ in range(asked)]


async def seconds_of(asked: Awaitable[Any]) -> float:
    return (await timed(asked))[0]
