"""Hrana 3 in protobuf: what is transcribed is what JSON says, and nothing that a client sends makes it fail."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Client, app_of, rows, serving

from nearlite import hrana
from nearlite.hrana import messages, protobuf, sockets
from nearlite.hrana.failures import ProtocolError
from nearlite.hrana.schema import MESSAGES

INTEGERS = st.integers(-(1 << 63), (1 << 63) - 1)
IDS = st.integers(-(1 << 31), (1 << 31) - 1)
TEXTS = st.text(max_size=12)
MAYBE_TEXTS = st.none() | TEXTS


def filled(kind: str, fields: dict[str, Any]) -> Any:
    """A message; fields that are None are absent."""
    return MESSAGES[kind](**{name: value for name, value in fields.items() if value is not None})


VALUES = st.one_of(
    st.just(({}, {"type": "null"})),
    INTEGERS.map(lambda n: ({"integer": n}, {"type": "integer", "value": str(n)})),
    st.floats(allow_nan=False).map(lambda n: ({"float": n}, {"type": "float", "value": n})),
    TEXTS.map(lambda text: ({"text": text}, {"type": "text", "value": text})),
    st.binary(max_size=12).map(
        lambda data: ({"blob": data}, {"type": "blob", "base64": base64.b64encode(data).decode()})
    ),
)


def value(pair: Any) -> Any:
    made = MESSAGES["Value"](**pair[0])
    if not pair[0]:
        made.null.SetInParent()
    return made


@st.composite
def statements(draw: Any) -> tuple[Any, dict[str, Any]]:
    """A statement in protobuf, and the same in JSON."""
    told: dict[str, Any] = {
        "sql": draw(MAYBE_TEXTS),
        "sql_id": draw(st.none() | IDS),
        "want_rows": draw(st.none() | st.booleans()),
    }
    args = draw(st.lists(VALUES, max_size=3))
    named = draw(st.lists(st.tuples(TEXTS, VALUES), max_size=2))
    made = filled("Stmt", told)
    made.args.extend([value(arg) for arg in args])
    for name, arg in named:
        made.named_args.add(name=name).value.CopyFrom(value(arg))
    told["args"] = [arg[1] for arg in args]
    told["named_args"] = [{"name": name, "value": arg[1]} for name, arg in named]
    return made, told


def _nest(inner: Any) -> Any:
    many = st.lists(inner, max_size=3)
    return st.one_of(
        inner.map(
            lambda c: (MESSAGES["BatchCond"](**{"not": c[0]}), {"type": "not", "cond": c[1]})
        ),
        many.map(
            lambda cs: (
                MESSAGES["BatchCond"](**{"and": MESSAGES["Conds"](conds=[c[0] for c in cs])}),
                {"type": "and", "conds": [c[1] for c in cs]},
            )
        ),
        many.map(
            lambda cs: (
                MESSAGES["BatchCond"](**{"or": MESSAGES["Conds"](conds=[c[0] for c in cs])}),
                {"type": "or", "conds": [c[1] for c in cs]},
            )
        ),
    )


STEPS = st.integers(0, 9)
CONDITIONS = st.recursive(
    st.one_of(
        STEPS.map(lambda n: (MESSAGES["BatchCond"](step_ok=n), {"type": "ok", "step": n})),
        STEPS.map(lambda n: (MESSAGES["BatchCond"](step_error=n), {"type": "error", "step": n})),
        st.just(
            (MESSAGES["BatchCond"](is_autocommit=MESSAGES["Empty"]()), {"type": "is_autocommit"})
        ),
    ),
    _nest,
    max_leaves=6,
)


@st.composite
def batches(draw: Any) -> tuple[Any, dict[str, Any]]:
    made, told = MESSAGES["Batch"](), []
    for _ in range(draw(st.integers(0, 3))):
        stmt = draw(statements())
        condition = draw(st.none() | CONDITIONS)
        step = made.steps.add(stmt=stmt[0])
        if condition is not None:
            step.condition.CopyFrom(condition[0])
        told.append({"stmt": stmt[1], "condition": condition and condition[1]})
    return made, {"steps": told}


@st.composite
def requests(draw: Any) -> tuple[str, Any, dict[str, Any]]:
    """Kind of a request, its fields in protobuf by name, and in JSON."""
    kind = draw(
        st.sampled_from(
            ["execute", "batch", "sequence", "describe", "store_sql", "close_sql", "get_autocommit"]
        )
    )
    if kind == "execute":
        made, told = draw(statements())
        return kind, {"stmt": made}, {"stmt": told}
    if kind == "batch":
        made, told = draw(batches())
        return kind, {"batch": made}, {"batch": told}
    fields: dict[str, Any] = {}
    if kind in ("sequence", "describe"):
        fields = {"sql": draw(MAYBE_TEXTS), "sql_id": draw(st.none() | IDS)}
    elif kind != "get_autocommit":
        fields["sql_id"] = draw(IDS)
        if kind == "store_sql":
            fields["sql"] = draw(TEXTS)
    return kind, fields, fields


UNKNOWN = b"\xa2\x06\x03new"  # field 100, of a later version


@given(MAYBE_TEXTS, st.lists(requests(), max_size=4))
@settings(max_examples=150, deadline=None)
def test_a_pipeline_is_what_it_is_in_json(baton: str | None, asked: list[Any]) -> None:
    body = filled("PipelineReqBody", {"baton": baton})
    for kind, made, _ in asked:
        of = getattr(body.requests.add(), kind)
        of.MergeFrom(type(of)(**{name: field for name, field in made.items() if field is not None}))
        of.SetInParent()
    told = {"baton": baton, "requests": [{"type": kind, **fields} for kind, _, fields in asked]}
    expected = hrana.decode_pipeline(_json(told))
    data = body.SerializeToString()
    assert protobuf.decode_pipeline(data) == expected
    assert protobuf.decode_pipeline(data + UNKNOWN) == expected
    assert protobuf.baton_of(data) == baton


@given(IDS, IDS, IDS, requests(), batches(), MAYBE_TEXTS)
@settings(max_examples=100, deadline=None)
def test_messages_of_a_websocket_are_what_they_are_in_json(
    number: int, stream: int, cursor: int, asked: Any, batch: Any, token: str | None
) -> None:
    kind, made, told = asked
    on_stream = {"stream_id": stream} if "_sql" not in kind else {}
    for name, message_fields, json_fields in (
        (kind, on_stream | made, on_stream | told),
        ("open_stream", {"stream_id": stream}, {"stream_id": stream}),
        ("close_stream", {"stream_id": stream}, {"stream_id": stream}),
        ("close_cursor", {"cursor_id": cursor}, {"cursor_id": cursor}),
        (
            "fetch_cursor",
            {"cursor_id": cursor, "max_count": 7},
            {"cursor_id": cursor, "max_count": 7},
        ),
        (
            "open_cursor",
            {"stream_id": stream, "cursor_id": cursor, "batch": batch[0]},
            {"stream_id": stream, "cursor_id": cursor, "batch": batch[1]},
        ),
    ):
        message = MESSAGES["ClientMsg"]()
        message.request.request_id = number
        of = getattr(message.request, name)
        of.MergeFrom(
            type(of)(**{key: field for key, field in message_fields.items() if field is not None})
        )
        of.SetInParent()
        text = _json(
            {"type": "request", "request_id": number, "request": {"type": name, **json_fields}}
        )
        assert protobuf.Protobuf.decode(message.SerializeToString()) == sockets.Json.decode(text)
    hello = MESSAGES["ClientMsg"](hello=filled("Hello", {"jwt": token}))
    assert protobuf.Protobuf.decode(hello.SerializeToString()) == sockets.Hello(token)


def _json(told: Any) -> bytes:
    """As clients write it: an infinite number is one that is too large."""

    def written(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: written(inner) for key, inner in part.items()}
        if isinstance(part, list):
            return [written(inner) for inner in part]
        if isinstance(part, float) and math.isinf(part):
            return msgspec.Raw(b"1e999" if part > 0 else b"-1e999")
        return part

    return msgspec.json.encode(written(told))


# ---------------------------------------------------------------------- answers


COLUMNS = st.lists(
    st.fixed_dictionaries({"name": MAYBE_TEXTS, "decltype": MAYBE_TEXTS}), max_size=3
)
RESULTS = st.fixed_dictionaries(
    {
        "cols": COLUMNS,
        "rows": st.lists(st.lists(VALUES.map(lambda pair: pair[1]), max_size=3), max_size=3),
        "affected_row_count": st.integers(0, 1 << 40),
        "last_insert_rowid": st.none() | INTEGERS.map(str),
        "replication_index": st.none(),
        "rows_read": st.integers(0, 1 << 40),
        "rows_written": st.integers(0, 1 << 40),
        "query_duration_ms": st.floats(0, 1000),
    }
)
ERRORS = st.fixed_dictionaries({"message": TEXTS, "code": TEXTS, "extended_code": st.just(19)})


def plain(cell: Any) -> Any:
    """A value in protobuf, as JSON has it."""
    kind = cell.WhichOneof("kind")
    if kind == "null":
        return {"type": "null"}
    held = getattr(cell, kind)
    if kind == "blob":
        return {"type": "blob", "base64": base64.b64encode(held).decode()}
    return {"type": kind, "value": str(held) if kind == "integer" else held}


def optional(message: Any, name: str) -> Any:
    return getattr(message, name) if message.HasField(name) else None


def check_result(made: Any, told: Any) -> None:
    assert [
        {"name": optional(c, "name"), "decltype": optional(c, "decltype")} for c in made.cols
    ] == told["cols"]
    assert [[plain(cell) for cell in row.values] for row in made.rows] == told["rows"]
    for name in ("affected_row_count", "rows_read", "rows_written", "query_duration_ms"):
        assert getattr(made, name) == told[name]
    rowid = optional(made, "last_insert_rowid")
    assert (None if rowid is None else str(rowid)) == told["last_insert_rowid"]


@given(
    st.none() | st.just("YmF0b24"),
    RESULTS,
    st.lists(st.none() | RESULTS | ERRORS, max_size=4),
    ERRORS,
    IDS,
)
@settings(max_examples=150, deadline=None)
def test_an_answer_says_what_it_says_in_json(
    baton: str | None, result: Any, outcomes: list[Any], error: Any, number: int
) -> None:
    ok = {"type": "ok", "response": {"type": "execute", "result": result}}
    batch = {
        "step_results": [o if o and "rows" in o else None for o in outcomes],
        "step_errors": [o if o and "message" in o else None for o in outcomes],
    }
    results = [
        ok,
        {"type": "ok", "response": {"type": "batch", "result": batch}},
        {"type": "error", "error": error},
        {"type": "ok", "response": {"type": "get_autocommit", "is_autocommit": True}},
        {"type": "ok", "response": {"type": "close"}},
    ]
    answer = _json({"baton": baton, "base_url": None, "results": results})
    told = MESSAGES["PipelineRespBody"].FromString(protobuf.pipeline_answer(answer))
    assert optional(told, "baton") == baton
    assert not told.HasField("base_url")
    check_result(told.results[0].ok.execute.result, result)
    made = told.results[1].ok.batch.result
    assert set(made.step_results) == {i for i, o in enumerate(outcomes) if o and "rows" in o}
    assert set(made.step_errors) == {i for i, o in enumerate(outcomes) if o and "message" in o}
    for step in made.step_results:
        check_result(made.step_results[step], outcomes[step])
    for step in made.step_errors:
        assert made.step_errors[step].code == outcomes[step]["code"]
    assert (told.results[2].error.message, told.results[2].error.code) == (
        error["message"],
        error["code"],
    )
    assert told.results[3].ok.get_autocommit.is_autocommit
    assert told.results[4].ok.WhichOneof("kind") == "close"
    message = MESSAGES["ServerMsg"].FromString(protobuf.Protobuf.answer(number, _json(ok)))
    assert message.response_ok.request_id == number
    check_result(message.response_ok.execute.result, result)
    message = MESSAGES["ServerMsg"].FromString(protobuf.Protobuf.answer(number, _json(results[2])))
    assert message.response_error.error.code == error["code"]


def delimited(data: bytes) -> Iterator[bytes]:
    """Messages, each behind its length."""
    at = 0
    while at < len(data):
        size = shift = 0
        while True:
            byte = data[at]
            at += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        yield data[at : at + size]
        at += size


# ---------------------------------------------------------------------- what is wrong


@given(st.binary(max_size=60))
@settings(max_examples=200, deadline=None)
def test_what_is_no_message_is_a_protocol_error(data: bytes) -> None:
    for decode in (protobuf.decode_pipeline, protobuf.decode_cursor, protobuf.Protobuf.decode):
        try:
            decode(data)
        except ProtocolError as broken:
            assert broken.status == 400
            assert "Protobuf" in broken.message


@given(requests(), st.data())
@settings(max_examples=100, deadline=None)
def test_what_is_cut_off_is_a_protocol_error_or_less(asked: Any, data: st.DataObject) -> None:
    kind, made, _ = asked
    body = MESSAGES["PipelineReqBody"]()
    of = getattr(body.requests.add(), kind)
    of.MergeFrom(type(of)(**{name: field for name, field in made.items() if field is not None}))
    of.SetInParent()
    whole = body.SerializeToString()
    cut = whole[: data.draw(st.integers(1, len(whole) - 1))]
    with pytest.raises(ProtocolError, match="Cannot deserialize client message from Protobuf"):
        protobuf.decode_pipeline(cut)


def test_conditions_nested_too_deeply_and_text_that_is_none_are_refused() -> None:
    body = MESSAGES["CursorReqBody"]()
    condition = body.batch.steps.add().condition
    for _ in range(200):
        condition = getattr(condition, "not")
    condition.step_ok = 0
    with pytest.raises(ProtocolError, match="Protobuf"):
        protobuf.decode_cursor(body.SerializeToString())
    with pytest.raises(ProtocolError, match="UTF-8"):
        protobuf.decode_pipeline(b"\n\x02\xff\xff")
    nothing = MESSAGES["PipelineReqBody"]()
    nothing.requests.add()
    with pytest.raises(ProtocolError, match="a StreamRequest is of no known kind"):
        protobuf.decode_pipeline(nothing.SerializeToString())


# ---------------------------------------------------------------------- over HTTP


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    path = tmp_path_factory.mktemp("protobuf") / "data.db"
    with serving(app_of(path, durability="normal")) as port:
        yield Client(port)


def ask(client: Client, *asked: dict[str, Any], baton: str | None = None) -> Any:
    """A pipeline; requests as protobuf's own JSON has them."""
    body = json_format.ParseDict({"requests": asked}, filled("PipelineReqBody", {"baton": baton}))
    reply = client.request("POST", "/v3-protobuf/pipeline", body.SerializeToString())
    assert (reply.status, reply.headers["content-type"]) == (200, "application/x-protobuf")
    return MESSAGES["PipelineRespBody"].FromString(reply.body)


