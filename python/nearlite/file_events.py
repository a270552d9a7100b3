"""One thread of the process hears of writes to any number of WALs, and looks at their databases.

Linux tells by inotify of every write to a -wal file, and of names that come and go in its folder (a database
that is renamed over, deleted, made again). Where there is no inotify, or a user has as many watches as the
system allows, or its queue overflowed, files are looked at in turn; nothing else looks at them while nobody
writes.

A write is told of while it is made: before the commit that it belongs to is published. So whoever is told
says when it wants to look again, and whether to hear of writes until then: a program that writes without a
pause would have this thread run for each frame.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import threading
import time
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from nearlite._native.inotify import Inotify

POLL: Final = 0.01
"""Seconds between two looks at a file whose writes nobody tells of."""
_SLEEP: Final = 0.002
"""Seconds: less than this is slept; poll() counts in milliseconds, and rounds up."""
_THROTTLE: Final = 0.001
"""Seconds of sleep when what was heard concerns nobody: it is a large transaction, mostly."""

_LOG = logging.getLogger("nearlite")


class Next(NamedTuple):
    """When to look again.

    Attributes:
      seconds: from now; None: when something is heard of.
      deaf: not before that, whatever is heard of.
    """

    seconds: float | None
    deaf: bool = False


class Watched(Protocol):
    """A database."""

    path: str
    """Of its file, without symbolic links."""

    def look(self, *, touched: bool, renamed: bool) -> Next:
        """Look at it. Must not wait or raise.

        Args:
          touched: its WAL was written to, or may have been.
          renamed: a name of its folder is another file's by now, or may be.
        """


@dataclass(eq=False)
class _Entry:
    watched: Watched
    folder: int = -1
    wal: int = -1  # the watch of the next write to it; -1: there was one, or it is not there
    polled: bool = False
    stat: tuple[int, int, int] | None = None  # of the WAL, where it is polled
    due: float = 0.0
    deaf: bool = False
    touched: bool = True
    renamed: bool = True
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        name = os.path.basename(self.watched.path)
        self.names = frozenset((name, f"{name}-wal"))


class FileEvents:
    """The thread, which lives while anything is watched. Methods may be called from any thread.

    Attributes:
      polls: it looks at files in turn; False: the system tells of writes.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[int, _Entry] = {}  # by id() of what is watched
        self._inotify: Inotify | None = None
        self._thread: threading.Thread | None = None
        self._wake = -1  # eventfd-like: the writing end of a pipe
        self._looking: _Entry | None = None
        self._looked = threading.Condition(self._lock)
        self.polls = False

    def add(self, watched: Watched) -> None:
        """Look at a database now, and whenever something is heard of it."""
        entry = _Entry(watched)
        with self._lock:
            self._entries[id(watched)] = entry
            if self._thread is None:
                heard, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
                self._inotify, self.polls = _open()
                self._thread = threading.Thread(
                    target=self._run, args=(heard, self._wake), name="nearlite-events", daemon=True
                )
                self._thread.start()
            else:
                self._nudge()

    def remove(self, watched: Watched) -> None:
        """Look at it no more. Returns when a look under way has ended, unless that is the caller's own."""
        with self._lock:
            entry = self._entries.pop(id(watched), None)
            self._nudge()
            if entry is not None and threading.current_thread() is not self._thread:
                self._looked.wait_for(lambda: self._looking is not entry)

    def soon(self, watched: Watched) -> None:
        """Look at it now: it has done something itself that changes when that is due."""
        with self._lock:
            entry = self._entries.get(id(watched))
            if entry is not None:
                entry.due, entry.deaf = 0.0, False
                self._nudge()

    def forked(self) -> None:
        """In the child of a fork, where there is no such thread; its descriptors are the parent's."""
        self.__init__()  # type: ignore[misc]

    def _nudge(self) -> None:
        if self._wake >= 0:
            with contextlib.suppress(BlockingIOError):  # full of nudges: it will be read
                os.write(self._wake, b"!")

    # ------------------------------------------------------------ the thread

    def _run(self, heard: int, wake: int) -> None:
        poll = select.poll()
        poll.register(heard, select.POLLIN)
        if self._inotify is not None:
            poll.register(self._inotify.fileno(), select.POLLIN)
        while True:
            with self._lock:
                entries = list(self._entries.values())
                if not entries:
                    self._end(heard, wake)
                    return
            wait = min(entry.due for entry in entries) - time.monotonic()
            if 0 < wait < _SLEEP:
                time.sleep(wait)
            elif wait > 0:
                poll.poll(None if wait == math.inf else int(wait * 1000))
            with contextlib.suppress(BlockingIOError):
                while os.read(heard, 4096):
                    pass
            self._hear(entries)
            self._look_at_due(entries, slept=wait > 0)

    def _end(self, heard: int, wake: int) -> None:
        self._thread, self._wake = None, -1
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None
        os.close(heard)
        os.close(wake)

    def _look_at_due(self, entries: list[_Entry], *, slept: bool) -> None:
        now, nobody = time.monotonic(), True
        for entry in entries:
            if entry.due > now:
                continue
            nobody = False
            with self._lock:
                if self._entries.get(id(entry.watched)) is not entry:
                    continue
                self._looking = entry
            try:
                self._look(entry)
            finally:
                with self._lock:
                    self._looking = None
                    self._looked.notify_all()
        if nobody and slept:
            time.sleep(_THROTTLE)

    def _look(self, entry: _Entry) -> None:
        if entry.renamed:
            self._attach(entry)
        if entry.wal < 0 and not entry.polled:
            self._await_write(entry)  # before the look: what is written from here on is told of
        touched, renamed = entry.touched, entry.renamed
        entry.touched = entry.renamed = False
        entry.due = math.inf
        then = entry.watched.look(touched=touched, renamed=renamed)
        seconds, entry.deaf = then
        if entry.polled:
            seconds = POLL if seconds is None else min(POLL, seconds)
        if seconds is not None:
            entry.due = min(entry.due, time.monotonic() + seconds)

    def _attach(self, entry: _Entry) -> None:
        """Hear of its folder; its WAL may be another."""
        inotify, path = self._inotify, entry.watched.path
        entry.polled = inotify is None
        if inotify is None:
            return
        try:
            entry.folder = inotify.folder(os.path.dirname(path))
        except OSError as error:
            self._told(error, path)
            entry.polled = True
        if entry.wal >= 0:
            inotify.remove(entry.wal)  # that of a file without a name, perhaps
            entry.wal = -1

    def _await_write(self, entry: _Entry) -> None:
        """Hear of the next write to its WAL."""
        assert self._inotify is not None
        try:
            entry.wal = self._inotify.file(f"{entry.watched.path}-wal")
        except FileNotFoundError:
            pass  # its folder will tell
        except OSError as error:
            self._told(error, entry.watched.path)
            entry.polled = True

    def _told(self, error: OSError, path: str) -> None:
        if not self.polls:
            self.polls = True
            _LOG.warning(
                "%s: the system does not tell of writes (%s); it is looked at every %.0f ms. "
                "More watches: sysctl fs.inotify.max_user_watches",
                path,
                error.strerror,
                POLL * 1000,
            )

    # ------------------------------------------------------------ what is heard

    def _hear(self, entries: list[_Entry]) -> None:
        lost = False
        told: dict[int, set[str]] = {}
        if self._inotify is not None:
            for watch, name in self._inotify.read():
                if watch is None:
                    lost = True
                else:
                    told.setdefault(watch, set()).add(name)
        for entry in entries:
            if lost or not entry.names.isdisjoint(told.get(entry.folder, ())):
                entry.touched = entry.renamed = True
                entry.due, entry.deaf = 0.0, False
            elif entry.wal in told or (entry.polled and _changed(entry)):
                entry.touched = True
                entry.wal = -1
                if not entry.deaf:
                    entry.due = 0.0


def _open() -> tuple[Inotify | None, bool]:
    try:
        return Inotify(), False
    except OSError as error:
        _LOG.warning(
            "the system does not tell of writes (%s): databases are looked at every %.0f ms",
            error.strerror,
            POLL * 1000,
        )
        return None, True


def _changed(entry: _Entry) -> bool:
    """Whether the WAL of one that is polled is another than at the last look, or its names are."""
    try:
        found = os.stat(f"{entry.watched.path}-wal")
        now = (found.st_ino, found.st_size, found.st_mtime_ns)
    except OSError:
        now = (0, 0, 0)
    before, entry.stat = entry.stat, now
    if before != now and (before is None or before[0] != now[0]):
        entry.renamed = True
    return before != now


events: Final = FileEvents()
os.register_at_fork(after_in_child=events.forked)
