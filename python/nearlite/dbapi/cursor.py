"""Cursor: runs statements and hands out their rows.

Rows arrive in batches as lists of tuples; the cursor keeps an iterator over the present batch and asks
the statement for the next one when it is used up. A statement that has reached its end goes back into
the connection's cache at once, so a point select costs one call into C and leaves nothing open.

`execute` is written out in one piece because it is the path that programs wait for: every call and
every attribute in it was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from operator import index
from threading import get_ident
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from weakref import ref

from msgspec import MsgspecError

from nearlite._native.database import (
    DML,
    EMPTY,
    READONLY,
    RUNNING,
    SIMPLE,
    Statement,
    decode,
    go,
)
from nearlite.dbapi.ahead import read_ahead
from nearlite.dbapi.binding import PLAIN, encode, encode_one, encode_plain
from nearlite.dbapi.sets import run_sets
from nearlite.errors import ProgrammingError

if TYPE_CHECKING:
    from nearlite.dbapi.connection import Connection

Self = TypeVar("Self", bound="Cursor")

_NO_ROWS: Final[Iterator[Any]] = iter(())
_END: Final = (1 << 31) - 1  # behind the last row of any batch
_BATCH: Final[Any] = type(iter([]))  # the iterator over rows that nobody has to convert
_CLOSED: Final = "Cannot operate on a closed cursor."
_RECURSIVE: Final = "Recursive use of cursors not allowed."


class Result(Protocol):
    """The result columns of a statement, compiled here or elsewhere."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Their names."""
        ...

    @property
    def decltypes(self) -> tuple[str | None, ...]:
        """Their declared types."""
        ...


class _Converted:
    """Rows through the program's converters, which may not use the cursor.

    A row that a converter fails for is not taken: it is what is fetched next, as in the standard library.
    """

    __slots__ = ("_cursor", "_finish", "_row", "_rows")

    def __init__(self, cursor: Cursor, rows: Iterator[Any], finish: Callable[[Any], Any]) -> None:
        self._cursor, self._rows, self._finish = ref(cursor), rows, finish
        self._row: Any = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        row = next(self._rows) if self._row is None else self._row
        cursor: Any = self._cursor()  # who fetches has it
        self._row = row
        cursor._barred = _RECURSIVE
        try:
            finished = self._finish(row)
        finally:
            cursor._barred = None
        self._row = None
        return finished


class _Made:
    """Rows through the cursor's row_factory, one by one."""

    __slots__ = ("_cursor", "_rows")

    def __init__(self, cursor: Cursor, rows: Iterator[Any]) -> None:
        self._cursor, self._rows = ref(cursor), rows

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        row = next(self._rows)
        cursor: Any = self._cursor()
        try:
            return cursor._row_factory(cursor, row)
        except StopIteration as stopped:  # would end the rows, in silence (PEP 479)
            raise RuntimeError("row_factory raised StopIteration") from stopped


