"""Statements that answer in Hrana JSON: one call from parameters to the bytes of an answer."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from nearlite._native._lib import check, ffi, lib, new_error
from nearlite._native.database import Database

INSERT: Final[int] = lib.NL_STMT_INSERT

RESULT: Final[int] = lib.NL_HRANA_RESULT
NO_ROWS: Final[int] = lib.NL_HRANA_NO_ROWS
CURSOR: Final[int] = lib.NL_HRANA_CURSOR

_TOO_BIG: Final[int] = lib.NL_E_TOO_BIG
_NOMEM: Final[int] = 7
_run: Any = lib.nl_hrana_run
_out: Any = lib.nl_stmt_out
_bytes: Any = ffi.buffer


class SqlError(Exception):
    """A statement did not compile or did not run.

    Attributes:
      text: SQLite's whole message.
      sqlite_rc: extended result code; 0 when the failure is not SQLite's.
      offset: byte offset into the text where compiling failed, or -1.
      too_big: the result was larger than allowed.
      too_many_rows: and that because of its rows' number.
      over_budget: it was stopped because it used up its step budget.
      rows: cursor entries that had been encoded before.
    """

    def __init__(self, text: str, sqlite_rc: int, offset: int = -1, *, rows: bytes = b"") -> None:
        self.text = text
        self.sqlite_rc = sqlite_rc
        self.offset = offset
        self.rows = rows
        self.too_big = False
        self.too_many_rows = False
        self.over_budget = False
        super().__init__(text)


_ACTIONS = ("insert", "update", "delete")


class Changed(NamedTuple):
    """Rows of one table that a transaction has changed.

    Attributes:
      table: its name.
      counts: how many for each of "insert", "update", "delete", where there are any.
    """

    table: str
    counts: dict[str, int]


class HranaConnection:
    """A Database whose statements are run through csrc/hrana.c. One thread at a time.

    Attributes:
      database: the connection; ``interrupt()`` may be called from any thread.
      handle: its ``nl_db *``.
      error: the ``nl_error *`` that its calls fill.
      report: the ``nl_hrana_report *`` of its last statement.
      most_rows: that a result may have; 0: no limit. Cursors have none.
    """

    __slots__ = ("database", "error", "handle", "most_rows", "report")

    def __init__(self, database: Database, most_rows: int = 0) -> None:
        self.database = database
        self.handle = database._db  # noqa: SLF001 - one boundary, two modules
        self.error = new_error()
        self.report = ffi.new("nl_hrana_report *")
        self.most_rows = self.report.most_rows = most_rows

    def prepare(self, sql: bytes, *, persistent: bool) -> HranaStatement:
        """Compile the first statement of a text; SqlError when it does not compile."""
        return HranaStatement(self, sql, persistent=persistent)

    def set_counters(self, last_rowid: int, changes: int, total_changes: int) -> None:
        """What last_insert_rowid(), changes() and total_changes() answer in the next statement."""
        report = self.report
        report.last_rowid, report.changes = last_rowid, changes
        report.total_changes = total_changes

    def watch(self) -> None:
        """Count the rows that its transactions change."""
        check(lib.nl_db_watch(self.handle, self.error), self.error)

    def changed(self) -> tuple[list[Changed], bool]:
        """What its last transaction changed, if it was committed and has not been asked for.

        Returns:
          Its tables, and whether there were more of them than are told apart.
        """
        count, lost = ffi.new("uint32_t *"), ffi.new("uint32_t *")
        found = lib.nl_db_changed(self.handle, count, lost)
        changes = []
        for one in found[0 : count[0]] if count[0] else ():
            numbers = zip(_ACTIONS, (one.inserted, one.updated, one.deleted), strict=True)
            name = ffi.string(one.table).decode("utf-8", "replace")
            changes.append(Changed(name, {action: rows for action, rows in numbers if rows}))
        return changes, lost[0] > 0

    def set_budget(self, steps: int) -> None:
        """Limit statements to `steps` virtual machine steps; negative: no limit."""
        lib.nl_db_budget(self.handle, steps)

    @property
    def counters(self) -> tuple[int, int, int]:
        """(last_insert_rowid, changes, total_changes) after the last statement."""
        report = self.report
        return report.last_rowid, report.changes, report.total_changes

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction is open."""
        return bool(lib.nl_db_in_transaction(self.handle))

    @property
    def writing(self) -> bool:
        """Whether the last statement left a transaction that holds the write lock."""
        return bool(self.report.writing)

    @property
    def deferred(self) -> bool:
        """Whether the last statement left a deferred foreign key violated."""
        return bool(self.report.deferred)

    def failure(self, size: int = 0, out: Any = None) -> SqlError:
        """The exception for what the last call reported."""
        err = self.error
        text = ffi.string(err.text).decode("utf-8", "replace")
        if err.sqlite_rc:
            whole = ffi.string(lib.nl_db_message(self.handle)).decode("utf-8", "replace")
            # nl_error cuts long messages; the whole one is of this failure if it begins alike.
            if whole.startswith(text[:200]):
                text = whole
        rc = err.sqlite_rc or (_NOMEM if err.code == lib.NL_E_NOMEM else 0)
        rows = _bytes(out, size)[:] if size else b""
        failure = SqlError(text, rc, err.offset, rows=rows)
        failure.too_big = err.code == _TOO_BIG
        failure.too_many_rows = failure.too_big and 0 < self.most_rows < self.report.rows
        failure.over_budget = bool(lib.nl_db_over_budget(self.handle))
        return failure