def execute(sql: str) -> dict[str, Any]:
    return {"execute": {"stmt": {"sql": sql}}}


def test_a_stream_over_http(client: Client) -> None:
    assert client.request("GET", "/v3-protobuf").status == 200
    told = ask(client, execute("BEGIN"), execute("CREATE TABLE t(a)"), execute("SELEC"))
    assert told.results[2].error.code == "SQL_INPUT_ERROR"
    told = ask(
        client, execute("INSERT INTO t VALUES(1e999)"), {"get_autocommit": {}}, baton=told.baton
    )
    assert not told.results[1].ok.get_autocommit.is_autocommit
    assert told.results[0].ok.execute.result.last_insert_rowid == 1
    # A baton is of the stream, in whichever encoding.
    answer = client.pipeline(
        {"type": "execute", "stmt": {"sql": "SELECT a FROM t"}}, baton=told.baton
    )
    assert rows(answer["results"][0]["response"]["result"]) == [[math.inf]]
    told = ask(client, execute("COMMIT"), {"close": {}}, baton=answer["baton"])
    assert not told.HasField("baton")
    odd = ask(
        client, execute("SELECT CAST(x'ff61' AS TEXT), x'ff', NULL, -1e999, 5"), {"close": {}}
    )
    (row,) = odd.results[0].ok.execute.result.rows
    assert [cell.WhichOneof("kind") for cell in row.values] == [
        "text",
        "blob",
        "null",
        "float",
        "integer",
    ]
    assert row.values[0].text == "\ufffda"
    assert row.values[3].float == -math.inf


