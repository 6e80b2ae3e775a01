"""The operator's client against a server with keys: what it sends, returns and raises, and the example of the docs."""

from __future__ import annotations

import ast
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from safetensors.numpy import save_file

from service.client import FantailAdminClient, FantailClient, RpcError
from service.keys import KeyRing
from service.pb.fantail.v1 import admin_service_pb2 as pb
from service.registry.adapter import WEIGHTS_FILE
from service.registry.loader import RegistryLoader
from tests.deployment import ACTIVATED, PLAIN, Served, change_manifest
from tests.integration.harness import DEADLINE_S, HELLO
from tests.integration.keyring import write_keys
from tests.integration.operated import operating
from tests.support import REPOSITORY

OPERATES, CLASSIFIES = "key-operates", "key-classifies"
RING = {OPERATES: 'name = "operator"\nscopes = ["admin"]', CLASSIFIES: 'name = "caller"\nscopes = ["classify"]'}

PAGE = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Guarded:
    """A server with keys, and who operates and calls it."""

    served: Served
    address: str
    admin: FantailAdminClient
    client: FantailClient


@pytest.fixture
async def guarded(tmp_path: Path, loader: RegistryLoader) -> AsyncIterator[Guarded]:
    keys = tmp_path / "keys.toml"
    write_keys(keys, RING)
    async with (
        operating(tmp_path, loader, keys=KeyRing(keys)) as operated,
        FantailAdminClient(operated.address, key=OPERATES) as admin,
        FantailClient(operated.address, key=CLASSIFIES) as client,
    ):
        yield Guarded(operated.served, operated.address, admin, client)


async def test_a_reload_tells_what_became_of_each(guarded: Guarded) -> None:
    before = guarded.served.current(PLAIN).revision
    for name in (ACTIVATED, PLAIN):
        change_manifest(guarded.served.classifiers / name, description="Another.")
    (result,) = await guarded.admin.reload([PLAIN], timeout=DEADLINE_S)
    assert (result.classifier, result.outcome, result.previous_revision) == (PLAIN, pb.RELOAD_OUTCOME_LOADED, before)
    assert [each.classifier for each in await guarded.admin.reload(timeout=DEADLINE_S)] == [ACTIVATED]


async def test_a_candidate_is_loaded_given_traffic_and_unloaded(guarded: Guarded) -> None:
    own = guarded.served.current().revision
    revision = await guarded.admin.load_revision(ACTIVATED, guarded.served.candidate(2), timeout=DEADLINE_S)
    divided = await guarded.admin.set_traffic(ACTIVATED, {revision: 100, own: 0}, [own], timeout=DEADLINE_S)
    assert {each.revision: each.percent for each in divided.shares} == {revision: 100, own: 0}
    assert divided.shadow_revisions == [own]
    answer = await guarded.client.classify(HELLO, ACTIVATED, timeout=DEADLINE_S)
    assert answer.classification.revision == revision

    await guarded.admin.set_traffic(ACTIVATED, {}, timeout=DEADLINE_S)
    await guarded.admin.unload_revision(ACTIVATED, revision, timeout=DEADLINE_S)
    listed = await guarded.admin.list_revisions(timeout=DEADLINE_S)
    assert [each.revision for each in listed if each.classifier == ACTIVATED] == [own]


async def test_a_refusal_is_typed_and_says_why(guarded: Guarded) -> None:
    with pytest.raises(RpcError, match="cannot be read: No such file") as caught:
        await guarded.admin.load_revision(ACTIVATED, "nowhere", timeout=DEADLINE_S)
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.reason == "ERROR_REASON_REVISION_REFUSED"


async def test_a_refusal_for_every_single_weight_fits_into_a_status(guarded: Guarded) -> None:
    candidate = guarded.served.candidate(2)
    weights = guarded.served.candidates / candidate / "adapter" / WEIGHTS_FILE
    save_file({f"base_model.model.model.layers.{n}.other.weight": np.zeros(1) for n in range(420)}, weights)
    with pytest.raises(RpcError, match=r"unexpected weight .*; and \d+ more problems$") as caught:
        await guarded.admin.load_revision(ACTIVATED, candidate, timeout=DEADLINE_S)
    assert caught.value.reason == "ERROR_REASON_REVISION_REFUSED"


async def test_a_key_without_the_scope_operates_nothing(guarded: Guarded) -> None:
    async with FantailAdminClient(guarded.address, key=CLASSIFIES) as admin:
        with pytest.raises(RpcError) as caught:
            await admin.list_revisions(timeout=DEADLINE_S)
    assert caught.value.code is grpc.StatusCode.PERMISSION_DENIED


async def test_the_example_of_the_docs_runs(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)
    monkeypatch.setenv("ADMIN_KEY", OPERATES)
    folder = guarded.served.candidate(2)
    ours = {"127.0.0.1:50051": guarded.address, '"topic-2"': repr(folder), '"topic"': repr(ACTIVATED)}
    for theirs, here in ours.items():
        assert theirs in example
        example = example.replace(theirs, here)
    await eval(compile(example, "docs/operations.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), {})
    percents = {each.revision: each.percent for each in await guarded.admin.list_revisions(timeout=DEADLINE_S)}
    assert sorted(percents.values()) == [10, 90, 100, 100]
