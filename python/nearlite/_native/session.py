"""Changes of a connection, recorded; changesets applied, undone and joined."""

from __future__ import annotations

from typing import Any, Final

from nearlite._native._lib import check, ffi, lib, name_of, new_error
from nearlite._native.database import Database

ON_CONFLICT: Final = {
    "abort": lib.NL_CONFLICT_ABORT,
    "omit": lib.NL_CONFLICT_OMIT,
    "replace": lib.NL_CONFLICT_REPLACE,
}
"""What becomes of a change that does not fit."""


class Recording:
    """What a connection changes in some tables. It ends with its connection.

    Args:
      database: the connection.
      schema: name of its database ("main").

    Raises:
      Error: as SQLite says.
    """

    __slots__ = ("_database", "_err", "_session")

    def __init__(self, database: Database, schema: str) -> None:
        self._database = database
        self._err = database.error
        out = ffi.new("nl_session **")
        if lib.nl_session_open(database.handle, name_of(schema), out, self._err):
            database.fail()
        self._session = ffi.gc(out[0], lib.nl_session_free)

    def attach(self, table: str | None) -> None:
        """Record a table, None: all of them. One without a primary key is never recorded."""
        name = ffi.NULL if table is None else name_of(table)
        self._check(lib.nl_session_attach(self._session, name, self._err))

    def enabled(self, value: int = -1) -> bool:
        """Whether changes are recorded; 0 and 1 say so."""
        return self._switch(lib.NL_SESSION_ENABLED, value)

    def indirect(self, value: int = -1) -> bool:
        """Whether they are recorded as indirect ones, those of a trigger; 0 and 1 say so."""
        return self._switch(lib.NL_SESSION_INDIRECT, value)

    def empty(self) -> bool:
        """Whether nothing was recorded."""
        return self._switch(lib.NL_SESSION_EMPTY, -1)

    def changes(self, *, patch: bool) -> bytes:
        """What was recorded, as a changeset, or as a patchset, which does not say what was there before."""
        out, size = ffi.new("uint8_t **"), ffi.new("int64_t *")
        self._check(lib.nl_session_changes(self._session, patch, out, size, self._err))
        return _taken(out, size)

    def close(self) -> None:
        """End it. Idempotent."""
        self._check(lib.nl_session_close(self._session, self._err))

    def _switch(self, what: int, value: int) -> bool:
        now = ffi.new("int *")
        self._check(lib.nl_session_switch(self._session, what, value, now, self._err))
        return bool(now[0])

    def _check(self, code: int) -> None:
        if code:
            self._database.fail()


def apply(database: Database, data: Any, on_conflict: int) -> tuple[int, int, int, int, int]:
    """Apply a changeset as one unit.

    Returns:
      how often a row had another content, was missing, its key was taken; a constraint, a foreign key failed.

    Raises:
      ConflictError: it did not fit, and was to be given up then; FormatError: it is none. Nothing was changed.
    """
    count = ffi.new("nl_conflicts *")
    raw = ffi.from_buffer(data)
    if lib.nl_changeset_apply(database.handle, raw, len(raw), on_conflict, count, database.error):
        database.fail()
    return count.data, count.missing, count.taken, count.constraint, count.foreign_key


def invert(data: Any) -> bytes:
    """The changeset that undoes one. Raises FormatError: it is none."""
    raw = ffi.from_buffer(data)
    out, size, err = ffi.new("uint8_t **"), ffi.new("int64_t *"), new_error()
    check(lib.nl_changeset_invert(raw, len(raw), out, size, err), err)
    return _taken(out, size)


def concat(first: Any, second: Any) -> bytes:
    """One changeset instead of two. Raises FormatError: one is none, or a table differs."""
    a, b = ffi.from_buffer(first), ffi.from_buffer(second)
    out, size, err = ffi.new("uint8_t **"), ffi.new("int64_t *"), new_error()
    check(lib.nl_changeset_concat(a, len(a), b, len(b), out, size, err), err)
    return _taken(out, size)


def _taken(out: Any, size: Any) -> bytes:
    try:
        return bytes(ffi.buffer(out[0], size[0])) if size[0] else b""
    finally:
        lib.nl_image_free(out[0])
