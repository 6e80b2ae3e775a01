"""What an operator sees of loaded revisions and their adapters, and who counts as an operator."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from service.api.server import Listening, listen
from service.client import RpcError
from service.engine.base import AdapterPlace
from service.keys import KeyRing, new_key
from service.pb.fantail.v1 import admin_service_pb2 as pb
from service.pb.fantail.v1.admin_service_pb2_grpc import AdminServiceStub
from service.registry.loader import RegistryLoader
from tests.deployment import ACTIVATED, BARE, PLAIN, Served, change_adapter, serving
from tests.integration.harness import DEADLINE_S, HELLO
from tests.integration.operated import Operated, operating, traffic


@pytest.fixture
async def operated(tmp_path: Path, loader: RegistryLoader) -> AsyncIterator[Operated]:
    async with operating(tmp_path, loader) as found:
        yield found


@pytest.fixture
def served(operated: Operated) -> Served:
    return operated.served


async def adapter_of(operated: Operated, name: str = ACTIVATED) -> pb.AdapterStatus:
    """What is said of the adapter of the folder's own revision."""
    return (await operated.revisions())[operated.served.current(name).revision].adapter


async def test_every_loaded_revision_is_listed_by_classifier_and_revision(operated: Operated, served: Served) -> None:
    loaded = [await operated.load(served.candidate(number)) for number in range(2, 6)]
    own = {name: served.current(name).revision for name in (PLAIN, ACTIVATED, BARE)}
    response = await operated.admin.ListRevisions(pb.ListRevisionsRequest(), timeout=DEADLINE_S)
    assert [(each.classifier, each.revision) for each in response.revisions] == [
        (PLAIN, own[PLAIN]),
        *((ACTIVATED, revision) for revision in sorted([own[ACTIVATED], *loaded])),
        (BARE, own[BARE]),
    ]


async def test_a_revision_is_listed_with_its_traffic(operated: Operated, served: Served) -> None:
    own = served.current().revision
    first, second = [await operated.load(served.candidate(number)) for number in (2, 3)]
    await operated.admin.SetTraffic(traffic({own: 70, first: 30}, second), timeout=DEADLINE_S)
    listed = {revision: (each.percent, each.shadow) for revision, each in (await operated.revisions()).items()}
    assert (listed[own], listed[first], listed[second]) == ((70, False), (30, False), (0, True))


async def test_without_traffic_the_folders_own_answers_all(operated: Operated, served: Served) -> None:
    listed = await operated.revisions()
    assert {each.percent for each in listed.values()} == {100}


async def test_an_adapter_is_listed_by_the_engines_name(operated: Operated, served: Served) -> None:
    found = await adapter_of(operated)
    assert found.name == served.adapter()
    assert found.name.startswith(f"{ACTIVATED}@")


async def test_a_classifier_without_adapter_is_listed_without_one(operated: Operated, served: Served) -> None:
    assert not (await operated.revisions())[served.current(BARE).revision].HasField("adapter")


@pytest.mark.parametrize(
    ("place", "slot"), [(AdapterPlace(0, 1), 0), (AdapterPlace(3, 17), 3), (AdapterPlace(None, 2), -1)], ids=str
)
async def test_an_adapters_place_is_as_the_engine_says(
    operated: Operated, served: Served, place: AdapterPlace, slot: int
) -> None:
    served.engine.moved[served.adapter()] = place
    found = await adapter_of(operated)
    assert (found.resident, found.slot, found.slot_loads) == (True, slot, place.slot_loads)


async def test_an_adapter_that_the_engine_does_not_hold_is_not_resident(operated: Operated, served: Served) -> None:
    del served.engine.loaded[served.adapter()]
    found = await adapter_of(operated)
    assert (found.resident, found.slot, found.slot_loads) == (False, -1, 0)


