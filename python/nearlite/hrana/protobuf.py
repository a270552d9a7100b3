"""Hrana 3 in protobuf: requests become the structs that JSON is decoded into, JSON answers become messages.

Statements answer in JSON, which C writes; here it is transcribed. Imported when somebody speaks protobuf.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from nearlite.hrana import messages, sockets
from nearlite.hrana.failures import ProtocolError, StatementError
from nearlite.hrana.schema import MESSAGES

# ---------------------------------------------------------------------------- requests


def decode_pipeline(body: bytes) -> messages.PipelineBody:
    """Decode a pipeline; ProtocolError when it is not one."""
    read = _read("PipelineReqBody", body)
    return messages.PipelineBody(
        [_stream_request(request) for request in read.requests], _optional(read, "baton")
    )


def decode_cursor(body: bytes) -> messages.CursorBody:
    """Decode a cursor request; ProtocolError when it is not one."""
    read = _read("CursorReqBody", body)
    return messages.CursorBody(_batch(read.batch), _optional(read, "baton"))


def baton_of(body: bytes) -> str | None:
    """The baton in the body of a pipeline or a cursor, or in the answer to one."""
    try:
        baton: str | None = _optional(MESSAGES["CursorReqBody"].FromString(body), "baton")
    except DecodeError:
        return None
    return baton


def _read(name: str, data: bytes) -> Any:
    try:
        return MESSAGES[name].FromString(data)
    except DecodeError as error:
        raise ProtocolError(
            f"Cannot deserialize client message from Protobuf: {error}", "PROTOCOL_ERROR"
        ) from None


def _optional(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def _kind(message: Any, what: str) -> str:
    """Which of the alternatives it is."""
    kind: str | None = message.WhichOneof("kind")
    if kind is None:
        raise ProtocolError(
            f"Cannot deserialize client message from Protobuf: a {what} is of no known kind"
        )
    return kind


def _stream_request(request: Any) -> messages.StreamRequest:
    kind = _kind(request, "StreamRequest")
    return _STREAM_REQUESTS[kind](getattr(request, kind))


_STREAM_REQUESTS: Final[dict[str, Callable[[Any], messages.StreamRequest]]] = {
    "close": lambda _: messages.CloseRequest(),
    "execute": lambda of: messages.ExecuteRequest(_stmt(of.stmt)),
    "batch": lambda of: messages.BatchRequest(_batch(of.batch)),
    "sequence": lambda of: messages.SequenceRequest(*_text(of)),
    "describe": lambda of: messages.DescribeRequest(*_text(of)),
    "store_sql": lambda of: messages.StoreSqlRequest(of.sql_id, of.sql),
    "close_sql": lambda of: messages.CloseSqlRequest(of.sql_id),
    "get_autocommit": lambda _: messages.GetAutocommitRequest(),
}


def _text(message: Any) -> tuple[str | None, int | None]:
    return _optional(message, "sql"), _optional(message, "sql_id")


def _stmt(stmt: Any) -> messages.Stmt:
    return messages.Stmt(
        *_text(stmt),
        [_value(value) for value in stmt.args],
        [messages.NamedArg(arg.name, _value(arg.value)) for arg in stmt.named_args],
        _optional(stmt, "want_rows"),
    )


def _batch(batch: Any) -> messages.Batch:
    return messages.Batch(
        [
            messages.BatchStep(
                _stmt(step.stmt),
                _condition(step.condition) if step.HasField("condition") else None,
            )
            for step in batch.steps
        ]
    )


def _condition(condition: Any) -> messages.Cond:
    """Its depth is bounded: protobuf does not parse what is nested deeper than 100 levels."""
    kind = _kind(condition, "BatchCond")
    of = getattr(condition, kind)
    if kind == "step_ok":
        return messages.OkCond(of)
    if kind == "step_error":
        return messages.ErrorCond(of)
    if kind == "not":
        return messages.NotCond(_condition(of))
    if kind == "is_autocommit":
        return messages.IsAutocommitCond()
    conds = [_condition(inner) for inner in of.conds]
    return messages.AndCond(conds) if kind == "and" else messages.OrCond(conds)


def _value(value: Any) -> messages.Value:
    kind = _kind(value, "Value")
    if kind == "integer":
        return messages.Integer(str(value.integer))
    if kind == "text":
        return messages.Text(value.text)
    if kind == "float":
        return messages.Float(value.float)
    if kind == "blob":
        return messages.Blob(base64.b64encode(value.blob).decode("ascii"))
    return messages.Null()


# ---------------------------------------------------------------------------- answers


def _load(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except msgspec.DecodeError:  # a double that is infinite is a number too large for others: 1e999
        return json.loads(data)


def pipeline_answer(answer: bytes) -> bytes:
    """Body of a pipeline's answer, out of the same as JSON."""
    told = _load(answer)
    body = MESSAGES["PipelineRespBody"]()
    _set(body, told, "baton", "base_url")
    for result in told["results"]:
        into = body.results.add()
        if result["type"] == "ok":
            _response(into.ok, result["response"])
        else:
            _error(into.error, result["error"])
    return bytes(body.SerializeToString())


