"""AES-256-GCM against NIST's test vectors (CAVP), as the package cryptography-vectors carries them."""

from __future__ import annotations

from collections.abc import Iterator

import cryptography_vectors
import pytest

from nearlite._native._lib import SealBrokenError
from nearlite._native.sealing import gcm_open, gcm_seal


def vectors(name: str) -> Iterator[dict[str, bytes | None]]:
    """Those with nonces of 96 bits and whole tags; ``PT`` is None where the tag is to be refused."""
    with cryptography_vectors.open_vector_file(f"ciphers/AES/GCM/{name}", "r") as file:
        lines = file.read().splitlines()
    section: dict[str, int] = {}
    one: dict[str, bytes | None] = {}
    fits = False
    for line in [*lines, "Count = "]:
        key, equals, value = (part.strip() for part in line.strip("[]").partition("="))
        if line.startswith("["):
            section[key] = int(value)
        elif key == "Count":
            if "Key" in one and fits:
                yield one
            one, fits = {}, (section.get("IVlen"), section.get("Taglen")) == (96, 128)
        elif equals:
            one[key] = bytes.fromhex(value)
        elif key == "FAIL":
            one["PT"] = None


def test_sealing() -> None:
    done = 0
    for v in vectors("gcmEncryptExtIV256.rsp"):
        assert gcm_seal(v["Key"], v["IV"], v["AAD"], v["PT"]) == (v["CT"], v["Tag"])
        done += 1
    assert done == 375


def test_opening() -> None:
    opened = refused = 0
    for v in vectors("gcmDecrypt256.rsp"):
        if v["PT"] is None:
            with pytest.raises(SealBrokenError):
                gcm_open(v["Key"], v["IV"], v["AAD"], v["CT"], v["Tag"])
            refused += 1
        else:
            assert gcm_open(v["Key"], v["IV"], v["AAD"], v["CT"], v["Tag"]) == v["PT"]
            opened += 1
    assert (opened + refused, refused > 100) == (375, True)
