"""How long an operator's call may take: as long as its caller allows, whatever a classification may."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from service.client import RpcError
from service.pb.fantail.v1 import admin_service_pb2 as pb
from service.registry.loader import RegistryLoader
from tests.deployment import ACTIVATED, change_adapter
from tests.integration.harness import DEADLINE_S
from tests.integration.operated import Operated, operating

LONGEST_S = 0.05


@pytest.fixture(autouse=True)
def no_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.interceptors.deadline.SLACK_SECONDS", 0.0)


async def long_reload(operated: Operated, timeout: float | None) -> pb.ReloadResponse:
    """A reload that cannot end for some time, since a call holds on to what it replaces."""
    change_adapter(operated.served.classifiers / ACTIVATED, lora_alpha=9)
    with operated.served.catalogue.lease():
        call: Any = operated.admin.Reload(pb.ReloadRequest(), timeout=timeout)
        await operated.served.catalogue.until_replaced()
        await asyncio.wait({asyncio.ensure_future(call.code())}, timeout=6 * LONGEST_S)
    found = await call
    assert isinstance(found, pb.ReloadResponse)
    return found


@pytest.mark.parametrize("timeout", [None, DEADLINE_S], ids=["no deadline", "a later deadline"])
async def test_a_reload_may_take_longer_than_a_classification(
    tmp_path: Path, loader: RegistryLoader, timeout: float | None
) -> None:
    async with operating(tmp_path, loader, longest_seconds=LONGEST_S) as operated:
        (result,) = (await long_reload(operated, timeout)).results
        assert result.outcome == pb.RELOAD_OUTCOME_LOADED


async def test_a_reload_ends_when_it_has_lasted_as_long_as_a_batch_may(tmp_path: Path, loader: RegistryLoader) -> None:
    async with operating(tmp_path, loader, longest_batch_seconds=2 * LONGEST_S) as operated:
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await long_reload(operated, None)
    error = RpcError.of_call(ended.value)
    assert (error.code, error.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "ERROR_REASON_DEADLINE_EXCEEDED")
    assert error.message.endswith("the server's limit of 0.1 s for an operator's call.")
