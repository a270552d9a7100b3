"""The shared object, and the one place where a C failure becomes an exception.

``Any`` is allowed in this package only: cffi's objects carry no types.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

from nearlite import errors
from nearlite._native import codes


def _refuse_subinterpreters() -> None:
    """Callbacks reach Python by PyGILState, which knows the main interpreter alone: in another one functions,
    hooks and signal handlers would run in the wrong place, and what they hold would be freed there.
    """
    for name in ("_interpreters", "_xxsubinterpreters"):  # since Python 3.13; before
        try:
            interpreters: Any = importlib.import_module(name)
            main = interpreters.get_current() == interpreters.get_main()
        except (ImportError, AttributeError):
            continue
        if not main:
            raise ImportError(
                "nearlite cannot be used in a subinterpreter, only in the main one of a process; nothing was "
                "loaded. Use processes or threads (with mod_wsgi: WSGIApplicationGroup %{GLOBAL})"
            )
        return


_refuse_subinterpreters()

# Tests choose another build of the same code ("test": fault points and SQLite's asserts;
# "sanitize"): it stands beside the normal one and is never part of a wheel.
_variant = os.environ.get("NEARLITE_FFI", "")
_module: Any = importlib.import_module(f"nearlite._ffi_{_variant}" if _variant else "nearlite._ffi")

ffi: Any = _module.ffi
lib: Any = _module.lib


class NativeError(errors.DatabaseError):
    """A failure that is not SQLite's own.

    Attributes:
      code: NL_E_* of csrc/nl_api.h.
      page: page concerned, or 0.
      frame: frame concerned, or 0.
      offset: byte offset into the input, or -1.

    """

    code: int
    page: int
    frame: int
    offset: int


class FormatError(NativeError):
    """Malformed, truncated or hostile bytes; nothing was changed."""


class HashError(NativeError):
    """A digest or state hash differs from the announced one; nothing was changed."""


class PositionError(NativeError):
    """A page set does not start at this replica's position; nothing was changed."""


class NotReplicaError(NativeError):
    """Byte 18 or the replica header says that the file is not a replica."""


class TooBigError(NativeError, errors.DataError):
    """A size above the documented bound."""


class WalResetError(NativeError, errors.OperationalError):
    """The WAL was restarted or replaced by somebody else."""


class BusyError(NativeError, errors.OperationalError):
    """A lock was not to be had before the deadline."""


class DiskFullError(NativeError, errors.OperationalError):
    """The disk is full; the operation was undone."""


class SystemCallError(NativeError, errors.OperationalError):
    """The operating system failed; ``errno`` and ``strerror`` say how."""

    errno: int
    strerror: str


class MisuseError(NativeError, errors.InternalError):
    """A precondition between our own layers was broken: a bug in nearlite."""


class BindError(NativeError, errors.ProgrammingError):
    """Parameters do not match the statement."""


class DeferredConstraintError(NativeError, errors.IntegrityError):
    """A deferred constraint is violated at the end of a request."""


class PiecemealError(NativeError, errors.InternalError):
    """A page set has to be taken chunk by chunk; nothing was done."""


class KeyRefusedError(NativeError, errors.WrongKeyError):
    """Not the key of this file, or not a key at all."""


class SealBrokenError(NativeError, errors.TamperedError):
    """Sealed bytes do not match their tag; `page` or `frame` says where."""


class ConflictError(NativeError, errors.IntegrityError):
    """A changeset does not fit what is there; nothing was changed."""


class UnsoundError(NativeError):
    """Pages that were pushed do not make a sound database; nothing was changed."""


