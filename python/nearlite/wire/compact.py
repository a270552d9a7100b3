"""Compact page sets as they travel (docs/formats.md, version 2): one item, whose first bytes say how long.

Whoever asks from a known state looks at the first byte of the answer: `is_compact` says which reader
takes the rest.
"""

from __future__ import annotations

from nearlite._native import compact
from nearlite._native._lib import NativeError
from nearlite._native.applier import State
from nearlite._native.compact import Compact
from nearlite.errors import AnswerError
from nearlite.wire.items import Buffer, bad

# The length is known from so many bytes, and no set is as short.
_HEAD = 7


def is_compact(first: Buffer) -> bool:
    """Whether the bytes that begin so (one at least) are a compact set, not one of version 1."""
    return bytes(first[:1]) == compact.FIRST_BYTE


class CompactReader:
    """Reads one compact set, however its bytes are cut.

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
        except NativeError as error:
            self._broken = bad(str(error))
            raise self._broken from error

    def _take(self, data: Buffer) -> Compact | None:
        self._held += data
        if not self._size:
            self._size = compact.size(self._held)
        if not self._size or len(self._held) < self._size:
            return None
        self.rest = memoryview(bytes(self._held[self._size :]))
        whole = bytes(self._held[: self._size])
        opened = Compact(whole, self._start)
        self._done = True
        return opened

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
