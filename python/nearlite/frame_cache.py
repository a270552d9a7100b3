"""Frames of a primary's generations, kept as they came: what was asked for once is not asked for again.

A frame that a primary has told never changes. Those who pull them ask for 128 at a time from wherever they are;
they are kept in blocks of 128 from the first one on, so that what came for one serves all.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

FRAME: Final = 4120
"""Bytes of a frame with its header."""
BLOCK: Final = 128
"""Frames."""


class FrameCache:
    """Keeps so many bytes at most; of more those that were used longest ago are dropped.

    Args:
      most: bytes.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._size = 0
        self._blocks: OrderedDict[tuple[int, int], bytearray] = OrderedDict()

    def find(self, generation: int, first: int, end: int) -> bytes:
        """Frames from `first` on, before `end` and within one block; none: the first one is not here."""
        number, at = divmod(first - 1, BLOCK)
        block = self._blocks.get((generation, number))
        if block is None or len(block) <= at * FRAME:
            return b""
        self._blocks.move_to_end((generation, number))
        return bytes(block[at * FRAME : (end - 1 - number * BLOCK) * FRAME])

    def missing(self, generation: int, first: int) -> tuple[int, int]:
        """First frame that the block of `first` lacks, and the first one behind that block."""
        number = (first - 1) // BLOCK
        block = self._blocks.get((generation, number))
        begin = number * BLOCK + 1
        return begin + (0 if block is None else len(block) // FRAME), begin + BLOCK

    def add(self, generation: int, first: int, frames: bytes) -> None:
        """Frames have come, those that `missing` named, or the beginning of them.

        Raises:
          ValueError: they are not whole frames, or others.
        """
        begin, end = self.missing(generation, first)
        if len(frames) % FRAME or begin != first or len(frames) > (end - first) * FRAME:
            raise ValueError("not the frames that were asked for")
        key = (generation, (first - 1) // BLOCK)
        self._blocks.setdefault(key, bytearray()).extend(frames)
        self._blocks.move_to_end(key)
        self._size += len(frames)
        while self._size > self._most and len(self._blocks) > 1:
            self._size -= len(self._blocks.popitem(last=False)[1])

    def goes_beyond(self, generation: int, last: int | None) -> bool:
        """Whether there are frames of a later generation, or of this one after its frame `last` (None: not known)."""
        return any(
            own > generation
            or (
                own == generation
                and last is not None
                and number * BLOCK + len(block) // FRAME > last
            )
            for (own, number), block in self._blocks.items()
        )

    def clear(self) -> None:
        """They are of another history."""
        self._blocks.clear()
        self._size = 0
