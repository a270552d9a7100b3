"""Where locks do not survive other closes: refuse Python's own sqlite3 on a file we have open.

POSIX record locks are dropped by *any* close of the file in the process. On Linux nearlite's locks
are of the other kind (csrc/ofd.c), so both libraries may have one file open. Elsewhere, closing a
``sqlite3.Connection`` would silently drop our locks and a committed row could be lost: there an audit
hook refuses ``sqlite3.connect`` for as long as the file is open here. Audit hooks cannot be removed,
therefore it is installed only when it is needed, and once.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from nearlite import errors
from nearlite._native import process

Hook = Callable[[str, tuple[object, ...]], None]


class FileId(NamedTuple):
    """What the operating system knows a file by."""

    device: int
    inode: int


def file_id(path: str) -> FileId | None:
    """What a path names now; None if that is nothing."""
    try:
        found = Path(path).stat()
    except (OSError, ValueError):  # ValueError: a NUL byte in the name
        return None
    return FileId(found.st_dev, found.st_ino)


def _names(database: object) -> list[str]:
    """The files that an argument of ``sqlite3.connect`` may mean.

    The audit event does not say whether it was to be taken as a URI, so both readings count.
    """
    try:
        name = os.fsdecode(os.fspath(database))  # type: ignore[call-overload]
    except TypeError:  # connect() itself refuses it
        return []
    names = [name]
    if name.startswith("file:"):
        names.append(unquote(urlsplit(name).path))
    return names


class Guard:
    """Counts the database files that are open here, and refuses others' access to them.

    Args:
      install: called with the audit hook when the first file is opened.
      needed: False where locks survive: then nothing is counted.

    """

    def __init__(self, install: Callable[[Hook], None], *, needed: bool = True) -> None:
        self._install = install
        self._needed = needed
        self._installed = False
        self._open: Counter[FileId] = Counter()
        self._lock = threading.Lock()

    def opened(self, database: object) -> FileId | None:
        """Note that a file was opened; answers what :meth:`closed` has to be given.

        Args:
          database: its path or ``file:`` URI.
        """
        if not self._needed:
            return None
        key = next(filter(None, map(file_id, _names(database))), None)
        if key is not None:
            with self._lock:
                self._open[key] += 1
                if not self._installed:
                    self._install(self.hook)
                    self._installed = True
        return key

    def watch(self, owner: object, database: object) -> Callable[[], object]:
        """Note that `owner` opened a file; answers the function to call at its close.

        An owner that is forgotten instead counts as closed, too.
        """
        if not self._needed:
            return _nothing
        return weakref.finalize(owner, self.closed, self.opened(database))

    def closed(self, key: FileId | None) -> None:
        """Note that one connection to the file is closed."""
        with self._lock:
            if key is not None and self._open[key] > 0:
                self._open[key] -= 1
                if not self._open[key]:
                    del self._open[key]

    def forked(self) -> None:
        """In the child of a fork: its inherited connections are dead and hold no locks."""
        self._lock = threading.Lock()  # another thread may have held it
        self._open.clear()

    def hook(self, event: str, args: tuple[object, ...]) -> None:
        """The audit hook. It sees every event of the process: the first line has to be cheap.

        Raises:
          ProgrammingError: the file is open through nearlite in this process.

        """
        if event != "sqlite3.connect" or not self._open:
            return
        for name in _names(args[0]):
            if file_id(name) in self._open:
                raise errors.ProgrammingError(
                    f"{name!r} is open through nearlite in this process, and on this system the "
                    "standard sqlite3 module would drop nearlite's locks on it when it closes; "
                    "nothing was opened. Use nearlite.connect(), or another process"
                )


def _nothing() -> None:
    """Nobody counts."""


guard = Guard(sys.addaudithook, needed=not process.locks_survive())
os.register_at_fork(after_in_child=guard.forked)
