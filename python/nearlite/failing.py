"""What a failure below the replica means to its user: one exception, with what was done and what to do."""

from __future__ import annotations

import os
from typing import Final

from nearlite._native._lib import DiskFullError as NativeDiskFullError
from nearlite._native._lib import FormatError, HashError, NotReplicaError, SealBrokenError
from nearlite.errors import (
    AnswerError,
    DamagedError,
    DiskFullError,
    Error,
    NotAReplicaError,
    SyncError,
    WrongKeyError,
    is_disk_full,
)
from nearlite.http import Deadline

READS_GO_ON: Final = "reads of the local file go on; try again"
START_OVER: Final = (
    "close all its connections in all processes and remove the file and its log (-wal, -nlwal): "
    "the next connect() creates it again"
)
_DAMAGE: Final = frozenset({"SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR_SHORT_READ"})


class UnfoundedError(AnswerError):
    """A compact set was told from pages that this replica does not have, or came out wrong."""


class KeyChangedError(SyncError, WrongKeyError):
    """Somebody else has changed the key of the replica's file."""


def unfounded(path: str, error: Error) -> UnfoundedError:
    """An applier refused a compact set: the pages themselves are asked for."""
    return UnfoundedError(
        f"what changed could not be told from the pages of {path}: {error}",
        state="the replica is as it was",
        action="the next sync asks for whole pages; run `nearlite verify` to see whether the file is damaged",
    )


def is_applying() -> SyncError:
    """The applier of this process was busy for the whole time that there was."""
    return SyncError(
        "another thread of this process has been applying a large change all the time",
        state="nothing was changed by this call",
        action="try again",
    )


def left(deadline: Deadline) -> float:
    """Seconds until it. Raises SyncError when it has passed."""
    try:
        return deadline.left()
    except TimeoutError as error:
        raise SyncError(
            f"the answer came too late to be applied: {error}",
            state="the replica is as it was before",
            action="call sync() again",
        ) from None


def not_a_replica(path: str, error: Exception) -> NotAReplicaError:
    """There is a file, and the applier refused it."""
    return NotAReplicaError(
        f"{path} is not a nearlite replica: {error}",
        state="the file was not touched",
        action="choose another path, or move the file away to let a replica be created there",
    )


def not_opened(path: str, error: Exception) -> SyncError:
    """There is a file, and it could not be opened as a replica: because of what it is, or of who may write."""
    shut = None if isinstance(error, NotReplicaError) else unwritable(path)
    if shut is None:
        return not_a_replica(path, error)
    return SyncError(
        f"{path} could not be opened: this process may not write {shut} ({error})",
        state="the file was not touched",
        action="run as the user that the replica belongs to, or make its files and the folder that "
        "they lie in writable",
    )


def unwritable(path: str) -> str | None:
    """What of a replica this process may not write, although it has to."""
    files = [f"{path}{suffix}" for suffix in ("", "-wal", "-nlwal", "-shm")]
    for name in (os.path.dirname(os.path.abspath(path)), *files):
        if os.path.exists(name) and not os.access(name, os.W_OK):
            return name
    return None


def is_damage(error: Error) -> bool:
    """Whether it says that a file which was a replica is none any more."""
    name = getattr(error, "sqlite_errorname", "")
    return isinstance(error, (NotReplicaError, SealBrokenError)) or name in _DAMAGE


def is_lost(error: BaseException | None) -> bool:
    """Whether a repair failed because there is not enough left of the file to begin with."""
    return isinstance(error, Error) and (is_damage(error) or isinstance(error, FormatError))


def unreadable(path: str, error: Error) -> DamagedError:
    """What was open as a replica cannot be read as one."""
    return DamagedError(
        f"{path} was a replica and is none any more, something else has written to it: {error}",
        state="nothing was written",
        action="sync() repairs it",
        data_at_risk=True,
    )


def beyond_repair(error: Error) -> DamagedError:
    """It is sealed with the key that was given, and there is not enough left of it to begin with."""
    return DamagedError(
        f"too little is left of the sealed file to repair it: {error}",
        state="nothing was written",
        action=START_OVER,
        data_at_risk=True,
    )


def apply_failed(path: str, error: Error | MemoryError) -> SyncError:
    """What an applier's failure means. Everything was rolled back in each case."""
    return failure_of(
        f"the page set could not be applied to {path}", error, "the replica is as it was"
    )


def failure_of(what: str, error: Error | MemoryError, state: str) -> SyncError:
    """The exception of our tree for a failure below it."""
    kind, action = SyncError, ""
    if isinstance(error, SealBrokenError):
        kind, action = DamagedError, "sync() repairs what can be repaired"
    elif isinstance(error, WrongKeyError):
        kind, action = KeyChangedError, "open the replica again with its new key"
    elif isinstance(error, (HashError, FormatError)):
        kind, action = AnswerError, "try again; if it fails again, run `nearlite verify`"
    elif is_disk_full(error) or isinstance(error, NativeDiskFullError):
        kind, action = DiskFullError, "make room on the disk and try again"
    failure = kind(f"{what}: {error}", state=state, action=action)
    for name in ("sqlite_errorcode", "sqlite_errorname"):
        if hasattr(error, name):
            setattr(failure, name, getattr(error, name))
    return failure


def is_being_checked(path: str) -> SyncError:
    """The time of a call was over before the hash of the whole file was known."""
    return SyncError(
        f"{path} is still being read in full, to make sure that it is what its header says",
        state="nothing was changed by this call; the check goes on",
        action="call sync() again; it takes as long as reading the file takes, once",
    )


def not_created(path: str, error: OSError) -> SyncError:
    """The file system failed while the replica was being created."""
    return _of_the_disk(f"{path} could not be created", error, "no local file was created")


def not_kept(path: str, error: OSError) -> SyncError:
    """The file system failed where a page set was to wait until it is whole."""
    return _of_the_disk(
        f"a page set for {path} could not be kept until it was whole",
        error,
        "the replica is as it was",
    )


def _of_the_disk(what: str, error: OSError, state: str) -> SyncError:
    full = is_disk_full(error)
    return (DiskFullError if full else SyncError)(
        f"{what}: {error.strerror}",
        state=state,
        action="make room on the disk and try again" if full else "",
    )
