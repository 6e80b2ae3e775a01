"""Certificates made on the spot: authorities, what they sign, and the files that a server reads."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from service.api.tls import TlsFiles

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Pair:
    """PEM of a certificate and its key."""

    certificate: bytes
    key: bytes


class Authority:
    """Signs certificates. `pem`: what those who trust it need."""

    def __init__(self, name: str = "authority") -> None:
        self._key, self._name = ec.generate_private_key(ec.SECP256R1()), _named(name)
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        made = _builder(self._name, self._name, self._key, DAY).add_extension(constraints, critical=True)
        self.pem = made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def server(self, host: str = "127.0.0.1") -> Pair:
        """A certificate for a server at an address."""
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
        return self._signed("server", DAY, names)

    def caller(self, valid: timedelta = DAY) -> Pair:
        """A certificate for a caller. `valid`: for so long from now; negative: until so long ago."""
        return self._signed("caller", valid)

    def _signed(self, name: str, valid: timedelta, *extensions: x509.ExtensionType) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        made = _builder(_named(name), self._name, key, valid)
        for each in extensions:
            made = made.add_extension(each, critical=False)
        return Pair(made.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM), _key_pem(key))


def encrypted(key: bytes, password: bytes = b"secret") -> bytes:
    """The same key, PEM, but readable only with a password."""
    found = load_pem_private_key(key, None)
    assert isinstance(found, ec.EllipticCurvePrivateKey)
    return _key_pem(found, BestAvailableEncryption(password))


def install(folder: Path, pair: Pair, client_ca: bytes | None = None) -> TlsFiles:
    """Put files where a server reads them, each replaced as a whole, the key first."""
    replace(folder / "server.key", pair.key)
    replace(folder / "server.pem", pair.certificate)
    if client_ca is not None:
        replace(folder / "clients.pem", client_ca)
    return TlsFiles(folder / "server.pem", folder / "server.key", folder / "clients.pem" if client_ca else None)


def replace(path: Path, content: bytes) -> None:
    """Write a file as a whole beside the one it replaces."""
    path.with_suffix(".new").write_bytes(content)
    path.with_suffix(".new").replace(path)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, valid: timedelta
) -> x509.CertificateBuilder:
    until = datetime.now(UTC) + valid
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(until - 2 * DAY)
        .not_valid_after(until)
    )


def _key_pem(key: ec.EllipticCurvePrivateKey, how: KeySerializationEncryption | None = None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how or NoEncryption())
