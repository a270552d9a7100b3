"""Plans as requests again, for another server to carry out, and what comes of its answer.

An edge has checked and resolved a client's requests before it knows that its primary has to run them.
They go on in version 3, whatever the client speaks; their results are those of any version.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from nearlite.hrana.failures import StatementError
from nearlite.hrana.messages import SqlValue
from nearlite.hrana.plans import Describe, Execute, GetAutocommit, Plan, RunBatch, Script, Step

_AUTOCOMMIT: dict[str, Any] = {"type": "get_autocommit"}
_CLOSE: dict[str, Any] = {"type": "close"}
_encode = msgspec.json.Encoder().encode


def pipeline(baton: str | None, plans: Sequence[Plan], *, closes: bool) -> bytes:
    """Body of a pipeline.

    Args:
      baton: of the stream there; None: a new one.
      plans: that run; none of them `Answered` or `Refused`.
      closes: the stream is closed behind them. Otherwise it is asked whether it is outside a transaction.
    """
    last = _CLOSE if closes else _AUTOCOMMIT
    return _encode({"baton": baton, "requests": [*map(_request, plans), last]})


def length(plans: Sequence[Plan]) -> int:
    """Characters of the SQL texts of a pipeline: each that was stored is there as often as it is named."""
    total = 0
    for plan in plans:
        if isinstance(plan, Execute):
            total += len(plan.step.sql)
        elif isinstance(plan, RunBatch):
            total += sum(len(step.sql) for step in plan.steps)
        elif isinstance(plan, (Script, Describe)):
            total += len(plan.sql)
    return total


def closing(baton: str) -> bytes:
    """Body of a pipeline that only closes a stream."""
    return _encode({"baton": baton, "requests": [_CLOSE]})


def _request(plan: Plan) -> dict[str, Any]:
    if isinstance(plan, Execute):
        return {"type": "execute", "stmt": _statement(plan.step)}
    if isinstance(plan, RunBatch):
        return {"type": "batch", "batch": {"steps": list(map(_step, plan.steps))}}
    if isinstance(plan, Script):
        return {"type": "sequence", "sql": plan.sql}
    if isinstance(plan, Describe):
        return {"type": "describe", "sql": plan.sql}
    assert isinstance(plan, GetAutocommit)
    return _AUTOCOMMIT


def _step(step: Step) -> dict[str, Any]:
    made: dict[str, Any] = {"stmt": _statement(step)}
    if step.condition is not None:
        made["condition"] = step.condition
    return made


def _statement(step: Step) -> dict[str, Any]:
    made: dict[str, Any] = {"sql": step.sql, "want_rows": step.want_rows}
    if step.args:
        made["args"] = list(map(_value, step.args))
    if step.named:
        made["named_args"] = [{"name": name, "value": _value(value)} for name, value in step.named]
    return made


def _value(value: SqlValue) -> dict[str, Any]:
    if value is None:
        return {"type": "null"}
    if isinstance(value, int):
        return {"type": "integer", "value": str(value)}
    if isinstance(value, float):
        if math.isnan(value):  # what SQLite makes of it, and JSON has none
            return {"type": "null"}
        if math.isinf(value):  # a number too large for a double: what SQLite itself prints
            return {"type": "float", "value": msgspec.Raw(b"1e999" if value > 0 else b"-1e999")}
        return {"type": "float", "value": value}
    if isinstance(value, str):
        return {"type": "text", "value": value}
    return {"type": "blob", "base64": base64.b64encode(value).decode("ascii")}


# ---------------------------------------------------------------------------- answers


class _Answer(msgspec.Struct):
    results: list[msgspec.Raw]
    baton: str | None = None
    base_url: str | None = None


class _Ended(msgspec.Struct):
    is_autocommit: bool = True


class _Last(msgspec.Struct):
    type: str
    response: _Ended | None = None


class Ran(msgspec.Struct, frozen=True):
    """What became of a pipeline.

    Attributes:
      results: the stream result of each plan.
      baton: of the stream there, if it goes on.
      autocommit: it is outside a transaction.
    """

    results: list[bytes]
    baton: str | None
    autocommit: bool


_answer = msgspec.json.Decoder(_Answer)
_last = msgspec.json.Decoder(_Last)


def ran(answer: bytes, count: int) -> Ran:
    """What a pipeline of so many plans was answered. Raises ValueError: that is no answer to it."""
    try:
        found = _answer.decode(answer)
        if len(found.results) != count + 1:
            raise ValueError("it has another number of results")
        last = _last.decode(found.results[-1])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None
    if found.base_url:
        raise ValueError("it asks to continue elsewhere")
    # It could not tell only where the stream is gone.
    outside = last.response is None or last.response.is_autocommit
    return Ran([bytes(result) for result in found.results[:-1]], found.baton, outside)


class _Rows(msgspec.Struct):
    cols: msgspec.Raw = msgspec.Raw(b"[]")
    rows: list[msgspec.Raw] = []
    affected_row_count: int = 0
    last_insert_rowid: str | None = None


class _Failure(msgspec.Struct):
    message: str = ""
    code: str | None = None
    extended_code: int = 0


class _Steps(msgspec.Struct):
    step_results: list[msgspec.Raw] = []
    step_errors: list[msgspec.Raw] = []


class _Batch(msgspec.Struct):
    result: _Steps = msgspec.field(default_factory=_Steps)


class _BatchResult(msgspec.Struct):
    response: _Batch | None = None
    error: _Failure | None = None


_batch = msgspec.json.Decoder(_BatchResult)
_rows = msgspec.json.Decoder(_Rows)


def entries(result: bytes) -> Iterator[bytes]:
    """The entries of a cursor out of the stream result of a batch: a line each, with its end.

    Raises:
      ValueError: it is none.
    """
    try:
        found = _batch.decode(result)
        if found.error is not None or found.response is None:
            error = found.error or _Failure("the batch has no result")
            told = StatementError(error.message, error.code or "UNKNOWN", error.extended_code)
            yield _line({"type": "error", "error": _error(told)})
            return
        steps = found.response.result
        for number, (rows, failure) in enumerate(
            zip(steps.step_results, steps.step_errors, strict=True)
        ):
            if bytes(rows) != b"null":
                done = _rows.decode(rows)
                yield _line({"type": "step_begin", "step": number, "cols": done.cols})
                for row in done.rows:
                    yield b'{"type":"row","row":%b}\n' % bytes(row)
                yield _line(
                    {
                        "type": "step_end",
                        "affected_row_count": done.affected_row_count,
                        "last_insert_rowid": done.last_insert_rowid,
                    }
                )
            if bytes(failure) != b"null":
                yield _line({"type": "step_error", "step": number, "error": failure})
    except (msgspec.MsgspecError, RecursionError) as error:
        raise ValueError(str(error)) from None


def _error(error: StatementError) -> dict[str, Any]:
    told: dict[str, Any] = {"message": error.message, "code": error.code}
    if error.extended_code:
        told["extended_code"] = error.extended_code
    return told


def _line(entry: dict[str, Any]) -> bytes:
    return _encode(entry) + b"\n"
