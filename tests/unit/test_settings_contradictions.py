"""Settings that are right one by one and wrong together, and which addresses only this machine can reach."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from service.errors import ConfigurationError
from service.settings import PREFIX, Settings, contradictions, is_loopback, load_settings

PEM = Path("some.pem")
TLS = {"tls_certificate": PEM, "tls_key": PEM}
KEYS = {"keys": Path("keys.toml")}
ANYWHERE = {"address": "0.0.0.0:50051"}

PAIR = "FANTAIL_TLS_CERTIFICATE and FANTAIL_TLS_KEY: set both or neither"
CLIENT_CA = "FANTAIL_TLS_CLIENT_CA: needs FANTAIL_TLS_CERTIFICATE and FANTAIL_TLS_KEY"
ADMIN = "FANTAIL_ADMIN: needs FANTAIL_KEYS with a key of scope admin; nobody may operate a server without one"
ISOLATE = "FANTAIL_ISOLATE_CALLERS: needs FANTAIL_KEYS, which tell callers apart"
STEP = (
    "FANTAIL_STEP_TOKENS: 128 is less than FANTAIL_CONCURRENT_SEQUENCES, which is 129; a step has to hold a token of "
    "each, so lower that too"
)
EXPOSED = (
    "FANTAIL_ADDRESS: beyond loopback FANTAIL_TLS_CERTIFICATE, FANTAIL_TLS_KEY and FANTAIL_KEYS are needed; "
    "behind a proxy that adds both, set FANTAIL_ALLOW_INSECURE=true"
)


def contradicting(**values: Any) -> list[str]:
    return list(contradictions(Settings.model_construct(**values)))


REFUSED = {
    "a step shorter than its sequences": ({"step_tokens": 128, "concurrent_sequences": 129}, [STEP]),
    "a certificate without key": ({"tls_certificate": PEM}, [PAIR]),
    "a key without certificate": ({"tls_key": PEM}, [PAIR]),
    "a client CA without TLS": ({"tls_client_ca": PEM}, [CLIENT_CA]),
    "a client CA with a key alone": ({"tls_client_ca": PEM, "tls_key": PEM}, [PAIR, CLIENT_CA]),
    "admin without keys": ({"admin": True}, [ADMIN]),
    "admin behind a proxy without keys": ({"admin": True, "allow_insecure": True} | ANYWHERE, [ADMIN]),
    "isolation without keys": ({"isolate_callers": True}, [ISOLATE]),
    "beyond loopback with nothing": (ANYWHERE, [EXPOSED]),
    "beyond loopback without keys": (ANYWHERE | TLS, [EXPOSED]),
    "beyond loopback without TLS": (ANYWHERE | KEYS, [EXPOSED]),
    "beyond loopback with client certificates alone": (ANYWHERE | TLS | {"tls_client_ca": PEM}, [EXPOSED]),
    "all at once": (
        ANYWHERE | {"tls_key": PEM, "tls_client_ca": PEM, "admin": True, "isolate_callers": True},
        [PAIR, CLIENT_CA, ADMIN, ISOLATE, EXPOSED],
    ),
}


@pytest.mark.parametrize(("values", "sentences"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_together_is_told(values: dict[str, Any], sentences: list[str]) -> None:
    assert contradicting(**values) == sentences


ALLOWED: dict[str, dict[str, Any]] = {
    "the defaults": {},
    "loopback with keys": KEYS,
    "loopback with TLS": TLS,
    "loopback with client certificates": TLS | {"tls_client_ca": PEM},
    "loopback with admin": KEYS | {"admin": True},
    "loopback with isolation": KEYS | {"isolate_callers": True},
    "beyond loopback with TLS and keys": ANYWHERE | TLS | KEYS,
    "beyond loopback with everything": ANYWHERE | TLS | KEYS | {"tls_client_ca": PEM, "admin": True},
    "behind a proxy": ANYWHERE | {"allow_insecure": True},
    "behind a proxy with keys": ANYWHERE | KEYS | {"allow_insecure": True},
}


@pytest.mark.parametrize("values", ALLOWED.values(), ids=ALLOWED)
def test_what_goes_together_is_accepted(values: dict[str, Any]) -> None:
    assert contradicting(**values) == []


def test_contradictions_of_the_environment_are_told_with_unknown_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [each for each in os.environ if each.upper().startswith(PREFIX)]:
        monkeypatch.delenv(name)
    for name, value in {"FANTAIL_ADMIN": "true", "FANTAIL_ADDRESS": "0.0.0.0:1", "FANTAIL_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as refusal:
        load_settings()
    assert refusal.value.message.splitlines()[:-1] == ["FANTAIL_PORT: unknown setting", ADMIN, EXPOSED]


LOOPBACK = ["127.0.0.1:1", "127.0.0.2:50051", "127.255.255.255:1", "[::1]:50051", "[0:0:0:0:0:0:0:1]:1", "localhost:1"]
BEYOND = [
    "0.0.0.0:50051", "0:50051", "128.0.0.1:1", "126.255.255.255:1", "10.0.0.1:1", "192.168.1.1:1", "169.254.0.1:1",
    "[::]:50051", "[::2]:1", "[fe80::1]:1", "[::127.0.0.1]:1", "[127.0.0.1]:1", "*:50051", "fantail.example:50051",
    "localhost.example:1", "127.0.0.1.example:1", "127.1:1", "dns:localhost:1", "ipv4:127.0.0.1:1", ":50051",
]  # fmt: skip


@pytest.mark.parametrize("address", LOOPBACK)
def test_loopback_is_reached_from_this_machine_alone(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize("address", BEYOND)
def test_every_other_address_counts_as_exposed(address: str) -> None:
    assert not is_loopback(address)


@pytest.mark.parametrize("address", ["::1:50051", "::0", "::1:1"])
def test_ipv6_without_brackets_counts_as_exposed_for_grpc_takes_its_port_for_a_part_of_it(address: str) -> None:
    assert not is_loopback(address)
