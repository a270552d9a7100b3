"""One SQLite connection and its statements: rows as lists of tuples, failures as exceptions."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, NoReturn

import msgspec

from nearlite import errors
from nearlite._native._lib import exception, ffi, lib, name_of, new_error, sqlite_exception
from nearlite._native.callbacks import Callbacks, carried
from nearlite._native.sealing import Key, key_handle, tell_reports

READONLY: Final[int] = lib.NL_STMT_READONLY
WRITES_MAIN: Final[int] = lib.NL_STMT_WRITES_MAIN
WRITES_TEMP: Final[int] = lib.NL_STMT_WRITES_TEMP
WRITES_ATTACHED: Final[int] = lib.NL_STMT_WRITES_ATTACHED
TRANSACTION: Final[int] = lib.NL_STMT_TRANSACTION
SAVEPOINT: Final[int] = lib.NL_STMT_SAVEPOINT
PRAGMA: Final[int] = lib.NL_STMT_PRAGMA
ATTACH: Final[int] = lib.NL_STMT_ATTACH
TEMP: Final[int] = lib.NL_STMT_TEMP
EXPLAIN: Final[int] = lib.NL_STMT_EXPLAIN
ROWS: Final[int] = lib.NL_STMT_ROWS
DML: Final[int] = lib.NL_STMT_DML
SCHEMA: Final[int] = lib.NL_STMT_SCHEMA
ATTACHED: Final[int] = lib.NL_STMT_ATTACHED
MAIN: Final[int] = lib.NL_STMT_MAIN
COMMIT: Final[int] = lib.NL_STMT_COMMIT
ROLLBACK: Final[int] = lib.NL_STMT_ROLLBACK
EMPTY: Final[int] = lib.NL_STMT_EMPTY
IGNORED: Final[int] = lib.NL_STMT_IGNORED

BEGIN: Final[dict[str, int]] = {
    "": lib.NL_BEGIN_PLAIN,
    "DEFERRED": lib.NL_BEGIN_DEFERRED,
    "IMMEDIATE": lib.NL_BEGIN_IMMEDIATE,
    "EXCLUSIVE": lib.NL_BEGIN_EXCLUSIVE,
}
NO_BEGIN: Final[int] = lib.NL_BEGIN_NONE

TEXT_STR: Final[int] = lib.NL_TEXT_STR
TEXT_BYTES: Final[int] = lib.NL_TEXT_BIN
TEXT_EXT: Final[int] = lib.NL_TEXT_EXT

NO_PARAMETERS: Final = b"\x90"  # MessagePack: an empty array

# Batches of rows, in bytes of MessagePack. The first one serves a point select and a peek at a
# large result; a scan goes on with batches that stay in the second-level cache.
_FIRST: Final = lib.NL_SMALL_BATCH // 2
_NEXT: Final = 1 << 15
_LAST: Final = 1 << 18

_PERSISTENT: Final[int] = lib.NL_PREPARE_PERSISTENT
_OWN: Final[int] = lib.NL_PREPARE_OWN
_LARGE: Final[int] = lib.NL_RUN_LARGE
_COLUMNS: Final[int] = lib.NL_RUN_COLUMNS
_MORE: Final[int] = lib.NL_RUN_MORE
_run: Any = lib.nl_stmt_run
_many: Any = lib.nl_stmt_many

# The hot path of the cursor, without a method in between: `n = go(statement.handle, data, len(data))`.
# If n > 15 and n & 15 == 0 (rows, all of them, nothing special), they are
# `decode(statement.small[: n >> 4])`; everything else is `statement.outcome(n)`.
go: Final[Callable[[Any, bytes, int], int]] = lib.nl_stmt_go
# Likewise one set of an executemany: rows changed; negative: `database.fail()` raises why.
once: Final[Callable[[Any, bytes, int], int]] = lib.nl_stmt_once
SIMPLE: Final = 15
RUNNING: Final[int] = (
    lib.NL_RUN_RUNNING
)  # of `go`: nothing was done, a callback of the statement called

Row = tuple[Any, ...]
decode: Final[Callable[[Any], list[Row]]] = msgspec.msgpack.Decoder(list[tuple]).decode  # type: ignore[type-arg]
_decode_raw = msgspec.msgpack.Decoder(list[list[msgspec.Raw]]).decode

# ---------------------------------------------------------------- signal handlers in long calls


def _keep(_kind: Any, value: BaseException, _trace: Any) -> None:
    """What a signal handler (usually KeyboardInterrupt) raised inside the tick."""
    carried[threading.get_ident()] = value


@ffi.def_extern(name="nl_on_tick", error=1, onerror=_keep)  # type: ignore[untyped-decorator]
def _on_tick() -> int:
    """Called from C about every 50 ms of a long call: running Python at all runs signal handlers."""
    return 0


lib.nl_set_tick(lib.nl_on_tick)


def _string(text: Any) -> str | None:
    return None if text == ffi.NULL else ffi.string(text).decode("utf-8", "replace")


def is_dml(sql: str) -> bool:
    """Whether Python's sqlite3 begins a transaction for a text: by its first word, as DML."""
    text = sql.encode("utf-8", "surrogatepass")
    return bool(lib.nl_sql_is_dml(text, len(text)))


