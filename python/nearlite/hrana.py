"""Hrana over HTTP (versions 2 and 3, JSON): messages, their validation, error codes. No I/O.

Requests are decoded by msgspec straight into the structs below and then *planned*: stored SQL is
resolved, arguments become Python values, every reference is checked. A request that breaks the
protocol therefore fails before any of its statements has run. Rows never pass through here:
``csrc/hrana.c`` writes a statement's result as JSON bytes and this module only puts the pieces
of an answer together.

Source: the Hrana 2 and Hrana 3 specifications published with libSQL.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import msgspec

MAX_STATEMENT = 1 << 20
"""Longest SQL text, bytes of UTF-8 (the agreed limit for everything that comes over a network)."""
MAX_STORED = 50
"""SQL texts that one stream may store."""
MAX_STORED_SIZE = 5_000
"""Bytes of one stored text."""

SqlValue = int | float | str | bytes | None


class ProtocolError(Exception):
    """The request breaks the protocol: answered with status 400, and its stream is dropped."""

    def __init__(self, message: str, code: str = "PROTOCOL_ERROR", status: int = 400) -> None:
        self.message = message
        self.code = code
        self.status = status
        super().__init__(message)


class StatementError(Exception):
    """One statement or one request failed; its neighbours are unaffected.

    Attributes:
      message: text for people.
      code: Hrana error code, ``SQLITE_*`` when SQLite failed.
      extended_code: SQLite's extended result code, or 0. Clients that know it rebuild the exact
        exception; all others ignore the key.
    """

    def __init__(self, message: str, code: str, extended_code: int = 0) -> None:
        self.message = message
        self.code = code
        self.extended_code = extended_code
        super().__init__(message)


# ---------------------------------------------------------------------------- values


class Null(msgspec.Struct, tag="null", frozen=True, gc=False):
    """SQL NULL."""


class Integer(msgspec.Struct, tag="integer", frozen=True, gc=False):
    """A 64-bit integer, written as decimal text because JSON numbers are doubles."""

    value: str


class Float(msgspec.Struct, tag="float", frozen=True, gc=False):
    """An IEEE double."""

    value: float


class Text(msgspec.Struct, tag="text", frozen=True, gc=False):
    """Text."""

    value: str


class Blob(msgspec.Struct, tag="blob", frozen=True, gc=False):
    """Bytes, in base64 with or without padding."""

    base64: str = ""


Value = Null | Integer | Float | Text | Blob

_DECIMAL = re.compile(r"[+-]?[0-9]{1,30}", re.ASCII)


def native(value: Value) -> SqlValue:
    """The Python value of a Hrana value.

    Raises:
      ProtocolError: an integer outside 64 bits or not decimal, or a blob that is not base64.
    """
    if isinstance(value, (Text, Float)):
        return value.value
    if isinstance(value, Integer):
        if _DECIMAL.fullmatch(value.value) is None:
            raise ProtocolError(f"{_shorten(value.value)} is not a decimal integer")
        number = int(value.value)
        if not -(1 << 63) <= number < 1 << 63:
            raise ProtocolError(f"{_shorten(value.value)} does not fit a 64-bit integer")
        return number
    if isinstance(value, Blob):
        text = value.base64.rstrip("=")
        try:
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ProtocolError(f"a blob is not base64: {error}") from None
    return None


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


# ---------------------------------------------------------------------------- conditions


class OkCond(msgspec.Struct, tag="ok", frozen=True):
    """True when the step ran and succeeded."""

    step: int


class ErrorCond(msgspec.Struct, tag="error", frozen=True):
    """True when the step ran and failed."""

    step: int


class NotCond(msgspec.Struct, tag="not", frozen=True):
    """Negation."""

    cond: Cond


class AndCond(msgspec.Struct, tag="and", frozen=True):
    """Conjunction; true when empty."""

    conds: list[Cond]


class OrCond(msgspec.Struct, tag="or", frozen=True):
    """Disjunction; false when empty."""

    conds: list[Cond]


class IsAutocommitCond(msgspec.Struct, tag="is_autocommit", frozen=True):
    """True when the stream has no open transaction (version 3)."""


Cond = OkCond | ErrorCond | NotCond | AndCond | OrCond | IsAutocommitCond


Outcome = bytes | StatementError | None
"""Of a step: its result, its failure, or None when it was skipped."""


def holds(condition: Cond | None, outcomes: Sequence[Outcome], autocommit: bool) -> bool:
    """Whether a step is to run.

    Args:
      condition: None is always true.
      outcomes: of all earlier steps.
      autocommit: whether the stream is outside a transaction now.
    """
    if condition is None:
        return True
    if isinstance(condition, OkCond):
        return isinstance(outcomes[condition.step], bytes)
    if isinstance(condition, ErrorCond):
        return isinstance(outcomes[condition.step], StatementError)
    if isinstance(condition, NotCond):
        return not holds(condition.cond, outcomes, autocommit)
    if isinstance(condition, AndCond):
        return all(holds(inner, outcomes, autocommit) for inner in condition.conds)
    if isinstance(condition, OrCond):
        return any(holds(inner, outcomes, autocommit) for inner in condition.conds)
    return autocommit


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


# ---------------------------------------------------------------------------- requests


class NamedArg(msgspec.Struct, frozen=True):
    """An argument by name, with or without the prefix character."""

    name: str
    value: Value


class Stmt(msgspec.Struct, frozen=True):
    """One statement as it comes over the wire."""

    sql: str | None = None
    sql_id: int | None = None
    args: list[Value] | None = None
    named_args: list[NamedArg] | None = None
    want_rows: bool | None = None


class BatchStep(msgspec.Struct, frozen=True):
    """One step of a batch."""

    stmt: Stmt
    condition: Cond | None = None


class Batch(msgspec.Struct, frozen=True):
    """Statements with conditions between them."""

    steps: list[BatchStep]


class CloseRequest(msgspec.Struct, tag="close", frozen=True):
    """Close the stream after this pipeline."""


class ExecuteRequest(msgspec.Struct, tag="execute", frozen=True):
    """Run one statement."""

    stmt: Stmt


class BatchRequest(msgspec.Struct, tag="batch", frozen=True):
    """Run a batch."""

    batch: Batch


class SequenceRequest(msgspec.Struct, tag="sequence", frozen=True):
    """Run a script, ignoring rows."""

    sql: str | None = None
    sql_id: int | None = None


class DescribeRequest(msgspec.Struct, tag="describe", frozen=True):
    """Compile a statement and tell its parameters and columns."""

    sql: str | None = None
    sql_id: int | None = None


class StoreSqlRequest(msgspec.Struct, tag="store_sql", frozen=True):
    """Keep a text on the stream under a number."""

    sql_id: int
    sql: str


class CloseSqlRequest(msgspec.Struct, tag="close_sql", frozen=True):
    """Forget a stored text."""

    sql_id: int


class GetAutocommitRequest(msgspec.Struct, tag="get_autocommit", frozen=True):
    """Ask whether the stream is outside a transaction (version 3)."""


StreamRequest = (
    CloseRequest
    | ExecuteRequest
    | BatchRequest
    | SequenceRequest
    | DescribeRequest
    | StoreSqlRequest
    | CloseSqlRequest
    | GetAutocommitRequest
)


class PipelineBody(msgspec.Struct, frozen=True):
    """Body of ``POST /v2/pipeline`` and ``/v3/pipeline``."""

    requests: list[StreamRequest]
    baton: str | None = None


class CursorBody(msgspec.Struct, frozen=True):
    """Body of ``POST /v3/cursor``."""

    batch: Batch
    baton: str | None = None


_Body = TypeVar("_Body", PipelineBody, CursorBody)

_pipeline = msgspec.json.Decoder(PipelineBody)
_cursor = msgspec.json.Decoder(CursorBody)


def decode_pipeline(body: bytes) -> PipelineBody:
    """Decode a pipeline; ProtocolError when it is not one."""
    return _decode(_pipeline, PipelineBody, body)


def decode_cursor(body: bytes) -> CursorBody:
    """Decode a cursor request; ProtocolError when it is not one."""
    return _decode(_cursor, CursorBody, body)


def _decode(decoder: msgspec.json.Decoder[_Body], kind: type[_Body], body: bytes) -> _Body:
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        if "out of range" in str(error):
            return _decode_infinite(kind, body)
        raise _undecodable(error) from None


def _decode_infinite(kind: type[_Body], body: bytes) -> _Body:
    """A double may be infinite, which JSON can only write as a number that is too large (1e999)."""
    try:
        return msgspec.convert(json.loads(body, parse_constant=_no_constant), kind)
    except (ValueError, RecursionError) as error:  # msgspec's errors, too
        raise _undecodable(error) from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _undecodable(error: Exception) -> ProtocolError:
    why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return ProtocolError(f"Cannot deserialize client message from JSON: {why}")


# ---------------------------------------------------------------------------- plans


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


class Planner:
    """Turns the requests of one pipeline into plans, applying store_sql and close_sql in order.

    Attributes:
      stored: the stream's stored texts after the pipeline (a copy when anything changed).
      closes: whether a `close` was among the requests.
    """

    def __init__(self, version: int, stored: Mapping[int, str]) -> None:
        self.version = version
        self.stored = stored
        self.closes = False

    def plan(self, requests: Sequence[StreamRequest]) -> list[Plan]:
        """Plans in the order of the requests; raises ProtocolError before anything has run."""
        return [self._plan_one(request) for request in requests]

    def batch(self, batch: Batch) -> RunBatch | Refused:
        """Plan of a batch."""
        steps = []
        for index, step in enumerate(batch.steps):
            if step.condition is not None:
                _check_condition(step.condition, index, self.version)
            planned = self._step(step.stmt, step.condition)
            if isinstance(planned, Refused):
                return planned
            steps.append(planned)
        return RunBatch(steps)

    def _plan_one(self, request: StreamRequest) -> Plan:
        if isinstance(request, ExecuteRequest):
            planned = self._step(request.stmt, None)
            return planned if isinstance(planned, Refused) else Execute(planned)
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
        if len(self.stored) >= MAX_STORED:
            return Refused(
                StatementError(
                    f"The stream already stores {MAX_STORED} SQL texts, which is the limit",
                    "SQL_STORE_TOO_MANY",
                )
            )
        if len(request.sql.encode()) > MAX_STORED_SIZE:
            return Refused(
                StatementError(
                    f"A stored SQL text may have at most {MAX_STORED_SIZE} bytes",
                    "SQL_STORE_TOO_LARGE",
                )
            )
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
    raise _args_invalid(f"the statement has no parameter {_shorten(name)}")


def _args_invalid(why: str) -> StatementError:
    return StatementError(f"Arguments do not match SQL parameters: {why}", "ARGS_INVALID")


# ---------------------------------------------------------------------------- answers

_CLOSED = Answered(b'{"type":"ok","response":{"type":"close"}}')
_SQL_STORED = Answered(b'{"type":"ok","response":{"type":"store_sql"}}')
_SQL_CLOSED = Answered(b'{"type":"ok","response":{"type":"close_sql"}}')
_SEQUENCE_DONE = b'{"type":"ok","response":{"type":"sequence"}}'

_encode = msgspec.json.encode


def error_json(error: StatementError) -> bytes:
    """A Hrana Error; `code` is always a string, because clients fail on its absence."""
    body: dict[str, object] = {"message": error.message, "code": error.code}
    if error.extended_code:
        body["extended_code"] = error.extended_code
    return _encode(body)


def error_result(error: StatementError) -> bytes:
    """Stream result of a request that failed."""
    return b'{"type":"error","error":%b}' % error_json(error)


def execute_result(result: bytes) -> bytes:
    """Stream result of an `execute` whose StmtResult is already JSON."""
    return b'{"type":"ok","response":{"type":"execute","result":%b}}' % result


def batch_result(outcomes: Sequence[Outcome]) -> bytes:
    """Stream result of a `batch`: for each step a StmtResult, an error, or None when skipped."""
    results = b",".join([o if isinstance(o, bytes) else b"null" for o in outcomes])
    failures = b",".join(
        [error_json(o) if isinstance(o, StatementError) else b"null" for o in outcomes]
    )
    return (
        b'{"type":"ok","response":{"type":"batch","result":{"step_results":[%b],'
        b'"step_errors":[%b],"replication_index":null}}}' % (results, failures)
    )


def sequence_result() -> bytes:
    """Stream result of a `sequence` that ran to its end."""
    return _SEQUENCE_DONE


def autocommit_result(autocommit: bool) -> bytes:
    """Stream result of a `get_autocommit`."""
    return b'{"type":"ok","response":{"type":"get_autocommit","is_autocommit":%b}}' % (
        b"true" if autocommit else b"false"
    )


def describe_result(
    parameters: Sequence[str | None],
    columns: Sequence[tuple[str | None, str | None]],
    *,
    explain: bool,
    readonly: bool,
) -> bytes:
    """Stream result of a `describe`; columns are (name, declared type)."""
    return _encode(
        {
            "type": "ok",
            "response": {
                "type": "describe",
                "result": {
                    "params": [{"name": name} for name in parameters],
                    "cols": [{"name": name, "decltype": kind} for name, kind in columns],
                    "is_explain": explain,
                    "is_readonly": readonly,
                },
            },
        }
    )


def pipeline_answer(baton: str | None, results: Sequence[bytes]) -> bytes:
    """Body of a pipeline's answer. Batons are base64: they need no escaping."""
    head = b"null" if baton is None else b'"%b"' % baton.encode("ascii")
    return b'{"baton":%b,"base_url":null,"results":[%b]}' % (head, b",".join(results))