class Cursor:
    """A DB-API cursor.

    What it has refers to it weakly: a cursor that nobody has any more ends its statement at once, and not when
    the garbage collector comes.

    Attributes:
      arraysize: rows that `fetchmany` fetches when it is not told.

    """

    arraysize: int = 1
    # Defaults of instance attributes live on the class: creating a cursor then sets three.
    _connection: Any = SimpleNamespace(_thread=0)  # refuses: Cursor.__init__ was not called
    _rows: Iterator[Any] = _NO_ROWS  # of the present batch, through row_factory if there is one
    _plain_rows: Iterator[Any] = _NO_ROWS  # the same without it; only kept while there is one
    _statement: Statement | None = None  # a statement with more rows
    _looped: Any = None  # the batch that a loop is handing out by itself
    _held: bool = False  # there is one of the two, or was: _drop() comes before the next statement
    _description: Any = None
    _row_factory: Callable[[Cursor, Any], Any] | None = None
    _rowcount: int = -1
    _lastrowid: int | None = None
    _barred: str | None = (
        None  # why it cannot be used: closed, or inside the user's code in execute
    )

    def __init__(self, connection: Connection, /) -> None:
        if not hasattr(connection, "_statements"):
            kind = type(connection).__name__
            raise TypeError(f"Cursor() argument 1 must be nearlite.Connection, not {kind}")
        if self._barred is _RECURSIVE:
            raise ProgrammingError(_RECURSIVE)
        self._connection = connection
        connection._check()
        self._reset()
        self._lastrowid = None
        self._barred = None

    # ------------------------------------------------------------ running

    def execute(self: Self, sql: str, parameters: Any = (), /) -> Self:
        """Run one statement with at most one set of parameters.

        Args:
          sql: the statement, with ``?`` or ``:name`` in place of values.
          parameters: a sequence, or a mapping of names.

        Raises:
          ProgrammingError: more than one statement, or parameters that do not match it.
          Error: as SQLite says.

        """
        connection = self._connection
        if connection._thread != get_ident() or self._barred is not None:
            return self._execute_guarded(sql, parameters)
        if self._held:
            self._drop()
        statement = connection._statements.get(sql)
        kind = type(parameters)
        # (1) compiled and at rest, (2) parameters that are encoded as SQLite stores them ...
        if statement is None or statement.busy or (kind is not tuple and kind is not list):
            return self._execute_slowly(connection, sql, parameters)
        for value in parameters:
            if type(value) not in PLAIN:
                return self._execute_slowly(connection, sql, parameters)
        try:
            data = encode(parameters)
        except OverflowError:
            data = encode_plain(parameters)
        statement.used = statement.busy = True
        self._barred = _RECURSIVE  # to the program's functions that SQLite calls
        try:
            n = go(statement.handle, data, len(data))
        finally:
            self._barred = None
        # ... (3) few rows and all of them, nothing written, (4) readable text.
        if n & SIMPLE or n <= SIMPLE:
            return self._finish(connection, statement, n, data)
        try:
            self._rows = iter(decode(statement.small[: n >> 4]))
        except (MsgspecError, UnicodeDecodeError):
            return self._finish(connection, statement, n, data)
        statement.busy = False
        if self._row_factory is not None:
            self._wrap(statement)
        self._description = statement.description
        self._rowcount = -1
        self._lastrowid = connection._last_rowid
        return self

    def _execute_guarded(self: Self, sql: str, parameters: Any) -> Self:
        """The connection is shared by threads, or closed, or this is the wrong thread."""
        connection = self._check()
        connection._settle()
        with connection._guard():
            before = connection._thread
            connection._thread = get_ident()
            try:
                return self.execute(sql, parameters)
            finally:
                connection._thread = before

    def _execute_slowly(self: Self, connection: Connection, sql: str, parameters: Any) -> Self:
        """Compile the text, or adapt the parameters, first."""
        self._reset()
        if connection._forwards and connection._execute_elsewhere(self, sql, parameters):
            return self
        statement = connection._take(sql)
        data = self._encode(statement, parameters)
        connection._give(statement)
        statement.busy = True
        self._barred = _RECURSIVE
        try:
            n = go(statement.handle, data, len(data))
        finally:
            self._barred = None
        return self._finish(connection, statement, n, data)

    def _finish(
        self: Self, connection: Connection, statement: Statement, n: int, data: bytes
    ) -> Self:
        """Take over what `go` answered, whatever it is."""
        if n == RUNNING:  # we are in a function that this statement calls: another one, then
            statement = connection._compile(statement.sql)
            connection._give(statement)
            statement.busy = True
            self._barred = _RECURSIVE
            try:
                n = go(statement.handle, data, len(data))
            finally:
                self._barred = None
        try:
            rows = statement.outcome(n)
        except BaseException:
            statement.busy = False
            self._reset()
            connection._last_rowid = connection._database.last_insert_rowid
            raise
        statement.busy = False
        self._description = statement.description
        self._rowcount = -1
        if statement.flags & EMPTY:
            self._rows = _NO_ROWS
            return self  # nothing ran: lastrowid stays
        if not statement.flags & READONLY:
            connection._last_rowid = connection._database.last_insert_rowid
            if statement.flags & DML:
                self._rowcount = connection._database.changes
        self._lastrowid = connection._last_rowid
        if statement.more:
            connection._statements.pop(statement.sql, None)
            self._statement = statement
            self._held = True
            if connection._forwards:
                connection._reading(self)
        self._rows = iter(rows)
        if self._row_factory is not None or connection._raw_rows:
            self._wrap(statement)
        return self

    def executemany(self: Self, sql: str, parameters: Iterable[Any], /) -> Self:
        """Run one INSERT, UPDATE, DELETE or REPLACE for every set of parameters.

        Raises:
          ProgrammingError: it is another kind of statement, or parameters do not match.
          Error: as SQLite says; the sets before the failing one have been executed.

        """
        connection = self._check()
        connection._settle()
        self._rowcount = -1
        sets = parameters if type(parameters) in (list, tuple) else iter(parameters)
        if self._held:
            self._drop()
        self._reset()
        with connection._guard():
            self._barred = _RECURSIVE
            try:
                changed = None
                if connection._forwards:
                    changed = connection._executemany_elsewhere(sql, iter(sets))
                self._rowcount = self._many(connection, sql, sets) if changed is None else changed
            finally:
                self._barred = None
        return self

    @staticmethod
    def _many(connection: Connection, sql: str, sets: Iterable[Any]) -> int:
        statement = connection._take(sql)
        if statement.running:
            statement = connection._compile(sql)
        try:
            if statement.readonly:
                raise ProgrammingError("executemany() can only execute DML statements.")
            count = run_sets(connection, statement, sets)
        finally:
            connection._last_rowid = connection._database.last_insert_rowid
            connection._give(statement)
        return count if statement.flags & DML else -1

    def executescript(self: Self, sql_script: str, /) -> Self:
        """Run all statements of a script; a pending transaction is committed first.

        (Not with ``autocommit`` True or False: there transactions are the program's own.)

        Raises:
          ValueError: the script holds a NUL character.
          Error: as SQLite says; the statements before the failing one have been executed.

        """
        if not isinstance(sql_script, str):
            kind = type(sql_script).__name__
            raise TypeError(f"executescript() argument must be str, not {kind}")
        connection = self._check()
        if "\0" in sql_script:
            raise ValueError("embedded null character")
        connection._settle()
        with connection._guard():
            connection._script(sql_script)
        return self

    # ------------------------------------------------------------ fetching

    def fetchone(self) -> Any:
        """The next row, or None."""
        if self._barred is not None or self._connection._thread != get_ident():
            self._check()
        for row in self._rows:
            return row
        return self._next_row()

    def _next_row(self) -> Any:
        while True:
            rows = self._rows
            for row in rows:
                return row
            if not self._fill(rows):
                return None

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """At most `size` rows (default: ``arraysize``)."""
        self._check()
        wanted = index(self.arraysize if size is None else size)
        if not -(1 << 31) <= wanted < 1 << 31:
            raise OverflowError("Python int too large to convert to C int")
        if wanted < 1:  # the standard library counts to a number it never meets
            return self.fetchall()
        batch = self._rows
        rows = list(islice(self._made(), wanted))
        while len(rows) < wanted and self._fill(batch):
            batch = self._rows
            rows.extend(islice(self._made(), wanted - len(rows)))
        return rows

    def fetchall(self) -> list[Any]:
        """All rows that are left."""
        if self._barred is not None or self._connection._thread != get_ident():
            self._check()
        batch = self._rows
        rows = list(batch if self._row_factory is None else self._made())
        while self._fill(batch):
            batch = self._rows
            rows.extend(self._made())
        return rows

    def __iter__(self) -> Iterator[Any]:
        if type(self).__next__ is not Cursor.__next__:
            return self
        return self._iterate()

    def _iterate(self) -> Iterator[Any]:
        """A generator hands out a row in a third of the time that a ``__next__`` in Python needs. It
        shares the batch's iterator with the fetch methods, so both may be mixed.
        """
        self._check()
        while True:
            rows = self._rows
            plain = rows if self._row_factory is None else self._plain_rows
            if type(plain) is _BATCH:
                # Nothing is run for a row but its factory. A statement that the loop itself executes on
                # this cursor ends the batch: _drop().
                self._looped = plain
                self._held = True
                yield from self._made()
            else:
                for row in self._made():
                    yield row
                    if self._rows is not rows:
                        break  # executed again, or the rest was read ahead
            if self._rows is not rows:
                self._check()  # closed by the loop
                continue
            if not self._fill(rows):
                return

    def __next__(self) -> Any:
        row = self.fetchone()
        if row is None:
            raise StopIteration
        return row

    def _fill(self, read: Iterator[Any]) -> bool:
        """Fetch the batch behind `read`, which has no more rows; False at the end.

        Another thread may have done so meanwhile.
        """
        statement = self._statement
        if statement is None:
            return self._rows is not read
        connection = self._connection
        with connection._guard():
            # Closed, or this is a callback of its own: other threads have waited.
            if self._barred is not None:
                raise ProgrammingError(self._barred)
            if self._statement is not statement or self._rows is not read:
                return self._rows is not read
            self._barred = _RECURSIVE
            try:
                rows = statement.fetch()
            except BaseException:
                self._barred = None
                self._drop()
                raise
            self._barred = None
            if not statement.more:
                self._statement = None
                if statement.flags & DML:
                    self._rowcount = connection._database.changes
                connection._give(statement)
            self._rows = iter(rows)
            if self._row_factory is not None or connection._raw_rows:
                self._wrap(statement)
        return True

    # ------------------------------------------------------------ the rest of PEP 249

    def close(self) -> None:
        """Give up the rows that are left; the cursor cannot be used any more."""
        if self._barred is not _CLOSED:
            self._check()
        self._connection._check()
        self._drop()
        self._barred = _CLOSED

    def setinputsizes(self, sizes: Any, /) -> None:
        """Nothing: required by PEP 249."""

    def setoutputsize(self, size: Any, column: Any = None, /) -> None:
        """Nothing: required by PEP 249."""

    @property
    def connection(self) -> Connection:
        """The connection that the cursor belongs to."""
        connection: Connection = self._connection
        return connection

    @property
    def description(self) -> Any:
        """One 7-tuple a column, its name and six times None; None when there are no columns."""
        return self._description

    @property
    def lastrowid(self) -> int | None:
        """Rowid of the last inserted row of the connection when `execute` returned."""
        return self._lastrowid

    @property
    def rowcount(self) -> int:
        """Rows changed by INSERT, UPDATE, DELETE, REPLACE; -1 for other statements."""
        return self._rowcount

    @property
    def row_factory(self) -> Any:
        """Called with the cursor and a tuple for every row that is fetched; None: the tuple itself."""
        return self._row_factory

    @row_factory.setter
    def row_factory(self, factory: Any) -> None:
        plain = self._rows if self._row_factory is None else self._plain_rows
        if plain is self._looped:
            plain = iter(list(plain))  # the loop's batch ends here, and it goes on with these
        self._row_factory = factory
        self._rows = self._plain_rows = plain
        if factory is not None:
            self._rows = _Made(self, plain)

    # ------------------------------------------------------------ inside

    def _check(self) -> Connection:
        """Whether the cursor can be used, by this thread, now; answers its connection."""
        connection: Any = self._connection
        if type(connection) is SimpleNamespace:
            raise ProgrammingError("Base Cursor.__init__ not called.")
        if self._barred is not None:
            raise ProgrammingError(self._barred)
        connection._check()
        checked: Connection = connection
        return checked

    def _encode(self, statement: Statement, parameters: Any) -> bytes:
        """Parameters that are not simply a tuple or list of plain values."""
        self._barred = _RECURSIVE
        try:
            return encode_one(parameters, statement.parameters)
        except BaseException:
            self._connection._give(statement)
            raise
        finally:
            self._barred = None

    def _adopt(self, result: Result, rows: Iterable[Any], rowcount: int, lastrowid: int) -> None:
        """Take over a result that was not computed here."""
        self._description = self._connection._describe(result)
        self._rowcount = rowcount
        self._lastrowid = lastrowid
        self._rows = iter(rows)
        if self._row_factory is not None or self._connection._raw_rows:
            self._wrap(result)

    def _read_ahead(self) -> None:
        """Fetch all rows that are left and keep them, so that the read transaction ends."""
        statement = self._statement
        if statement is None:
            return
        connection = self._connection
        rest, raised = read_ahead(statement, sealed=connection._key is not None)
        self._statement = None
        if statement.flags & DML:
            self._rowcount = connection._database.changes
        connection._give(statement)
        if connection._raw_rows:
            rest = self._converted(statement, rest)
        plain = self._rows if self._row_factory is None else self._plain_rows
        self._rows = self._plain_rows = chain(plain, rest)
        self.row_factory = self._row_factory
        if raised is not None:
            raise raised

    def _wrap(self, statement: Result) -> None:
        """Put converters and row_factory between the batch and whoever fetches."""
        rows = self._rows
        if self._connection._raw_rows:
            rows = self._converted(statement, rows)
        self._rows = self._plain_rows = rows
        if self._row_factory is not None:
            self._rows = _Made(self, rows)

    def _made(self) -> Iterator[Any]:
        """The rows of the present batch for who takes many of them: the factory is called without `_Made`."""
        factory = self._row_factory
        if factory is None:
            return self._rows
        # Not map(): a StopIteration of the factory is to be an error, not the end of the rows.
        return (factory(self, row) for row in self._plain_rows)

    def _converted(self, statement: Result, rows: Iterator[Any]) -> Iterator[Any]:
        finish = self._connection._finisher(statement)
        return rows if finish is None else _Converted(self, rows, finish)

    def _drop(self) -> None:
        """End the present statement and give it back."""
        statement = self._statement
        if statement is not None:
            with self._connection._guard():
                at_rest = statement.reset()
                self._statement = None
                if at_rest:
                    self._connection._give(statement)
        if self._looped is not None:
            self._looped.__setstate__(_END)
            self._looped = None
        self._held = False
        self._rows = self._plain_rows = _NO_ROWS

    def _reset(self) -> None:
        """Forget the last result."""
        self._rows = self._plain_rows = _NO_ROWS
        self._statement = None
        self._description = None
        self._rowcount = -1
