"""One value of a table, read and written in place."""

from __future__ import annotations

from typing import Any

from nearlite._native._lib import ffi, lib, name_of
from nearlite._native.database import Database


class OpenBlob:
    """An open BLOB or TEXT value. It ends with its connection.

    Args:
      database: the connection.
      where: name of its database ("main"), of the table, and of the column.
      row: rowid.
      writable: it may be written to.

    Raises:
      Error: as SQLite says.
    """

    __slots__ = ("_blob", "_database", "_err")

    def __init__(
        self, database: Database, where: tuple[str, str, str], row: int, *, writable: bool
    ) -> None:
        self._database = database
        self._err = database.error
        out = ffi.new("nl_blob **")
        schema, table, column = (name_of(name) for name in where)
        if lib.nl_blob_open(database.handle, schema, table, column, row, writable, out, self._err):
            database.fail()
        self._blob = ffi.gc(out[0], lib.nl_blob_free)

    @property
    def size(self) -> int:
        """Its size, bytes."""
        size = ffi.new("int64_t *")
        self._check(lib.nl_blob_size(self._blob, size, self._err))
        return int(size[0])

    def read(self, at: int, size: int) -> bytes:
        """So many bytes from there on. Raises OperationalError: its row has changed, or not so many."""
        data = bytearray(size)
        self._check(lib.nl_blob_read(self._blob, at, ffi.from_buffer(data), size, self._err))
        return bytes(data)

    def write(self, at: int, data: Any) -> None:
        """Write bytes there; its size stays. Raises as `read`."""
        # `with`: a traceback may keep it and the buffer in a cycle, which the collector cannot clear.
        with ffi.from_buffer(data) as raw:
            self._check(lib.nl_blob_write(self._blob, at, raw, len(raw), self._err))

    def close(self) -> None:
        """Close it; outside a transaction what was written is committed."""
        self._check(lib.nl_blob_close(self._blob, self._err))

    def _check(self, code: int) -> None:
        if code:
            self._database.fail()
