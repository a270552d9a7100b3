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

from nearlite.replica import Replica

Key = tuple[object, ...]


class _Entry:
    """A shared replica; `lock` is held while it is opened or closed."""

    __slots__ = ("lock", "replica", "users")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.replica: Replica | None = None
        self.users = 0


_entries: dict[Key, _Entry] = {}
_lock = threading.Lock()  # guards the table and `users`; a few instructions at a time


def _forked() -> None:
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()
    _entries.clear()  # the parent's threads and sockets do not live here


os.register_at_fork(after_in_child=_forked)


def acquire(key: Key, make: Callable[[], Replica]) -> Replica:
    """The replica of `key`, opened if nobody uses it; every call is paid back by one `release`.

    Raises: what opening it raises.
    """
    fresh = _Entry()
    with _lock:
        entry = _entries.setdefault(key, fresh)
        entry.users += 1
    try:
        with entry.lock:
            if entry.replica is None:
                replica = make()
                replica.open()
                entry.replica = replica
            return entry.replica
    except BaseException:
        release(key, os.getpid())
        raise


def release(key: Key, pid: int) -> None:
    """One user less; the last one closes the replica.

    Args:
      key: as given to `acquire`.
      pid: of the process that acquired it; in the child of a fork there is nothing to close.
    """
    if pid != os.getpid():
        return
    with _lock:
        entry = _entries[key]
        entry.users -= 1
        if entry.users:
            return
    with entry.lock:
        with _lock:
            if entry.users or _entries.get(key) is not entry:
                return  # somebody came meanwhile, or was quicker
        replica, entry.replica = entry.replica, None
        if replica is not None:
            replica.close()
        with _lock:
            if not entry.users:
                _entries.pop(key, None)


def abandon(key: Key, pid: int) -> None:
    """`release` for a finaliser: takes no lock on the thread it was called on.

    Not even those of module threading, whose Thread.start() may be what the collector interrupted.
    """
    if pid == os.getpid():
        with contextlib.suppress(RuntimeError):  # the interpreter is ending: _ending closes it
            _thread.start_new_thread(release, (key, pid))


def _ending() -> None:
    """The process ends: what nobody closed is closed here, while threads still run."""
    for entry in list(_entries.values()):
        if entry.lock.acquire(timeout=1.0):
            try:
                replica, entry.replica = entry.replica, None
                if replica is not None:
                    replica.close()
            finally:
                entry.lock.release()


atexit.register(_ending)