def cursor_head(baton: str | None) -> bytes:
    """First line of a cursor's answer."""
    head = b"null" if baton is None else b'"%b"' % baton.encode("ascii")
    return b'{"baton":%b,"base_url":null}\n' % head


NOTHING = (
    b'{"cols":[],"rows":[],"affected_row_count":0,"last_insert_rowid":null,'
    b'"replication_index":null,"rows_read":0,"rows_written":0,"query_duration_ms":0.000}'
)
"""StmtResult of a statement that answers and changes nothing."""


def cursor_nothing(step: int) -> bytes:
    """Cursor entries of a statement that answers and changes nothing."""
    return (
        b'{"type":"step_begin","step":%d,"cols":[]}\n'
        b'{"type":"step_end","affected_row_count":0,"last_insert_rowid":null}\n' % step
    )


def cursor_body(outcomes: Sequence[Outcome]) -> bytes:
    """Entries of all steps: those of a step that ran, an error, nothing for a skipped one."""
    return b"".join(
        cursor_step_error(step, outcome) if isinstance(outcome, StatementError) else outcome or b""
        for step, outcome in enumerate(outcomes)
    )


def cursor_step_error(step: int, error: StatementError) -> bytes:
    """Cursor entry of a step that failed."""
    return b'{"type":"step_error","step":%d,"error":%b}\n' % (step, error_json(error))


