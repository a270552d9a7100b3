"""Compact page sets as they travel (docs/formats.md, version 2).

Whoever asks from a known state looks at the first byte of the answer: `is_compact` tells which kind came.
A set of many new pages is worth compressing: `pack` puts it into a zstd frame.
"""

from __future__ import annotations

from typing import Final

from nearlite import zstd
from nearlite._native import compact
from nearlite._native._lib import NativeError
from nearlite._native.compact import Standing
from nearlite._native.frames import CHUNK_MAX_PAGE_BYTES, CHUNK_MAX_PAGES
from nearlite.wire.items import Buffer, bad

_PACKED: Final = b"\xd3"
# Its head: that byte, u32 bytes of the set, u32 bytes of the zstd frame that follows.
_PACKED_HEAD: Final = 9
LARGEST_COMPACT: Final = CHUNK_MAX_PAGE_BYTES + compact.bound(0, CHUNK_MAX_PAGES)
"""Bytes that no compact set exceeds."""
# Smaller ones hold little but copies already.
_WORTH_PACKING: Final = 2048


def is_compact(first: Buffer) -> bool:
    """Whether the bytes that begin so (one at least) are a compact set, not one of version 1."""
    return bytes(first[:1]) in (compact.FIRST_BYTE, _PACKED)


def pack(data: bytes, level: int = 1) -> bytes:
    """The set in a zstd frame, unless that saves less than a tenth."""
    if len(data) < _WORTH_PACKING:
        return data
    stored = zstd.compress(data, level)
    packed = _PACKED + len(data).to_bytes(4, "big") + len(stored).to_bytes(4, "big") + stored
    return packed if len(packed) * 10 <= len(data) * 9 else data


def _unpack(data: Buffer) -> Buffer:
    if bytes(data[:1]) != _PACKED:
        return data
    size = int.from_bytes(data[1:5], "big")
    stored = int.from_bytes(data[5:9], "big")
    # Checked before anything of that size is made.
    if not stored < size <= LARGEST_COMPACT:
        raise bad(f"{size} bytes packed into {stored}")
    if len(data) != _PACKED_HEAD + stored:
        raise bad("it is not as long as it says")
    try:
        return zstd.decompress(data[_PACKED_HEAD:], size)
    except zstd.ZstdError as error:
        raise bad(str(error)) from error


class CompactSet:
    """A page set told from what its reader has.

    Args:
      data: the set, packed or not, and nothing else.
      start: where the replica stood when it asked.

    Attributes:
      header: as a set of version 1 would have it.
      data: all of the set, unpacked.
      start: ``nl_state *``, for the applier.

    Raises:
      AnswerError: damaged, malformed, or it leads from another state.
    """

    __slots__ = ("data", "header", "start")

    def __init__(self, data: Buffer, start: Standing) -> None:
        self.data = _unpack(data)
        self.start = compact.standing(start)
        try:
            self.header = compact.header_of(self.data, self.start)
        except NativeError as error:
            raise bad(str(error)) from error
