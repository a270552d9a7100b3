"""The database as it was when a generation began, while the generation goes on and after it has ended.

The pin keeps other checkpointers away, so that the database file is the base of the running generation until
a roll begins to copy frames into it. From then on it is nobody's base, until the next generation has begun.
Whoever reads a base meanwhile has the pages that are about to be overwritten put aside before they are; those
that no frame changes stay where they are.
"""

from __future__ import annotations

import os
import struct
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from nearlite._native.frames import lock_page
from nearlite.errors import HistoryGoneError
from nearlite.logseal import Seal
from nearlite.spooling import BLOCK, Spool

_AT_ONCE: Final = 256 << 10
"""Bytes of a base that are read in one go."""
_PAIR: Final = struct.Struct(">II")


_HELD: Final = object()
"""Reads from the beginning whenever it likes."""


class Base:
    """The pages of a database where a generation began. Iterated by any number of readers, on any thread.

    Args:
      database: the file, which is this base now.
      seal: of its pages.
      generation: which.
      pages: how many it has.
      page_size: bytes of a page.
      spool: for what is put aside.

    Raises:
      OSError: the file cannot be opened.
    """

    def __init__(
        self,
        database: Path,
        seal: Seal,
        generation: int,
        pages: int,
        page_size: int,
        spool: Callable[[], Spool],
    ) -> None:
        self.generation = generation
        self.size = pages * page_size
        self.pages = pages
        self._page_size = page_size
        self._seal = seal
        self._make_spool = spool
        self._spool: Spool | None = None  # most bases are read before anything is overwritten
        self._aside: dict[int, int] = {}  # page: how many were put aside before it
        self._readers: dict[object, int] = {_HELD: 1}  # the page that each reads next
        self._lost = False
        self._lock = threading.Lock()
        # Closing it takes no lock away: SQLite's are of the open file here, not of the process (ofd.c).
        self._file = os.open(database, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._file)

    def release(self) -> None:
        """Nobody will begin to read it any more; who does goes on. Idempotent."""
        self._readers.pop(_HELD, None)

    def put_aside(self, pages: Iterable[int]) -> None:
        """Keep these, which are about to be overwritten or cut off.

        Raises:
          OSError: there is no room for them; the checkpoint must not begin.
        """
        with self._lock:
            first = min(list(self._readers.values()), default=self.pages + 1)
            for number in pages:
                if first <= number <= self.pages and number not in self._aside:
                    if self._spool is None:
                        self._spool = self._make_spool()
                        weakref.finalize(self, self._spool.close)
                    self._spool.write(self._read(number, 1))
                    self._aside[number] = len(self._aside)

    def lose(self) -> None:
        """Somebody else has written to the file: what is still to be read is not known any more."""
        self._lost = True

    def __iter__(self) -> Iterator[bytes]:
        """The file, in pieces. Raises OSError, SealBrokenError, HistoryGoneError."""
        token, count = object(), max(1, _AT_ONCE // self._page_size)
        with self._lock:
            self._readers[token] = 1
        try:
            for first in range(1, self.pages + 1, count):
                some = min(count, self.pages + 1 - first)
                with self._lock:
                    data = self._piece(first, some)
                    self._readers[token] = first + some
                yield data
        finally:
            # Without the lock: it may be the garbage collector, anywhere.
            self._readers.pop(token, None)

    def _piece(self, first: int, count: int) -> bytes:
        if self._lost:
            raise HistoryGoneError("another program has written to the database file meanwhile")
        if not any(number in self._aside for number in range(first, first + count)):
            return self._read(first, count)
        return b"".join(
            self._kept(number) if number in self._aside else self._read(number, 1)
            for number in range(first, first + count)
        )

    def _kept(self, number: int) -> bytes:
        assert self._spool is not None
        at = self._aside[number] * self._page_size
        block = self._spool.block(at // BLOCK)
        return block[at % BLOCK : at % BLOCK + self._page_size]

    def _read(self, first: int, count: int) -> bytes:
        slot = self._seal.slot_size(self._page_size)
        data = os.pread(self._file, count * slot, self._seal.slots_begin() + (first - 1) * slot)
        if len(data) != count * slot:
            raise OSError(f"the database file ends before page {first + count - 1}")
        if slot == self._page_size:
            return data
        blank, unused = bytes(self._page_size), lock_page(self._page_size)
        return b"".join(
            blank
            if first + i == unused
            else self._seal.page(first + i, data[i * slot : (i + 1) * slot])
            for i in range(count)
        )


class Bases:
    """Those that are being read, and whether the database file is one.

    Args:
      database: the file.
    """

    def __init__(self, database: Path) -> None:
        self._database = database
        self._running: int | None = None
        self._read: weakref.WeakSet[Base] = weakref.WeakSet()

    @property
    def running(self) -> int | None:
        """The generation whose base the database file is; None: of none."""
        return self._running

    @property
    def are_read(self) -> bool:
        """Whether anybody reads one."""
        return len(self._read) > 0

    def begun(self, generation: int) -> None:
        """A generation begins, and nothing of it is in the file."""
        self._running = generation

    def ending(self) -> None:
        """Frames are about to be copied into the file: nobody can begin to read it as a base."""
        self._running = None

    def open(self, seal: Seal, pages: int, page_size: int, spool: Callable[[], Spool]) -> Base:
        """The running generation's, which the file must be. Raises OSError."""
        assert self._running is not None
        base = Base(self._database, seal, self._running, pages, page_size, spool)
        self._read.add(base)
        return base

    def lost(self) -> None:
        """Another program has emptied the WAL: the file is no base, and whose pages it has is not known."""
        self._running = None
        for base in tuple(self._read):
            base.lose()

    def overwrite(self, pairs: bytes, pages: int) -> None:
        """The pages in these pairs (page, frame) come into the file, which will have so many pages.

        After `ending`.

        Raises:
          OSError: there is no room to keep what somebody reads.
        """
        for base in tuple(self._read):
            base.put_aside(number for number, _ in _PAIR.iter_unpack(pairs))
            base.put_aside(range(pages + 1, base.pages + 1))
