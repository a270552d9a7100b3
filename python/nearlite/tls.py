"""The server's side of TLS: certificate and key, read before anything is started."""

from __future__ import annotations

import ssl
from pathlib import Path

from nearlite.errors import ProgrammingError


def server_context(certificate: Path, key: Path | None = None) -> ssl.SSLContext:
    """What a server speaks TLS with: 1.2 or newer.

    Args:
      certificate: PEM file with its certificate and those that lead from it to the CA's.
      key: PEM file with the private key, without a password; None: it is in the same file.

    Raises:
      ProgrammingError: what is wrong with the files.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    for path in (certificate, key or certificate):
        try:
            with path.open("rb"):
                pass
        except OSError as error:
            raise ProgrammingError(f"{path} cannot be read: {error.strerror}") from None
    try:
        context.load_cert_chain(certificate, key, password=_refuse)
    except _PasswordError:
        raise ProgrammingError(
            f"the key in {key or certificate} has a password; give one without (openssl pkey -in ...)"
        ) from None
    except ssl.SSLError as error:
        raise ProgrammingError(_why(error, certificate, key)) from None
    return context


class _PasswordError(Exception):
    pass


def _refuse() -> str:
    raise _PasswordError  # otherwise OpenSSL would ask on the terminal


def _why(error: ssl.SSLError, certificate: Path, key: Path | None) -> str:
    if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
        return f"the key in {key or certificate} is not that of the certificate in {certificate}"
    if error.reason in ("EE_KEY_TOO_SMALL", "CA_MD_TOO_WEAK", "CA_KEY_TOO_SMALL"):
        return f"the certificate in {certificate} is too weak for TLS"
    # OpenSSL does not say in which of the files.
    if b"-----BEGIN CERTIFICATE-----" not in certificate.read_bytes():
        return f"{certificate} holds no certificate in PEM"
    if b"PRIVATE KEY-----" not in (key or certificate).read_bytes():
        return f"{key or certificate} holds no private key in PEM"
    return f"{certificate} and its key cannot be used: {(error.reason or 'it is broken').lower()}"