def distrust_schemas() -> None:
    """Let every connection of this process read its schema again before its next statement."""
    lib.nl_db_distrust_schemas()


class Database:
    """One SQLite connection.

    Not thread-safe: a second thread inside it gets an InterfaceError. ``interrupt()`` may be called from
    any thread.

    Args:
      path: file name, ``:memory:``, or a ``file:`` URI if `uri`.
      readonly: open read-only; the file must exist.
      create: create the file if it is missing.
      uri: read `path` as a URI when it starts with ``file:``.
      busy_ms: milliseconds to wait for a lock; negative: for ever.
      checkpoint: False: neither a commit nor closing ever checkpoints.
      defensive: SQL cannot damage the file (SQLITE_DBCONFIG_DEFENSIVE).
      frugal: one of thousands: with less memory for compiling.
      key: of a sealed file; None: the file is plain.
      page_size: of a sealed file that is made here; 0: 4096.

    Raises:
      OperationalError: it cannot be opened.

    """

    __slots__ = ("__weakref__", "_callbacks", "_db", "_err", "_status")

    def __init__(
        self,
        path: str | bytes,
        *,
        readonly: bool = False,
        create: bool = True,
        uri: bool = False,
        busy_ms: int = 5000,
        checkpoint: bool = True,
        defensive: bool = False,
        frugal: bool = False,
        key: Key | None = None,
        page_size: int = 0,
    ) -> None:
        flags = lib.NL_OPEN_READONLY if readonly else lib.NL_OPEN_READWRITE
        if create and not readonly:
            flags |= lib.NL_OPEN_CREATE
        if uri:
            flags |= lib.NL_OPEN_URI
        if not checkpoint:
            flags |= lib.NL_OPEN_NO_CHECKPOINT
        if defensive:
            flags |= lib.NL_OPEN_DEFENSIVE
        if frugal:
            flags |= lib.NL_OPEN_FRUGAL
        name = path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")
        err = new_error()
        out = ffi.new("nl_db **")
        handle = key_handle(key)
        if lib.nl_db_open(name, flags, busy_ms, handle, page_size, out, err):
            raise exception(err)
        self._db = ffi.gc(out[0], lib.nl_db_free)
        self._err = lib.nl_db_error(out[0])
        self._status = lib.nl_db_status(out[0])
        self._callbacks: Callbacks | None = None

    def prepare(self, sql: str, *, persistent: bool = False, own: bool = False) -> Statement:
        """Compile the first statement of `sql`.

        Args:
          sql: the text; what follows the first statement begins at ``Statement.tail`` (bytes).
          persistent: it will be kept and run often.
          own: it is not the program's, whose authorizer and trace are not to hear of it.

        Raises:
          Error: as SQLite's compiler says.

        """
        flags = (_PERSISTENT if persistent else 0) | (_OWN if own else 0)
        statement = Statement(self, self._db, self._err, sql, flags)
        if self._status.reports:  # what is compiled first reads the log, if it has to be recovered
            tell_reports()
        return statement

    @property
    def handle(self) -> Any:
        """The ``nl_db *``."""
        return self._db

    @property
    def error(self) -> Any:
        """The ``nl_error *`` that `fail` raises."""
        return self._err

    @property
    def callbacks(self) -> Callbacks:
        """What SQLite may call on this connection."""
        if self._callbacks is None:
            self._callbacks = Callbacks(self._db, self._err)
        return self._callbacks

    @property
    def calls_back(self) -> bool:
        """Whether it was ever given something to call."""
        return self._callbacks is not None

    @property
    def traces(self) -> bool:
        """Whether a trace wants to hear of each statement that is run."""
        return self._callbacks is not None and self._callbacks.traces

    def trace(self, sql: str, params: bytes = NO_PARAMETERS) -> None:
        """Tell the trace of a statement that is run elsewhere.

        Args:
          sql: its text.
          params: as of `Statement.run`; in their places only if it compiles here.
        """
        try:
            statement = self.prepare(sql, own=True)
            handle = statement.handle if len(statement.parameters) else ffi.NULL
        except errors.Error:
            handle = ffi.NULL
        text = sql.encode()
        if lib.nl_db_trace(self._db, handle, params, len(params), text, self._err):
            self.fail()

    @property
    def denied(self) -> bool:
        """Whether the program's authorizer forbade the statement that was compiled last."""
        return bool(lib.nl_db_denied(self._db))

    @property
    def calling(self) -> bool:
        """Whether this thread is inside one of them."""
        return bool(lib.nl_db_calling(self._db))

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return bool(lib.nl_db_closed(self._db))

    @property
    def copying(self) -> bool:
        """Whether a copy of it, or into it, has been begun and not ended."""
        return bool(lib.nl_db_copying(self._db))

    def exec(self, sql: str) -> None:
        """Run all statements of a script; rows are thrown away. Stops at the first failure."""
        text = sql.encode()
        if lib.nl_db_exec(self._db, text, len(text), self._err):
            self.fail()

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return bool(self._status.in_transaction)

    @property
    def total_changes(self) -> int:
        """Rows changed since the connection was opened."""
        return int(lib.nl_db_total_changes(self._db))

    @property
    def last_insert_rowid(self) -> int:
        """Rowid of the last INSERT, 0 before any."""
        return int(self._status.last_rowid)

    @property
    def changes(self) -> int:
        """Rows changed by the last INSERT, UPDATE or DELETE, or by all sets of ``Statement.many``."""
        return int(self._status.changes)

    @property
    def done(self) -> int:
        """Parameter sets that the last ``Statement.many`` executed."""
        return int(self._status.done)

    @property
    def over_budget(self) -> bool:
        """Whether the last failure was the step budget's."""
        return bool(lib.nl_db_over_budget(self._db))

    @property
    def has_snapshot(self) -> bool:
        """Whether the open transaction has read the main database, and sees it as it was then."""
        return bool(lib.nl_db_has_snapshot(self._db))

    def set_counters(self, last_rowid: int, changes: int, total_changes: int) -> None:
        """What last_insert_rowid(), changes() and total_changes() answer until the next change here."""
        lib.nl_db_set_counters(self._db, last_rowid, changes, total_changes)
        lib.nl_db_set_last_rowid(self._db, last_rowid)

    def set_begin(self, kind: int) -> None:
        """Transaction to begin before INSERT, UPDATE, DELETE or REPLACE: of BEGIN, or NO_BEGIN."""
        lib.nl_db_set_begin(self._db, kind)

    def set_budget(self, steps: int) -> None:
        """Limit every statement to `steps` virtual machine steps; negative: no limit."""
        lib.nl_db_budget(self._db, steps)

    def set_busy_timeout(self, busy_ms: int) -> None:
        """Wait `busy_ms` milliseconds for a lock; negative: for ever."""
        lib.nl_db_busy_timeout(self._db, busy_ms)

    def limit(self, category: int, value: int = -1) -> int:
        """Ask for, or with a non-negative `value` set, a run-time limit. Answers the old value."""
        return int(lib.nl_db_limit(self._db, category, value))

    def config(self, switch: int, on: bool | None = None) -> bool:
        """Ask for, or set, one of SQLITE_DBCONFIG_*. Answers what it is then. Raises Error: there is none."""
        now = ffi.new("int *")
        if lib.nl_db_config(self._db, switch, -1 if on is None else int(on), now, self._err):
            self.fail()
        return bool(now[0])

    def enable_extensions(self, on: bool) -> None:
        """Whether extensions may be loaded, also by SQL."""
        if lib.nl_db_enable_extensions(self._db, on, self._err):
            self.fail()

    def load_extension(self, path: bytes, entry: bytes | None) -> None:
        """Load a shared library. Raises OperationalError: as SQLite says."""
        if lib.nl_db_load_extension(
            self._db, path, ffi.NULL if entry is None else entry, self._err
        ):
            self.fail()

    def serialize(self, name: str) -> bytes:
        """The bytes of a database ("main").

        Raises:
          OperationalError: there is none of that name.
        """
        image, size = ffi.new("uint8_t **"), ffi.new("int64_t *")
        code = lib.nl_db_serialize(self._db, name_of(name), image, size, self._err)
        if code == lib.NL_E_BIND:
            raise errors.OperationalError(_string(self._err.text))
        if code:
            self.fail()
        try:
            return bytes(ffi.buffer(image[0], size[0])) if size[0] else b""
        finally:
            lib.nl_image_free(image[0])

    def deserialize(self, name: str, data: Any) -> None:
        """Make a copy of those bytes, in memory, the database of that name."""
        if self.calling:
            raise errors.ProgrammingError(
                "a database cannot be replaced by a callback of its own connection"
            )
        image = ffi.from_buffer(data)
        try:
            if lib.nl_db_deserialize(self._db, name_of(name), image, len(image), self._err):
                self.fail()
        finally:
            # A traceback may keep it and the buffer in a cycle, which the collector cannot clear.
            ffi.release(image)

    def attach(self, path: bytes, name: str, key: Key | None, page_size: int = 0) -> None:
        """ATTACH a file with a key of its own; None: a plain one.

        Raises:
          KeyRefusedError: this connection has no key, or it is not the file's.
        """
        handle = key_handle(key)
        if lib.nl_db_attach(self._db, path, name_of(name), handle, page_size, self._err):
            self.fail()

    def interrupt(self) -> None:
        """Stop what runs on this connection now. From any thread."""
        lib.nl_db_interrupt(self._db)

    def close(self) -> None:
        """Close the file; statements end. Idempotent."""
        if lib.nl_db_close(self._db, self._err):
            self.fail()
        if self._callbacks is not None:
            self._callbacks.end()
            raised = carried.pop(threading.get_ident(), None)
            if raised is not None:  # by an aggregate that ended with its statement
                raise raised

    def fail(self) -> None:
        """Raise what the last C call on this connection reported."""
        raised = carried.pop(threading.get_ident(), None)
        if raised is not None:
            raise raised
        err = self._err
        if err.sqlite_rc:
            text = _string(err.text) or ""
            whole = _string(lib.nl_db_message(self._db)) or ""
            # nl_error cuts long messages; the whole one is of this failure if it begins alike.
            raise sqlite_exception(err.sqlite_rc, whole if whole.startswith(text[:200]) else text)
        if err.code in (lib.NL_E_MISUSE, lib.NL_E_BIND):
            raise errors.ProgrammingError(_string(err.text))
        if err.code == lib.NL_E_TOO_BIG:
            raise OverflowError(_string(err.text))
        raise exception(err)


