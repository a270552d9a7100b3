"""Connections whose statements run on a primary: what a remote one and a replica's have in common.

The rules of the standard library for transactions hold as if the file were local: before an INSERT,
UPDATE, DELETE or REPLACE a transaction begins by itself (isolation_level), its BEGIN travelling with that
statement in one request; COMMIT is another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from msgspec.msgpack import Ext

from nearlite._native.database import TEXT_BYTES, TEXT_STR, is_dml, undecodable
from nearlite.asking import Malformed, Outcome
from nearlite.batches import Batches, Names
from nearlite.dbapi.binding import values_of
from nearlite.dbapi.blob import OpenValue
from nearlite.dbapi.connection import Connection
from nearlite.dbapi.cursor import Cursor
from nearlite.errors import DatabaseError, DataError, ProgrammingError
from nearlite.forwarded_blob import ForwardedBlob
from nearlite.position import Position
from nearlite.upstream import Notes, Stream

_KEPT_NAMES: Final = 256


class ForwardingConnection(Connection):
    """A connection that sends statements to a primary through a :class:`Stream`."""

    _forwards = True
    _stream: Stream
    last_write_position: Position | None = None
    """Where the primary stood when the last write of this connection was answered, at or behind that
    write; None before the first one. Its text (`str()`, `Position.parse`) goes through headers and
    cookies to whoever shall read at least that (`wait_for`, `at_least=`)."""
    _visible = True  # effects of what is sent shall be visible in a local file

    def _prepare_forwarding(self, stream: Stream) -> None:
        self._stream = stream
        self._opening: list[str] = []  # statements of an open transaction not yet sent
        self._names: dict[str, Names] = {}  # parameters of texts that only the primary compiles

    # ------------------------------------------------------------ state

    def _in_transaction(self) -> bool:
        return self._stream.in_transaction or bool(self._opening)

    def _total_changes(self) -> int:
        return self._stream.counters[2]

    def _wrote(self, notes: Notes) -> None:
        """A request was answered."""
        if notes.position is not None:
            self.last_write_position = notes.position

    # ------------------------------------------------------------ one statement

    def _forward(
        self,
        cursor: Cursor,
        sql: str,
        values: Sequence[Any],
        *,
        opening: Sequence[str],
        may_open: bool,
    ) -> None:
        """Run a statement on the primary and give its result to `cursor`."""
        dml = is_dml(sql)
        inside = self._stream.in_transaction or bool(opening)
        self._tell(sql, values)
        self._before_forward()
        try:
            outcome = self._stream.execute(
                sql,
                values,
                opening=opening,
                visible=self._visible and (not inside or may_open),
                may_open=may_open,
            )
        except DatabaseError:
            if opening:
                self._undo_opening()
            raise
        finally:
            self._after_forward()
        rows: Iterable[Any] = outcome.rows
        if self._text_mode != TEXT_STR:
            rows = self._other_text(outcome)
        elif outcome.malformed:
            rows = _until_malformed(outcome)
        cursor._adopt(outcome, rows, outcome.changes if dml else -1, self._last_rowid)

    def _undo_opening(self) -> None:
        """A statement that was sent behind a BEGIN failed: locally, if it does not compile, it would have
        failed before the transaction began by itself.
        """
        stream = self._stream
        if stream.in_transaction and not (stream.compiled or self._opening):
            stream.end("ROLLBACK", visible=False)

    def _run_nothing(self, cursor: Cursor, sql: str, parameters: Any) -> None:
        """Run a text that holds no statement."""
        self._arranged(sql, parameters, ())
        cursor._reset()

    def _traces(self) -> bool:
        """Whether there is a trace."""
        return False

    def _tell(self, sql: str, values: Sequence[Any] = ()) -> None:
        """Tell the program's trace, if there is one, of a statement that is about to run there."""

    def _before_forward(self) -> None:
        """Called before every request."""

    def _after_forward(self) -> None:
        """Called after every request, whatever came of it."""
        self._last_rowid = self._stream.counters[0]
        if self._stream.in_transaction:
            self._opening.clear()

    def _other_text(self, outcome: Outcome) -> list[Any]:
        """Rows with text as `text_factory` wants it."""

        def text(value: Any) -> Any:
            if type(value) is Malformed:
                data = bytes(value)
            elif type(value) is str:
                data = value.encode()
            else:
                return value
            return data if self._text_mode == TEXT_BYTES else Ext(1, data)

        return [tuple(map(text, row)) for row in outcome.rows]

    def _begin_text(self) -> str | None:
        """The BEGIN that the connection sends by itself, or None."""
        if isinstance(self._autocommit, bool) or self._isolation_level is None:
            return None
        return f"BEGIN {self._isolation_level}"

    def _pending(self) -> list[str]:
        """The beginning of a transaction that is open here, and that the primary does not know yet."""
        return [] if self._stream.in_transaction else list(self._opening)

    def _openings(self, sql: str) -> list[str]:
        """What has to be sent before a statement: `_pending`, or the BEGIN that comes by itself."""
        pending = self._pending()
        if pending or self._stream.in_transaction:
            return pending
        begin = self._begin_text()
        if begin is None or not is_dml(sql):
            return []
        self._tell(begin)
        return [begin]

    def _arranged(self, sql: str, parameters: Any, names: Names | None) -> list[Any]:
        """Parameter values in order. Only names need to be known for a mapping."""
        if names is None:
            if isinstance(parameters, Mapping) or not hasattr(parameters, "__len__"):
                names = self._primary_names(sql)
            else:
                names = (None,) * len(parameters)
        return values_of(parameters, names)

    def _primary_names(self, sql: str) -> Names:
        names = self._names.get(sql)
        if names is None:
            names = self._names[sql] = self._stream.parameters(sql)
            if len(self._names) > _KEPT_NAMES:
                del self._names[next(iter(self._names))]
        return names

    # ------------------------------------------------------------ values

    def _open_value(self, where: tuple[str, str, str], row: int, *, writable: bool) -> OpenValue:
        schema, table, column = where
        if schema.lower() != "main":
            return self._open_own_value(where, row, writable=writable)
        return ForwardedBlob(
            self._plain_rows, self._update, (table, column), row, writable=writable
        )

    def _open_own_value(
        self, where: tuple[str, str, str], row: int, *, writable: bool
    ) -> OpenValue:
        """A value of a TEMP table or an attached file."""
        return super()._open_value(where, row, writable=writable)

    def _update(self, sql: str, values: Sequence[Any]) -> int:
        """Run an UPDATE of ours there: in the open transaction, but it begins none. Rows changed."""
        cursor: Cursor = Connection.cursor(self)
        opening = self._pending()
        self._forward(
            cursor,
            sql,
            values,
            opening=opening,
            may_open=bool(opening) or self._stream.in_transaction,
        )
        return cursor.rowcount

    # ------------------------------------------------------------ many

    def _forward_many(self, sql: str, sets: Iterator[Any], names: Names | None) -> int:
        """Run a statement for every set there; rows changed."""
        return Batches(self, sql, names).run(sets)

    # ------------------------------------------------------------ checks

    @staticmethod
    def _check_text(sql: str) -> None:
        """What the driver refuses by itself, before anybody compiles it."""
        if not isinstance(sql, str):
            raise TypeError(f"execute() argument 1 must be str, not {type(sql).__name__}")
        if "\0" in sql:
            raise ProgrammingError("the query contains a null character")
        if len(sql) > 1_000_000_000:
            raise DataError("query string is too large")


def _until_malformed(outcome: Outcome) -> Iterator[Any]:
    """The rows before one with text that is not UTF-8, which fails when it is fetched, as on a local file."""
    for row in outcome.rows:
        for column, value in zip(outcome.columns, row, strict=False):
            if type(value) is Malformed:
                raise undecodable(column, value)
        yield row
