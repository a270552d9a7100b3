"""Of all processes that want to sync one replica file in the background, one does."""

from __future__ import annotations

import fcntl
import os
import weakref

from nearlite.bootstrap import Folder


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
