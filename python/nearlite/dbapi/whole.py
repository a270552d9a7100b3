"""What concerns a database as a whole: limits and switches, other files, copies of it, values in place."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from nearlite._native.blob import OpenBlob
from nearlite._native.changeset import ON_CONFLICT, apply
from nearlite._native.database import NO_PARAMETERS, Backup, Database
from nearlite._native.sealing import Key
from nearlite._native.session import Recording
from nearlite._native.snapshot import State
from nearlite.dbapi import constants
from nearlite.dbapi.blob import Blob, OpenValue
from nearlite.dbapi.changeset import Conflicts, OnConflict
from nearlite.dbapi.dump import dump
from nearlite.dbapi.session import Session
from nearlite.dbapi.snapshot import Snapshot
from nearlite.errors import Error, NotSupportedError, OperationalError, ProgrammingError
from nearlite.keys import EncryptionKey, key_of

if TYPE_CHECKING:
    from nearlite.dbapi.connection import Connection

_SWITCHES: Final = frozenset(
    getattr(constants, name) for name in constants.__all__ if name.startswith("SQLITE_DBCONFIG_")
)
# What would let a replica's own file be written to, or its log be moved, through its connection.
_OF_A_REPLICA: Final = frozenset(
    (
        constants.SQLITE_DBCONFIG_DEFENSIVE,
        constants.SQLITE_DBCONFIG_WRITABLE_SCHEMA,
        constants.SQLITE_DBCONFIG_RESET_DATABASE,
        constants.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE,
    )
)
_OK: Final = 0
_DONE: Final = 101


class Whole:
    """A connection's database. `Connection` has what this only names."""

    _database: Database
    _key: Key | None
    _forwards: bool  # its statements may run elsewhere: it is a replica, or has no file here

    def _check(self) -> None:
        raise NotImplementedError

    def _settle(self) -> None:
        raise NotImplementedError

    def _guard(self) -> contextlib.AbstractContextManager[Any]:
        raise NotImplementedError

    def _in_transaction(self) -> bool:
        raise NotImplementedError

    def _begin_to_write(self) -> None:
        """Begin a transaction if one is begun before an INSERT."""
        raise NotImplementedError

    def _plain_rows(self, sql: str, parameters: Sequence[Any]) -> Iterator[Sequence[Any]]:
        """Rows of a statement as tuples."""
        raise NotImplementedError

    def _word(self, sql: str) -> None:
        """Run BEGIN, COMMIT or ROLLBACK, whatever `autocommit` says."""
        raise NotImplementedError

    def getlimit(self, category: int, /) -> int:
        """A run-time limit of SQLite (SQLITE_LIMIT_*)."""
        return self.setlimit(category, -1)

    def setlimit(self, category: int, limit: int, /) -> int:
        """Set a run-time limit of SQLite; a negative one only asks. Answers the old limit.

        Raises:
          ProgrammingError: there is no such category.

        """
        self._check()
        old = self._database.limit(category, limit)
        if old < 0:
            raise ProgrammingError("'category' is out of bounds")
        return old

    def attach(
        self,
        database: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        name: str,
        *,
        encryption_key: EncryptionKey | None = None,
    ) -> None:
        """Attach a file under a name of its own, as ATTACH does, with a key of its own.

        On a connection that has a key, the statement ATTACH takes that key for the other file as well.

        Args:
          database: its path; created when missing.
          name: what its tables are to be qualified with.
          encryption_key: as for the connection; None: the file is plain.

        Raises:
          WrongKeyError: it is not the key of that file, or this connection has none: what is sorted on it
            would go into files that are not sealed.
        """
        self._check()
        key = None if encryption_key is None else key_of(encryption_key)
        with self._guard():
            self._database.attach(os.fsencode(database), name, key)

    def rekey(self, key: EncryptionKey) -> None:
        """Make `key` the key of this sealed database, and of what lies beside it, while others use it.

        The database has a new data key afterwards, and every page is sealed with that. Broken off, by a crash
        say, both keys open the file, and the same call goes on. Other connections that were opened with the
        old key, but for those that were given the very same `Key` object, have to be opened again: they fail
        with WrongKeyError, at the latest when they write.

        Args:
          key: as `encryption_key` of the connection.

        Raises:
          NotSupportedError: the database is not sealed, or has no file.
          ProgrammingError: inside a transaction.
          WrongKeyError: a change to a third key was begun before, and has to be finished first.
          OperationalError: another connection was in the way for 30 seconds (it says which keys open the file
            then), or the database is served by a primary.
        """
        from nearlite.rekeying import rekey_file  # few need it

        self._check()
        self._settle()
        if self._key is None:
            raise NotSupportedError(
                "the database is not sealed; the command `nearlite encrypt` makes a copy that is"
            )
        if self._in_transaction():
            raise ProgrammingError("the key cannot be changed inside a transaction")
        new = key_of(key)
        with self._guard():
            path = self._database.prepare("PRAGMA database_list").run(NO_PARAMETERS)[0][2]
            if not path:
                raise NotSupportedError("a database without a file has no key to change")
            rekey_file(Path(path), self._key, new)

    def backup(
        self,
        target: Connection,
        *,
        pages: int = -1,
        progress: Callable[[int, int, int], object] | None = None,
        name: str = "main",
        sleep: float = 0.250,
    ) -> None:
        """Copy a database into another connection's, also while others use it. Either may be sealed.

        Args:
          target: whose "main" becomes a copy; it must have the same page size if it is in WAL mode.
          pages: copied at a time; 0 or less: all at once.
          progress: called with SQLite's result, pages left and all pages after each step.
          name: "main", "temp", or of an attached database.
          sleep: seconds to wait when somebody is in the way.
        """
        if not isinstance(target, Whole):
            raise TypeError(f"target must be a nearlite.Connection, not {type(target).__name__}")
        if target is self:
            raise ValueError("target cannot be the same connection instance")
        for one in (self, target):
            one._check()
        if target.in_transaction:
            raise OperationalError("target is in transaction")
        if progress is not None and not callable(progress):
            raise TypeError("progress argument must be a callable")
        if target._forwards:
            raise NotSupportedError("a replica is what its primary is; copy into another file")
        with self._copied(name) as database:
            with self._with(target):
                copying = Backup((database, name), (target._database, "main"))
            try:
                while True:
                    with self._with(target):
                        rc, left, total = copying.step(pages if pages > 0 else -1)
                    if progress is not None:
                        progress(rc, left, total)
                    if rc == _DONE:
                        break
                    if rc != _OK:
                        if self._database.calling or target._database.calling:
                            # It is the call that waits for this callback that is in the way.
                            raise OperationalError("database is locked")
                        time.sleep(sleep)
            except BaseException:
                with contextlib.suppress(Error), self._with(target):
                    copying.end()
                raise
            with self._with(target):
                copying.end()

    @contextlib.contextmanager
    def _with(self, target: Whole) -> Generator[None, None, None]:
        """Both connections, for this thread: in one order, whoever copies into whom."""
        first, second = sorted((self, target), key=id)
        with first._guard(), second._guard():
            yield

    def _copied(self, name: str) -> contextlib.AbstractContextManager[Database]:  # noqa: ARG002
        """What a copy of the database `name` is made from."""
        return contextlib.nullcontext(self._database)

    def iterdump(self, *, filter: str | None = None) -> Iterator[str]:  # noqa: A002
        """The database as SQL statements.

        Args:
          filter: only tables, views, indexes and triggers whose name is LIKE it.
        """
        self._check()
        return dump(self._plain_rows, filter)

    def blobopen(
        self, table: str, column: str, row: int, /, *, readonly: bool = False, name: str = "main"
    ) -> Blob:
        """Open one BLOB or TEXT value, to be read and written in place.

        On a replica, and without a local file, each write is an UPDATE of the row on the primary: triggers and
        checks take part, and outside a transaction it is committed at once.

        Args:
          table, column: where it is.
          row: rowid.
          readonly: it is not to be written to.
          name: "main", "temp", or of an attached database.

        Raises:
          OperationalError: there is no such value.
        """
        self._check()
        if not -(1 << 63) <= row < 1 << 63:
            raise OverflowError("Python int too large to convert to SQLite INTEGER")
        self._settle()
        with self._guard():
            return Blob._of(
                self, self._open_value((name, table, column), row, writable=not readonly)
            )

    def _open_value(self, where: tuple[str, str, str], row: int, *, writable: bool) -> OpenValue:
        """The value of a column (database, table, name) of a row."""
        return OpenBlob(self._database, where, row, writable=writable)

    def serialize(self, *, name: str = "main") -> bytes:
        """A database as the bytes of its file; those of a sealed one are in clear.

        Args:
          name: "main", "temp", or of an attached database.

        Raises:
          OperationalError: there is none of that name.
        """
        self._check()
        self._settle()
        with self._guard():
            return self._database.serialize(name)

    def deserialize(self, data: Any, /, *, name: str = "main") -> None:
        """Make a database out of the bytes of a file, in memory; the connection leaves the one it had.

        Args:
          data: bytes, or whatever else has a buffer; copied.
          name: "main", or of an attached database.

        Raises:
          OperationalError: it is in use; what is wrong with the bytes is found when they are read.
        """
        self._check()
        view = memoryview(data)
        if not view.c_contiguous:
            raise BufferError("memoryview: underlying buffer is not C-contiguous")
        if self._forwards:
            raise NotSupportedError("a replica is what its primary is; open the bytes elsewhere")
        self._settle()
        with self._guard():
            self._database.deserialize(name, view)

    def session(self, *tables: str, name: str = "main") -> Session:
        """Record what this connection changes from now on.

        Args:
          tables: none: all of them. A table without a primary key is not recorded.
          name: "main", "temp", or of an attached database.

        Raises:
          OperationalError: there is no database of that name.
          NotSupportedError: on a replica, whose writes run on its primary.
        """
        self._check()
        if self._forwards:
            raise NotSupportedError("what is written on a replica is carried out by its primary")
        self._settle()
        if name.lower() != "temp":
            self._file(name)  # SQLite would record nothing, in silence
        with self._guard():
            recording = Recording(self._database, name)
            for table in tables or (None,):
                recording.attach(table)
        return Session(self, recording)

    def apply(self, changeset: Any, /, *, on_conflict: OnConflict = "abort") -> Conflicts:
        """Carry out a changeset or patchset on the main database, as a whole or not at all.

        Args:
          changeset: bytes of `Session.changeset` or `patchset`.
          on_conflict: "abort": nothing is changed when one change does not fit; "omit": leave such ones
            out; "replace": overwrite the row that is there, and leave out what has none.

        Returns:
          how many changes did not fit.

        Raises:
          IntegrityError: one did not fit ("abort"), or a foreign key would be violated.
          DatabaseError: it is no changeset, or a damaged one.
        """
        self._check()
        if on_conflict not in ON_CONFLICT:
            raise ValueError(f"on_conflict is 'abort', 'omit' or 'replace', not {on_conflict!r}")
        if self._forwards:
            raise NotSupportedError("what is written on a replica is carried out by its primary")
        self._settle()
        with self._guard():
            self._begin_to_write()
            return Conflicts(*apply(self._database, changeset, ON_CONFLICT[on_conflict]))

    def snapshot(self, *, name: str = "main") -> Snapshot:
        """The state of a database in WAL mode that the open transaction reads; without one, the present state.

        Args:
          name: "main", or of an attached database.

        Raises:
          OperationalError: the transaction has written; the database is not in WAL mode, or nothing was
            written since its WAL was last emptied; there is no database of that name.
        """
        self._check()
        self._settle()
        with self._guard():
            file = self._file(name)
            with self._in_one():
                self._touch(name)
                return Snapshot(file, State(self._database, name))

    def read_at(self, snapshot: Snapshot, /, *, name: str = "main") -> None:
        """Read a state of before: in the open transaction, or in one that begins here.

        It ends with `commit` or `rollback`; with ``autocommit=True``, where these do nothing, by
        ``execute("COMMIT")``.

        Args:
          snapshot: of `Connection.snapshot`, on this connection or on another one to the same file.
          name: "main", or of an attached database.

        Raises:
          OperationalError: it is no longer there; the transaction has written, or rows are being fetched in
            it. What was open is as it was.
          ValueError: it is of another file.
        """
        self._check()
        self._settle()
        if snapshot._file != self._file(name):
            raise ValueError(f"{snapshot!r} is of another file than {self._file(name)!r}")
        with self._guard(), self._in_one(stays=True):
            self._touch(name)
            snapshot._state.open(self._database, name)

    @contextlib.contextmanager
    def _in_one(self, *, stays: bool = False) -> Generator[None, None, None]:
        """A transaction: the open one, or one of its own, which stays open if asked to and nothing fails."""
        begun = not self._in_transaction()
        if begun:
            self._word("BEGIN")
        done = False
        try:
            yield
            done = True
        finally:
            if begun and not (done and stays):
                self._word("ROLLBACK")

    def _touch(self, name: str) -> None:
        """Read something: before, SQLite does not know whether a database has a WAL."""
        quoted = '"' + name.replace('"', '""') + '"'
        self._plain_rows(f"PRAGMA {quoted}.application_id", ())

    def _file(self, name: str) -> str:
        """Path of a database's file; empty: it has none."""
        wanted = name.lower()
        with self._guard():
            listing = self._database.prepare("PRAGMA database_list", own=True)
            for _number, known, path in listing.run(NO_PARAMETERS):
                if known.lower() == wanted:
                    return str(path or "")
        raise OperationalError(f"unknown database '{name}'")

    def getconfig(self, op: int, /) -> bool:
        """A switch of the connection, one of SQLITE_DBCONFIG_*. Raises ValueError: there is no such one."""
        self._check()
        _checked_switch(op)
        with self._guard():
            return self._database.config(op)

    def setconfig(self, op: int, enable: bool = True, /) -> None:
        """Set a switch of the connection.

        Raises:
          ValueError: there is no such one.
          OperationalError: SQLite did not take it.
          NotSupportedError: it would let a replica be changed.
        """
        self._check()
        _checked_switch(op)
        if self._forwards and op in _OF_A_REPLICA:
            raise NotSupportedError("that switch would let the replica's file be changed")
        self._settle()
        with self._guard():
            if self._database.config(op, bool(enable)) != bool(enable):
                raise OperationalError("Unable to set config")


def _checked_switch(op: int) -> None:
    if op not in _SWITCHES:
        raise ValueError(f"unknown config 'op': {op}")