def cursor_lines(lines: bytes) -> bytes:
    """Entries of a cursor, each behind its length, out of lines of JSON."""
    return b"".join([_delimited(_entry(line)) for line in lines.splitlines()])


def cursor_head(line: bytes) -> bytes:
    """The first message of a cursor's answer, behind its length."""
    body = MESSAGES["CursorRespBody"]()
    _set(body, _load(line), "baton", "base_url")
    return _delimited(body)


def _delimited(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    size = len(data)
    head = bytearray()
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + data


def _set(message: Any, told: Mapping[str, Any], *names: str) -> None:
    for name in names:
        value = told.get(name)
        if value is not None:
            setattr(message, name, value)


def _response(into: Any, response: Mapping[str, Any]) -> None:
    kind: str = response["type"]
    of = getattr(into, kind)
    of.SetInParent()
    fill = _RESPONSES.get(kind)
    if fill is not None:
        fill(of, response)


def _autocommit(into: Any, response: Mapping[str, Any]) -> None:
    into.is_autocommit = response["is_autocommit"]


_RESPONSES: Final[dict[str, Callable[[Any, Mapping[str, Any]], None]]] = {
    "execute": lambda into, response: _result(into.result, response["result"]),
    "batch": lambda into, response: _batch_result(into.result, response["result"]),
    "describe": lambda into, response: _description(into.result, response["result"]),
    "get_autocommit": _autocommit,
}


def _result(into: Any, result: Mapping[str, Any]) -> None:
    into.SetInParent()
    _cols(into.cols, result["cols"])
    for row in result["rows"]:
        _row(into.rows.add(), row)
    _set(into, result, "affected_row_count", "rows_read", "rows_written", "query_duration_ms")
    _rowid(into, result)


def _rowid(into: Any, told: Mapping[str, Any]) -> None:
    rowid = told.get("last_insert_rowid")
    if rowid is not None:
        into.last_insert_rowid = int(rowid)


def _cols(into: Any, cols: Iterable[Mapping[str, Any]]) -> None:
    for col in cols:
        _set(into.add(), col, "name", "decltype")


def _row(into: Any, row: Iterable[Mapping[str, Any]]) -> None:
    add = into.values.add
    for value in row:
        kind = value["type"]
        if kind == "integer":
            add(integer=int(value["value"]))
        elif kind == "text":
            add(text=value["value"])
        elif kind == "float":
            add(float=value["value"])
        elif kind == "blob":
            text = value["base64"]
            add(blob=base64.b64decode(text + "=" * (-len(text) % 4)))
        else:
            add().null.SetInParent()


def _batch_result(into: Any, result: Mapping[str, Any]) -> None:
    into.SetInParent()
    for step, outcome in enumerate(result["step_results"]):
        if outcome is not None:
            _result(into.step_results[step], outcome)
    for step, error in enumerate(result["step_errors"]):
        if error is not None:
            _error(into.step_errors[step], error)


def _description(into: Any, result: Mapping[str, Any]) -> None:
    into.SetInParent()
    for parameter in result["params"]:
        _set(into.params.add(), parameter, "name")
    _cols(into.cols, result["cols"])
    into.is_explain = result["is_explain"]
    into.is_readonly = result["is_readonly"]


def _error(into: Any, error: Mapping[str, Any]) -> None:
    into.SetInParent()
    _set(into, error, "message", "code")


def _entry(line: bytes) -> Any:
    told = _load(line)
    entry = MESSAGES["CursorEntry"]()
    kind: str = told["type"]
    of = getattr(entry, kind)
    of.SetInParent()
    if kind == "row":
        _row(of, told["row"])
    elif kind == "step_begin":
        of.step = told["step"]
        _cols(of.cols, told["cols"])
    elif kind == "step_end":
        of.affected_row_count = told["affected_row_count"]
        _rowid(of, told)
    elif kind == "step_error":
        of.step = told["step"]
        _error(of.error, told["error"])
    else:
        _error(of, told["error"])
    return entry


# ---------------------------------------------------------------------------- WebSocket


class Protobuf:
    """The encoding of hrana3-protobuf; see `sockets.Codec`."""

    binary = True

    @staticmethod
    def decode(data: bytes) -> sockets.Hello | sockets.Request:
        """Of a client. Raises ProtocolError."""
        read = _read("ClientMsg", data)
        if _kind(read, "ClientMsg") == "hello":
            return sockets.Hello(_optional(read.hello, "jwt"))
        kind = _kind(read.request, "Request")
        request = _SOCKET_REQUESTS[kind](getattr(read.request, kind))
        return sockets.Request(read.request.request_id, request)

    @staticmethod
    def hello_ok() -> bytes:
        """The token is good."""
        message = MESSAGES["ServerMsg"]()
        message.hello_ok.SetInParent()
        return bytes(message.SerializeToString())

    @staticmethod
    def hello_error(error: StatementError) -> bytes:
        """It is not."""
        message = MESSAGES["ServerMsg"]()
        _told(message.hello_error.error, error)
        return bytes(message.SerializeToString())

    @classmethod
    def answer(cls, number: int, result: bytes) -> bytes:
        """Of a request, out of its stream result (JSON)."""
        told = _load(result)
        if told["type"] != "ok":
            error = told["error"]
            return cls.error(number, StatementError(error["message"], error["code"]))
        message, into = _answer(number)
        _response(into, told["response"])
        return bytes(message.SerializeToString())

    @staticmethod
    def done(number: int, kind: str) -> bytes:
        """Of a request that has nothing to tell but that it is done."""
        message, into = _answer(number)
        _response(into, {"type": kind})
        return bytes(message.SerializeToString())

    @staticmethod
    def error(number: int, error: StatementError) -> bytes:
        """Of a request that has failed."""
        message = MESSAGES["ServerMsg"]()
        message.response_error.request_id = number
        _told(message.response_error.error, error)
        return bytes(message.SerializeToString())

    @staticmethod
    def entries(number: int, entries: Sequence[bytes], *, done: bool) -> bytes:
        """Of a `fetch_cursor`; entries as JSON."""
        message, into = _answer(number)
        into.fetch_cursor.entries.extend([_entry(entry) for entry in entries])
        into.fetch_cursor.done = done
        return bytes(message.SerializeToString())


def _answer(number: int) -> tuple[Any, Any]:
    message = MESSAGES["ServerMsg"]()
    message.response_ok.request_id = number
    return message, message.response_ok


def _told(into: Any, error: StatementError) -> None:
    into.message = error.message
    into.code = error.code


_SOCKET_REQUESTS: Final[dict[str, Callable[[Any], sockets.SocketRequest]]] = {
    "open_stream": lambda of: sockets.OpenStream(of.stream_id),
    "close_stream": lambda of: sockets.CloseStream(of.stream_id),
    "execute": lambda of: sockets.OnStreamExecute(_stmt(of.stmt), stream_id=of.stream_id),
    "batch": lambda of: sockets.OnStreamBatch(_batch(of.batch), stream_id=of.stream_id),
    "open_cursor": lambda of: sockets.OpenCursor(of.stream_id, of.cursor_id, _batch(of.batch)),
    "close_cursor": lambda of: sockets.CloseCursor(of.cursor_id),
    "fetch_cursor": lambda of: sockets.FetchCursor(of.cursor_id, of.max_count),
    "sequence": lambda of: sockets.OnStreamSequence(*_text(of), stream_id=of.stream_id),
    "describe": lambda of: sockets.OnStreamDescribe(*_text(of), stream_id=of.stream_id),
    "store_sql": lambda of: messages.StoreSqlRequest(of.sql_id, of.sql),
    "close_sql": lambda of: messages.CloseSqlRequest(of.sql_id),
    "get_autocommit": lambda of: sockets.OnStreamGetAutocommit(stream_id=of.stream_id),
}
