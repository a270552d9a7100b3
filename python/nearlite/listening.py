"""Callbacks of a program that wants to hear what has changed.

What this process applies is noted when it is applied: the numbers of its pages stand in the frames that it
has just appended to the replica's WAL. Everything else happens on a thread of its own, which exists
only while somebody listens: finding out which tables those pages are, and calling. What other processes
apply to the same file is noticed by its position; which pages they were is not known.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Final

from nearlite._native.applier import State
from nearlite._native.database import Database
from nearlite._native.frames import SetHeader
from nearlite._native.sealing import SEAL_SIZE, Key
from nearlite.position import Change, Position
from nearlite.tables import Tables, rows_of

_log = logging.getLogger("nearlite")

_LOOK: Final = 0.05
"""Seconds between two looks for what other processes have applied."""
_PATIENCE: Final = 0.5
"""Seconds in which what was applied here has to be noted; then somebody else has applied it."""
_WAL_HEADER: Final = 32
_FRAME_HEADER: Final = struct.Struct(">II8s8x")  # page, size after a commit, salts, checksum
_PAGE_1: Final = "SELECT data FROM sqlite_dbpage('main') WHERE pgno = 1"
_POSITION: Final = struct.Struct(">III")


Callback = Callable[[Change], object]


@dataclass(frozen=True, slots=True)
class _Noted:
    """One set that was applied here; `pages` None: which pages it was is not known."""

    start: Position
    target: Position
    pages: frozenset[int] | None


class Listeners:
    """Everybody in this process who listens to one replica file.

    Args:
      path: of the replica.

    Attributes:
      any: somebody does; nothing else is looked at where nobody does.
    """

    def __init__(self, path: str, key: Key | None = None) -> None:
        self.any = False
        self._path = path
        self._key = key
        self._callbacks: list[Callback] = []
        self._noted: list[_Noted] = []
        self._wake = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False

    # ------------------------------------------------------------------ any thread

    def add(self, callback: Callback, at: Position) -> Callable[[], None]:
        """Call it after every change from `at` on; what is answered ends that."""
        with self._wake:
            self._callbacks.append(callback)
            self.any = True
            if self._thread is None and not self._stopping:
                self._noted.clear()
                self._thread = threading.Thread(
                    target=self._run, args=(at,), name="nearlite-changes", daemon=True
                )
                self._thread.start()

        def remove() -> None:
            with self._wake, suppress(ValueError):
                self._callbacks.remove(callback)
                self.any = bool(self._callbacks)
                self._wake.notify()

        return remove

    def applied(self, header: SetHeader, state: State) -> None:
        """A set has been applied, and nothing is locked any more."""
        pages = _newest_pages(self._path, state, header.count + 1, sealed=self._key is not None)
        with self._wake:
            self._noted.append(_Noted(header.start, header.target, pages))
            self._wake.notify()

    def repaired(self, at: Position) -> None:
        """Any page may have changed, also where the position is what it was."""
        with self._wake:
            self._noted.append(_Noted(at, at, None))
            self._wake.notify()

    def is_current(self) -> bool:
        """Whether this is called on its thread, that is, by a callback."""
        return self._thread is threading.current_thread()

    def stop(self, timeout: float = 5.0) -> None:
        """Call nobody any more; a callback that is running ends first, unless it is the caller."""
        with self._wake:
            self._stopping, self.any = True, False
            self._wake.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)

    # ------------------------------------------------------------------ its thread

    def _run(self, at: Position) -> None:
        complained = False
        watch: _Watch | None = None
        while not self._stopping:
            try:
                with closing(
                    Database(self._path, checkpoint=False, busy_ms=1000, key=self._key)
                ) as database:
                    watch = _Watch(database, at if watch is None else watch.at)
                    self._listen(watch)
                return
            except Exception:  # noqa: BLE001 - whatever it is, it is tried again
                if not complained:
                    _log.exception("%s: changes cannot be told", self._path)
                complained = True
                with self._wake:
                    self._wake.wait_for(lambda: self._stopping, _PATIENCE)

    def _listen(self, watch: _Watch) -> None:
        while True:
            with self._wake:
                if not (self._noted or self._stopping):
                    self._wake.wait(_LOOK)
                if self._stopping:
                    return
                if not self.any:
                    self._thread = None  # the next one who listens starts another
                    return
                noted, self._noted = self._noted, []
                callbacks = list(self._callbacks)
            change = watch.look(noted)
            if change is None:
                continue
            for callback in callbacks:
                if self._stopping:
                    return
                try:
                    callback(change)
                except Exception:  # noqa: BLE001 - it is the program's
                    _log.exception("%s: a callback of on_change failed", self._path)


class _Watch:
    """What has changed between two looks. One thread.

    Args:
      database: a connection to the file.
      at: the position from which on changes are told.
    """

    def __init__(self, database: Database, at: Position) -> None:
        self._database = database
        self.at = at
        self._noted: list[_Noted] = []
        self._since = 0.0  # monotonic time of the first look that found more than was noted
        database.exec("BEGIN")
        try:
            self._position()  # takes the snapshot
            ((page_size,),) = rows_of(database, "PRAGMA page_size")
            self._tables = Tables(database, page_size)
        finally:
            database.exec("ROLLBACK")

    def _position(self) -> Position:
        ((page,),) = rows_of(self._database, _PAGE_1)
        return Position(*_POSITION.unpack_from(page, 72))

    def look(self, noted: list[_Noted]) -> Change | None:
        """What has changed since the last look."""
        self._noted += noted
        self._database.exec("BEGIN")
        try:
            here = self._position()
            repaired = any(each.start == each.target for each in self._noted)
            if here == self.at and not repaired:
                return None
            pages, complete = (None, True) if repaired else self._pages_until(here)
            if not complete:
                # What was applied here is noted a moment later than it can be seen.
                self._since = self._since or time.monotonic()
                if time.monotonic() - self._since < _PATIENCE:
                    return None
                pages = None
            self._since = 0.0
            tables = self._tables.changed(pages)
            self.at = here
            self._noted = [each for each in self._noted if not each.target.precedes(here)]
            return Change(here, tables)
        finally:
            self._database.exec("ROLLBACK")

    def _pages_until(self, here: Position) -> tuple[set[int] | None, bool]:
        """The pages of the sets that lead from the last look to `here`, if all of them were noted."""
        pages: set[int] | None = set()
        at = self.at
        for each in self._noted:
            if each.start != at:
                continue
            at = each.target
            pages = None if pages is None or each.pages is None else pages | each.pages
            if at == here:
                return pages, True
        return None, False


def _newest_pages(path: str, state: State, count: int, *, sealed: bool) -> frozenset[int] | None:
    """Numbers of the pages in the newest `count` frames; None when the WAL has gone on meanwhile.

    The file is only read; no lock of SQLite's is on a -wal, so that none is lost when it is closed. In a sealed
    one these numbers are in clear, as are the salts.
    """
    size = state.page_size + 24 + (SEAL_SIZE if sealed else 0)
    wal = f"{path}-{'nlwal' if sealed else 'wal'}"
    first = max(0, state.wal_frames - count)
    pages = []
    try:
        with open(wal, "rb", buffering=0) as file:
            descriptor = file.fileno()
            salts = os.pread(descriptor, 8, 16)
            for frame in range(first, state.wal_frames):
                head = os.pread(descriptor, 24, _WAL_HEADER + frame * size)
                number, _, found = _FRAME_HEADER.unpack(head)
                if found != salts:
                    return None
                pages.append(number)
            if os.pread(descriptor, 8, 16) != salts:
                return None
    except (OSError, struct.error):  # it is gone, or shorter
        return None
    return frozenset(pages)
