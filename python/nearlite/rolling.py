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
    """

    def __init__(self, host: Host, turn: Turn, work: Counts | None = None) -> None:
        self._work = work or Counts()
        self._host = host
        self._turn = turn
        self._wake = threading.Event()
        self._granted = threading.Event()
        self._wanted = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="nearlite-roll", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def look(self) -> None:
        """Look whether a roll is due, also by what other programs committed. Any thread; does not wait."""
        self._wake.set()

    def want(self) -> None:
        """Roll if that can be tried now, due or not. Any thread; does not wait."""
        self._wanted = True
        self._wake.set()

    def stop(self) -> None:
        """Finish a roll under way and end. Blocks."""
        self._stopping = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.wait()
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
