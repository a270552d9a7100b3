"""The database that an application writes, as what replicas are fed from.

Whoever serves it knows `open_source` and what that answers, and nothing of how commits of other programs are
noticed and the WAL is kept short.
"""

from __future__ import annotations

import logging
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nearlite import errors
from nearlite._native.database import NO_PARAMETERS, Database
from nearlite._native.tail import FRAME_HEADER_SIZE
from nearlite.logstate import RETAIN_SECONDS
from nearlite.primary import Primary

_LOG = logging.getLogger("nearlite.sidecar")

ROLL_PAGES: Final = 700
"""Pages of WAL from which it is emptied: below the 1,000 from which the application's own checkpoints run. With
a reader that pins the WAL those would run at every commit, each with an fsync and without an effect.
"""
_LOOK: Final = 0.05
"""Seconds between two looks for commits, where the last one found some. Who waits for a commit looks by himself."""
_IDLE: Final = 0.5
"""Seconds that they grow to while nobody writes: a hundred idle databases shall cost next to nothing."""
_BUSY_MS: Final = 1000


class AbsentError(errors.OperationalError):
    """There is no database yet; its application may create it later."""


class JournalModeError(errors.NotSupportedError):
    """The database is not in WAL mode."""


def check_source(path: str) -> int:
    """Look at a database that an application writes; nothing is changed in it.

    Returns:
      Bytes of its pages.

    Raises:
      AbsentError: there is none.
      JournalModeError: it is in another mode than WAL; with the command that changes that.
      errors.DatabaseError: it is no database, or locked.
    """
    try:
        if Path(path).stat().st_size == 0:
            raise AbsentError("the file is empty so far")
    except FileNotFoundError:
        raise AbsentError("the file is not there yet") from None
    database = Database(path, create=False, busy_ms=_BUSY_MS, checkpoint=False)
    try:
        mode = database.prepare("PRAGMA journal_mode").run(NO_PARAMETERS)[0][0]
        size: int = database.prepare("PRAGMA page_size").run(NO_PARAMETERS)[0][0]
    finally:
        database.close()
    if mode != "wal":
        raise JournalModeError(
            f"it is in rollback-journal mode ({mode}), in which nobody can follow its commits. Nothing was "
            f"changed. This makes it a WAL database, once and for all: sqlite3 {shlex.quote(path)} 'PRAGMA journal_mode=WAL'"
        )
    return size


class Captured:
    """A database that others write, open. Use `open_source`. Any thread.

    Args:
      primary: its owner, as far as history and log go; no SQL is run through it.
      fault: called when its commits cannot be read, with why, and with None when they can again.

    Attributes:
      origin: what replicas are fed from.
    """

    def __init__(self, primary: Primary, fault: Callable[[str | None], None]) -> None:
        self.origin = primary
        self._fault = fault
        self._failed = False
        self._ending = threading.Event()
        self._wanted = False
        self._thread = threading.Thread(target=self._run, name="nearlite-capture", daemon=True)
        self._thread.start()

    @property
    def displaced(self) -> bool:
        """Whether its path names another file by now, or none: it has to be opened anew."""
        return self.origin.displaced()

    def want_roll(self) -> None:
        """Empty the WAL as soon as that can be tried."""
        self._wanted = True

    def look(self) -> None:
        """Take what was committed, and tell whoever waits. Raises what reading it raises."""
        self.origin.after_commit()

    def close(self) -> None:
        """Let go of it; idempotent."""
        self._ending.set()
        self._thread.join()
        self.origin.close()

    def _run(self) -> None:
        pause, seen = _LOOK, self.origin.latest
        while not self._ending.wait(pause):
            try:
                if self.origin.displaced():
                    continue
                now = self.origin.after_commit()
                pause, seen = _LOOK if now != seen else min(2 * pause, _IDLE), now
                wanted, self._wanted = self._wanted and self.origin.may_roll, False
                if (wanted or self.origin.roll_due) and self.origin.prepare_roll():
                    self.origin.roll()
            except (
                OSError,
                errors.Error,
            ) as error:  # a full disk, say: it may have room at the next look
                if not self._failed:
                    _LOG.exception("%s: what was committed could not be taken", self.origin.path)
                    self._failed = True
                    self._fault(f"what was committed could not be taken: {error}")
            else:
                if self._failed:
                    _LOG.warning("%s: what is committed is taken again", self.origin.path)
                    self._failed = False
                    self._fault(None)


def open_source(
    path: str,
    *,
    roll_bytes: int | None = None,
    roll_pages: int | None = None,
    retain_bytes: int | None = None,
    retain_seconds: float = RETAIN_SECONDS,
    fault: Callable[[str | None], None] = lambda _: None,
) -> Captured:
    """Feed replicas from a database that an application writes.

    Args:
      path: of the file.
      roll_bytes, roll_pages: size of the WAL from which it is archived and emptied; None: ROLL_PAGES.
      retain_bytes, retain_seconds: of the history, as of `Primary.open`.
      fault: see `Captured`.

    Raises:
      AbsentError, JournalModeError: see `check_source`.
      errors.OperationalError: another process feeds replicas from it, or it is locked.
      errors.NotSupportedError: it is a replica, or its pages have a reserved tail.
    """
    page_size = check_source(path)
    if roll_bytes is None:
        roll_bytes = (roll_pages or ROLL_PAGES) * (FRAME_HEADER_SIZE + page_size)
    primary = Primary.open(
        path,
        durability="normal",  # how durable its commits are is the application's affair
        roll_bytes=roll_bytes,
        retain_bytes=retain_bytes,
        retain_seconds=retain_seconds,
    )
    return Captured(primary, fault)
