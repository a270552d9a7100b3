"""Named fault points for tests: the C ones, and Python's own beside renames and writes.

A module that does something dangerous declares its points once and passes them::

    _BEFORE_RENAME = faults.declare("log.before-rename")
    ...
    faults.hit(_BEFORE_RENAME)

Outside a test build nothing is armed and `hit` costs one call of an empty function.
"""

from __future__ import annotations

import os
from typing import Final

from nearlite._native._lib import MisuseError, ffi, lib

KILL: Final[int] = lib.NL_FAULT_KILL
EIO: Final[int] = lib.NL_FAULT_EIO
ENOSPC: Final[int] = lib.NL_FAULT_ENOSPC
STOP: Final[int] = lib.NL_FAULT_STOP

built: Final[bool] = bool(lib.nl_fault_built())

_declared: set[str] = set()


def declare(name: str) -> bytes:
    """Register one of Python's own points, ``"module.instant"``; answers what `hit` takes."""
    _declared.add(name)
    return name.encode()


def _hit(point: bytes) -> None:
    """Pass a point.

    Raises:
      OSError: the point was armed to fail; its errno is the armed one.

    """
    number = lib.nl_fault_hit(point)
    if number:
        raise OSError(number, os.strerror(number))


def _pass(point: bytes) -> None:
    """Pass a point in a build that has none."""


hit = _hit if built else _pass


def names() -> list[str]:
    """All points of this build, C's and those that imported Python modules declared, sorted."""
    size = lib.nl_fault_names(ffi.NULL, 0) if built else 1
    buffer = ffi.new("char[]", size)
    lib.nl_fault_names(buffer, size)
    return sorted({*ffi.string(buffer).decode().split(), *_declared})


def arm(name: str, kind: int, after: int = 0) -> None:
    """Let a point fire once, at its (after + 1)-th pass from now.

    Args:
      name: the point.
      kind: KILL, EIO, ENOSPC or STOP.
      after: passes to let through first.

    Raises:
      MisuseError: this is no test build, or the name or kind is impossible.

    """
    if lib.nl_fault_set(name.encode(), kind, after):
        raise MisuseError(f"cannot arm fault point {name!r}: this build is for users")


def clear() -> None:
    """Disarm everything and forget all counts."""
    lib.nl_fault_clear()


def passes(name: str) -> int:
    """How often a point was passed since the last `clear`."""
    count: int = lib.nl_fault_passes(name.encode())
    return count
