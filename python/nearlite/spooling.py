"""What is too large for memory, a page set or rows, in an unlinked file.

Beside a sealed database it is sealed as well, by a key that is drawn for this one file and nowhere kept:
blocks of 64 KiB, each a record of its own (csrc/codec.c), which opens at its own place only.
"""

from __future__ import annotations

import io
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from nearlite._native.sealing import SEAL_SIZE, Codec, Key, random_key

BLOCK: Final = 64 << 10
_NAME: Final = "spool"


class Spool:
    """Written once from its beginning to its end, then read, also by several, each where it is.

    Args:
      folder: where the unlinked file may be made.
      sealed: nobody else may read it.

    Raises:
      OSError: by each call: the disk is full, or fails.

    Attributes:
      size: bytes written.
    """

    def __init__(self, folder: Path, *, sealed: bool) -> None:
        self.size = 0
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - by close()
        self._waiting = bytearray()  # less than a block
        self._blocks = 0
        self._lock = threading.Lock()  # of the codec
        self._codec: Codec | None = None
        if sealed:
            self._codec, _ = Codec.create(512, Key.of_bytes(random_key()))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append."""
        self.size += len(data)
        self._waiting += data
        if len(self._waiting) >= BLOCK:
            whole = len(self._waiting) // BLOCK * BLOCK
            with memoryview(self._waiting) as view:
                for at in range(0, whole, BLOCK):
                    self._put(view[at : at + BLOCK])
            del self._waiting[:whole]

    def finish(self) -> None:
        """Nothing more is written."""
        if self._waiting:
            self._put(self._waiting)
            self._waiting = bytearray()

    def _put(self, block: bytes | bytearray | memoryview) -> None:
        if self._codec is not None:
            block = self._codec.seal_record(_NAME, self._blocks, block)
        with memoryview(block) as view:
            done = 0
            while done < len(view):
                done += self._file.write(view[done:])
        self._blocks += 1  # behind it: a block that the disk had no room for is not there

    def blocks(self) -> Iterator[bytes]:
        """All of it, in pieces of at most 64 KiB."""
        handle, codec = self._file.fileno(), self._codec
        unit = BLOCK if codec is None else BLOCK + SEAL_SIZE
        for number in range(self._blocks):
            data = os.pread(handle, unit, number * unit)
            if codec is not None:
                with self._lock:
                    data = codec.open_record(_NAME, number, data)
            yield data

    def block(self, number: int) -> bytes:
        """One of those, also before the last is written."""
        if number == self._blocks:
            return bytes(self._waiting)
        unit = BLOCK if self._codec is None else BLOCK + SEAL_SIZE
        data = os.pread(self._file.fileno(), unit, number * unit)
        if self._codec is None:
            return data
        with self._lock:
            return self._codec.open_record(_NAME, number, data)

    def reader(self) -> io.BufferedReader:
        """A file of it, open for reading from the beginning."""
        return io.BufferedReader(_Blocks(self.blocks()), BLOCK)

    def close(self) -> None:
        """Give the disk back; idempotent."""
        self._file.close()


class _Blocks(io.RawIOBase):
    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._rest:
            self._rest = memoryview(next(self._blocks, b""))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
