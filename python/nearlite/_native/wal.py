"""Handles on frame.c: the frames of a WAL and their checksum."""

from __future__ import annotations

from nearlite._native._lib import check, ffi, lib, new_error
from nearlite._native.frames import Buffer, lend


class WalChain:
    """Where checking or writing the frames of a WAL stands.

    Attributes:
      page_size: bytes.
    """

    __slots__ = ("_chain", "page_size")

    def __init__(self, page_size: int, salt: tuple[int, int], *, big_endian: bool = False) -> None:
        self._chain = ffi.new("nl_wal_chain *")
        self._chain.page_size, self._chain.big_endian = page_size, big_endian
        self._chain.salt[0], self._chain.salt[1] = salt
        self.page_size = page_size

    @classmethod
    def decode(cls, header: Buffer) -> WalChain:
        """Begin behind a WAL header (32 bytes).

        Raises:
          FormatError: not a WAL header, or its checksum is wrong.
        """
        found, err = ffi.new("nl_wal_chain *"), new_error()
        check(lib.nl_wal_header_decode(lend(header), len(header), found, err), err)
        chain = cls(found.page_size, (0, 0))
        chain._chain = found
        return chain

    @property
    def checksum(self) -> tuple[int, int]:
        """Checksum of the last frame accepted or written, or of the header."""
        return self._chain.sum[0], self._chain.sum[1]

    @property
    def salt(self) -> tuple[int, int]:
        """The salt pair that every frame of this WAL repeats."""
        return self._chain.salt[0], self._chain.salt[1]

    def encode_header(self, sequence: int) -> bytes:
        """The 32 bytes of a WAL header; the chain begins anew behind it."""
        out = ffi.new("uint8_t[32]")
        lib.nl_wal_header_encode(self._chain, sequence, out)
        return bytes(ffi.buffer(out))

    def verify(self, frames: Buffer) -> tuple[int, int]:
        """How many whole frames continue the chain, and how many up to the last commit."""
        committed = ffi.new("uint32_t *")
        count = len(frames) // (24 + self.page_size)
        valid = lib.nl_frames_verify(self._chain, lend(frames), count, committed)
        return int(valid), int(committed[0])

    def encode_frame(self, number: int, commit: int, page: Buffer) -> bytes:
        """One frame: 24 bytes of header, the page. `commit` is 0 or the database size in pages."""
        out = ffi.new("uint8_t[]", 24 + self.page_size)
        if len(page) != self.page_size:
            raise ValueError(f"a page of this WAL has {self.page_size} bytes, not {len(page)}")
        lib.nl_frame_encode(self._chain, number, commit, lend(page), out)
        return bytes(ffi.buffer(out))


def wal_checksum(
    data: Buffer, start: tuple[int, int] = (0, 0), *, big_endian: bool = False
) -> tuple[int, int]:
    """SQLite's WAL checksum of a multiple of 8 bytes, continued from `start`."""
    if len(data) % 8:
        raise ValueError("the WAL checksum is defined for multiples of 8 bytes")
    s = ffi.new("uint32_t[2]", start)
    lib.nl_wal_checksum(lend(data), len(data), big_endian, s)
    return s[0], s[1]
