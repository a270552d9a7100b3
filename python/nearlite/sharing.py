"""The replicas that connections of this process share: one for each file, primary and token.

A connection that is dropped without `close()` is finalised by the garbage collector, on whatever thread
and line that happens to run: on one that is just opening another replica, or on the background thread
inside an apply. Therefore the last user's close is handed to a thread of its own there, and no lock
of this module is held while a replica is opened or closed but the one of its own entry.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import threading
from collections.abc import Callable

from nearlite._native.sealing import Key
from nearlite.replica import Replica

What = tuple[object, ...]


class Shared:
    """A replica that connections share; `lock` is held while it is opened or closed.

    Attributes:
      what: which one: its file, primary and token.
      key: of a sealed one. What it is equal to changes with it (`rekey`), so that nothing is looked up by it.
    """

    __slots__ = ("key", "lock", "replica", "users", "what")

    def __init__(self, what: What, key: Key | None) -> None:
        self.what = what
        self.key = key
        self.lock = threading.Lock()
        self.replica: Replica | None = None
        self.users = 0


_entries: dict[What, list[Shared]] = {}
_lock = threading.Lock()  # guards the table and `users`; a few instructions at a time


def _forked() -> None:
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _entries.clear()  # the parent's threads and sockets do not live here


os.register_at_fork(after_in_child=_forked)


def acquire(what: What, key: Key | None, make: Callable[[Key | None], Replica]) -> Shared:
    """What is shared by all who name the same, opened if nobody uses it; each call is paid back by one `release`.

    Args:
      what: see `Shared`.
      key: of a sealed file; who gives an equal one shares the object that the first gave.
      make: the replica, with that key.

    Raises: what opening it raises.
    """
    with _lock:
        entries = _entries.setdefault(what, [])
        entry = next((found for found in entries if found.key == key), None)
        if entry is None:
            entry = Shared(what, key)
            entries.append(entry)
        entry.users += 1
    try:
        with entry.lock:
            if entry.replica is None:
                replica = make(entry.key)
                replica.open()
                entry.replica = replica
            return entry
    except BaseException:
        release(entry, os.getpid())
        raise


def release(entry: Shared, pid: int) -> None:
    """One user less; the last one closes the replica.

    Args:
      entry: as `acquire` answered.
      pid: of the process that acquired it; in the child of a fork there is nothing to close.
    """
    if pid != os.getpid():
        return
    with _lock:
        entry.users -= 1
        if entry.users:
            return
    with entry.lock:
        with _lock:
            if entry.users or entry not in _entries.get(entry.what, ()):
                return  # somebody came meanwhile, or was quicker
        replica, entry.replica = entry.replica, None
        if replica is not None:
            replica.close()
        with _lock:
            if not entry.users:
                _forget(entry)


def _forget(entry: Shared) -> None:
    entries = _entries[entry.what]
    entries.remove(entry)
    if not entries:
        del _entries[entry.what]


def abandon(entry: Shared, pid: int) -> None:
    """`release` for a finaliser: takes no lock on the thread it was called on.

    Not even those of module threading, whose Thread.start() may be what the collector interrupted.
    """
    if pid == os.getpid():
        with contextlib.suppress(RuntimeError):  # the interpreter is ending: _ending closes it
            _thread.start_new_thread(release, (entry, pid))


def _ending() -> None:
    """The process ends: what nobody closed is closed here, while threads still run."""
    for entry in [entry for entries in list(_entries.values()) for entry in entries]:
        if entry.lock.acquire(timeout=1.0):
            try:
                replica, entry.replica = entry.replica, None
                if replica is not None:
                    replica.close()
            finally:
                entry.lock.release()


atexit.register(_ending)
