"""Changes of a connection, recorded."""

from __future__ import annotations

from nearlite._native._lib import ffi, lib, name_of
from nearlite._native.changeset import taken
from nearlite._native.database import Database


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
        return taken(out, size)

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
