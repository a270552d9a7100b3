"""What a request asks for, once stored texts are resolved and every reference is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from nearlite.hrana.failures import ProtocolError, StatementError
from nearlite.hrana.messages import (
    AndCond,
    Batch,
    BatchRequest,
    CloseRequest,
    CloseSqlRequest,
    Cond,
    DescribeRequest,
    ErrorCond,
    ExecuteRequest,
    NotCond,
    OkCond,
    OrCond,
    SequenceRequest,
    SqlValue,
    Stmt,
    StoreSqlRequest,
    StreamRequest,
    native,
    shorten,
)

MAX_STATEMENTS = 50_000
"""Statements of one pipeline or batch, where nobody says otherwise."""


class Store(NamedTuple):
    """Limits of stored SQL texts.

    Attributes:
      texts: how many.
      size: bytes of one.
      room: bytes of all.
    """

    texts: int
    size: int
    room: int


STREAM_STORE = Store(50, 5_000, 250_000)
"""Of a stream over HTTP."""
SOCKET_STORE = Store(150, 1 << 20, 16 << 20)
"""Of a WebSocket, whose streams share them."""


class Step(msgspec.Struct, gc=False):
    """One statement ready to run.

    Attributes:
      sql: text, at most MAX_STATEMENT bytes.
      args: positional arguments; empty when `named` is not.
      named: arguments by name as the client wrote them.
      condition: None runs always.
      want_rows: False leaves rows out of the result.
    """

    sql: str
    args: tuple[SqlValue, ...] = ()
    named: tuple[tuple[str, SqlValue], ...] = ()
    condition: Cond | None = None
    want_rows: bool = True


class Execute(msgspec.Struct):
    """Plan of an `execute`."""

    step: Step


class RunBatch(msgspec.Struct):
    """Plan of a `batch` or a cursor."""

    steps: list[Step]


class Script(msgspec.Struct):
    """Plan of a `sequence`."""

    sql: str


class Describe(msgspec.Struct):
    """Plan of a `describe`."""

    sql: str


class Answered(msgspec.Struct):
    """A request that needs no SQL: its stream result is known from the beginning."""

    result: bytes


class GetAutocommit(msgspec.Struct):
    """Plan of a `get_autocommit`."""


class Refused(msgspec.Struct):
    """A request that is known to fail without having run."""

    error: StatementError


Plan = Execute | RunBatch | Script | Describe | Answered | GetAutocommit | Refused

_CLOSED = Answered(b'{"type":"ok","response":{"type":"close"}}')
_SQL_STORED = Answered(b'{"type":"ok","response":{"type":"store_sql"}}')
_SQL_CLOSED = Answered(b'{"type":"ok","response":{"type":"close_sql"}}')


class Planner:
    """Turns the requests of one pipeline into plans, applying store_sql and close_sql in order.

    Args:
      version: of Hrana.
      stored: texts that are stored already.
      most: statements in all.
      store: limits of stored texts.

    Attributes:
      stored: the stream's stored texts after the pipeline (a copy when anything changed).
      closes: whether a `close` was among the requests.
    """

    def __init__(
        self,
        version: int,
        stored: Mapping[int, str],
        most: int = MAX_STATEMENTS,
        store: Store = STREAM_STORE,
    ) -> None:
        self.version = version
        self._most = most
        self._left = most
        self.stored = stored
        self.closes = False
        self._store_limits = store

    def plan(self, requests: Sequence[StreamRequest]) -> list[Plan]:
        """Plans in the order of the requests; raises ProtocolError before anything has run."""
        self._left = self._most - len(requests)
        if self._left < 0:
            raise self._too_many()
        return [self._plan_one(request) for request in requests]

    def batch(self, batch: Batch) -> RunBatch | Refused:
        """Plan of a batch."""
        self._left -= len(batch.steps)
        if self._left < 0:
            raise self._too_many()
        steps = []
        for index, step in enumerate(batch.steps):
            if step.condition is not None:
                _check_condition(step.condition, index, self.version)
            planned = self._step(step.stmt, step.condition)
            if isinstance(planned, Refused):
                return planned
            steps.append(planned)
        return RunBatch(steps)

    def _too_many(self) -> ProtocolError:
        return ProtocolError(
            f"The request has more than {self._most} statements, which is the limit; nothing was carried out",
            "TOO_MANY_STATEMENTS",
            413,
        )

    def one(self, request: StreamRequest) -> Plan:
        """Plan of a request that comes alone; raises ProtocolError."""
        self._left = self._most - 1
        return self._plan_one(request)

    def statement(self, stmt: Stmt) -> Execute | Refused:
        """Plan of an `execute`; raises ProtocolError."""
        planned = self._step(stmt, None)
        return planned if isinstance(planned, Refused) else Execute(planned)

    def _plan_one(self, request: StreamRequest) -> Plan:
        if isinstance(request, ExecuteRequest):
            return self.statement(request.stmt)
        if isinstance(request, CloseRequest):
            self.closes = True
            return _CLOSED
        if isinstance(request, BatchRequest):
            return self.batch(request.batch)
        if isinstance(request, SequenceRequest):
            return Script(self._text(request.sql, request.sql_id))
        if isinstance(request, DescribeRequest):
            return Describe(self._text(request.sql, request.sql_id))
        if isinstance(request, StoreSqlRequest):
            return self._store(request)
        if isinstance(request, CloseSqlRequest):
            if request.sql_id in self.stored:
                self.stored = {k: v for k, v in self.stored.items() if k != request.sql_id}
            return _SQL_CLOSED
        if self.version < 3:
            raise _too_new("GetAutocommit")
        return GetAutocommit()

    def _store(self, request: StoreSqlRequest) -> Plan:
        if request.sql_id in self.stored:
            raise ProtocolError(f"SQL text {request.sql_id} already exists")
        most, longest, room = self._store_limits
        if len(self.stored) >= most:
            return _refused(f"{most} SQL texts are stored already, which is the limit", "MANY")
        size = _size(request.sql)
        if size > longest:
            return _refused(f"A stored SQL text may have at most {longest} bytes", "LARGE")
        if size + sum(map(_size, self.stored.values())) > room:
            return _refused(f"Stored SQL texts may have at most {room} bytes in all", "LARGE")
        self.stored = {**self.stored, request.sql_id: request.sql}
        return _SQL_STORED

    def _text(self, sql: str | None, sql_id: int | None) -> str:
        if sql is not None:
            if sql_id is not None:
                raise ProtocolError("Either `sql` or `sql_id` are required, but not both")
            return sql
        if sql_id is None:
            raise ProtocolError("Either `sql` or `sql_id` are required")
        text = self.stored.get(sql_id)
        if text is None:
            raise ProtocolError(f"SQL text {sql_id} not found")
        return text

    def _step(self, stmt: Stmt, condition: Cond | None) -> Step | Refused:
        sql = stmt.sql if stmt.sql_id is None and stmt.sql is not None else None
        if sql is None:
            sql = self._text(stmt.sql, stmt.sql_id)
        args = tuple([native(arg) for arg in stmt.args]) if stmt.args else ()
        named: tuple[tuple[str, SqlValue], ...] = ()
        if stmt.named_args:
            if args:
                return Refused(
                    StatementError(
                        "Specifying both positional and named arguments is not supported",
                        "ARGS_BOTH_POSITIONAL_AND_NAMED",
                    )
                )
            named = tuple((arg.name, native(arg.value)) for arg in stmt.named_args)
        return Step(sql, args, named, condition, stmt.want_rows is not False)


def _refused(why: str, what: str) -> Refused:
    return Refused(StatementError(why, f"SQL_STORE_TOO_{what}"))


def _size(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


_PREFIXES = ":@$"


def arrange(step: Step, parameters: Sequence[str | None]) -> tuple[SqlValue, ...]:
    """Arguments in the order of the statement's parameters.

    Args:
      step: what the client sent.
      parameters: names as SQLite reports them (with prefix), None for ``?``.

    Raises:
      StatementError: ARGS_INVALID, too many, too few or unknown.
    """
    if not step.named:
        if len(step.args) != len(parameters):
            raise _args_invalid(f"{len(parameters)} are needed, {len(step.args)} were given")
        return step.args
    values: list[SqlValue] = [None] * len(parameters)
    missing = set(range(len(parameters)))
    for name, value in step.named:
        index = _find(name, parameters)
        values[index] = value
        missing.discard(index)
    if missing:
        number = min(missing)
        raise _args_invalid(f"value for parameter {parameters[number] or number + 1} is missing")
    return tuple(values)


def _find(name: str, parameters: Sequence[str | None]) -> int:
    for index, parameter in enumerate(parameters):
        if parameter == name:
            return index
    for index, parameter in enumerate(parameters):
        if parameter is not None and parameter[0] in _PREFIXES and parameter[1:] == name:
            return index
    raise _args_invalid(f"the statement has no parameter {shorten(name)}")


def _args_invalid(why: str) -> StatementError:
    return StatementError(f"Arguments do not match SQL parameters: {why}", "ARGS_INVALID")


def _check_condition(condition: Cond, index: int, version: int) -> None:
    if isinstance(condition, (OkCond, ErrorCond)):
        if not 0 <= condition.step < index:
            raise ProtocolError("Invalid reference to step in a batch condition")
    elif isinstance(condition, NotCond):
        _check_condition(condition.cond, index, version)
    elif isinstance(condition, (AndCond, OrCond)):
        for inner in condition.conds:
            _check_condition(inner, index, version)
    elif version < 3:
        raise _too_new("BatchCond::IsAutocommit")


def _too_new(what: str) -> ProtocolError:
    return ProtocolError(f"{what} is only supported in protocol version hrana3 and higher")
