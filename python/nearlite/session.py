"""One connection that runs Hrana steps: statements compiled once, classified by SQLite, answered as JSON.

No threads and no waiting here: whoever owns the session calls it, one call at a time.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

import msgspec

from nearlite import hrana
from nearlite._native import database as flags
from nearlite._native.database import NO_PARAMETERS, Database
from nearlite._native.hrana import (
    NO_ROWS,
    RESULT,
    HranaConnection,
    HranaStatement,
    SqlError,
)
from nearlite.hrana import (
    Answered,
    Describe,
    Execute,
    GetAutocommit,
    Outcome,
    Plan,
    RunBatch,
    Script,
    StatementError,
    Step,
)
from nearlite.limits import Limits
from nearlite.statements import ONLY_BLANK, Kind, Prepared, kind_of, pragma_kind, setting_of
from nearlite.usage import Usage

KEPT: Final = 256
"""Statements kept per connection."""
_CACHED_TEXT: Final = 16 << 10  # longer texts (bulk inserts with literals) are not kept

_pack = msgspec.msgpack.Encoder().encode
_SMALL: Final = 4096
# Settings that a connection can be rid of, with the values of a new one.
_RESTORED: Final = {"recursive_triggers": False, "ignore_check_constraints": False}
_QUIET: Final = Step("", want_rows=False)


_ERROR: Final = 1
_TOO_BIG: Final = 18
_LIMIT_LENGTH: Final = 0
_HURRIED_BYTES: Final = 8 << 20
"""Of a value. Not less: the text of a schema is a value, too."""


class OverrunError(Exception):
    """A statement used up its step budget, or its result the size allowed here."""


class NotSharedError(OverrunError):
    """A statement would change its connection, which is shared here: it was not even compiled."""


def _compile_failure(failure: SqlError) -> StatementError:
    return hrana.sqlite_error(failure.text, failure.sqlite_rc, failure.offset)


class Session:
    """One connection with its cache of statements.

    Attributes:
      database: the connection; ``interrupt()`` may be called from any thread.
      native: what runs statements; its counters are those of the last one.
      foreign_keys: enforcement was switched on when the connection was opened.
      readonly: the connection cannot write the database, whatever is asked of it.
      most: bytes of rows in one answer.
      room: bytes of them that the answer which is being made may still take. Whoever begins one, or goes on
        with it, sets it.
      latest: the statement that was run last.
      usage: what its statements have done is added to it in the end, and those that take long at once.
      kept: statements at most that are kept compiled.
      shared: it serves many streams: what would change the connection is refused.
      changed: settings that pragmas have changed, since whoever uses the session took note of it. SQLite
        carries them out while it compiles them: one that is only described, or refused because more
        follows it, counts, too.
    """

    def __init__(
        self,
        database: Database,
        *,
        foreign_keys: bool = False,
        shared: bool = False,
        readonly: bool = False,
        limits: Limits | None = None,
        failed: Callable[[str], None] | None = None,
    ) -> None:
        limits = limits or Limits()
        self.shared = shared
        self._told = failed
        self.readonly = readonly
        self.most = self.room = limits.max_response_bytes
        self.database = database
        self.native = HranaConnection(database, limits.max_rows)
        self.foreign_keys = foreign_keys
        if foreign_keys:
            database.exec("PRAGMA foreign_keys=ON")
        self.latest: HranaStatement | None = None
        self._report = self.native.report
        self.usage: Usage | None = None
        self._hurried = False
        self.kept = KEPT
        self._steps = -1  # that a statement may take
        self.changed: set[str] = set()
        self._cache: OrderedDict[str, Prepared] = OrderedDict()
        # Apart from the clients' statements: theirs are classified, and may be evicted.
        self._own: dict[str, HranaStatement] = {}

    def prepare(self, sql: str, *, cached: bool = True) -> Prepared:
        """Compile exactly one statement.

        Raises:
          StatementError: it does not compile, is none, is several, or may not run here.
        """
        found = self._cache.get(sql) if cached else None
        if found is not None:
            return found
        hrana.check_length(sql)
        text = _encode(sql)
        keep = cached and len(text) <= _CACHED_TEXT
        prepared, rest = self._compile(sql, text, persistent=keep)
        keep = keep and not prepared.setting  # SQLite carries it out while compiling
        if rest and not ONLY_BLANK.fullmatch(rest):
            raise StatementError(
                "SQL string contains more than one statement", "SQL_MANY_STATEMENTS"
            )
        if keep:
            self._cache[sql] = prepared
            if len(self._cache) > self.kept:
                self._cache.popitem(last=False)
        return prepared

    def split(self, text: bytes, start: int) -> tuple[Prepared, int] | None:
        """The statement of a script that begins at byte `start`, and where the next one begins.

        None at the end. Raises StatementError as `prepare` does.
        """
        while start < len(text):
            piece = text[start : start + hrana.MAX_STATEMENT + 1]
            pragma = self._pragma(piece)
            try:
                statement = self._newest(piece, persistent=False)
            except SqlError as failure:
                if len(piece) > hrana.MAX_STATEMENT:
                    hrana.check_length(piece.decode("utf-8", "replace"))
                raise self._counted(_compile_failure(failure)) from None
            end = start + max(statement.tail, 1)
            if not statement.flags & flags.EMPTY:
                own = piece[: statement.tail]
                prepared = Prepared(statement, pragma or kind_of(own, statement))
                if prepared.kind is Kind.STICKY:
                    prepared.setting = setting_of(own)
                return prepared, end
            start = end
        return None

    def _pragma(self, text: bytes) -> Kind | None:
        """As `pragma_kind`; NotSharedError when it must not be compiled on this connection."""
        kind = pragma_kind(text)
        if self.shared and kind is not None and kind >= Kind.ALONE:
            raise NotSharedError
        if kind is Kind.STICKY:
            self.changed.add(setting_of(text))
        return kind

    def _newest(self, text: bytes, *, persistent: bool) -> HranaStatement:
        """Compile by the newest schema. Raises SqlError.

        SQLite compiles by the schema it read last, and only for some failures does it look whether that
        is still the one: another connection may have changed a table's columns. Running any statement
        looks in any case.
        """
        # A large schema that has to be read first is no fault of the statement.
        if self._steps >= 0:
            self.native.set_budget(-1)
        try:
            return self.native.prepare(text, persistent=persistent)
        except SqlError:
            self._see_schema()
            if self._steps >= 0:
                self.native.set_budget(-1)
            return self.native.prepare(text, persistent=persistent)
        finally:
            if self._steps >= 0:
                self.native.set_budget(self._steps)

    def _see_schema(self) -> None:
        """Have SQLite look whether its schema is the newest."""
        if self._steps >= 0:  # a large one that has to be read is no fault of a statement
            self.native.set_budget(-1)
        try:
            with contextlib.suppress(StatementError):
                self.control("SELECT 1 FROM sqlite_schema LIMIT 0")
        finally:
            if self._steps >= 0:
                self.native.set_budget(self._steps)

    def _compile(self, sql: str, text: bytes, *, persistent: bool) -> tuple[Prepared, bytes]:
        """The first statement of a text that is not a lone semicolon, and what follows it."""
        while True:
            pragma = self._pragma(text)
            try:
                statement = self._newest(text, persistent=persistent)
            except SqlError as failure:
                if not hrana.is_readonly_begin(sql):
                    raise self._counted(_compile_failure(failure)) from None
                prepared, _ = self._compile("BEGIN", b"BEGIN", persistent=persistent)
                prepared.begins_readonly = True
                return prepared, b""
            rest = text[statement.tail :]
            if not statement.flags & flags.EMPTY:
                prepared = Prepared(statement, pragma or kind_of(text, statement))
                # BEGIN TRANSACTION READONLY compiles: SQLite takes the word for a name.
                prepared.begins_readonly = hrana.is_readonly_begin(sql)
                if prepared.kind is Kind.STICKY:
                    prepared.setting = setting_of(text)
                return prepared, rest
            if not statement.tail or not rest:
                raise StatementError(
                    "SQL string does not contain any statement", "SQL_NO_STATEMENT"
                )
            text = rest

    def run(
        self,
        prepared: Prepared,
        step: Step,
        *,
        batch: int = 0,
        shape: int | None = None,
        index: int = 0,
    ) -> bytes:
        """Run a step to its end; answer its StmtResult as JSON.

        Args:
          prepared: its statement, of this session.
          step: arguments and what to answer.
          batch: bytes of a cursor after which the rest is left open (``prepared.statement.more``); 0: it
            is all answered, and takes of the room for the answer.
          shape: CURSOR for cursor entries instead.
          index: number of the step, for a cursor.

        Raises:
          StatementError: the step failed; its effects are undone as SQLite undoes them.
          OverrunError: it used up the step budget, or the room where the session serves the event loop.
        """
        if self.room <= 0 and prepared.rows and not batch:
            raise self._excess()
        statement = self.latest = prepared.statement
        params = NO_PARAMETERS
        if statement.parameters or step.args or step.named:
            params = _pack(hrana.arrange(step, statement.parameters))
        if shape is None:
            shape = RESULT if step.want_rows else NO_ROWS
        target = batch or (self.most if shape == NO_ROWS else self.room)
        try:
            result = statement.run(params, shape, target, index)
            if self._report.notable and self.usage is not None:
                self._note(step.sql)
        except SqlError as failure:
            if failure.sqlite_rc == _ERROR:
                # It may have been compiled again by a schema that is no longer the newest, which SQLite
                # does not look at for every failure: the next time it is compiled by `_newest`.
                self._cache.pop(step.sql, None)
            raise self.translate(failure) from None
        if not batch:
            if statement.more:  # a cursor's, that is answered as a whole
                statement.reset()
                raise self._excess()
            self.room -= len(result)
        return result

    def _excess(self) -> StatementError | OverrunError:
        return OverrunError() if self._hurried else self._counted(hrana.too_large(self.most))

    def _note(self, sql: str) -> None:
        assert self.usage is not None
        report = self._report
        self.usage.note(sql, report.us, report.rows, report.written)

    def count(self, usage: Usage) -> None:
        """Add what its statements have done so far."""
        report = self._report
        usage.queries += report.all
        usage.rows_read += report.all_rows
        usage.rows_written += report.all_written
        usage.us += report.all_us

    def translate(self, failure: SqlError) -> StatementError | OverrunError:
        """What a failure while running means to the client."""
        if failure.over_budget or (self._hurried and failure.sqlite_rc & 0xFF == _TOO_BIG):
            return OverrunError()
        if failure.too_many_rows:
            return self._counted(hrana.too_many_rows(self.native.most_rows))
        if failure.too_big:
            return self._excess()
        self.room -= len(failure.text)
        return self._counted(hrana.sqlite_error(failure.text, failure.sqlite_rc))

    def _counted(self, error: StatementError) -> StatementError:
        if self._told is not None:
            self._told(error.code)
        return error

    def hurry(self, steps: int) -> None:
        """Serve the event loop: what takes more steps, or makes larger values, is an OverrunError.

        A function like randomblob() is one step, whatever it makes.
        """
        self._hurried = True
        self._steps = steps
        self.native.set_budget(steps)
        self.database.limit(_LIMIT_LENGTH, min(_HURRIED_BYTES, self.database.limit(_LIMIT_LENGTH)))

    def restore(self, settings: Iterable[str]) -> bool:
        """Give settings the values that a new connection has; False if that cannot be done."""
        values = {"foreign_keys": self.foreign_keys, **_RESTORED}
        if not values.keys() >= set(settings) or self.native.in_transaction:
            return False
        for name in settings:
            self.database.exec(f"PRAGMA {name}={int(values[name])}")
        return True

    def shrink(self) -> None:
        """Give back the memory that only makes the next statement faster. Nothing is running."""
        self._cache.clear()
        self.native.set_budget(-1)
        self.database.exec("PRAGMA shrink_memory")
        self.native.set_budget(self._steps)

    def sets(self, sql: str) -> bool:
        """Whether a text is a pragma that changes a setting of the connection."""
        try:
            return pragma_kind(sql.encode(errors="replace")) is Kind.STICKY
        except StatementError:  # one that is refused, when its turn comes
            return False

    def commits(self, sql: str) -> bool:
        """Whether a text is a COMMIT."""
        try:
            return self.prepare(sql).kind is Kind.COMMIT
        except StatementError:
            return False

    def control(self, sql: str) -> None:
        """Run a statement of our own (BEGIN, COMMIT, SAVEPOINT ...); StatementError if it fails."""
        statement = self._own.get(sql)
        if statement is None:
            statement = self._own[sql] = self.native.prepare(sql.encode(), persistent=True)
        try:
            statement.run(NO_PARAMETERS, NO_ROWS, _SMALL)
        except SqlError as failure:
            raise hrana.sqlite_error(failure.text, failure.sqlite_rc) from None

    def rollback(self) -> None:
        """End an open transaction, if any, without keeping it."""
        if self.native.in_transaction:
            self.control("ROLLBACK")

    def describe(self, sql: str) -> bytes:
        """Stream result of a `describe`, by the newest schema: what is described is not run, which would find it."""
        if (
            not self.native.in_transaction
        ):  # in which a look would be its first read, and its snapshot
            self._see_schema()
        prepared = self.prepare(sql, cached=False)
        statement = prepared.statement
        if self.room <= 0:
            raise self._excess()
        result = hrana.describe_result(
            statement.parameters,
            statement.columns,
            explain=bool(statement.flags & flags.EXPLAIN),
            readonly=prepared.readonly,
        )
        self.room -= len(result)
        return result

    def read(self, plan: Plan) -> bytes:
        """Stream result of a request that only looks, outside any transaction.

        Raises:
          OverrunError: the step budget or the room is used up; nothing has been answered.
        """
        if isinstance(plan, Execute):
            try:
                return hrana.execute_result(self.look(plan.step))
            except StatementError as error:
                return hrana.error_result(error)
        if isinstance(plan, RunBatch):
            return hrana.batch_result(self.outcomes(plan.steps))
        if isinstance(plan, Script):
            return self._read_script(plan.sql)
        if isinstance(plan, Describe):
            try:
                return self.describe(plan.sql)
            except StatementError as error:
                return hrana.error_result(error)
        if isinstance(plan, GetAutocommit):
            return hrana.autocommit_result(True)
        return plan.result if isinstance(plan, Answered) else hrana.error_result(plan.error)

    def outcomes(self, steps: Sequence[Step], *, shape: int | None = None) -> list[Outcome]:
        """Run the steps of a batch that only looks; OverrunError as `read`."""
        outcomes: list[Outcome] = []
        for step in steps:
            if not hrana.holds(step.condition, outcomes, True):
                outcomes.append(None)
                continue
            try:
                outcomes.append(self.look(step, shape=shape, index=len(outcomes)))
            except StatementError as error:
                outcomes.append(error)
        return outcomes

    def look(self, step: Step, *, shape: int | None = None, index: int = 0) -> bytes:
        """Run one step that only looks. Raises StatementError, or OverrunError as `read`."""
        prepared = self.prepare(step.sql)
        if prepared.kind > Kind.SLOW:
            # It compiled as something else when it was classified: the schema has changed.
            raise OverrunError
        return self.run(prepared, step, shape=shape, index=index)

    def _read_script(self, sql: str) -> bytes:
        text = _encode(sql)
        at = 0
        try:
            while (found := self.split(text, at)) is not None:
                prepared, at = found
                self.run(prepared, _QUIET)
        except StatementError as error:
            return hrana.error_result(error)
        return hrana.sequence_result()

    def close(self) -> None:
        """Close the connection; an open transaction is rolled back."""
        self._cache.clear()
        self._own.clear()
        if self.usage is not None:
            self.count(self.usage)
            self.usage = None
        self.database.close()


def _encode(sql: str) -> bytes:
    try:
        return sql.encode()
    except UnicodeEncodeError:
        raise StatementError("SQL string is not Unicode text", "SQL_PARSE_ERROR") from None
