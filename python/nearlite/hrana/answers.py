"""Answers, put together from pieces of JSON: rows come from C and are never looked at here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import islice
from typing import Final

import msgspec

from nearlite.hrana.failures import StatementError
from nearlite.hrana.messages import Outcome

_SEQUENCE_DONE = b'{"type":"ok","response":{"type":"sequence"}}'
_ONE = re.compile(rb'\{"type":"ok","response":\{"type":"(?:execute|batch)","result":')
_encode = msgspec.json.encode
_ERROR: Final = b'{"message":"'
_CODE: Final = re.compile(rb'\{"message":"(?:[^"\\]|\\.)*","code":"([^"\\]*)"')
_LOOKED_AT: Final = 1 << 16
_LISTED: Final = 20


def error_json(error: StatementError) -> bytes:
    """A Hrana Error; `code` is always a string, because clients fail on its absence."""
    body: dict[str, object] = {"message": error.message, "code": error.code}
    if error.extended_code:
        body["extended_code"] = error.extended_code
    return _encode(body)


def codes_of_errors(answer: bytes) -> list[str]:
    """Codes of the errors in what answers a pipeline, a batch or a cursor: the first ones, of its first 64 KiB."""
    # Within a text the quotes would be escaped. Nearly always there is none, and that is quickly seen.
    if answer.find(_ERROR, 0, _LOOKED_AT) < 0:
        return []
    found = islice(_CODE.finditer(answer, 0, _LOOKED_AT), _LISTED)
    return [match[1].decode() for match in found]


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


def alone(result: bytes) -> bytes:
    """Body of an answer of Hrana 1 over HTTP, out of the stream result of its one request.

    Raises:
      StatementError: that has failed.
    """
    told = _ONE.match(result)
    if told is None:
        error = msgspec.json.decode(result)["error"]
        raise StatementError(error["message"], error["code"], error.get("extended_code", 0))
    return b'{"result":%b}' % result[told.end() : -2]


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