# NL_E_* -> class. NL_E_SQLITE and NL_E_NOMEM are not here: see exception().
_NATIVE: dict[int, type[NativeError]] = {
    lib.NL_E_MISUSE: MisuseError,
    lib.NL_E_IO: SystemCallError,
    lib.NL_E_FORMAT: FormatError,
    lib.NL_E_HASH: HashError,
    lib.NL_E_POSITION: PositionError,
    lib.NL_E_NOT_REPLICA: NotReplicaError,
    lib.NL_E_BUSY: BusyError,
    lib.NL_E_TOO_BIG: TooBigError,
    lib.NL_E_RESET: WalResetError,
    lib.NL_E_FULL: DiskFullError,
    lib.NL_E_BIND: BindError,
    lib.NL_E_CONSTRAINT_DEFERRED: DeferredConstraintError,
    lib.NL_E_PIECEMEAL: PiecemealError,
    lib.NL_E_KEY: KeyRefusedError,
    lib.NL_E_TAG: SealBrokenError,
    lib.NL_E_CONFLICT: ConflictError,
    lib.NL_E_UNSOUND: UnsoundError,
}

SQLITE_NAMES: dict[int, str] = {getattr(codes, name): name for name in codes.__all__}
"""Names of SQLite's result codes, by number."""

# Primary result code -> class, as CPython's Modules/_sqlite/util.c does it since 3.11. Codes that
# are not listed are DatabaseError, SQLITE_NOMEM (7) is MemoryError.
_SQLITE: dict[int, type[errors.Error]] = {
    2: errors.InternalError,
    12: errors.InternalError,
    1: errors.OperationalError,
    3: errors.OperationalError,
    4: errors.OperationalError,
    5: errors.OperationalError,
    6: errors.OperationalError,
    8: errors.OperationalError,
    9: errors.OperationalError,
    10: errors.OperationalError,
    13: errors.OperationalError,
    14: errors.OperationalError,
    15: errors.OperationalError,
    16: errors.OperationalError,
    17: errors.OperationalError,
    18: errors.DataError,
    19: errors.IntegrityError,
    20: errors.IntegrityError,
    21: errors.InterfaceError,
    25: errors.InterfaceError,
}


def sqlite_exception(code: int, text: str) -> errors.Error | MemoryError:
    """The exception for an extended SQLite result code, as the standard library words it."""
    if code & 0xFF == 7:
        return MemoryError()
    error = _SQLITE.get(code & 0xFF, errors.DatabaseError)(text)
    error.sqlite_errorcode = code
    error.sqlite_errorname = SQLITE_NAMES.get(code, "unknown")
    return error


def exception(err: Any) -> Exception:
    """The exception for a filled ``nl_error``."""
    text = ffi.string(err.text).decode("utf-8", "replace")
    if err.sqlite_rc:
        return sqlite_exception(err.sqlite_rc, text)
    if err.code == lib.NL_E_NOMEM:
        return MemoryError()
    error = _NATIVE.get(err.code, NativeError)(text)
    error.code, error.page, error.frame, error.offset = err.code, err.page, err.frame, err.offset
    if isinstance(error, SystemCallError):
        error.errno, error.strerror = err.os_errno, os.strerror(err.os_errno)
        error.args = (f"{text}: {error.strerror}",)
    return error


def check(rc: int, err: Any) -> None:
    """Raise what a C function reported.

    Args:
      rc: what it answered; 0 is success.
      err: the ``nl_error *`` it was given.

    Raises:
      errors.Error: SQLite's failures, mapped as CPython's sqlite3 maps them, or a NativeError.
      MemoryError: out of memory.

    """
    if rc:
        raise exception(err)


def new_error() -> Any:
    """An ``nl_error *`` to pass to a C function."""
    return ffi.new("nl_error *")


def _init() -> None:
    err = new_error()
    check(lib.nl_init(err), err)


_init()

sqlite_version: str = ffi.string(lib.nl_sqlite_version()).decode()
openssl_version: str = ffi.string(lib.nl_openssl_version()).decode()


def name_of(name: str) -> bytes:
    """The name of a database, a table or a column for C, which would take it to end at a NUL."""
    if not isinstance(name, str):
        raise TypeError(f"a name must be str, not {type(name).__name__}")
    if "\0" in name:
        raise ValueError("embedded null character")
    return name.encode()
