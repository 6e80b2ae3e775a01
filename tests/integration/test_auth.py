"""Who may call what: keys, their scopes, and what is served to whom."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from service import keys
from service.api.server import ADMIN, SERVICE
from service.classify import Classify
from service.client import FantailClient, RpcError
from service.deploy import Deployer
from service.gate import Gate
from service.keys import KeyRing
from service.observer import Observer
from service.pb.fantail.v1 import admin_service_pb2, admin_service_pb2_grpc, classification_service_pb2
from service.registry.loader import RegistryLoader
from service.registry.snapshots import snapshots
from service.revisions import Folders
from tests.integration.conftest import Serve
from tests.integration.harness import DEADLINE_S, HELLO, NAMES, WatchedEngine
from tests.integration.keyring import bearer, sha256, write_keys

CLASSIFIES, OPERATES, DOES_BOTH, EXPIRED = "key-a-classify", "key-b-admin", "key-c-both", "key-d-expired"
KEYS = {
    CLASSIFIES: 'name = "classifies"\nscopes = ["classify"]',
    OPERATES: 'name = "operates"\nscopes = ["admin"]',
    DOES_BOTH: 'name = "does-both"\nscopes = ["classify", "admin"]\nexpires = 2999-01-01T00:00:00Z',
    EXPIRED: 'name = "expired"\nscopes = ["classify", "admin"]\nexpires = 2020-01-01T00:00:00Z',
}

CLASSIFYING = classification_service_pb2.DESCRIPTOR.services_by_name["ClassificationService"].methods
OPERATING = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"].methods
REFLECTING = reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].methods
LIST_CLASSIFIERS, FAN_OUT, STREAM, FOLLOW = (
    next(each for each in CLASSIFYING if each.name == name)
    for name in ("ListClassifiers", "FanOut", "StreamFanOut", "Follow")
)
LIST_REVISIONS = next(each for each in OPERATING if each.name == "ListRevisions")
UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


def every(*methods: MethodDescriptor) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("method", methods, ids=lambda method: method.name)


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    write_keys(tmp_path / "keys.toml", KEYS)
    return tmp_path / "keys.toml"


@pytest.fixture
def deployer(tmp_path: Path, classify: Classify, engine: WatchedEngine, loader: RegistryLoader) -> Iterator[Deployer]:
    """One that has nowhere to load from."""
    folders = Folders(tmp_path / "classifiers", tmp_path / "candidates")
    gate = Gate(classify.builder, engine, tolerance=0.02)
    with snapshots(tmp_path / "copies") as copies:
        yield Deployer(classify.catalogue, engine, gate, loader, copies, folders, Observer())


@pytest.fixture
async def locked(serve: Serve, keys_file: Path, deployer: Deployer) -> str:
    """Address of a server with every service, and keys."""
    return await serve(keys=KeyRing(keys_file), deployer=deployer)


async def end(
    address: str, method: MethodDescriptor, *metadata: tuple[str, str], request: bytes = b""
) -> RpcError | None:
    """Make a call with these bytes as request, or in a stream none; how it failed, None when it did not."""
    kinds = {(False, False): "unary_unary", (False, True): "unary_stream", (True, True): "stream_stream"}
    kind = kinds[method.client_streaming, method.server_streaming]
    async with grpc.aio.insecure_channel(address) as channel:
        send = getattr(channel, kind)(f"/{method.containing_service.full_name}/{method.name}")
        requests = () if method.client_streaming else (request,)
        call = send(*requests, timeout=DEADLINE_S, metadata=metadata)
        try:
            if method.client_streaming:
                with contextlib.suppress(grpc.aio.InternalError):  # it has ended already
                    await call.done_writing()
            if method.server_streaming:
                async for _ in call:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as error:
            return RpcError.of_call(error)
    return None


async def code(address: str, method: MethodDescriptor, key: str) -> grpc.StatusCode:
    error = await end(address, method, *bearer(key))
    return error.code if error else grpc.StatusCode.OK


def require_key_invalid(error: RpcError | None) -> None:
    assert error is not None
    assert (error.code, error.reason) == (UNAUTHENTICATED, "ERROR_REASON_KEY_INVALID")
    assert error.message == "The call needs a valid key; send the header `authorization: Bearer KEY`."
    assert (error.metadata, error.retry_after_s) == ({}, None)
    assert error.request_id


@every(*CLASSIFYING, *OPERATING, *REFLECTING)
async def test_every_method_needs_a_key(locked: str, engine: WatchedEngine, method: MethodDescriptor) -> None:
    require_key_invalid(await end(locked, method))
    assert engine.requests == []


@every(FAN_OUT, STREAM, LIST_REVISIONS)
async def test_what_comes_without_a_key_is_not_read(locked: str, method: MethodDescriptor) -> None:
    require_key_invalid(await end(locked, method, request=b"\xff no message"))
    error = await end(locked, method, *bearer(DOES_BOTH), request=b"\xff no message")
    assert error is not None
    assert error.reason == "ERROR_REASON_REQUEST_MALFORMED"


INVALID = {
    "unknown": ("authorization", "Bearer nobodys-key"),
    "expired": ("authorization", f"Bearer {EXPIRED}"),
    "empty": ("authorization", "Bearer "),
    "a scheme alone": ("authorization", "Bearer"),
    "without scheme": ("authorization", CLASSIFIES),
    "of another scheme": ("authorization", f"Digest {CLASSIFIES}"),
    "with more behind it": ("authorization", f"Bearer {CLASSIFIES} x"),
    "the hash": ("authorization", f"Bearer {sha256(CLASSIFIES)}"),
    "in another header": ("x-api-key", CLASSIFIES),
}


@pytest.mark.parametrize("header", INVALID.values(), ids=INVALID)
@every(LIST_CLASSIFIERS, STREAM, FOLLOW, LIST_REVISIONS)
async def test_whatever_is_wrong_with_a_key_the_caller_learns_only_that_it_is_invalid(
    locked: str, engine: WatchedEngine, method: MethodDescriptor, header: tuple[str, str]
) -> None:
    require_key_invalid(await end(locked, method, header))
    assert engine.requests == []


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_the_scheme_is_read_whatever_its_case(locked: str, scheme: str) -> None:
    assert await end(locked, LIST_CLASSIFIERS, ("authorization", f"{scheme} {CLASSIFIES}")) is None


@pytest.mark.parametrize("key", [CLASSIFIES, DOES_BOTH])
@every(*CLASSIFYING, *REFLECTING)
async def test_the_scope_classify_reaches_what_answers(locked: str, method: MethodDescriptor, key: str) -> None:
    # An empty request is refused by most of them, but for what it lacks.
    assert await code(locked, method, key) in (grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT)


@pytest.mark.parametrize("key", [OPERATES, DOES_BOTH])
async def test_the_scope_admin_reaches_the_admin_service(locked: str, key: str) -> None:
    async with grpc.aio.insecure_channel(locked) as channel:
        response = await admin_service_pb2_grpc.AdminServiceStub(channel).ListRevisions(
            admin_service_pb2.ListRevisionsRequest(), timeout=DEADLINE_S, metadata=bearer(key)
        )
    assert [each.classifier for each in response.revisions] == NAMES


async def require_denied(address: str, method: MethodDescriptor, key: str, scope: str) -> None:
    error = await end(address, method, *bearer(key))
    assert error is not None
    assert (error.code, error.reason) == (DENIED, "ERROR_REASON_SCOPE_MISSING")
    assert error.metadata == {"scope": scope}
    assert scope in error.message


@every(*OPERATING)
async def test_the_scope_classify_does_not_reach_the_admin_service(locked: str, method: MethodDescriptor) -> None:
    await require_denied(locked, method, CLASSIFIES, "admin")


@every(*CLASSIFYING, *REFLECTING)
async def test_the_scope_admin_alone_reaches_nothing_else(
    locked: str, engine: WatchedEngine, method: MethodDescriptor
) -> None:
    await require_denied(locked, method, OPERATES, "classify")
    assert engine.requests == []


async def test_health_works_without_a_key(locked: str) -> None:
    async with grpc.aio.insecure_channel(locked) as channel:
        stub, request = HealthStub(channel), HealthCheckRequest(service=SERVICE)
        watch = stub.Watch(request, timeout=DEADLINE_S)
        found = [await stub.Check(request, timeout=DEADLINE_S), await watch.read()]
        watch.cancel()
    assert [each.status for each in found] == [HealthCheckResponse.SERVING] * 2


async def described(address: str, key: str) -> set[str]:
    """Our services, as reflection lists them."""
    requests = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
    async with grpc.aio.insecure_channel(address) as channel:
        call = ServerReflectionStub(channel).ServerReflectionInfo(requests, timeout=DEADLINE_S, metadata=bearer(key))
        names = [each.name async for found in call for each in found.list_services_response.service]
    return {name for name in names if name.startswith("fantail.")}


async def test_reflection_lists_the_admin_service_where_it_is_served(locked: str) -> None:
    assert await described(locked, CLASSIFIES) == {SERVICE, ADMIN}


async def test_reflection_that_is_off_is_unimplemented(serve: Serve, keys_file: Path) -> None:
    address = await serve(keys=KeyRing(keys_file), reflection=False)
    assert await code(address, REFLECTING[0], DOES_BOTH) is grpc.StatusCode.UNIMPLEMENTED


@every(*OPERATING)
async def test_without_a_deployer_there_is_no_admin_service(
    serve: Serve, keys_file: Path, method: MethodDescriptor
) -> None:
    assert await code(await serve(keys=KeyRing(keys_file)), method, DOES_BOTH) is grpc.StatusCode.UNIMPLEMENTED


async def test_without_a_deployer_reflection_does_not_list_the_admin_service(serve: Serve, keys_file: Path) -> None:
    assert await described(await serve(keys=KeyRing(keys_file)), CLASSIFIES) == {SERVICE}


@pytest.fixture
def looked_at_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOOK_SECONDS", 0.0)


@pytest.mark.usefixtures("looked_at_all_the_time")
@every(LIST_CLASSIFIERS, LIST_REVISIONS)
async def test_a_key_taken_from_the_file_is_invalid_and_one_added_to_it_valid_without_a_restart(
    serve: Serve, keys_file: Path, deployer: Deployer, method: MethodDescriptor
) -> None:
    write_keys(keys_file, {key: KEYS[key] for key in (CLASSIFIES, OPERATES)})
    address = await serve(keys=KeyRing(keys_file), deployer=deployer)
    kept = OPERATES if method is LIST_REVISIONS else CLASSIFIES
    assert [await code(address, method, key) for key in (kept, DOES_BOTH)] == [grpc.StatusCode.OK, UNAUTHENTICATED]
    write_keys(keys_file, {DOES_BOTH: KEYS[DOES_BOTH]})
    assert [await code(address, method, key) for key in (kept, DOES_BOTH)] == [UNAUTHENTICATED, grpc.StatusCode.OK]


@pytest.mark.usefixtures("looked_at_all_the_time")
@pytest.mark.parametrize(
    ("left", "reason"),
    [
        pytest.param({CLASSIFIES: KEYS[OPERATES]}, "ERROR_REASON_SCOPE_MISSING", id="another scope"),
        pytest.param({DOES_BOTH: KEYS[DOES_BOTH]}, "ERROR_REASON_KEY_INVALID", id="another key"),
    ],
)
async def test_a_live_conversation_is_asked_for_its_right_again(
    serve: Serve, keys_file: Path, left: dict[str, str], reason: str
) -> None:
    async def talk() -> None:
        async with FantailClient(address, key=CLASSIFIES) as client, client.follow(timeout=DEADLINE_S) as live:
            assert await live.tell(HELLO) is not None
            write_keys(keys_file, left)
            await live.tell(HELLO)

    address = await serve(keys=KeyRing(keys_file))
    with pytest.raises(RpcError) as refused:
        await talk()
    assert refused.value.reason == reason