def cursor_error(error: StatementError) -> bytes:
    """Last entry of a cursor that cannot go on."""
    return b'{"type":"error","error":%b}\n' % error_json(error)


def error_body(message: str, code: str) -> bytes:
    """Body of every answer whose status is not 200."""
    return _encode({"message": message, "code": code, "error": {"message": message, "code": code}})


# ---------------------------------------------------------------------------- SQL texts

_READONLY_BEGIN = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*BEGIN\s+(?:TRANSACTION\s+)?READONLY\s*;?\s*",
    re.IGNORECASE | re.DOTALL | re.ASCII,
)


def is_readonly_begin(sql: str) -> bool:
    """Whether the text is libSQL's ``BEGIN [TRANSACTION] READONLY``, which SQLite does not know."""
    # A search for the word first: the pattern is not tried on every statement.
    return len(sql) < 4096 and "readonly" in sql.lower() and bool(_READONLY_BEGIN.fullmatch(sql))


def check_length(sql: str) -> None:
    """Raise StatementError when a text is longer than the agreed limit."""
    # A character takes at most four bytes: short texts need no encoding to be measured.
    if len(sql) * 4 > MAX_STATEMENT and len(sql.encode()) > MAX_STATEMENT:
        raise StatementError(
            f"The SQL text is longer than {MAX_STATEMENT} bytes, which is the limit",
            "SQL_TOO_LONG",
        )