@pytest.mark.parametrize("count", [3, 60_000])
def test_a_cursor_over_http(client: Client, count: int) -> None:
    body = MESSAGES["CursorReqBody"]()
    body.batch.steps.add().stmt.sql = f"WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {count}) SELECT i FROM c"
    body.batch.steps.add().stmt.sql = "SELECT * FROM nowhere"
    reply = client.request("POST", "/v3-protobuf/cursor", body.SerializeToString())
    assert (reply.status, reply.headers["content-type"]) == (200, "application/octet-stream")
    head, *lines = delimited(reply.body)
    assert MESSAGES["CursorRespBody"].FromString(head).baton
    entries = [MESSAGES["CursorEntry"].FromString(line) for line in lines]
    kinds = [entry.WhichOneof("kind") for entry in entries]
    assert kinds == ["step_begin", *["row"] * count, "step_end", "step_error"]
    assert [entry.row.values[0].integer for entry in entries[1:-2]] == list(range(1, count + 1))
    assert (entries[-1].step_error.step, entries[-1].step_error.error.code) == (1, "SQLITE_ERROR")


def test_refusals_are_error_bodies(client: Client) -> None:
    reply = client.request("POST", "/v3-protobuf/pipeline", b"\xff")
    assert reply.status == 400
    assert reply.headers["content-type"] == "application/json"
    assert "Cannot deserialize client message from Protobuf" in reply.json["message"]
    assert client.request("GET", "/v3-protobuf/pipeline").status == 405
    body = filled("PipelineReqBody", {"baton": "forged"}).SerializeToString()
    assert client.request("POST", "/v3-protobuf/pipeline", body).json["code"] == "BATON_INVALID"


def test_a_stored_text_of_no_value_is_not_an_absent_one() -> None:
    body = MESSAGES["PipelineReqBody"]()
    body.requests.add().execute.stmt.sql = ""
    body.requests.add().execute.SetInParent()
    decoded = protobuf.decode_pipeline(body.SerializeToString())
    assert decoded.requests[0] == messages.ExecuteRequest(
        messages.Stmt(sql="", args=[], named_args=[])
    )
    assert decoded.requests[1] == messages.ExecuteRequest(
        messages.Stmt(sql=None, args=[], named_args=[])
    )
