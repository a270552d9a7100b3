"""The background thread of a replica: interval sync by one process, short WAL, pages on the disk.

One thread a replica and process. Of all processes that ask for a sync interval on one file only the
holder of ``sync.lock`` talks to the primary; the others see the data because they read the same
file, and one of them takes over when the holder ends. Threads do not survive fork: a child that
connects anew gets a Replica, and so a thread and a bid for the lock, of its own.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Protocol

from nearlite._native.applier import sync_database
from nearlite.bootstrap import Folder
from nearlite.errors import Error, SyncError

_log = logging.getLogger("nearlite")

# Frames in the replica's WAL from which a checkpoint is worth its fsync (DESIGN section 9).
CHECKPOINT_FRAMES = 1000


class Work(Protocol):
    """What the thread does it to: a Replica."""

    path: str
    folder: Folder
    last_error: Error | None

    def sync(self) -> object:
        """One pull."""

    def checkpoint(self) -> None:
        """Shorten the WAL."""


class Election:
    """Who syncs: the process that holds the lock file. Not a POSIX lock, which close() would drop.

    The lock lives as long as any copy of its descriptor: the child of a fork closes its copies at once,
    or nobody could win after the parent has ended.
    """

    def __init__(self, folder: Folder) -> None:
        self._path = folder.sync_lock
        self._fd: int | None = None
        _elections.add(self)

    def won(self) -> bool:
        """Hold the lock, or try to take it."""
        if self._fd is not None:
            return True
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return False
        self._fd = fd
        return True

    def close(self) -> None:
        """Give the lock up."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)


_elections: weakref.WeakSet[Election] = weakref.WeakSet()


def _forked() -> None:
    for election in list(_elections):
        election.close()  # this copy; the parent's holds the lock


os.register_at_fork(after_in_child=_forked)


class Background:
    """Runs until :meth:`stop`; asked for work by :meth:`every`, :meth:`checkpoint`, :meth:`flush`."""

    def __init__(self, replica: Work) -> None:
        self._replica = replica
        self._election = Election(replica.folder)
        self._wake = threading.Condition()
        self._interval: float | None = None
        self._sync_now = False
        self._synced_at = time.monotonic()
        self._checkpoint = False
        self._flush = False
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._said: dict[str, str] = {}  # what the log was told last, by kind of work

    def every(self, seconds: float) -> None:
        """Sync at once and then every `seconds`; the shortest interval asked for counts."""
        with self._wake:
            if self._interval is None or seconds < self._interval:
                self._interval = seconds
            self._sync_now = True
            self._notify()

    def checkpoint(self) -> None:
        """Shorten the replica's WAL."""
        with self._wake:
            self._checkpoint = True
            self._notify()

    def flush(self) -> None:
        """Bring a new file's pages to the disk, then remove its mark."""
        with self._wake:
            self._flush = True
            self._notify()

    def _notify(self) -> None:
        if self._thread is None and not self._stopping:
            self._thread = threading.Thread(target=self._run, name="nearlite-replica", daemon=True)
            self._thread.start()
        self._wake.notify()

    def is_current(self) -> bool:
        """Whether this is called on the background thread."""
        return self._thread is threading.current_thread()

    def stop(self, timeout: float = 5.0) -> bool:
        """End the thread; False when it is still at work (a sync ends by its own deadline)."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout)
        self._election.close()
        return thread is None or not thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._wake:
                if not (self._stopping or self._sync_now or self._checkpoint or self._flush):
                    self._wake.wait(self._until_due())
                    self._sync_now = self._sync_now or self._until_due() == 0
                if self._stopping:
                    return
                sync, self._sync_now = self._sync_now, False
                checkpoint, self._checkpoint = self._checkpoint, False
                flush, self._flush = self._flush, False
            if sync:
                self._guarded("sync", self._sync)
                self._synced_at = time.monotonic()
            if checkpoint:
                self._guarded("checkpoint", self._replica.checkpoint)
            if flush:
                self._guarded("sync to disk", self._to_disk)

    def _until_due(self) -> float | None:
        """Seconds until the next sync, however often there is other work; None: none is due."""
        if self._interval is None:
            return None
        return max(0.0, self._synced_at + self._interval - time.monotonic())

    def _guarded(self, what: str, work: Callable[[], object]) -> None:
        """Failures are kept and logged once until something else happens; the thread goes on.

        Whatever they are: a token callable or a progress callback may raise anything.
        """
        try:
            work()
        except Exception as error:  # noqa: BLE001
            text = f"background {what} failed: {error}"
            if what == "sync":
                self._replica.last_error = error if isinstance(error, Error) else SyncError(text)
        else:
            text = ""
        if text != self._said.get(what, ""):
            self._said[what] = text
            _log.warning("%s: %s", self._replica.path, text or f"background {what} works again")

    def _sync(self) -> None:
        if self._election.won():
            self._replica.sync()
            self._replica.folder.touch_equal()

    def _to_disk(self) -> None:
        sync_database(self._replica.path)
        self._replica.folder.synced()
