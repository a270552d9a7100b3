"""The background threads of a replica: interval sync or live by one process, short WAL, pages on the disk.

One thread a replica and process, and another one where it is live: it waits for the primary nearly all
the time, and upkeep must not wait with it. Of all processes that ask for either on one file only the
holder of ``sync.lock`` talks to the primary; the others see the data because they read the same
file, and one of them takes over when the holder ends. Threads do not survive fork: a child that
connects anew gets a Replica, and so threads and a bid for the lock, of its own.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol

from nearlite._native.applier import sync_database
from nearlite._native.sealing import Key
from nearlite.bootstrap import Folder
from nearlite.durations import duration
from nearlite.election import Election
from nearlite.errors import Error, ProgrammingError
from nearlite.live import HEARTBEAT, Followed, Live, as_sync_error
from nearlite.tally import Tally
from nearlite.telling import Told

LIVE: Final = "live"
"""The `sync_interval` of those who follow."""
# Frames in the replica's WAL from which a checkpoint is worth its fsync (DESIGN section 9).
CHECKPOINT_FRAMES = 1000
_JOIN = 0.2  # seconds between two looks at a thread that is to end


class Work(Followed, Protocol):
    """What the threads do it to: a Replica."""

    folder: Folder
    key: Key | None
    tally: Tally
    last_error: Error | None

    def publish(self) -> None:
        """Leave the numbers for other processes."""

    @property
    def lag(self) -> float | None:
        """Seconds since it was known to equal its primary."""

    def checkpoint(self) -> None:
        """Shorten the WAL."""


def check_interval(interval: object) -> None:
    """Raise ProgrammingError unless it is a `sync_interval`."""
    if interval is None or interval == LIVE:
        return
    number = isinstance(interval, (int, float)) and not isinstance(interval, bool)
    if number and 0 < interval < math.inf:  # type: ignore[operator]
        return
    raise ProgrammingError(
        f"sync_interval is a number of seconds above 0, 'live' or None, not {interval!r}"
    )


class Background:
    """Runs until :meth:`stop`; asked for work by its other methods."""

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
        self._told = Told(replica.path)
        self._live: Live | None = None
        self._follower: threading.Thread | None = None

    def at(self, interval: float | str | None) -> None:
        """What a `sync_interval` that was checked says: "live", seconds, or nothing."""
        if interval == LIVE:
            self.follow()
        elif interval is not None:
            self.every(duration("sync_interval", interval))

    def every(self, seconds: float) -> None:
        """Sync at once and then every `seconds`; the shortest interval asked for counts, live before all."""
        with self._wake:
            if self._live is not None:
                return
            if self._interval is None or seconds < self._interval:
                self._interval = seconds
            self._sync_now = True
            self._notify()

    def sync(self) -> None:
        """Sync once, soon."""
        with self._wake:
            self._sync_now = True
            self._notify()

    def follow(self) -> None:
        """Bring every change as it happens; syncs at intervals end."""
        with self._wake:
            if self._live is not None or self._stopping:
                return
            self._interval = None
            self._live = Live(
                self._replica,
                won=self._election.won,
                failed=self._live_failed,
                works=self._live_works,
                came=lambda came: self._replica.tally.visible(came.seconds),
            )
            self._follower = threading.Thread(
                target=self._live.run, name="nearlite-live", daemon=True
            )
            self._follower.start()

    def led_by(self, live: Live) -> None:
        """Somebody follows on a thread of his own."""
        with self._wake:
            self._live = live

    @property
    def heard_within(self) -> float | None:
        """Seconds in which the primary is heard of while all is well; None: only when somebody asks."""
        return self._interval if self._live is None else HEARTBEAT

    @property
    def follows(self) -> bool:
        """Whether this process has a poll open: what the primary commits comes by itself."""
        return self._live is not None and self._live.is_open

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
        """Whether this is called on a background thread."""
        return threading.current_thread() in (self._thread, self._follower)

    def halt(self) -> None:
        """Begin nothing any more. What waits for the primary is ended by closing the transport."""
        with self._wake:
            self._stopping = True
            if self._live is not None:
                self._live.stop()
            self._wake.notify()

    def stop(self, timeout: float = 5.0) -> bool:
        """End the threads; False when the one that keeps the file is still at work."""
        self.halt()
        end = time.monotonic() + timeout
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)
        follower, transport = self._follower, self._replica.transport
        # One that is just connecting cannot be woken, and touches nothing when it is through.
        while follower is not None and follower.is_alive() and time.monotonic() < end:
            follower.join(_JOIN)
            if transport.connecting:
                break
        self._election.close()
        return self._thread is None or not self._thread.is_alive()

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
            if self._stopping and what == "sync":
                return  # ended by closing the transport
            text = self._told.failed(what, error)
            if what == "sync":
                self._replica.last_error = as_sync_error(error, text)
                self._replica.publish()
        else:
            self._told.works(what)

    def _sync(self) -> None:
        if self._election.won():
            self._replica.sync()
            self._replica.folder.touch_equal(self._replica.lag or 0.0)
            self._replica.publish()

    def _live_failed(self, error: Exception, _pause: float) -> None:
        self._replica.last_error = as_sync_error(error, self._told.failed("sync", error))
        self._replica.publish()

    def _live_works(self) -> None:
        if self._replica.last_error is not None:
            self._replica.last_error = None
            self._replica.publish()
        self._told.works("sync")

    def _to_disk(self) -> None:
        sync_database(self._replica.path, self._replica.key)
        self._replica.folder.synced()
