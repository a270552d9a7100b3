"""Compact page sets as they travel (docs/formats.md, version 2): one item, whose first bytes say how long.

Whoever asks from a known state looks at the first byte of the answer: `is_compact` says which reader
takes the rest. A set of many new pages is worth compressing: `pack` puts it into a zstd frame.
"""

from __future__ import annotations

from typing import Final

from nearlite import zstd
from nearlite._native import compact
from nearlite._native._lib import NativeError
from nearlite._native.applier import State
from nearlite._native.compact import Compact
from nearlite._native.frames import CHUNK_MAX_PAGE_BYTES, CHUNK_MAX_PAGES
from nearlite.errors import AnswerError
from nearlite.wire.items import Buffer, bad

_PACKED: Final = b"\xd3"
# From so many bytes the length is known, and no set is shorter.
_HEAD: Final = 7
_PACKED_HEAD: Final = 9
_LARGEST: Final = CHUNK_MAX_PAGE_BYTES + compact.bound(0, CHUNK_MAX_PAGES)
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


def _unpack(data: bytes) -> bytes:
    return zstd.decompress(data[_PACKED_HEAD:], int.from_bytes(data[1:5], "big"))


class CompactReader:
    """Reads one compact set, packed or not, however its bytes are cut.

    Attributes:
      rest: what was fed beyond the end of the set.
    """

    def __init__(self, start: State) -> None:
        """Expect a set that leads from `start`: the state that the request named."""
        self.rest = memoryview(b"")
        self._start = start
        self._held = bytearray()
        self._size = 0
        self._done = False
        self._broken: AnswerError | None = None

    def needed(self) -> int:
        """How many bytes can be read without reading beyond the set; 0 at its end."""
        return 0 if self._done else max(1, (self._size or _HEAD) - len(self._held))

    def receive(self, data: Buffer) -> Compact | None:
        """Take in some bytes; answers the set when they complete it. Whoever takes it closes it.

        Raises:
          AnswerError: malformed, damaged, or it leads from another state.
          ValueError: the set has ended.
        """
        if self._done:
            raise ValueError("the page set has ended")
        if self._broken is not None:
            raise self._broken
        try:
            return self._take(data)
        except (NativeError, zstd.ZstdError) as error:
            self._broken = bad(str(error))
            raise self._broken from error
        except AnswerError as error:
            self._broken = error
            raise

    def _take(self, data: Buffer) -> Compact | None:
        self._held += data
        if not self._size:
            self._size = self._find_size()
        if not self._size or len(self._held) < self._size:
            return None
        self.rest = memoryview(bytes(self._held[self._size :]))
        whole = bytes(self._held[: self._size])
        opened = Compact(_unpack(whole) if whole[:1] == _PACKED else whole, self._start)
        self._done = True
        return opened

    def _find_size(self) -> int:
        """Bytes of the whole item; 0 as long as it cannot be seen."""
        if self._held[:1] != _PACKED:
            return compact.size(self._held)
        if len(self._held) < _PACKED_HEAD:
            return 0
        raw = int.from_bytes(self._held[1:5], "big")
        stored = int.from_bytes(self._held[5:9], "big")
        # Checked before anything of that size is received or unpacked.
        if not stored < raw <= _LARGEST:
            raise bad(f"{raw} bytes packed into {stored}")
        return _PACKED_HEAD + stored

    def close(self) -> None:
        """No more bytes will come.

        Raises:
          AnswerError: the set is not complete.
        """
        if self._broken is not None:
            raise self._broken
        if not self._done:
            self._broken = bad("it was cut short")
            raise self._broken
