"""Handles on key.c, header_block.c and codec.c: keys, header blocks, sealed pages and frames."""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

from nearlite._native._lib import check, ffi, lib, new_error
from nearlite._native.frames import Buffer, lend

_log = logging.getLogger("nearlite")

BLOCK_SIZE: int = lib.NL_BLOCK_SIZE
SEAL_SIZE: int = lib.NL_SEAL_SIZE
KEY_SIZE: int = lib.NL_KEY_SIZE
FRAME_HEADER = 24


class Key:
    """A user's key in memory that is locked, left out of core files, and wiped. For any thread.

    Attributes:
      handle: the ``nl_key *``.
    """

    __slots__ = ("handle",)

    def __init__(self, key: Any) -> None:
        self.handle = ffi.gc(key, lib.nl_key_free)

    def become(self, other: Key) -> None:
        """From here on it is the other one, for all who have it."""
        err = new_error()
        check(lib.nl_key_become(self.handle, other.handle, err), err)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and bool(lib.nl_key_same(self.handle, other.handle))

    __hash__ = None  # type: ignore[assignment] # what it is equal to changes

    @classmethod
    def of_bytes(cls, key: Buffer) -> Key:
        """Of 32 bytes.

        Raises:
          KeyRefusedError: another length.
        """
        out, err = ffi.new("nl_key **"), new_error()
        check(lib.nl_key_raw(lend(key), len(key), out, err), err)
        return cls(out[0])

    @classmethod
    def of_phrase(cls, phrase: Buffer, *, cost: int = lib.NL_SCRYPT_LOG2) -> Key:
        """Of a passphrase, UTF-8; `cost` is log2 of scrypt's N for files sealed with it from now on.

        Raises:
          KeyRefusedError: empty, above 1,024 bytes, or an impossible cost.
        """
        out, err = ffi.new("nl_key **"), new_error()
        check(lib.nl_key_phrase(lend(phrase), len(phrase), cost, out, err), err)
        return cls(out[0])


def random_key() -> bytes:
    """32 bytes nobody can predict."""
    out, err = ffi.new("uint8_t[]", KEY_SIZE), new_error()
    check(lib.nl_key_random(out, err), err)
    return bytes(ffi.buffer(out))


class Block(NamedTuple):
    """What a header block says to anybody.

    Attributes:
      page_size: bytes.
      generation: of the data key that seals, from 1.
      previous: of the one that still opens while the key is changed, or 0.
      phrases: bit i: the i-th of the two keys is a passphrase.
      sequence: which of two copies is newer.
      file_id: 16 random bytes.
    """

    page_size: int
    generation: int
    previous: int
    phrases: int
    sequence: int
    file_id: bytes

    @classmethod
    def look(cls, block: Buffer) -> Block:
        """Read the 4096 bytes at the beginning of a sealed file, without a key.

        Raises:
          FormatError: not a header block, another version, or damaged in both copies.
        """
        _whole_block(block)
        found, err = ffi.new("nl_block *"), new_error()
        check(lib.nl_block_look(lend(block), found, err), err)
        return cls(
            found.page_size, found.generation, found.previous, found.phrases, found.sequence,
            bytes(ffi.buffer(found.file_id)),
        )  # fmt: skip


def _whole_block(block: Buffer) -> None:
    if len(block) != BLOCK_SIZE:
        raise ValueError(f"a header block has {BLOCK_SIZE} bytes, not {len(block)}")


def is_sealed(first: Buffer) -> bool:
    """Whether a file that begins with these bytes (16 or more) is sealed."""
    return len(first) >= 16 and bool(lib.nl_block_is_sealed(lend(first)))


