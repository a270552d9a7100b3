"""The process: its forks, and whether record locks survive other closes in it (csrc/ofd.c)."""

from __future__ import annotations

from nearlite._native._lib import ffi, lib


def forks() -> int:
    """Forks between the process that loaded nearlite and this one.

    A native handle made under another number is dead: it must neither be used nor closed.
    """
    return int(lib.nl_forks())


def locks_survive() -> bool:
    """Whether Python's own sqlite3 may open the same files in this process."""
    return bool(lib.nl_ofd_active())


def descriptors() -> tuple[int, int]:
    """Descriptors that SQLite has open now, and those parked for re-use."""
    open_fds, parked = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    lib.nl_ofd_counts(open_fds, parked)
    return int(open_fds[0]), int(parked[0])
