"""The exception tree: DB-API classes that are also the standard library's, and sync errors.

Every exception subclasses the class of the same name in :mod:`sqlite3`, so that
``except sqlite3.OperationalError`` keeps working when a program changes its import.
"""

from __future__ import annotations

import errno
import sqlite3
from typing import Final

_SQLITE_FULL: Final = 13


class TokenInClearWarning(UserWarning):
    """A token is sent over a network without TLS: whoever sees it on its way can use it."""


class Warning(sqlite3.Warning):  # noqa: A001 - the name PEP 249 asks for
    """PEP 249 Warning."""


class Error(sqlite3.Error):
    """Base of all errors.

    Attributes:
      sqlite_errorcode: extended SQLite result code, or absent when SQLite was not involved.
      sqlite_errorname: its name, for example ``"SQLITE_CONSTRAINT_UNIQUE"``.

    """

    sqlite_errorcode: int
    sqlite_errorname: str


class InterfaceError(Error, sqlite3.InterfaceError):
    """Misuse of the interface rather than of the database."""


class DatabaseError(Error, sqlite3.DatabaseError):
    """The database has a problem."""


class DataError(DatabaseError, sqlite3.DataError):
    """A value is out of range."""


class OperationalError(DatabaseError, sqlite3.OperationalError):
    """Something outside the program's control went wrong."""


class IntegrityError(DatabaseError, sqlite3.IntegrityError):
    """A constraint failed."""


class InternalError(DatabaseError, sqlite3.InternalError):
    """SQLite found itself in a state it should not be in."""


class ProgrammingError(DatabaseError, sqlite3.ProgrammingError):
    """The program called something wrongly."""


class ConfigError(ProgrammingError):
    """A configuration file says something that cannot be carried out; no secret is part of the message.

    Attributes:
      file: its name.
      line: 1-based; where the mistake is, or where what lacks something begins.
      key: the key that is wrong, as a path ("dbs[1].upstream.url"), or empty.

    """

    def __init__(self, file: str, line: int, key: str, why: str) -> None:
        self.file = file
        self.line = line
        self.key = key
        super().__init__(f"{file}:{line}: {key}: {why}" if key else f"{file}:{line}: {why}")


class NotSupportedError(DatabaseError, sqlite3.NotSupportedError):
    """Not supported by this build or this kind of connection."""


class EncryptionError(DatabaseError):
    """A sealed file cannot be opened, or read as it is."""


class WrongKeyError(EncryptionError):
    """Not the key of this file, none where one is needed, or one where there is nothing to open."""


class TamperedError(EncryptionError):
    """Bytes are not those that were sealed: damaged, moved from another place, or forged."""


class SyncError(OperationalError):
    """Replication failed.

    Attributes:
      state: what state the replica is in now ("unchanged at 00000001.00000001.0000000a").
      action: what to do about it.
      data_at_risk: whether any data may be lost or wrong; False unless the text says why.
      code: the primary's name for its refusal ("STREAM_EXPIRED"), or empty.

    """

    code: str = ""

    def __init__(
        self,
        message: str,
        *,
        state: str = "the local file is unchanged",
        action: str = "",
        data_at_risk: bool = False,
    ) -> None:
        self.message = message
        self.state = state
        self.action = action
        self.data_at_risk = data_at_risk
        super().__init__(message)

    def __str__(self) -> str:
        """All of it as one line, with what was learned of the state since it was raised."""
        risk = "data may be at risk" if self.data_at_risk else "no data is at risk"
        parts = [self.message, self.state, self.action, risk]
        return "; ".join(part for part in parts if part)


class OfflineError(SyncError):
    """The primary could not be reached before the deadline."""


class UnauthorizedError(SyncError):
    """The primary refused the token."""


class LineageError(SyncError):
    """The primary serves another database history than the one this replica holds."""


class PrimaryRestoredError(SyncError):
    """The replica is ahead of the primary: the primary was restored from an older backup."""


class UpstreamBehindError(SyncError):
    """The replica is ahead of the replica that serves it, which has yet to receive what this one has."""


class HistoryGoneError(SyncError):
    """The primary no longer keeps the history since this replica's position."""


class StateMismatchError(SyncError):
    """Replica and primary stand at the same position with different content."""


class DamagedError(SyncError):
    """The local file is not what its header says: copied without its -wal, or changed on the disk."""


class AnswerError(SyncError):
    """An answer was truncated, malformed, or did not hash to what it announced."""


class DiskFullError(SyncError):
    """A disk is full, here or at the primary: the text says which. What failed was rolled back."""


class NotAReplicaError(SyncError):
    """The local file is not a nearlite replica; it is never overwritten."""


class StaleReadError(SyncError):
    """The replica is older than the read allows."""


class WaitTimeoutError(StaleReadError, TimeoutError):
    """A position that was waited for did not arrive in time."""


def is_disk_full(error: BaseException) -> bool:
    """Whether something failed for want of room, as the operating system or SQLite says."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == _SQLITE_FULL
