"""A CA that is thrown away, and what it signs."""

from __future__ import annotations

import subprocess
from pathlib import Path


def openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def signed(folder: Path, name: str, *extensions: str) -> None:
    """`name`.key and `name`.pem (certificate and key), signed by the CA."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl(
        folder, "req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"
    )
    (folder / f"{name}.ext").write_text("\n".join(extensions))
    sign = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"]
    openssl(
        folder, "x509", "-req", "-in", f"{name}.csr", *sign, "-out", f"{name}.crt",
        "-extfile", f"{name}.ext",
    )  # fmt: skip
    both = (folder / f"{name}.crt").read_text() + (folder / f"{name}.key").read_text()
    (folder / f"{name}.pem").write_text(both)


def made(folder: Path) -> Path:
    """A folder with ca.pem, server.pem (for localhost) and client.pem."""
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    openssl(
        folder, "req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2",
        "-subj", "/CN=throw-away", "-addext", "keyUsage=critical,keyCertSign",
    )  # fmt: skip
    signed(folder, "server", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    signed(folder, "client", "extendedKeyUsage=clientAuth")
    return folder
