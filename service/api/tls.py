"""TLS credentials whose files are read again when they change, so that certificates are renewed without a restart."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from service.errors import ConfigurationError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. `client_ca`: who signs the certificates that callers must present; None: callers present none."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def stamps(self) -> tuple[tuple[int, ...], ...]:
        """What changes when one of the files does, be it another one of the same age. Raises OSError."""
        files = (self.certificate, self.key, *([self.client_ca] if self.client_ca else []))
        return tuple((each.st_ino, each.st_ctime_ns, each.st_size) for each in (file.stat() for file in files))

    def read(self) -> grpc.ServerCertificateConfiguration:
        """The files' content. Raises OSError."""
        pair = (self.key.read_bytes(), self.certificate.read_bytes())
        signers = self.client_ca.read_bytes() if self.client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], signers)


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files. Raises ConfigurationError when they cannot be read or used."""
    try:
        stamps, configuration = files.stamps(), files.read()
    except OSError as error:
        raise ConfigurationError(f"FANTAIL_TLS_…: {error.filename} cannot be read: {type(error).__name__}") from error
    require_usable(files)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        """Asked at every handshake; None leaves everything as it was, as do files that do not fit together yet."""
        nonlocal stamps
        try:
            if (now := files.stamps()) == stamps:
                return None
            require_usable(files)
            stamps, found = now, files.read()
        except (OSError, ConfigurationError) as error:
            logger.error("TLS: the certificate stays as it was: %s", error)
            return None
        logger.info("TLS: the certificate was read anew")
        return found

    # The types of grpc do not know that None means no change; its documentation does.
    return grpc.dynamic_ssl_server_credentials(configuration, changed, files.client_ca is not None)  # type: ignore[arg-type]


def require_usable(files: TlsFiles) -> None:
    """Raise ConfigurationError for what gRPC would only fail handshakes with: no pair, or signers that are none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A password, although no key may want one: without it OpenSSL would ask the terminal and wait.
        context.load_cert_chain(files.certificate, files.key, password="")
    except OSError as error:
        raise ConfigurationError(
            f"FANTAIL_TLS_CERTIFICATE and FANTAIL_TLS_KEY: {files.certificate} and {files.key} are no PEM certificate "
            "and its unencrypted key"
        ) from error
    try:
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
    except OSError as error:
        raise ConfigurationError(f"FANTAIL_TLS_CLIENT_CA: {files.client_ca} holds no PEM certificates") from error
