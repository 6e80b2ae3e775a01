"""From settings to how a server listens: its limits, its files of keys and certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.api.servicer import Limits
from service.api.tls import TlsFiles
from service.errors import ConfigurationError
from service.keys import KeyRing, new_key
from service.serve import listening_of
from service.settings import Settings

CERTIFICATE, KEY, SIGNERS = Path("server.pem"), Path("server.key"), Path("clients.pem")


def settings(**values: Any) -> Settings:
    return Settings.model_construct(**values)


def test_a_server_listens_as_the_settings_say() -> None:
    found = listening_of(
        settings(
            address="127.0.0.1:7", max_message_bytes=2048, longest_seconds=7.0, grace_seconds=3.0, max_turns=5,
            max_batch=6, reflection=False,
        )
    )  # fmt: skip
    assert (found.address, found.max_message_bytes, found.reflection) == ("127.0.0.1:7", 2048, False)
    assert (found.longest_seconds, found.grace_seconds) == (7.0, 3.0)
    assert found.limits == Limits(max_turns=5, max_batch=6, follow_seconds=7.0, follow_bytes=2048)


def test_by_default_everybody_on_this_machine_is_let_in_in_the_clear() -> None:
    found = listening_of(settings())
    assert (found.address, found.keys, found.tls) == ("127.0.0.1:50051", None, None)


@pytest.mark.parametrize("signers", [None, SIGNERS])
def test_tls_is_made_of_its_files(signers: Path | None) -> None:
    found = listening_of(settings(tls_certificate=CERTIFICATE, tls_key=KEY, tls_client_ca=signers))
    assert found.tls == TlsFiles(CERTIFICATE, KEY, signers)


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, str]:
    """A file of one key that is not isolated, and the key."""
    key, sha256 = new_key()
    (tmp_path / "keys.toml").write_text(f'[[key]]\nname = "support"\nsha256 = "{sha256}"\nscopes = ["classify"]\n')
    return tmp_path / "keys.toml", key


@pytest.mark.parametrize("isolate", [False, True])
def test_keys_are_read_from_their_file_and_callers_isolated_on_request(keys: tuple[Path, str], isolate: bool) -> None:
    ring = listening_of(settings(keys=keys[0], isolate_callers=isolate)).keys
    assert isinstance(ring, KeyRing)
    found = ring.find(keys[1])
    assert found is not None
    assert bool(ring.salt(found)) == isolate


def test_a_file_of_keys_that_is_not_there_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^FANTAIL_KEYS: .*nowhere\.toml cannot be read"):
        listening_of(settings(keys=tmp_path / "nowhere.toml"))
