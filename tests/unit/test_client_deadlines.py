"""Every call of every client has to be given a deadline."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest

from service.client import FantailAdminClient, FantailClient, FantailSyncClient

WITHOUT = {"wait_until_serving"}
"""Waits for a server to come; the sync client's has a time as well."""

CALLS = [
    pytest.param(call, id=f"{client.__name__}.{name}")
    for client in (FantailClient, FantailSyncClient, FantailAdminClient)
    for name, call in inspect.getmembers(client, inspect.isfunction)
    if not name.startswith("_") and name not in WITHOUT
]


def test_there_are_calls() -> None:
    assert len(CALLS) > 15


@pytest.mark.parametrize("call", CALLS)
def test_a_deadline_is_required_by_name(call: Callable[..., Any]) -> None:
    timeout = inspect.signature(call).parameters["timeout"]
    assert timeout.kind is inspect.Parameter.KEYWORD_ONLY
    assert timeout.default is inspect.Parameter.empty
