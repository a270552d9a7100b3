"""A second implementation of docs/encryption.md, for reading only, on other foundations than the first.

Nothing of nearlite is used: the standard library, and AES-GCM and HKDF of the ``cryptography`` package.
"""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand


def expand(key: bytes, info: bytes) -> bytes:
    return HKDFExpand(algorithm=SHA256(), length=32, info=info).derive(key)


class SealedFile(NamedTuple):
    page_size: int
    file_id: bytes
    keys: dict[int, bytes]  # by generation

    @classmethod
    def of(cls, block: bytes, secret: bytes) -> SealedFile:
        """Of the first 4096 bytes of a file, with a key or a passphrase."""
        copies = [block[:2048], block[2048:]]
        whole = [c for c in copies if hashlib.sha256(c[:2032]).digest()[:16] == c[2032:]]
        copy = max(whole, key=lambda c: c[48:56])
        assert copy[:20] + copy[24:28] == b"nearlite sealed\0\0\0\0\1\1\0\0\0"
        page_size, generation, previous = struct.unpack_from(">I4xHH", copy, 20)
        for lock in (copy[64:192], copy[192:320]):
            if lock[0] == 1:
                wrapping = expand(secret, b"nearlite: wraps data keys\0" + lock[4:20])
            elif lock[0] == 2:
                n = 1 << lock[1]
                wrapping = hashlib.scrypt(
                    secret, salt=lock[4:20], n=n, r=8, p=1, maxmem=1100 * n, dklen=32
                )
            else:
                continue
            data = AESGCM(wrapping).decrypt(lock[20:32], lock[32:112], copy[:64] + lock[:32])
            return cls(page_size, copy[32:48], {generation: data[:32], previous: data[32:]})
        raise AssertionError("no lock")

    def page(self, number: int, slot: bytes) -> bytes:
        sealed, nonce, tag, key_id = (
            slot[: self.page_size], slot[-32:-20], slot[-20:-4], slot[-4:],
        )  # fmt: skip
        generation, epoch = struct.unpack(">HH", key_id)
        key = expand(self.keys[generation], struct.pack(">16sI8x", b"nearlite: pages\0", epoch))
        aad = b"nl-page1" + key_id + struct.pack(">I", number) + self.file_id
        return AESGCM(key).decrypt(nonce, sealed + tag, aad)

    def frame(self, number: int, sealed: bytes) -> bytes:
        """Header of 24 bytes and page."""
        plain, nonce, key_id, tag = sealed[:16], sealed[16:28], sealed[28:32], sealed[32:48]
        generation, epoch = struct.unpack(">HH", key_id)
        info = b"nearlite: frames\0" + struct.pack(">I", epoch) + plain[8:]
        aad = b"nl-frame" + key_id + struct.pack(">I", number) + self.file_id + plain
        key = expand(self.keys[generation], info)
        return plain + AESGCM(key).decrypt(nonce, sealed[48:] + tag, aad)

    def record(self, name: str, number: int, sealed: bytes) -> bytes:
        """Of a file beside the database."""
        body, nonce, tag, key_id = sealed[:-32], sealed[-32:-20], sealed[-20:-4], sealed[-4:]
        generation, epoch = struct.unpack(">HH", key_id)
        key = expand(self.keys[generation], b"nearlite: records\0" + struct.pack(">I8x", epoch))
        aad = b"nl-recrd" + key_id + struct.pack(">I", number) + self.file_id + name.encode()
        return AESGCM(key).decrypt(nonce, body + tag, aad)
