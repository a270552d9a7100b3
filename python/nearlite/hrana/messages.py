"""Requests as they come over the wire, decoded by msgspec straight into structs."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

import msgspec

from nearlite.hrana.failures import ProtocolError, StatementError

SqlValue = int | float | str | bytes | None
Id = Annotated[int, msgspec.Meta(ge=-(1 << 31), lt=1 << 31)]
"""A number that a client has chosen for something."""

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
            raise ProtocolError(f"{shorten(value.value)} is not a decimal integer")
        number = int(value.value)
        if not -(1 << 63) <= number < 1 << 63:
            raise ProtocolError(f"{shorten(value.value)} does not fit a 64-bit integer")
        return number
    if isinstance(value, Blob):
        text = value.base64.rstrip("=")
        try:
            return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ProtocolError(f"a blob is not base64: {error}") from None
    return None


def shorten(text: str) -> str:
    """A text of a client as far as a message can take it."""
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


# ---------------------------------------------------------------------------- requests


class NamedArg(msgspec.Struct, frozen=True):
    """An argument by name, with or without the prefix character."""

    name: str
    value: Value


class Stmt(msgspec.Struct, frozen=True):
    """One statement as it comes over the wire."""

    sql: str | None = None
    sql_id: Id | None = None
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
    sql_id: Id | None = None


class DescribeRequest(msgspec.Struct, tag="describe", frozen=True):
    """Compile a statement and tell its parameters and columns."""

    sql: str | None = None
    sql_id: Id | None = None


class StoreSqlRequest(msgspec.Struct, tag="store_sql", frozen=True):
    """Keep a text on the stream under a number."""

    sql_id: Id
    sql: str


class CloseSqlRequest(msgspec.Struct, tag="close_sql", frozen=True):
    """Forget a stored text."""

    sql_id: Id


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


class _ExecuteBody(msgspec.Struct, frozen=True):
    stmt: Stmt


class _BatchBody(msgspec.Struct, frozen=True):
    batch: Batch


_Body = TypeVar("_Body")

_pipeline = msgspec.json.Decoder(PipelineBody)
_cursor = msgspec.json.Decoder(CursorBody)
_execute = msgspec.json.Decoder(_ExecuteBody)
_batch = msgspec.json.Decoder(_BatchBody)


def decode_pipeline(body: bytes) -> PipelineBody:
    """Decode a pipeline; ProtocolError when it is not one."""
    return decode(_pipeline, PipelineBody, body)


def decode_cursor(body: bytes) -> CursorBody:
    """Decode a cursor request; ProtocolError when it is not one."""
    return decode(_cursor, CursorBody, body)


def decode_execute(body: bytes) -> PipelineBody:
    """Hrana 1 over HTTP: one statement on a stream of its own. ProtocolError when it is not one."""
    return PipelineBody([ExecuteRequest(decode(_execute, _ExecuteBody, body).stmt), CloseRequest()])


def decode_batch(body: bytes) -> PipelineBody:
    """The same of a batch."""
    return PipelineBody([BatchRequest(decode(_batch, _BatchBody, body).batch), CloseRequest()])


def decode(decoder: msgspec.json.Decoder[_Body], kind: Any, body: bytes) -> _Body:
    """What a client has sent; ProtocolError when it is not a `kind`, which is what the decoder is of."""
    try:
        return decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        if "out of range" in str(error):
            made: _Body = _decode_infinite(kind, body)
            return made
        raise _undecodable(error) from None


def _decode_infinite(kind: Any, body: bytes) -> Any:
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
