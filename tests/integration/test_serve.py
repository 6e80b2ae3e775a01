"""The server as its settings wire it, around a fake engine: what is off stays off, what is on is there."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from service import serve, watch
from service.client import FantailAdminClient, FantailClient, RpcError
from service.settings import Settings
from tests.integration.harness import DEADLINE_S, HELLO, start_fake
from tests.integration.keyring import write_keys
from tests.support import CLASSIFIERS, manifest_toml

KEY = "an-operators-key"
RIGHTS = 'name = "operator"\nscopes = ["classify", "admin"]'


@pytest.fixture
def signals() -> Iterator[None]:
    """A server takes signals over; whoever had them gets them back."""
    before = {each: signal.getsignal(each) for each in serve.STOPPING}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.fixture
def settings(tmp_path: Path, make_classifier_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """One classifier without adapter at a free port; what is started as vLLM is a fake."""
    monkeypatch.setattr(serve, "start_vllm", start_fake)
    monkeypatch.setattr(serve, "cache_folder", lambda: tmp_path / "cache")
    folder = tmp_path / "classifiers"
    folder.mkdir()
    shutil.copy(CLASSIFIERS / "prompt.toml", folder)
    make_classifier_folder(folder, "topic", adapter="none", words="topic?")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return Settings(classifiers=folder, address=f"127.0.0.1:{port}")


@contextlib.asynccontextmanager
async def serving(settings: Settings, **more: Any) -> AsyncIterator[FantailClient]:
    """A server with these settings, until SIGTERM."""
    serving = asyncio.create_task(serve.serve(settings.model_copy(update=more)))
    async with asyncio.timeout(DEADLINE_S):
        async with FantailClient(settings.address, key=KEY) as client:
            await client.wait_until_serving()
            yield client
        os.kill(os.getpid(), signal.SIGTERM)
        await serving


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("log_texts", [False, True])
async def test_texts_are_in_the_log_only_where_that_is_switched_on(
    settings: Settings, caplog: pytest.LogCaptureFixture, log_texts: bool
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(settings, log_texts=log_texts) as client:
        await client.fan_out(HELLO, timeout=DEADLINE_S)
    assert (HELLO[0][1] in caplog.text) is log_texts


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("admin", [False, True])
async def test_the_admin_service_is_there_only_where_it_is_switched_on(
    settings: Settings, tmp_path: Path, admin: bool
) -> None:
    write_keys(tmp_path / "keys.toml", {KEY: RIGHTS})
    async with serving(settings, admin=admin, keys=tmp_path / "keys.toml"):
        async with FantailAdminClient(settings.address, key=KEY) as operator:
            if admin:
                assert [each.classifier for each in await operator.list_revisions(timeout=DEADLINE_S)] == ["topic"]
                return
            with pytest.raises(RpcError) as refused:
                await operator.list_revisions(timeout=DEADLINE_S)
    assert refused.value.code is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.usefixtures("signals")
async def test_live_conversations_hold_as_much_as_the_settings_say(settings: Settings) -> None:
    async with serving(settings, max_follow_mib=1) as client:
        with pytest.raises(RpcError) as refused:
            async with client.follow(timeout=DEADLINE_S) as live:
                await live.tell([("customer", "a" * (1 << 20))])
    assert refused.value.metadata == {"limit": "follow_bytes"}


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("watched", [False, True])
async def test_a_changed_folder_is_served_without_asking_only_where_it_is_watched(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, watched: bool
) -> None:
    monkeypatch.setattr(watch, "QUIET_MS", 50)
    monkeypatch.setattr(watch, "LOOK_MS", 50)
    async with serving(settings, watch=watched) as client:
        before = (await client.get_classifier("topic", timeout=DEADLINE_S)).revision
        manifest = settings.classifiers / "topic" / "classifier.toml"
        manifest.write_text(manifest_toml(adapter="none", words="which topic?"), encoding="utf-8")
        deadline = asyncio.get_running_loop().time() + (DEADLINE_S / 2 if watched else 1.0)
        now = before
        while now == before and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
            now = (await client.get_classifier("topic", timeout=DEADLINE_S)).revision
    assert (now != before) is watched