class HranaStatement:
    """One compiled statement.

    Attributes:
      flags: NL_STMT_*, what SQLite's compiler told of it.
      tail: bytes of the text that it took, with blanks and comments behind it.
      parameters: names with their prefix, None for a nameless one.
      more: a cursor that goes on with ``fetch``.
    """

    __slots__ = ("_connection", "_err", "_report", "_stmt", "flags", "more", "parameters", "tail")

    def __init__(self, connection: HranaConnection, sql: bytes, *, persistent: bool) -> None:
        out = ffi.new("nl_stmt **")
        err = connection.error
        if lib.nl_stmt_prepare(connection.handle, sql, len(sql), persistent, out, err):
            raise connection.failure()
        stmt = out[0]
        self._connection = connection
        self._err = err
        self._report = connection.report
        self._stmt = ffi.gc(stmt, lib.nl_stmt_free)
        self.flags = int(lib.nl_stmt_flags(stmt))
        self.tail = int(lib.nl_stmt_tail(stmt))
        self.parameters = tuple(
            _string(lib.nl_stmt_param_name(stmt, i + 1)) for i in range(lib.nl_stmt_params(stmt))
        )
        self.more = False

    @property
    def columns(self) -> list[tuple[str | None, str | None]]:
        """(name, declared type) of the result columns, as compiled."""
        stmt = self._stmt
        return [
            (
                _string(lib.nl_stmt_column_name(stmt, i)),
                _string(lib.nl_stmt_column_decltype(stmt, i)),
            )
            for i in range(lib.nl_stmt_columns(stmt))
        ]

    def run(self, params: bytes, shape: int, target: int, step: int = 0) -> bytes:
        """Run it from the start.

        Args:
          params: a MessagePack array, one value for each parameter.
          shape: RESULT, NO_ROWS (a StmtResult, JSON) or CURSOR (entries, one per line).
          target: bytes; more is a failure, for a cursor the size of a batch.
          step: number of the step, for a cursor.

        Raises:
          SqlError: what SQLite says, or the result is too big.
        """
        report = self._report
        report.step = step
        if _run(self._stmt, params, len(params), shape, target, report, self._err):
            raise self._fail()
        return self._take()

    def fetch(self, target: int) -> bytes:
        """The next entries of a cursor; SqlError when it stops early."""
        self.more = False
        if lib.nl_hrana_more(self._stmt, target, self._report, self._err):
            raise self._fail()
        return self._take()

    def reset(self) -> None:
        """End it early and give a large output buffer back."""
        self.more = False
        lib.nl_stmt_reset(self._stmt)

    def _take(self) -> bytes:
        report = self._report
        size: int = report.size
        data: bytes = _bytes(_out(self._stmt), size)[:]
        if report.more:
            self.more = True
        elif size > lib.NL_SMALL_BATCH:
            lib.nl_stmt_reset(self._stmt)
        return data

    def _fail(self) -> SqlError:
        self.more = False
        failure = self._connection.failure(self._report.size, _out(self._stmt))
        lib.nl_stmt_reset(self._stmt)
        return failure


def _string(text: Any) -> str | None:
    return None if text == ffi.NULL else ffi.string(text).decode("utf-8", "replace")
