"""What travels on a stream: requests of a Hrana pipeline as a client writes them, answers as it reads them.

Pure. Source: the Hrana 3 specification published with libSQL.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from nearlite._native._lib import SQLITE_NAMES, sqlite_exception
from nearlite.errors import NotSupportedError, OperationalError, ProgrammingError
from nearlite.sync import primary_is_full

Request = dict[str, Any]
Values = Sequence[Any]

# ---------------------------------------------------------------- answers


class _Null(msgspec.Struct, tag="null", frozen=True, gc=False):
    pass


class _Integer(msgspec.Struct, tag="integer", frozen=True, gc=False):
    value: str


class _Float(msgspec.Struct, tag="float", frozen=True, gc=False):
    value: msgspec.Raw  # infinity is written 1e999, which msgspec does not take for a number


class _Text(msgspec.Struct, tag="text", frozen=True, gc=False):
    value: str
    base64: str = ""  # the bytes themselves, where `value` is not all of them


class _Blob(msgspec.Struct, tag="blob", frozen=True, gc=False):
    base64: str = ""


class _Column(msgspec.Struct, frozen=True):
    name: str | None = None
    decltype: str | None = None


class Rows(msgspec.Struct, frozen=True):
    """StmtResult."""

    cols: list[_Column] = []
    rows: list[list[_Null | _Integer | _Float | _Text | _Blob]] = []
    affected_row_count: int = 0
    last_insert_rowid: str | None = None


class Failed(msgspec.Struct, frozen=True):
    """Error: of a request or of a step."""

    message: str = ""
    code: str | None = None
    extended_code: int = 0


class Steps(msgspec.Struct, frozen=True):
    """BatchResult."""

    step_results: list[Rows | None] = []
    step_errors: list[Failed | None] = []


class _Parameter(msgspec.Struct, frozen=True):
    name: str | None = None


class Description(msgspec.Struct, frozen=True):
    """DescribeResult."""

    params: list[_Parameter] = []
    is_readonly: bool = False


class _Response(msgspec.Struct, frozen=True):
    type: str = ""
    result: msgspec.Raw = msgspec.Raw(b"null")
    is_autocommit: bool = True


class Result(msgspec.Struct, frozen=True):
    """StreamResult: what became of one request."""

    type: str
    response: _Response | None = None
    error: Failed | None = None


class Answer(msgspec.Struct, frozen=True):
    """PipelineRespBody."""

    results: list[Result]
    baton: str | None = None
    base_url: str | None = None


decode_answer = msgspec.json.Decoder(Answer).decode
decode_rows = msgspec.json.Decoder(Rows).decode
decode_steps = msgspec.json.Decoder(Steps).decode
decode_description = msgspec.json.Decoder(Description).decode
encode = msgspec.json.Encoder().encode


class Malformed(bytes):
    """Text that is not UTF-8."""


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4))


class Outcome:
    """What one statement came to on the primary.

    Attributes:
      columns, decltypes: of its result, as of a compiled statement.
      rows: all of them; text that is not UTF-8 as Malformed.
      malformed: there is such text.
      changes: rows changed, 0 unless it was an INSERT, UPDATE or DELETE.
      last_rowid: of an INSERT, otherwise None.
    """

    __slots__ = ("changes", "columns", "decltypes", "last_rowid", "malformed", "rows")

    def __init__(self, found: Rows) -> None:
        self.columns = tuple(column.name or "" for column in found.cols)
        self.decltypes = tuple(column.decltype for column in found.cols)
        self.malformed = False
        self.rows = [tuple(map(self._python, row)) for row in found.rows]
        self.changes = found.affected_row_count
        self.last_rowid = None if found.last_insert_rowid is None else int(found.last_insert_rowid)

    def _python(self, value: _Null | _Integer | _Float | _Text | _Blob) -> Any:
        if isinstance(value, _Text):
            if not value.base64:
                return value.value
            self.malformed = True
            return Malformed(_bytes(value.base64))
        if isinstance(value, _Integer):
            return int(value.value)
        if isinstance(value, _Float):
            return float(bytes(value.value))
        if isinstance(value, _Blob):
            return _bytes(value.base64)
        return None


NOTHING: Final = Outcome(Rows())

# ---------------------------------------------------------------- requests


def value_of(value: Any) -> Request:
    """The Hrana form of a value of a plain type.

    Raises:
      OverflowError: an integer beyond 64 signed bits.
    """
    if value is None:
        return {"type": "null"}
    if isinstance(value, int):
        if not -(1 << 63) <= value < 1 << 63:
            raise OverflowError("Python int too large to convert to SQLite INTEGER")
        return {"type": "integer", "value": str(int(value))}
    if isinstance(value, float):
        if math.isnan(value):
            return {"type": "null"}  # as SQLite stores it
        if math.isinf(value):  # a number too large for a double: what SQLite itself prints
            return {"type": "float", "value": msgspec.Raw(b"1e999" if value > 0 else b"-1e999")}
        return {"type": "float", "value": value}
    if isinstance(value, str):
        return {"type": "text", "value": value}
    return {"type": "blob", "base64": base64.b64encode(value).decode("ascii")}


def encode_values(values: Values) -> msgspec.Raw:
    """The values of one parameter set, encoded.

    Raises:
      OverflowError: as `value_of`.
      UnicodeEncodeError: a text holds half of a surrogate pair.
    """
    return msgspec.Raw(encode([value_of(value) for value in values]))


def statement_of(sql: str, values: Values = (), *, rows: bool = True) -> Request:
    """A statement with its values; `rows`: those of its result are wanted."""
    statement: Request = {"sql": str.__str__(sql), "want_rows": rows}
    if values:
        statement["args"] = [value_of(value) for value in values]
    return statement


def if_ok(step: int) -> Request:
    """The condition that a step of the batch succeeded."""
    return {"type": "ok", "step": step}


AUTOCOMMIT: Final[Request] = {"type": "get_autocommit"}
CLOSE: Final[Request] = {"type": "close"}
UNLESS_ENDED: Final[Request] = {"type": "not", "cond": {"type": "is_autocommit"}}

# ---------------------------------------------------------------- failures

_CODES: Final = {name: code for code, name in SQLITE_NAMES.items()}
_SQLITE_FULL: Final = _CODES["SQLITE_FULL"]
_COUNTS: Final = re.compile(r".*: (\d+) are needed, (\d+) were given", re.DOTALL)
_INPUT: Final = re.compile(r"SQL input error: (.*) \(at offset \d+\)", re.DOTALL)


def failure(error: Failed) -> Exception:
    """The exception that the same statement raises on a local file."""
    text = error.message.removeprefix("SQLite error: ")
    match = _INPUT.fullmatch(text)
    if match is not None:
        return sqlite_exception(error.extended_code or 1, match[1])
    code = error.extended_code or _CODES.get(error.code or "", 0)
    if code & 0xFF == _SQLITE_FULL:
        return primary_is_full(text, code)
    if code:
        return sqlite_exception(code, text)
    if error.code == "SQL_MANY_STATEMENTS":
        return ProgrammingError("You can only execute one statement at a time.")
    counts = _COUNTS.fullmatch(text)
    if error.code == "ARGS_INVALID" and counts is not None:
        return ProgrammingError(
            "Incorrect number of bindings supplied. The current statement uses "
            f"{counts[1]}, and there are {counts[2]} supplied."
        )
    if error.code in ("ARGS_INVALID", "ARGS_BOTH_POSITIONAL_AND_NAMED"):
        return ProgrammingError(text)
    if error.code == "SQL_PARSE_ERROR":
        return NotSupportedError(text.removeprefix("SQL string could not be parsed: "))
    return OperationalError(f"{text} ({error.code})" if error.code else text)
