"""Connections whose statements run on a primary: what a remote one and a replica's have in common.

The rules of the standard library for transactions hold as if the file were local: before an INSERT,
UPDATE, DELETE or REPLACE a transaction begins by itself (isolation_level), its BEGIN travelling with that
statement in one request; COMMIT is another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final

from msgspec.msgpack import Ext

from nearlite._native.database import TEXT_BYTES, TEXT_STR, is_dml
from nearlite.asking import Outcome
from nearlite.dbapi.binding import values_of
from nearlite.dbapi.connection import Connection
from nearlite.dbapi.cursor import Cursor
from nearlite.errors import DatabaseError, DataError, ProgrammingError
from nearlite.upstream import SEND_BYTES, Stream

_SETS_AT_ONCE: Final = 10_000  # parameter sets in one request
_KEPT_NAMES: Final = 256

Names = tuple[str | None, ...]


class ForwardingConnection(Connection):
    """A connection that sends statements to a primary through a :class:`Stream`."""

    _forwards = True
    _stream: Stream
    _visible = True  # effects of what is sent shall be visible in a local file

    def _prepare_forwarding(self, stream: Stream) -> None:
        self._stream = stream
        self._opening: list[str] = []  # statements of an open transaction not yet sent
        self._names: dict[str, Names] = {}  # parameters of texts that only the primary compiles

    # ------------------------------------------------------------ state

    def _in_transaction(self) -> bool:
        return self._stream.in_transaction or bool(self._opening)

    @property
    def total_changes(self) -> int:
        """Rows changed since the connection was opened."""
        self._check()
        return self._stream.counters[2]

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
            if opening and not (self._stream.compiled or self._opening):
                # Locally it would have failed before the transaction began by itself.
                self._stream.end("ROLLBACK", visible=False)
            raise
        finally:
            self._after_forward()
        rows = outcome.rows if self._text_mode == TEXT_STR else self._other_text(outcome)
        cursor._adopt(outcome, rows, outcome.changes if dml else -1, self._last_rowid)

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
            if type(value) is not str:
                return value
            data = value.encode()
            return data if self._text_mode == TEXT_BYTES else Ext(1, data)

        return [tuple(map(text, row)) for row in outcome.rows]

    def _begin_text(self) -> str | None:
        """The BEGIN that the connection sends by itself, or None."""
        if isinstance(self._autocommit, bool) or self._isolation_level is None:
            return None
        return f"BEGIN {self._isolation_level}".rstrip()

    def _openings(self, sql: str) -> list[str]:
        """What has to be sent before a statement: a transaction's beginning, if there is one."""
        if self._stream.in_transaction:
            return []
        if self._opening:
            return list(self._opening)
        begin = self._begin_text()
        return [begin] if begin is not None and is_dml(sql) else []

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

    # ------------------------------------------------------------ many

    def _forward_many(self, sql: str, sets: Iterator[Any], names: Names | None) -> int:
        """Run a statement for every set, in requests of at most SEND_BYTES; rows changed.

        Without a transaction of the program's own, one is opened around all of it: the sets before
        a failing one stay, as they would have locally.
        """
        opening: list[str] = []
        own: bool | None = None  # not known before the first request
        count = 0
        failure: BaseException | None = None
        chunk, failure = self._next_chunk(sql, sets, names)
        try:
            while True:
                following: list[Any] = []
                later: BaseException | None = None
                if failure is None:
                    following, later = self._next_chunk(sql, sets, names)
                last = (not following and later is None) or failure is not None
                # Now: the program's iterator may have used this connection, too.
                if not own:
                    opening = self._openings(sql)
                if own is None:
                    own = not (self._stream.in_transaction or opening)
                    opening = ["BEGIN"] if own else opening
                if chunk or opening or last:
                    self._before_forward()
                    count += self._stream.many(
                        sql, chunk, opening=opening, commit=own and last,
                        visible=self._visible and own and last,
                    )  # fmt: skip
                opening = []
                if failure is not None:
                    raise failure
                if last:
                    return count
                chunk, failure = following, later
        except BaseException:
            if own and self._stream.in_transaction:
                self._stream.end("COMMIT", visible=self._visible)
            raise
        finally:
            self._after_forward()

    def _next_chunk(
        self, sql: str, sets: Iterator[Any], names: Names | None
    ) -> tuple[list[list[Any]], BaseException | None]:
        """The next parameter sets, and what the program's iterator or adapters raised after them."""
        chunk: list[list[Any]] = []
        size = 0
        try:
            for parameters in islice(sets, _SETS_AT_ONCE):
                values = self._arranged(sql, parameters, names)
                chunk.append(values)
                size += 64 + sum(_size(value) for value in values)
                if size > SEND_BYTES:
                    break
        except BaseException as error:  # noqa: BLE001 - raised after the sets before it have run
            return chunk, error
        return chunk, None

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


def _size(value: Any) -> int:
    """About as many bytes as the value takes in JSON."""
    if isinstance(value, (str, bytes)):
        return 40 + len(value) * 4 // 3
    return 40