def sqlite_error(text: str, code: int, offset: int = -1) -> StatementError:
    """The statement error for a failure of SQLite.

    Args:
      text: SQLite's message.
      code: extended result code, or 0.
      offset: byte offset into the SQL text where compiling failed, or -1.
    """
    if offset >= 0:
        return StatementError(
            f"SQL input error: {text} (at offset {offset})", "SQL_INPUT_ERROR", code
        )
    name = PRIMARY_NAMES.get(code & 0xFF, "SQLITE_UNKNOWN")
    return StatementError(f"SQLite error: {text}", name, code)


_REFUSED_CODES = frozenset(
    [
        "SQL_NO_STATEMENT",
        "SQL_MANY_STATEMENTS",
        "SQL_PARSE_ERROR",
        "SQL_TOO_LONG",
        "ARGS_INVALID",
        "ARGS_BOTH_POSITIONAL_AND_NAMED",
    ]
)
_SYNTAX = (": near ", ": incomplete input", ": unrecognized token")


def is_refusal(error: StatementError) -> bool:
    """Whether a statement could never have run, whatever ran before it (not: a missing table)."""
    return error.code in _REFUSED_CODES or any(text in error.message for text in _SYNTAX)


PRIMARY_NAMES = {
    1: "SQLITE_ERROR",
    2: "SQLITE_INTERNAL",
    3: "SQLITE_PERM",
    4: "SQLITE_ABORT",
    5: "SQLITE_BUSY",
    6: "SQLITE_LOCKED",
    7: "SQLITE_NOMEM",
    8: "SQLITE_READONLY",
    9: "SQLITE_INTERRUPT",
    10: "SQLITE_IOERR",
    11: "SQLITE_CORRUPT",
    12: "SQLITE_NOTFOUND",
    13: "SQLITE_FULL",
    14: "SQLITE_CANTOPEN",
    15: "SQLITE_PROTOCOL",
    16: "SQLITE_EMPTY",
    17: "SQLITE_SCHEMA",
    18: "SQLITE_TOOBIG",
    19: "SQLITE_CONSTRAINT",
    20: "SQLITE_MISMATCH",
    21: "SQLITE_MISUSE",
    22: "SQLITE_NOLFS",
    23: "SQLITE_AUTH",
    24: "SQLITE_FORMAT",
    25: "SQLITE_RANGE",
    26: "SQLITE_NOTADB",
}
