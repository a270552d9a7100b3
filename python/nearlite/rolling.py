"""Rolls when they are due, on a thread of their own.

What takes long is prepared while others commit; the rest holds the turn to write, in which nobody of this
process can: they wait for some milliseconds in line, where SQLite's busy handler would poll. Other programs
may still write then: a roll waits for them (roll.py).
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Protocol

from nearlite.meters import Counts
from nearlite.streams import Turn

log = logging.getLogger("nearlite.rolling")


class Host(Protocol):
    """The primary whose WAL is kept short."""

    def after_commit(self) -> object:
        """Take what was committed and tell of it; right after every COMMIT."""

    @property
    def roll_due(self) -> bool:
        """Whether the WAL has grown past its threshold."""

    @property
    def may_roll(self) -> bool:
        """Whether the last attempt was not a moment ago: while one waits, nobody of this process writes."""

    def prepare_roll(self) -> bool:
        """Do what takes long, beside those who commit. False: there is nothing to roll."""

    def roll(self) -> bool:
        """Archive and checkpoint the rest; outside any transaction."""


class Rolls:
    """The thread that rolls.

    Args:
      host: the primary.
      turn: shared with all who write.
      work: counts rolls.
      linger: seconds without a look after which the thread ends, until there is one; None: it lives from `start`
        to `stop`.
    """

    def __init__(
        self, host: Host, turn: Turn, work: Counts | None = None, *, linger: float | None = None
    ) -> None:
        self._work = work or Counts()
        self._host = host
        self._turn = turn
        self._wake = threading.Event()
        self._granted = threading.Event()
        self._wanted = False
        self._stopping = False
        self._linger = linger
        self._thread: threading.Thread | None = None  # decided under the lock
        self._starting = threading.Lock()

    def start(self) -> None:
        """Start the thread, unless it comes and goes."""
        if self._linger is None:
            self._begin()

    def _begin(self) -> None:
        self._thread = threading.Thread(target=self._run, name="nearlite-roll", daemon=True)
        self._thread.start()

    def look(self) -> None:
        """Look whether a roll is due, also by what other programs committed. Any thread; does not wait."""
        self._wake.set()
        if self._linger is not None:
            with self._starting:
                if self._thread is None and not self._stopping:
                    self._begin()

    def want(self) -> None:
        """Roll if that can be tried now, due or not. Any thread; does not wait."""
        self._wanted = True
        self.look()

    def stop(self) -> None:
        """Finish a roll under way and end. Blocks."""
        with self._starting:
            self._stopping = True
            thread = self._thread
        self._wake.set()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            if not self._wake.wait(self._linger):
                with self._starting:
                    if not self._wake.is_set():
                        self._thread = None
                        return
            self._wake.clear()
            if self._stopping:
                return
            try:
                self._host.after_commit()  # what other programs committed counts only when it is taken
                wanted, self._wanted = self._wanted and self._host.may_roll, False
                if (wanted or self._host.roll_due) and self._host.prepare_roll():
                    self._roll()
            except Exception:  # the log grows on; a later commit tries again
                log.exception("the log could not be rolled")

    def _roll(self) -> None:
        ticket = self._turn.request(self._granted.set)
        self._granted.wait()
        self._granted.clear()
        began = time.monotonic()
        try:
            if self._host.roll():
                self._work.rolled(time.monotonic() - began)
        finally:
            self._turn.release(ticket)
