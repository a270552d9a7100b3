"""States of a database in WAL mode, named and read again."""

from __future__ import annotations

from nearlite._native._lib import ffi, lib, name_of
from nearlite._native.database import Database


class State:
    """What the open transaction of a connection reads, as the WAL still has it.

    Raises:
      OperationalError: no transaction is open, or it has written; there is nothing in the WAL.
    """

    __slots__ = ("_snapshot",)

    def __init__(self, database: Database, schema: str) -> None:
        out = ffi.new("nl_snapshot **")
        if lib.nl_snapshot_get(database.handle, name_of(schema), out, database.error):
            database.fail()
        self._snapshot = ffi.gc(out[0], lib.nl_snapshot_free)

    def open(self, database: Database, schema: str) -> None:
        """Let a connection's open transaction, which reads already, read this state.

        Raises:
          OperationalError: it is no longer there, or rows are being fetched, or were written.
        """
        if lib.nl_snapshot_open(database.handle, name_of(schema), self._snapshot, database.error):
            database.fail()

    def compared(self, other: State) -> int:
        """Less than 0: this one is older; 0: they are the same. Of one file."""
        return int(lib.nl_snapshot_compare(self._snapshot, other._snapshot))
