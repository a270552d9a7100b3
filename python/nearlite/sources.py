"""The database that an application writes, opened as what replicas are fed from; or why that cannot be."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Final

from nearlite import errors
from nearlite._native.database import NO_PARAMETERS, Database
from nearlite._native.tail import FRAME_HEADER_SIZE
from nearlite.capture import ROLL_FRAMES, Capture
from nearlite.logstate import RETAIN_SECONDS

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


def open_source(
    path: str,
    *,
    roll_bytes: int | None = None,
    roll_pages: int | None = None,
    retain_bytes: int | None = None,
    retain_seconds: float = RETAIN_SECONDS,
) -> Capture:
    """Feed replicas from a database that an application writes.

    Args:
      path: of the file.
      roll_bytes, roll_pages: size of the WAL from which it is emptied; None: ROLL_FRAMES.
      retain_bytes, retain_seconds: of the history, as of `Primary.open`.

    Raises:
      AbsentError, JournalModeError: see `check_source`.
      errors.OperationalError: another process feeds replicas from it, or it is locked.
      errors.NotSupportedError: it is a replica, or its pages have a reserved tail.
    """
    page_size = check_source(path)
    frames = roll_pages or ROLL_FRAMES
    if roll_bytes is not None:
        frames = max(1, roll_bytes // (FRAME_HEADER_SIZE + page_size))
    return Capture.open(
        path, roll_frames=frames, retain_bytes=retain_bytes, retain_seconds=retain_seconds
    )