async def test_an_adapter_that_was_never_asked_has_no_time(operated: Operated) -> None:
    await operated.client.classify(HELLO, PLAIN, timeout=DEADLINE_S)
    assert not (await adapter_of(operated, ACTIVATED)).HasField("last_used_time")


async def test_the_time_of_an_adapter_is_when_it_was_last_asked(operated: Operated) -> None:
    began = time.time_ns()
    await operated.client.classify(HELLO, ACTIVATED, timeout=DEADLINE_S)
    first = (await adapter_of(operated)).last_used_time.ToNanoseconds()
    await operated.client.classify(HELLO, ACTIVATED, timeout=DEADLINE_S)
    second = (await adapter_of(operated)).last_used_time.ToNanoseconds()
    assert began // 1000 <= first // 1000 < second // 1000 <= time.time_ns() // 1000


async def test_a_new_revision_has_not_been_asked(operated: Operated, served: Served) -> None:
    await operated.client.classify(HELLO, ACTIVATED, timeout=DEADLINE_S)
    change_adapter(served.classifiers / ACTIVATED, lora_alpha=9)
    await operated.reload()
    assert not (await adapter_of(operated)).HasField("last_used_time")


async def test_a_dead_engine_cannot_be_asked_for_places(operated: Operated, served: Served) -> None:
    served.engine.dead = True
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await operated.revisions()
    error = RpcError.of_call(caught.value)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "ERROR_REASON_ENGINE_DEAD")


METHODS = {
    "Reload": pb.ReloadRequest(),
    "LoadRevision": pb.LoadRevisionRequest(classifier=ACTIVATED, folder="x"),
    "UnloadRevision": pb.UnloadRevisionRequest(classifier=ACTIVATED, revision="0" * 16),
    "SetTraffic": pb.SetTrafficRequest(classifier=ACTIVATED),
    "ListRevisions": pb.ListRevisionsRequest(),
}
EVERY_METHOD = pytest.mark.parametrize(("method", "request_"), METHODS.items(), ids=list(METHODS))


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """A key for each scope, written to `keys.toml`."""
    made = {scope: new_key() for scope in ("admin", "classify")}
    entries = [f'[[key]]\nname = "{s}"\nsha256 = "{digest}"\nscopes = ["{s}"]\n' for s, (_, digest) in made.items()]
    (tmp_path / "keys.toml").write_text("".join(entries))
    return {scope: key for scope, (key, _) in made.items()}


@EVERY_METHOD
async def test_a_key_that_may_classify_may_not_operate(
    tmp_path: Path, loader: RegistryLoader, keys: dict[str, str], method: str, request_: object
) -> None:
    async with operating(tmp_path, loader, keys=KeyRing(tmp_path / "keys.toml")) as operated:
        before = operated.served.catalogue.current
        metadata = [("authorization", f"Bearer {keys['classify']}")]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(operated.admin, method)(request_, timeout=DEADLINE_S, metadata=metadata)
        assert RpcError.of_call(caught.value).reason == "ERROR_REASON_SCOPE_MISSING"
        assert operated.served.catalogue.current is before


async def test_a_key_that_may_operate_does(tmp_path: Path, loader: RegistryLoader, keys: dict[str, str]) -> None:
    async with operating(tmp_path, loader, keys=KeyRing(tmp_path / "keys.toml")) as operated:
        metadata = [("authorization", f"Bearer {keys['admin']}")]
        response = await operated.admin.Reload(pb.ReloadRequest(), timeout=DEADLINE_S, metadata=metadata)
        assert list(response.results) == []


@EVERY_METHOD
async def test_a_server_that_is_not_to_be_operated_has_no_such_method(
    tmp_path: Path, loader: RegistryLoader, method: str, request_: object
) -> None:
    async with (
        serving(tmp_path, loader) as served,
        listen(served.classify, Listening("127.0.0.1:0", grace_seconds=0.0), served.metrics) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await getattr(AdminServiceStub(channel), method)(request_, timeout=DEADLINE_S)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