class Backup:
    """One database copied into another; each step may be on whatever connection is free.

    Args:
      source: with the name of its database ("main").
      target: likewise.

    Raises:
      Error: as SQLite says, for example that the target has a transaction open.
    """

    __slots__ = ("_backup", "_err", "_progress", "_used")

    def __init__(self, source: tuple[Database, str], target: tuple[Database, str]) -> None:
        (one, one_name), (two, two_name) = source, target
        self._used = (one, two)  # they outlive it
        self._err, out = new_error(), ffi.new("nl_backup **")
        self._progress = ffi.new("nl_backup_progress *")
        names = name_of(one_name), name_of(two_name)
        if lib.nl_backup_begin(one.handle, names[0], two.handle, names[1], out, self._err):
            self._fail()
        self._backup = out[0]

    def step(self, pages: int) -> tuple[int, int, int]:
        """Copy so many pages, negative: all that are left.

        Returns:
          SQLite's result (OK, DONE, BUSY or LOCKED), pages left, pages of the source.
        """
        if lib.nl_backup_step(self._backup, pages, self._progress, self._err):
            self._fail()
        # A signal handler raised it (KeyboardInterrupt) while the step waited for a lock: it ends with BUSY then.
        raised = carried.pop(threading.get_ident(), None)
        if raised is not None:
            raise raised
        return self._progress.rc, self._progress.remaining, self._progress.pages

    def end(self) -> None:
        """Ready, or given up: the target is then as it was."""
        if lib.nl_backup_end(self._backup, self._err):
            self._fail()

    def _fail(self) -> NoReturn:
        raised = carried.pop(threading.get_ident(), None)
        if raised is not None:
            raise raised
        if self._err.code == lib.NL_E_MISUSE and not self._err.sqlite_rc:
            raise errors.ProgrammingError(_string(self._err.text))
        raise exception(self._err)


