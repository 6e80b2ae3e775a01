"""Where a curve is measured: a warm server, more classifiers than are shipped, and somebody else who asks as well."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from pathlib import Path
from typing import Any

from loadtest.contestants import CALL_SECONDS, CLASSIFIERS, timed
from loadtest.conversations import conversation
from loadtest.server import fresh_server
from service.client import FantailClient


@contextlib.asynccontextmanager
async def serving(**settings: str) -> AsyncIterator[FantailClient]:
    """A client of a fresh server that has answered once."""
    with tempfile.TemporaryDirectory(prefix="fantail-growth-") as scratch:
        async with fresh_server(Path(scratch) / "log", **settings) as address, FantailClient(address) as client:
            for tokens in (100, 1000):
                await client.fan_out(conversation(tokens, f"warm-up {tokens}"), timeout=CALL_SECONDS)
            yield client


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


async def waited_beside(client: FantailClient, others: Sequence[str], name: str, asked: int) -> list[float]:
    """Seconds of so many classifications by `name`, while somebody else asks `others` one after the other."""
    theirs = conversation(100, "somebody else")

    async def ask_others() -> None:
        while True:
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