class Codec:
    """The data keys of one sealed file; one thread at a time.

    Attributes:
      page_size: bytes.
    """

    __slots__ = ("_codec", "page_size")

    def __init__(self, codec: Any) -> None:
        self._codec = ffi.gc(codec, lib.nl_codec_free)
        self.page_size = int(lib.nl_codec_page_size(codec))

    @classmethod
    def open(cls, block: Buffer, key: Key) -> Codec:
        """Of an existing file, by its header block.

        Raises:
          KeyRefusedError: not with this key.
          FormatError: see Block.look.
        """
        _whole_block(block)
        out, err = ffi.new("nl_codec **"), new_error()
        check(lib.nl_codec_open(lend(block), key.handle, out, err), err)
        return cls(out[0])

    @classmethod
    def create(cls, page_size: int, key: Key) -> tuple[Codec, bytes]:
        """Of a new file: the codec, and the block to be written at its beginning."""
        out, err = ffi.new("nl_codec **"), new_error()
        block = ffi.new("uint8_t[]", BLOCK_SIZE)
        check(lib.nl_codec_create(page_size, key.handle, block, out, err), err)
        return cls(out[0]), bytes(ffi.buffer(block))

    @property
    def key_id(self) -> int:
        """Of the seal that the next page gets: generation << 16 | epoch."""
        return int(lib.nl_codec_key_id(self._codec))

    def seal_page(self, number: int, page: Buffer) -> bytes:
        """A page's slot, 32 bytes longer than the page."""
        self._sized(page, self.page_size)
        slot, err = ffi.new("uint8_t[]", self.page_size + SEAL_SIZE), new_error()
        check(lib.nl_codec_seal_page(self._codec, number, lend(page), slot, err), err)
        return bytes(ffi.buffer(slot))

    def open_page(self, number: int, slot: Buffer) -> bytes:
        """The page in a slot.

        Raises:
          SealBrokenError: not what was sealed as this page of this file.
          KeyRefusedError: sealed by a data key that this codec does not have.
        """
        self._sized(slot, self.page_size + SEAL_SIZE)
        page, err = ffi.new("uint8_t[]", self.page_size), new_error()
        check(lib.nl_codec_open_page(self._codec, number, lend(slot), page, err), err)
        return bytes(ffi.buffer(page))

    def seal_frames(self, first: int, frames: Buffer) -> bytes:
        """WAL frames, header and page each, as they are kept; `first` is a number from 1."""
        size = FRAME_HEADER + self.page_size
        count = self._sized(frames, size)
        out, err = ffi.new("uint8_t[]", count * (size + SEAL_SIZE)), new_error()
        check(lib.nl_codec_seal_frames(self._codec, first, count, lend(frames), out, err), err)
        return bytes(ffi.buffer(out))

    def open_frames(self, first: int, sealed: Buffer) -> bytes:
        """The frames in their sealed form.

        Raises:
          SealBrokenError: `frame` says which is not what was sealed at its place in this file.
          KeyRefusedError: sealed by a data key that this codec does not have.
        """
        size = FRAME_HEADER + self.page_size
        count = self._sized(sealed, size + SEAL_SIZE)
        out, err = ffi.new("uint8_t[]", count * size), new_error()
        check(lib.nl_codec_open_frames(self._codec, first, count, lend(sealed), out, err), err)
        return bytes(ffi.buffer(out))

    def seal_record(self, name: str, number: int, record: Buffer) -> bytes:
        """A record of a file beside the database, 32 bytes longer.

        Args:
          name: of what it belongs to, at most 64 bytes of UTF-8.
          number: of the record there.
        """
        out, err = ffi.new("uint8_t[]", len(record) + SEAL_SIZE), new_error()
        what = _record_name(name)
        check(
            lib.nl_codec_seal_record(
                self._codec, what, number, lend(record), len(record), out, err
            ),
            err,
        )
        return bytes(ffi.buffer(out))

    def open_record(self, name: str, number: int, sealed: Buffer) -> bytes:
        """The record that was sealed.

        Raises:
          SealBrokenError: it is not what was sealed under that name and number, for this file.
          KeyRefusedError: sealed by a data key that this codec does not have.
        """
        out, err = ffi.new("uint8_t[]", max(1, len(sealed) - SEAL_SIZE)), new_error()
        what = _record_name(name)
        check(
            lib.nl_codec_open_record(
                self._codec, what, number, lend(sealed), len(sealed), out, err
            ),
            err,
        )
        return bytes(ffi.buffer(out))[: len(sealed) - SEAL_SIZE]

    def _sized(self, data: Buffer, size: int) -> int:
        if not data or len(data) % size:
            raise ValueError(f"{len(data)} bytes are not a multiple of {size}")
        return len(data) // size


def _record_name(name: str) -> bytes:
    encoded = name.encode()
    if len(encoded) > lib.NL_RECORD_NAME_MAX:
        raise ValueError(f"{name} is too long a name for a record")
    return encoded


def tell_reports() -> None:
    """Log what was met in sealed files and is no failure: where a log ended early, say (rule D5)."""
    line = ffi.new("char[]", lib.NL_REPORT_MAX)
    while lib.nl_report_take(line):
        _log.warning("%s", ffi.string(line).decode("utf-8", "replace"))


def key_handle(key: Key | None) -> Any:
    """What C functions take: the ``nl_key *``, or NULL for a plain file."""
    return ffi.NULL if key is None else key.handle


def gcm_seal(key: Buffer, nonce: Buffer, aad: Buffer, message: Buffer) -> tuple[bytes, bytes]:
    """AES-256-GCM of one message: sealed bytes and tag. For test vectors."""
    out, tag, err = ffi.new("uint8_t[]", len(message) or 1), ffi.new("uint8_t[16]"), new_error()
    _gcm_sized(key, nonce)
    check(
        lib.nl_gcm_seal(
            lend(key), lend(nonce), lend(aad), len(aad), lend(message), len(message), out, tag, err
        ),
        err,
    )
    return bytes(ffi.buffer(out))[: len(message)], bytes(ffi.buffer(tag))


def gcm_open(key: Buffer, nonce: Buffer, aad: Buffer, sealed: Buffer, tag: Buffer) -> bytes:
    """The message that was sealed.

    Raises:
      SealBrokenError: these are not the bytes that were.
    """
    out, err = ffi.new("uint8_t[]", len(sealed) or 1), new_error()
    _gcm_sized(key, nonce)
    if len(tag) != lib.NL_TAG_SIZE:
        raise ValueError("a tag has 16 bytes")
    check(
        lib.nl_gcm_open(
            lend(key),
            lend(nonce),
            lend(aad),
            len(aad),
            lend(sealed),
            len(sealed),
            lend(tag),
            out,
            err,
        ),
        err,
    )
    return bytes(ffi.buffer(out))[: len(sealed)]


def _gcm_sized(key: Buffer, nonce: Buffer) -> None:
    if len(key) != KEY_SIZE or len(nonce) != lib.NL_NONCE_SIZE:
        raise ValueError("a key has 32 bytes, a nonce 12")