class Statement:
    """One compiled statement of a Database. It belongs to one user at a time.

    Attributes:
      flags: what it does, as SQLite's compiler reported it (READONLY, WRITES_MAIN ...).
      tail: bytes of the text that it took, with blanks and comments behind it.
      parameters: names without their prefix, None for a nameless one, in order.
      more: whether rows are left to fetch.
      settings: what of a connection's it was compiled under; for whoever keeps it.
      busy: its result still lies in its buffer: whoever runs the same text now (a signal handler, a
        finalizer) needs another statement.

    """

    __slots__ = (
        "_columns",
        "_db",
        "_err",
        "_failure",
        "_large",
        "_target",
        "busy",
        "database",
        "describe",
        "description",
        "flags",
        "handle",
        "more",
        "parameters",
        "settings",
        "small",
        "sql",
        "tail",
        "used",
    )  # fmt: skip

    def __init__(self, database: Database, db: Any, err: Any, sql: str, flags: int) -> None:
        text = sql.encode()
        out = ffi.new("nl_stmt **")
        if lib.nl_stmt_prepare(db, text, len(text), flags, out, err):
            database.fail()
        stmt = out[0]
        self.database = database
        self.sql = sql
        self._db = db
        self._err = err
        self.handle = ffi.gc(stmt, lib.nl_stmt_free)
        self.small = ffi.buffer(lib.nl_stmt_out(stmt), lib.NL_SMALL_BATCH)
        self.describe: Callable[[Statement], Any] | None = None
        self.description: Any = None
        self._columns: tuple[str, ...] | None = None
        self._failure: Exception | None = None
        self._large = False
        self._target = _NEXT
        self.more = False
        self.used = False
        self.busy = False
        self.settings: object = None
        self.flags = int(lib.nl_stmt_flags(stmt))
        self.tail = int(lib.nl_stmt_tail(stmt))
        names = [
            _string(lib.nl_stmt_param_name(stmt, i + 1)) for i in range(lib.nl_stmt_params(stmt))
        ]
        self.parameters = tuple(name[1:] if name else None for name in names)

    @property
    def readonly(self) -> bool:
        """Whether it changes no database file (SQLite's own answer)."""
        return bool(self.flags & READONLY)

    @property
    def running(self) -> bool:
        """Whether it is running, and this is one of its callbacks."""
        return bool(lib.nl_stmt_running(self.handle))

    @property
    def pragma(self) -> str:
        """Name of a PRAGMA in lower case (at most 31 bytes of it), empty for other statements."""
        return _string(lib.nl_stmt_pragma(self.handle)) or ""

    @property
    def pragma_has_value(self) -> bool:
        """Whether a PRAGMA was written with a value."""
        return bool(lib.nl_stmt_pragma_set(self.handle))

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the result columns; empty when there are none."""
        if self._columns is None:
            stmt = self.handle
            names = (
                _string(lib.nl_stmt_column_name(stmt, i)) for i in range(lib.nl_stmt_columns(stmt))
            )
            self._columns = tuple(name or "" for name in names)
        return self._columns

    @property
    def decltypes(self) -> tuple[str | None, ...]:
        """Declared types of the result columns; None for an expression."""
        stmt = self.handle
        return tuple(
            _string(lib.nl_stmt_column_decltype(stmt, i)) for i in range(lib.nl_stmt_columns(stmt))
        )

    def set_text(self, mode: int) -> None:
        """How TEXT arrives: TEXT_STR, TEXT_BYTES, or TEXT_EXT: a ``msgspec.msgpack.Ext`` each."""
        lib.nl_stmt_text_mode(self.handle, mode)

    def set_special(self) -> None:
        """Rows need more than decoding: `go` never answers the simple case."""
        lib.nl_stmt_set_special(self.handle)

    def run(self, params: bytes) -> list[Row]:
        """Run it from the start and answer the first rows; ``more`` says whether there are others.

        Args:
          params: a MessagePack array of nil, bool, int, float, str, bin: one value a parameter.

        Raises:
          ProgrammingError: another number of values than parameters.
          OverflowError: an integer beyond 64 signed bits.
          Error: as SQLite says.

        """
        return self.outcome(go(self.handle, params, len(params)))

    def outcome(self, n: int) -> list[Row]:
        """The rows, or the failure, that an answer of `go` stands for."""
        if n < 0:
            self.more = False
            self.database.fail()
        self._target = _NEXT
        return self._rows(n)

    def fetch(self) -> list[Row]:
        """The next rows; an empty list at the end.

        Raises:
          Error: what made the statement stop.

        """
        failure = self._failure
        if failure is not None:
            self._failure = None
            self.more = False
            raise failure
        if not self.more:
            return []
        n = lib.nl_stmt_more(self.handle, self._target, self._err)
        if n < 0:
            self.more = False
            self.database.fail()
        self._target = min(self._target * 4, _LAST)
        return self._rows(n)

    def many(self, params: bytes, begin: int) -> None:
        """Run it once per parameter set.

        Args:
          params: a MessagePack array of arrays, each as in `run`.
          begin: transaction to begin before INSERT, UPDATE, DELETE or REPLACE (BEGIN[...]).

        Raises: as `run`; ``database.done`` says how many sets were executed before.

        """
        if _many(self.handle, params, len(params), begin, self._err):
            self.database.fail()

    def reset(self) -> bool:
        """End it early: locks are released, rows not yet fetched are gone.

        Returns:
          False: not now, because a signal handler or a finalizer does it within another call of the
            connection. Let go of it: then it ends behind that call.

        Raises:
          ProgrammingError: it is running, and this is one of its callbacks.
        """
        code = lib.nl_stmt_reset(self.handle)
        if code == lib.NL_E_BUSY:
            return False
        if code:
            raise errors.ProgrammingError("Recursive use of cursors not allowed.")
        self.more = False
        self._failure = None
        self._large = False
        return True

    def _note(self, n: int) -> None:
        if n & _LARGE:
            self._large = True
        if n & _COLUMNS:
            self._columns = None
            if self.describe is not None:
                self.description = self.describe(self)

    def _rows(self, n: int) -> list[Row]:
        """Decode a batch that is not the simple case."""
        self._note(n)
        self.more = bool(n & _MORE)
        if n <= SIMPLE:
            rows: list[Row] = []
        else:
            data = ffi.buffer(lib.nl_stmt_out(self.handle), n >> 4)
            try:
                rows = decode(data)
            except (msgspec.MsgspecError, UnicodeDecodeError):
                rows = self._readable(data[:])
        if self._large and not self.more:
            self.reset()
        return rows

    def _readable(self, data: bytes) -> list[Row]:
        """The rows before one whose text is not UTF-8; that one becomes the failure of the next fetch."""
        rows: list[Row] = []
        for raw in _decode_raw(data):
            values = []
            for i, value in enumerate(raw):
                try:
                    values.append(msgspec.msgpack.decode(value))
                except (msgspec.MsgspecError, UnicodeDecodeError):
                    self._end_with(undecodable(self.columns[i], _text_of(bytes(value))))
                    return rows
            rows.append(tuple(values))
        return rows

    def _end_with(self, failure: Exception) -> None:
        self.reset()
        self._failure = failure
        self.more = True


def undecodable(column: str, value: bytes) -> errors.OperationalError:
    """The failure to read a text that is not UTF-8, as the standard library says it."""
    text = value.split(b"\0", 1)[0]
    line = b"Could not decode to UTF-8 column '%s' with text '%s'" % (column.encode(), text)
    return errors.OperationalError(line[:198].decode("ascii", "replace"))


def _text_of(value: bytes) -> bytes:
    """The bytes of a MessagePack string."""
    return value[1 if value[0] < 0xC0 else 1 + (1, 2, 4)[value[0] - 0xD9] :]


def real_text(value: float) -> bytes:
    """The text that SQLite makes of a REAL."""
    out = ffi.new("char[]", lib.NL_REAL_TEXT)
    lib.nl_real_text(value, out)
    return ffi.string(out)  # type: ignore[no-any-return]
