"""One value of a table whose primary is elsewhere, read and written piece by piece: what is below a Blob.

SQLite's own incremental access would write to the file, or hold on to its old state (rule B8): a piece is read by a
SELECT, which runs where reads of the connection run, and written by an UPDATE on the primary, with the
triggers and checks that an UPDATE has.

The value must have the size and type that it had when it was opened; then it is taken for the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from nearlite._native._lib import sqlite_exception
from nearlite._native.codes import SQLITE_ABORT, SQLITE_ERROR, SQLITE_READONLY

Read = Callable[[str, Sequence[Any]], Iterator[Sequence[Any]]]
"""Runs a SELECT; its rows."""
Write = Callable[[str, Sequence[Any]], int]
"""Runs an UPDATE; how many rows it changed."""

_ROWIDS: Final = ("rowid", "oid", "_rowid_")


class ForwardedBlob:
    """A BLOB or TEXT value of the main database.

    Args:
      read, write: how statements are run.
      table, column: where it is.
      row: rowid.
      writable: it may be written to.

    Raises:
      OperationalError: there is no such value, or one that is neither BLOB nor TEXT.
    """

    def __init__(
        self, read: Read, write: Write, where: tuple[str, str], row: int, *, writable: bool
    ) -> None:
        self._read, self._write, self._writable = read, write, writable
        table, column = where
        self._table, self._column = _quoted(table), _quoted(column)
        self._row = row
        # A column may be called rowid and be none.
        columns = list(
            read(
                "SELECT name, (SELECT encoding = 'UTF-8' FROM pragma_encoding) "
                "FROM pragma_table_xinfo(?, 'main')",
                (table,),
            )
        )
        taken = {_text(name).lower() for name, _ in columns}
        self._is_utf_8 = all(utf_8 for _, utf_8 in columns)
        rowid = next((name for name in _ROWIDS if name not in taken), None)
        if rowid is None:
            raise sqlite_exception(SQLITE_ERROR, f"cannot reach the rowids of table: {table}")
        self._is_row = f'x."{rowid}" = ?'
        # Qualified: SQLite takes an unknown name in double quotes alone for a string.
        self._bytes = f"CAST(x.{self._column} AS BLOB)"
        found = self._select(
            f"typeof(x.{self._column}) = 'blob', typeof(x.{self._column}) IN ('blob', 'text'), "
            f"length({self._bytes})"
        )
        if found is None:
            raise sqlite_exception(SQLITE_ERROR, f"no such rowid: {row}")
        if not found[1]:
            raise sqlite_exception(
                SQLITE_ERROR, "cannot open value: it is neither a BLOB nor a TEXT"
            )
        self._kind = "blob" if found[0] else "text"
        self._size = int(found[2])
        self._is_same = (
            f"typeof(x.{self._column}) = '{self._kind}' AND length({self._bytes}) = {self._size}"
        )
        self._expired = False

    def _select(self, what: str, *values: Any) -> Sequence[Any] | None:
        sql = f"SELECT {what} FROM main.{self._table} AS x WHERE {self._is_row}"  # noqa: S608 - quoted
        rows = list(self._read(sql, (*values, self._row)))  # to its end: nothing is held open
        return rows[0] if rows else None

    def _check(self) -> None:
        if self._expired:
            raise sqlite_exception(
                SQLITE_ABORT, "the value was changed or deleted by other means; open it again"
            )

    @property
    def size(self) -> int:
        """Its size, bytes; as SQLite has it, 0 once it turned out that its row has changed."""
        return 0 if self._expired else self._size

    def read(self, at: int, size: int) -> bytes:
        """So many bytes from there on. Raises OperationalError: it is not what it was."""
        self._check()
        found = self._select(f"{self._is_same}, substr({self._bytes}, ?, ?)", at + 1, size)
        self._expired = found is None or not found[0]
        self._check()
        assert found is not None
        return bytes(found[1])

    def write(self, at: int, data: Any) -> None:
        """Write bytes there; its size stays. Raises as `read`, and what the UPDATE raises."""
        self._check()
        if not self._writable:
            raise sqlite_exception(SQLITE_READONLY, "attempt to write a readonly database")
        new = bytes(data)
        if not new:
            return
        pieces = f"substr({self._bytes}, 1, ?)", "?", f"substr({self._bytes}, ?)"
        if self._is_utf_8:
            # || makes a text of blobs without looking at their bytes; CAST takes it back.
            value = f"CAST({' || '.join(pieces)} AS BLOB)"
        else:  # ... which in UTF-16 loses the last one of an odd number
            value = f"unhex({' || '.join(f'hex({piece})' for piece in pieces)})"
        if self._kind == "text":
            value = f"CAST({value} AS TEXT)"
        sql = (
            f"UPDATE main.{self._table} AS x SET {self._column} = {value} "  # noqa: S608 - quoted
            f"WHERE {self._is_row} AND {self._is_same}"
        )
        changed = self._write(sql, (at, new, at + len(new) + 1, self._row))
        self._expired = changed == 0
        self._check()

    def close(self) -> None:
        """Nothing is held."""


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: Any) -> str:
    """A text, also where `text_factory` is bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)
