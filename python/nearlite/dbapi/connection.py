"""Connection: a local SQLite file, as ``sqlite3.Connection``."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from threading import RLock, get_ident
from types import TracebackType
from typing import Any, Final, Literal, TypeVar, cast, overload
from weakref import WeakValueDictionary

from nearlite import errors
from nearlite._native.database import (
    BEGIN,
    NO_BEGIN,
    NO_PARAMETERS,
    TEXT_BYTES,
    TEXT_EXT,
    TEXT_STR,
    Database,
    Statement,
)
from nearlite._native.sealing import Key
from nearlite.dbapi import conversion
from nearlite.dbapi.binding import OUTSIDE
from nearlite.dbapi.constants import SQLITE_LIMIT_SQL_LENGTH
from nearlite.dbapi.cursor import Cursor, Result
from nearlite.dbapi.functions import Functions
from nearlite.dbapi.sets import NO_THREAD, Asking
from nearlite.dbapi.whole import Whole
from nearlite.durations import busy_ms
from nearlite.errors import DataError, ProgrammingError
from nearlite.guard import guard
from nearlite.keys import EncryptionKey, key_of

Self = TypeVar("Self", bound="Connection")
CursorT = TypeVar("CursorT", bound=Cursor)
F = TypeVar("F", bound=Callable[..., Any])

LEGACY_TRANSACTION_CONTROL: Final = -1

_WARNS_UNCLOSED: Final = sys.version_info >= (3, 13)
_NO_LOCK: Final = contextlib.nullcontext()


def warns_of_positions(init: F) -> F:
    """Decorates ``__init__`` of a connection: since 3.12 the standard library warns of arguments without names."""
    if sys.version_info < (3, 12):
        return init

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **options: Any) -> None:
        if len(args) > 1:
            warnings.warn(
                "Passing more than 1 positional argument to _sqlite3.Connection() is deprecated. "
                "Parameters 'timeout', 'detect_types', 'isolation_level', 'check_same_thread', "
                "'factory', 'cached_statements' and 'uri' will become keyword-only parameters in "
                "Python 3.15.",
                DeprecationWarning,
                **OUTSIDE,
            )
        init(self, *args, **options)

    return cast("F", wrapper)


def _closed_comes_first(method: F) -> F:
    """Decorates ``__call__``: a closed connection says so before anything is said of the arguments."""

    def wrapper(self: Connection, *args: Any, **options: Any) -> Any:
        self._check()
        return method(self, *args, **options)

    def shape(self: Connection, sql, /):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        """What ``inspect.signature`` shows."""

    del shape.__annotations__["self"]
    functools.update_wrapper(wrapper, method).__wrapped__ = shape
    return cast("F", wrapper)


class Compiled:
    """What calling a connection answers: a statement that compiles."""

    __slots__ = ("sql",)

    sql: str

    def __new__(cls) -> Any:
        """Refused, as for ``sqlite3.Statement``."""
        raise TypeError(f"cannot create '{cls.__module__}.{cls.__qualname__}' instances")

    @classmethod
    def _of(cls, sql: str) -> Compiled:
        compiled: Compiled = object.__new__(cls)
        compiled.sql = sql
        return compiled


class Connection(Whole, Functions):
    """A connection to a SQLite database file.

    The parameters and their order are those of ``sqlite3.connect``.

    Args:
      database: a path, ``":memory:"``, or with `uri` a ``file:`` URI.
      timeout: seconds to wait for a lock.
      detect_types: PARSE_DECLTYPES and PARSE_COLNAMES, added up; 0 converts nothing.
      isolation_level: "", "DEFERRED", "IMMEDIATE", "EXCLUSIVE", or None: begin no transaction by itself.
      check_same_thread: only the thread that made it may use it. With False the calls of several threads
        wait for each other.
      factory: not used here: ``connect()`` calls it.
      cached_statements: compiled statements kept for the next time.
      uri: `database` may be a URI.
      autocommit: True, False (PEP 249), or LEGACY_TRANSACTION_CONTROL: isolation_level rules.
      encryption_key: the file is sealed, and created so if it is missing (docs/encryption.md): see
        :func:`nearlite.keys.key_of` for what may be given.

    Raises:
      OperationalError: the file cannot be opened.
      WrongKeyError: it is sealed with another key, or not sealed at all, or is and no key was given.

    """

    Warning = errors.Warning
    Error = errors.Error
    InterfaceError = errors.InterfaceError
    DatabaseError = errors.DatabaseError
    DataError = errors.DataError
    OperationalError = errors.OperationalError
    IntegrityError = errors.IntegrityError
    InternalError = errors.InternalError
    ProgrammingError = errors.ProgrammingError
    NotSupportedError = errors.NotSupportedError

    row_factory: Callable[[Cursor, Any], Any] | None = None

    # Whether statements may be run elsewhere: subclasses that forward them define the methods below.
    _forwards = False
    _key: Key | None = None
    _open: bool | None = None  # None: __init__ was not called
    _database: Database
    _isolation_level: str | None
    _statements: dict[str, Statement]  # compiled, at rest; the longest unused first

    @warns_of_positions
    def __init__(
        self,
        database: str | bytes | os.PathLike[str] | os.PathLike[bytes],
        timeout: float = 5.0,
        detect_types: int = 0,
        isolation_level: Literal["", "DEFERRED", "IMMEDIATE", "EXCLUSIVE"] | None = "",
        check_same_thread: bool = True,
        factory: Any = None,  # noqa: ARG002
        cached_statements: int = 128,
        uri: bool = False,
        *,
        autocommit: bool | int = LEGACY_TRANSACTION_CONTROL,
        encryption_key: EncryptionKey | None = None,
    ) -> None:
        self._prepare_state(
            detect_types, isolation_level, check_same_thread, cached_statements, autocommit
        )
        self._key = None if encryption_key is None else key_of(encryption_key)
        path = os.fsencode(database)
        if b"\0" in path:  # SQLite would open what is before it
            raise ValueError("embedded null byte")
        self._database = Database(path, uri=uri, busy_ms=busy_ms(timeout), key=self._key)
        self._unwatch = guard.watch(self, database)
        self._opened()

    def _prepare_state(
        self,
        detect_types: int,
        isolation_level: str | None,
        check_same_thread: bool,
        cached_statements: int,
        autocommit: bool | int,
    ) -> None:
        """Everything of a connection that is not the database; `_opened` follows when that is there."""
        _checked_level(isolation_level)
        _checked_autocommit(autocommit)
        self._open = None
        self._statements = {}
        self._settings: object = object()  # statements that were compiled under others are not kept
        self._words: dict[str, Statement] = {}  # BEGIN, COMMIT, ROLLBACK
        self._cached_statements = max(0, cached_statements)
        self._creator = get_ident()
        # The thread that may go straight ahead: nobody once the connection is closed, and, if it is
        # shared, whoever holds the lock.
        self._thread = self._creator if check_same_thread else NO_THREAD
        self._asking: Asking | None = None  # an executemany asks its iterator for parameter sets
        self._lock = None if check_same_thread else RLock()
        if self._lock is not None:
            _shared[id(self)] = self
        self._detect_types = detect_types
        self._text_factory: Any = str
        self._text_mode = TEXT_STR
        self._raw_rows = bool(detect_types)  # rows need conversion on their way out
        self._last_rowid = 0
        self._isolation_level = None if isolation_level is None else str.upper(isolation_level)
        self._autocommit: bool | int = autocommit
        self._begin = NO_BEGIN

    def _opened(self) -> None:
        self._open = True
        self._set_autocommit(self._autocommit)

    # ------------------------------------------------------------ statements

    @overload
    def cursor(self) -> Cursor: ...
    @overload
    def cursor(self, factory: Callable[[Any], CursorT]) -> CursorT: ...
    def cursor(self, factory: Callable[[Any], Cursor] = Cursor) -> Cursor:
        """A new cursor, made by calling `factory` with the connection."""
        self._check()
        cursor = factory(self)
        if not issubclass(type(cursor), Cursor):  # what __class__ pretends does not count
            raise TypeError(f"factory must return a cursor, not {type(cursor).__name__}")
        if self.row_factory is not None:
            cursor.row_factory = self.row_factory
        return cursor

    def execute(self, sql: str, parameters: Any = (), /) -> Cursor:
        """``cursor().execute(...)``, with the plain Cursor even if ``cursor`` is overridden."""
        cursor = _new(Cursor)
        cursor._connection = self
        if self.row_factory is not None:
            cursor._row_factory = self.row_factory
        return cursor.execute(sql, parameters)

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> Cursor:
        """``cursor().executemany(...)``."""
        return Connection.cursor(self).executemany(sql, parameters)

    def executescript(self, sql_script: str, /) -> Cursor:
        """``cursor().executescript(...)``."""
        return Connection.cursor(self).executescript(sql_script)

    # ------------------------------------------------------------ transactions

    def commit(self) -> None:
        """Commit the open transaction, if there is one. With ``autocommit`` True nothing happens."""
        self._end("COMMIT")

    def rollback(self) -> None:
        """Roll the open transaction back, if there is one. With ``autocommit`` True nothing happens."""
        self._end("ROLLBACK")

    def _end(self, word: str) -> None:
        self._check()
        if self._autocommit is True:
            return
        self._settle()
        with self._guard():
            if self._in_transaction():
                self._word(word)
            if self._autocommit is False:
                self._word("BEGIN")

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        self._check_open()
        self._settle()
        return self._in_transaction()

    def _in_transaction(self) -> bool:
        return self._database.in_transaction

    @property
    def isolation_level(self) -> str | None:
        """How transactions begin by themselves; None: they do not."""
        self._check_open()
        return self._isolation_level

    @isolation_level.setter
    def isolation_level(self, level: str | None) -> None:
        _checked_level(level)
        self._check()
        self._settle()
        self._isolation_level = None if level is None else str.upper(level)
        if level is None and self._autocommit == LEGACY_TRANSACTION_CONTROL:
            self.commit()  # as the standard library: back in SQLite's own autocommit mode
        self._choose_begin()

    @property
    def autocommit(self) -> bool | int:
        """True, False (a transaction is always open), or LEGACY_TRANSACTION_CONTROL."""
        self._check_open()
        return self._autocommit

    @autocommit.setter
    def autocommit(self, autocommit: bool | int) -> None:
        _checked_autocommit(autocommit)
        self._check()
        self._settle()
        with self._guard():
            self._set_autocommit(autocommit)

    def _set_autocommit(self, autocommit: bool | int) -> None:
        if autocommit is True and self._in_transaction():
            self._word("COMMIT")
        if autocommit is False and not self._in_transaction():
            self._word("BEGIN")
        self._autocommit = autocommit if isinstance(autocommit, bool) else int(autocommit)
        self._choose_begin()

    def _choose_begin(self) -> None:
        legacy = not isinstance(self._autocommit, bool)
        level = self._isolation_level if legacy else None
        self._begin = NO_BEGIN if level is None else BEGIN[level.upper()]
        self._set_begin(self._begin)

    def _set_begin(self, kind: int) -> None:
        self._database.set_begin(kind)

    def __enter__(self: Self) -> Self:
        self._check()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> Literal[False]:
        """Commit, or roll back when the block raised. The connection stays open."""
        self._check()
        if self._autocommit is True:
            return False
        if kind is not None:
            self.rollback()
            return False
        try:
            self.commit()
        except BaseException:
            # The transaction must not stay open behind the program's back.
            with contextlib.suppress(errors.Error):
                self.rollback()
            raise
        return False

    # ------------------------------------------------------------ the rest

    def close(self) -> None:
        """Close the file. An open transaction is rolled back. Idempotent."""
        if self._open is None:
            self._check_open()
        self._check_thread()
        self._settle()
        with self._guard():
            if not self._open:
                return
            self._check_idle()
            before = self._thread
            self._open = False
            self._thread = NO_THREAD
            self._statements.clear()
            self._words.clear()
            try:
                self._close()
            except BaseException:
                if self._holds_file():  # a signal handler in a long call does it: not now
                    self._open, self._thread = True, before
                raise

    def _holds_file(self) -> bool:
        return not self._database.closed

    def _check_idle(self) -> None:
        if self._database.calling:
            raise ProgrammingError("the connection cannot be closed by a callback of its own")
        if self._database.copying:
            raise ProgrammingError(
                "the connection cannot be closed while a copy of it, or into it, is being made"
            )

    def _close(self) -> None:
        if self._autocommit is False and self._database.in_transaction:
            with contextlib.suppress(errors.Error):  # closing does it as well; a trace sees it so
                self._database.exec("ROLLBACK")
        try:
            self._database.close()
        finally:
            self._unwatch()

    def interrupt(self) -> None:
        """Stop what runs on this connection. From any thread."""
        self._check_open()
        self._database.interrupt()

    @property
    def total_changes(self) -> int:
        """Rows changed since the connection was opened."""
        self._check()
        self._settle()
        return self._total_changes()

    def _total_changes(self) -> int:
        return self._database.total_changes

    @property
    def text_factory(self) -> Any:
        """What TEXT becomes: str, bytes, or a callable that is given its bytes."""
        return self._text_factory

    @text_factory.setter
    def text_factory(self, factory: Any) -> None:
        self._text_factory = factory
        self._text_mode = TEXT_EXT
        if factory is str or factory is bytes:
            self._text_mode = TEXT_STR if factory is str else TEXT_BYTES
        self._raw_rows = bool(self._detect_types) or self._text_mode == TEXT_EXT
        # Compiled statements carry the old mode.
        self._statements.clear()
        self._settings = object()

    @_closed_comes_first
    def __call__(self, sql: str, /) -> Compiled:
        """Compile a statement, as the standard library does; it can be used for nothing."""
        with self._guard():
            statement = self._take(sql)
            self._give(statement)
        return Compiled._of(sql)

    def __del__(self) -> None:
        # As the standard library does from Python 3.13 on. The file is closed by what holds it.
        if _WARNS_UNCLOSED and self._open:
            warnings.warn(
                f"unclosed database in {self!r}", ResourceWarning, source=self, stacklevel=1
            )

    # ------------------------------------------------------------ for cursors

    def _begin_to_write(self) -> None:
        if self._begin != NO_BEGIN and not self._in_transaction():
            level = self._isolation_level
            self._word(f"BEGIN {level}" if level else "BEGIN")

    def _plain_rows(self, sql: str, parameters: Sequence[Any]) -> Iterator[Sequence[Any]]:
        cursor: Cursor = Connection.cursor(self)
        cursor.row_factory = None
        return iter(cursor.execute(sql, parameters))

    def _check_thread(self) -> None:
        if self._lock is None and self._creator != get_ident():
            raise ProgrammingError(
                "SQLite objects created in a thread can only be used in that same thread. The object"
                f" was created in thread id {self._creator} and this is thread id {get_ident()}."
            )

    def _check_open(self) -> None:
        if self._open:
            return
        if self._open is None:
            raise ProgrammingError("Base Connection.__init__ not called.")
        raise ProgrammingError("Cannot operate on a closed database.")

    def _check(self) -> None:
        self._check_open()
        self._check_thread()

    def _settle(self) -> None:
        """Before anything that could tell whether the parameter sets of an executemany have been run."""
        if self._asking is not None:
            self._asking.settle()

    def _guard(self) -> contextlib.AbstractContextManager[Any]:
        """Held around everything that uses the database when several threads may."""
        return _NO_LOCK if self._lock is None else self._lock

    def _compile(self, sql: str) -> Statement:
        """Compile a text that holds exactly one statement (or none)."""
        if not isinstance(sql, str):
            raise TypeError(f"execute() argument 1 must be str, not {type(sql).__name__}")
        self._check_open()
        size = len(sql.encode())
        if size > self._database.limit(SQLITE_LIMIT_SQL_LENGTH):
            raise DataError("query string is too large")
        if "\0" in sql:
            raise ProgrammingError("the query contains a null character")
        statement = self._prepare(sql)
        if statement.tail < size:
            raise ProgrammingError("You can only execute one statement at a time.")
        if self._text_mode != TEXT_STR:
            statement.set_text(self._text_mode)
        if self._raw_rows:
            statement.set_special()
        statement.describe = self._describe
        statement.description = self._describe(statement)
        statement.settings = self._settings
        return statement

    def _prepare(self, sql: str) -> Statement:
        return self._database.prepare(sql, persistent=self._cached_statements > 0)

    def _take(self, sql: str) -> Statement:
        """A compiled statement out of the cache, or a new one. Until `_give` it is the caller's."""
        statement = self._statements.pop(sql, None)
        return self._compile(sql) if statement is None or statement.busy else statement

    def _give(self, statement: Statement) -> None:
        """Put a statement at rest into the cache."""
        statements = self._statements
        if self._open and statement.settings is self._settings:
            statements[statement.sql] = statement
            while len(statements) > self._cached_statements:
                # A second chance for those that were used since the last look.
                oldest = next(iter(statements))
                other = statements.pop(oldest)
                if other.used and other is not statement:
                    other.used = False
                    statements[oldest] = other

    def _word(self, sql: str) -> None:
        """Run BEGIN, COMMIT or ROLLBACK."""
        self._word_here(sql)

    def _word_here(self, sql: str) -> None:
        statement = self._words.get(sql)
        if statement is None:
            statement = self._words[sql] = self._database.prepare(sql, persistent=True)
        statement.run(NO_PARAMETERS)

    def _script(self, sql: str) -> None:
        if len(sql.encode()) > self._database.limit(SQLITE_LIMIT_SQL_LENGTH):
            raise DataError("query string is too large")
        if not isinstance(self._autocommit, bool) and self._in_transaction():
            self._word("COMMIT")
        try:
            self._database.exec(sql)
        finally:
            self._last_rowid = self._database.last_insert_rowid

    def _describe(self, statement: Result) -> Any:
        if not statement.columns:
            return None
        return conversion.description(statement.columns, self._detect_types)

    # ------------------------------------------------------------ for connections that forward

    def _execute_elsewhere(self, cursor: Cursor, sql: str, parameters: Any) -> bool:
        """Run a statement elsewhere and give its result to `cursor`; False: run it here."""
        raise NotImplementedError

    def _executemany_elsewhere(self, sql: str, sets: Iterator[Any]) -> int | None:
        """Run it for every set elsewhere; rows changed (-1: not counted), or None: run it here."""
        raise NotImplementedError

    def _reading(self, cursor: Cursor) -> None:
        """`cursor` holds a statement of this connection's database that has more rows."""

    def _finisher(self, statement: Result) -> Callable[[Any], Any] | None:
        """What converts a row on its way out: text_factory and detect_types."""
        return conversion.finisher(statement, self._detect_types, self._text_factory)


# Connections with a lock, which a thread that the child of a fork does not have may be holding.
_shared: Final[WeakValueDictionary[int, Connection]] = WeakValueDictionary()


def _forked() -> None:
    for connection in _shared.values():
        connection._lock = RLock()


os.register_at_fork(after_in_child=_forked)

_new: Callable[[type[Cursor]], Cursor] = object.__new__


def _checked_level(level: Any) -> None:
    if level is None:
        return
    if not isinstance(level, str):
        raise TypeError("isolation_level must be str or None")
    if str.upper(level) not in BEGIN:  # a subclass may have an idea of its own
        raise ValueError(
            "isolation_level string must be '', 'DEFERRED', 'IMMEDIATE', or 'EXCLUSIVE'"
        )


def _checked_autocommit(autocommit: Any) -> None:
    legacy = type(autocommit) is int and autocommit == LEGACY_TRANSACTION_CONTROL
    if autocommit is not True and autocommit is not False and not legacy:
        raise ValueError("autocommit must be True, False, or sqlite3.LEGACY_TRANSACTION_CONTROL")
