"""TLS with real certificates: who is let in, whom callers trust, and certificates that are renewed while serving."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from dataclasses import replace as with_changes
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from service.api.tls import TlsFiles
from service.client import FantailClient, FantailSyncClient, Tls
from service.errors import ConfigurationError
from service.pb.fantail.v1.classification_service_pb2_grpc import ClassificationServiceStub
from tests.integration.certificates import Authority, Pair, encrypted, install, replace
from tests.integration.conftest import Serve
from tests.integration.harness import DEADLINE_S, HELLO, NAMES, WatchedEngine, fan_out_request

OK, UNAVAILABLE = grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE
OURS, THEIRS = Authority("ours"), Authority("theirs")
TRUSTING = Tls(roots=OURS.pem)


@pytest.fixture
def files(tmp_path: Path) -> TlsFiles:
    """A server's files, signed by us; any caller is let in."""
    return install(tmp_path, OURS.server())


@pytest.fixture
def mutual(tmp_path: Path) -> TlsFiles:
    """The same; callers must be signed by us too."""
    return install(tmp_path, OURS.server(), OURS.pem)


def presenting(pair: Pair) -> Tls:
    return with_changes(TRUSTING, certificate=pair.certificate, key=pair.key)


async def code(address: str, tls: Tls | None) -> grpc.StatusCode:
    """How a call over a connection of its own ends."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    if tls is None:
        channel = grpc.aio.insecure_channel(address, options)
    else:
        credentials = grpc.ssl_channel_credentials(tls.roots, tls.key, tls.certificate)
        channel = grpc.aio.secure_channel(address, credentials, options)
    async with channel:
        call = ClassificationServiceStub(channel).FanOut(fan_out_request(), timeout=DEADLINE_S)
        return await call.code()


async def test_a_caller_who_trusts_the_signer_is_answered(serve: Serve, files: TlsFiles) -> None:
    async with FantailClient(await serve(tls=files), tls=TRUSTING) as client:
        assert len((await client.fan_out(HELLO, timeout=DEADLINE_S)).results) == len(NAMES)


NOT_TALKING = {
    "in the clear": None,
    "trusting another signer": Tls(roots=THEIRS.pem),
    "trusting whom the system trusts": Tls(),
}


@pytest.mark.parametrize("tls", NOT_TALKING.values(), ids=NOT_TALKING)
async def test_a_caller_who_does_not_talk_tls_or_trust_the_signer_gets_nowhere(
    serve: Serve, files: TlsFiles, engine: WatchedEngine, tls: Tls | None
) -> None:
    assert await code(await serve(tls=files), tls) is UNAVAILABLE
    assert engine.requests == []


async def test_a_caller_does_not_talk_to_a_server_whose_certificate_is_for_another_address(
    serve: Serve, tmp_path: Path, engine: WatchedEngine
) -> None:
    elsewhere = install(tmp_path, OURS.server("192.0.2.1"))
    assert await code(await serve(tls=elsewhere), TRUSTING) is UNAVAILABLE
    assert engine.requests == []


async def test_a_caller_who_wants_tls_does_not_talk_in_the_clear(address: str, engine: WatchedEngine) -> None:
    assert await code(address, TRUSTING) is UNAVAILABLE
    assert engine.requests == []


async def test_mutual_tls_lets_in_whom_we_signed(serve: Serve, mutual: TlsFiles) -> None:
    async with FantailClient(await serve(tls=mutual), tls=presenting(OURS.caller())) as client:
        assert len((await client.fan_out(HELLO, timeout=DEADLINE_S)).results) == len(NAMES)


STRANGERS = {
    "none": TRUSTING,
    "signed by others": presenting(THEIRS.caller()),
    "signed by others of our name": presenting(Authority("ours").caller()),
    "run out": presenting(OURS.caller(timedelta(days=-1))),
}


@pytest.mark.parametrize("tls", STRANGERS.values(), ids=STRANGERS)
async def test_mutual_tls_refuses_a_caller_without_a_certificate_of_ours(
    serve: Serve, mutual: TlsFiles, engine: WatchedEngine, tls: Tls
) -> None:
    assert await code(await serve(tls=mutual), tls) is UNAVAILABLE
    assert engine.requests == []


async def test_without_mutual_tls_a_callers_certificate_does_not_matter(serve: Serve, files: TlsFiles) -> None:
    assert await code(await serve(tls=files), presenting(THEIRS.caller())) is OK


async def test_the_client_without_await_takes_the_same_options(serve: Serve, mutual: TlsFiles) -> None:
    address = await serve(tls=mutual)

    def ask() -> int:
        with FantailSyncClient(address, tls=presenting(OURS.caller())) as client:
            return len(client.fan_out(HELLO, timeout=DEADLINE_S).results)

    assert await asyncio.to_thread(ask) == len(NAMES)


async def test_a_renewed_certificate_is_used_from_the_next_connection_on(serve: Serve, files: TlsFiles) -> None:
    address = await serve(tls=files)
    assert [await code(address, Tls(roots=each.pem)) for each in (OURS, THEIRS)] == [OK, UNAVAILABLE]
    install(files.certificate.parent, THEIRS.server())
    assert [await code(address, Tls(roots=each.pem)) for each in (OURS, THEIRS)] == [UNAVAILABLE, OK]


async def test_a_renewed_certificate_leaves_open_connections_alone(serve: Serve, files: TlsFiles) -> None:
    async with FantailClient(await serve(tls=files), tls=TRUSTING) as client:
        for pair in (THEIRS.server(), OURS.server(), THEIRS.server()):
            assert len((await client.fan_out(HELLO, timeout=DEADLINE_S)).results) == len(NAMES)
            install(files.certificate.parent, pair)
        assert len((await client.fan_out(HELLO, timeout=DEADLINE_S)).results) == len(NAMES)


async def test_a_renewed_certificate_as_old_as_the_one_before_is_used(serve: Serve, files: TlsFiles) -> None:
    pair = (files.certificate, files.key)
    for each in pair:
        os.utime(each, (1, 1))
    address = await serve(tls=files)
    install(files.certificate.parent, THEIRS.server())
    for each in pair:
        os.utime(each, (1, 1))
    assert await code(address, Tls(roots=THEIRS.pem)) is OK


async def test_other_signers_of_callers_count_from_the_next_connection_on(serve: Serve, mutual: TlsFiles) -> None:
    address, callers = await serve(tls=mutual), [presenting(each.caller()) for each in (OURS, THEIRS)]
    assert [await code(address, each) for each in callers] == [OK, UNAVAILABLE]
    assert mutual.client_ca is not None
    replace(mutual.client_ca, THEIRS.pem)
    assert [await code(address, each) for each in callers] == [UNAVAILABLE, OK]


Spoil = Callable[[Path], object]


def writing(content: bytes) -> Spoil:
    return lambda path: path.write_bytes(content)


NEW = OURS.server()
SPOILT: dict[str, tuple[str, Spoil]] = {
    "half a certificate": ("server.pem", writing(NEW.certificate[:200])),
    "an empty certificate": ("server.pem", writing(b"")),
    "no certificate": ("server.pem", Path.unlink),
    "another key's certificate": ("server.pem", writing(NEW.certificate)),
    "half a key": ("server.key", writing(NEW.key[:100])),
    "another certificate's key": ("server.key", writing(NEW.key)),
    "a key with a password": ("server.key", writing(encrypted(NEW.key))),
    "no key": ("server.key", Path.unlink),
    "half a signer": ("clients.pem", writing(OURS.pem[:200])),
    "an empty signer": ("clients.pem", writing(b"")),
    "a signer that is none": ("clients.pem", writing(b"signer")),
    "no signer": ("clients.pem", Path.unlink),
}
BY_SPOILT = pytest.mark.parametrize(("name", "spoil"), SPOILT.values(), ids=SPOILT)


@BY_SPOILT
async def test_a_replacement_that_cannot_be_used_leaves_what_was(
    serve: Serve, mutual: TlsFiles, caplog: pytest.LogCaptureFixture, name: str, spoil: Spoil
) -> None:
    address, caller = await serve(tls=mutual), presenting(OURS.caller())
    spoil(mutual.certificate.parent / name)
    assert await code(address, caller) is OK
    assert await code(address, presenting(THEIRS.caller())) is UNAVAILABLE
    told = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert [(each.startswith("TLS: the certificate stays as it was: "), name in each) for each in told] == [
        (True, True)
    ] * len(told)
    assert told


@BY_SPOILT
async def test_a_replacement_that_is_completed_is_used(serve: Serve, mutual: TlsFiles, name: str, spoil: Spoil) -> None:
    address, caller = await serve(tls=mutual), OURS.caller()
    spoil(mutual.certificate.parent / name)
    assert await code(address, presenting(caller)) is OK
    install(mutual.certificate.parent, THEIRS.server(), OURS.pem)
    assert await code(address, with_changes(presenting(caller), roots=THEIRS.pem)) is OK


@BY_SPOILT
async def test_a_server_does_not_start_with_files_that_cannot_be_used(
    serve: Serve, mutual: TlsFiles, name: str, spoil: Spoil
) -> None:
    spoil(mutual.certificate.parent / name)
    with pytest.raises(ConfigurationError, match=rf"^FANTAIL_TLS_.*{name}"):
        await serve(tls=mutual)
