"""The Hrana protocol without a server: messages, plans, conditions, errors, and JSON from C."""

from __future__ import annotations

import base64
import contextlib
import json
import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearlite import hrana
from nearlite._native.database import Database
from nearlite.hrana import (
    Answered,
    Execute,
    GetAutocommit,
    Planner,
    ProtocolError,
    Refused,
    RunBatch,
    StatementError,
    Step,
)
from nearlite.session import NotSharedError, Session

VALUES = st.one_of(
    st.none(),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(max_size=300),
)


def wire(value: Any, *, padded: bool = False) -> dict[str, Any]:
    """A value as a client writes it."""
    if value is None:
        return {"type": "null"}
    if isinstance(value, int):
        return {"type": "integer", "value": str(value)}
    if isinstance(value, float):
        return {"type": "float", "value": value}
    if isinstance(value, str):
        return {"type": "text", "value": value}
    text = base64.b64encode(value).decode()
    return {"type": "blob", "base64": text if padded else text.rstrip("=")}


def unwire(value: dict[str, Any]) -> Any:
    """A value as a client reads it."""
    if value["type"] == "null":
        return None
    if value["type"] == "integer":
        assert isinstance(value["value"], str)
        return int(value["value"])
    if value["type"] == "blob":
        assert not value["base64"].endswith("=")
        return base64.b64decode(value["base64"] + "==")
    return value["value"]


def execute(sql: str | None = "SELECT 1", **stmt: Any) -> dict[str, Any]:
    return {"type": "execute", "stmt": {"sql": sql, **stmt}}


def plan(*requests: dict[str, Any], version: int = 3, stored: dict[int, str] | None = None) -> Any:
    body = json.dumps({"requests": requests}).encode()
    return Planner(version, stored or {}).plan(hrana.decode_pipeline(body).requests)


def refused(*requests: dict[str, Any], version: int = 3) -> str:
    with pytest.raises(ProtocolError) as caught:
        plan(*requests, version=version)
    assert caught.value.status == 400
    return caught.value.message


@pytest.fixture
def session() -> Any:
    session = Session(Database(":memory:"))
    yield session
    session.close()


# ---------------------------------------------------------------- values


@given(VALUES.filter(lambda v: v not in (math.inf, -math.inf)), st.booleans())
def test_a_value_survives_the_way_in(value: Any, padded: bool) -> None:
    (planned,) = plan(execute("SELECT ?", args=[wire(value, padded=padded)]))
    got = planned.step.args[0]
    assert type(got) is type(value)
    assert got == value


@given(st.lists(VALUES, max_size=6))
def test_a_row_survives_the_way_out(values: list[Any]) -> None:
    session = Session(Database(":memory:"))
    sql = "SELECT " + ", ".join(["?"] * len(values) or ["1 WHERE 0"])
    result = json.loads(session.look(Step(sql, tuple(values))))
    expected = [values] if values else []
    assert expected == [[unwire(value) for value in row] for row in result["rows"]]
    session.close()


@given(st.floats(allow_nan=False))
def test_a_double_is_read_back_bit_for_bit(value: float) -> None:
    session = Session(Database(":memory:"))
    result = json.loads(session.look(Step("SELECT ?", (value,))))
    got = result["rows"][0][0]["value"]
    assert isinstance(got, float)
    assert math.copysign(1, got) == math.copysign(1, value)
    assert got == value
    session.close()


@given(st.binary(max_size=200))
def test_text_that_is_not_utf8_is_answered_with_replacement_characters(data: bytes) -> None:
    session = Session(Database(":memory:"))
    result = json.loads(session.look(Step("SELECT CAST(? AS TEXT)", (data,))))
    text = data.decode("utf-8", "replace")
    expected = {"type": "text", "value": text}
    if text.encode() != data:
        expected["base64"] = base64.b64encode(data).decode().rstrip("=")
    assert result["rows"] == [[expected]]
    session.close()


def test_a_long_text_is_escaped_across_slices(session: Session) -> None:
    text = 'é"\n\x00€😀' * 5000
    result = json.loads(session.look(Step("SELECT ?", (text,))))
    assert result["rows"][0][0]["value"] == text


@pytest.mark.parametrize(
    "text", ["9223372036854775808", "-9223372036854775809", "1.5", "1_0", " 1", "", "१"]
)
def test_an_integer_must_be_decimal_and_fit_64_bits(text: str) -> None:
    refused(execute("SELECT ?", args=[{"type": "integer", "value": text}]))


def test_an_integer_is_not_a_json_number() -> None:
    assert "Cannot deserialize" in refused(
        execute("SELECT ?", args=[{"type": "integer", "value": 1}])
    )


def test_a_float_may_be_written_without_a_point() -> None:
    (planned,) = plan(execute("SELECT ?", args=[{"type": "float", "value": 1}]))
    assert planned.step.args == (1.0,)
    assert isinstance(planned.step.args[0], float)


def test_an_infinite_float_is_a_number_that_is_too_large() -> None:
    body = b'{"requests":[{"type":"execute","stmt":{"sql":"SELECT ?","args":[%b,%b]}}]}'
    arg = b'{"type":"float","value":%b}'
    requests = hrana.decode_pipeline(body % (arg % b"1e999", arg % b"-1e999")).requests
    (planned,) = Planner(3, {}).plan(requests)
    assert isinstance(planned, Execute)
    assert planned.step.args == (math.inf, -math.inf)
    with pytest.raises(ProtocolError, match="Cannot deserialize"):
        hrana.decode_pipeline(body % (arg % b"1e999", arg % b"NaN"))


@pytest.mark.parametrize("text", ["A", "A===B", "*", "AAAAA", "AA=A"])
def test_a_blob_must_be_base64(text: str) -> None:
    assert "base64" in refused(execute("SELECT ?", args=[{"type": "blob", "base64": text}]))


# ---------------------------------------------------------------- requests


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"requests":{}}',
        b'{"requests":[{"type":"fly"}]}',
        b'{"requests":[{"stmt":{}}]}',
        b'{"requests":[],"baton":1}',
        b'{"requests":[{"type":"execute"}]}',
        b'{"requests":[{"type":"execute","stmt":{"sql":"\\ud800"}}]}',
        b'{"requests":[{"type":"batch","batch":{"steps":[{"stmt":{"sql":""},"condition":'
        + b'{"type":"not","cond":' * 5000
        + b"}" * 5000
        + b"}]}}]}",
        b'\xff{"requests":[]}',
    ],
)
def test_what_is_no_pipeline_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError, match="Cannot deserialize client message from JSON"):
        hrana.decode_pipeline(body)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_pipeline_or_a_protocol_error(body: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        assert hrana.decode_pipeline(body).requests is not None


def test_absent_and_null_are_the_same_and_unknown_members_are_passed_over() -> None:
    stmt = {"sql": "SELECT 1", "sql_id": None, "args": None, "named_args": None, "want_rows": None}
    full = {"type": "execute", "stmt": {**stmt, "replication_index": "7"}, "else": 1}
    assert plan(full) == plan(execute())


def test_a_statement_needs_exactly_one_source() -> None:
    assert refused(execute(None)) == "Either `sql` or `sql_id` are required"
    assert (
        refused(execute("SELECT 1", sql_id=1))
        == "Either `sql` or `sql_id` are required, but not both"
    )
    assert refused({"type": "sequence"}) == "Either `sql` or `sql_id` are required"
    assert refused(execute(None, sql_id=4)) == "SQL text 4 not found"


def test_stored_texts_are_kept_in_order_of_the_requests() -> None:
    planner = Planner(3, {})
    requests = [
        {"type": "store_sql", "sql_id": 1, "sql": "SELECT 1"},
        execute(None, sql_id=1),
        {"type": "close_sql", "sql_id": 1},
        {"type": "close_sql", "sql_id": 99},
        {"type": "store_sql", "sql_id": 1, "sql": "SELECT 2"},
        {"type": "describe", "sql_id": 1},
    ]
    body = json.dumps({"requests": requests}).encode()
    plans = planner.plan(hrana.decode_pipeline(body).requests)
    assert isinstance(plans[1], Execute)
    assert plans[1].step.sql == "SELECT 1"
    assert isinstance(plans[5], hrana.Describe)
    assert plans[5].sql == "SELECT 2"
    assert planner.stored == {1: "SELECT 2"}
    assert not planner.closes


def test_a_text_cannot_be_stored_twice() -> None:
    store = {"type": "store_sql", "sql_id": 1, "sql": "SELECT 1"}
    assert refused(store, store) == "SQL text 1 already exists"


def test_the_store_has_limits() -> None:
    stores = [{"type": "store_sql", "sql_id": i, "sql": "SELECT 1"} for i in range(51)]
    plans = plan(*stores)
    assert all(isinstance(planned, Answered) for planned in plans[:50])
    assert isinstance(plans[50], Refused)
    assert plans[50].error.code == "SQL_STORE_TOO_MANY"
    (large,) = plan({"type": "store_sql", "sql_id": 1, "sql": "é" * 2501})
    assert large.error.code == "SQL_STORE_TOO_LARGE"


def test_get_autocommit_came_with_version_3() -> None:
    assert plan({"type": "get_autocommit"}) == [GetAutocommit()]
    assert "hrana3" in refused({"type": "get_autocommit"}, version=2)
    batch = {"steps": [{"stmt": {"sql": "x"}, "condition": {"type": "is_autocommit"}}]}
    assert "hrana3" in refused({"type": "batch", "batch": batch}, version=2)


def test_positional_and_named_arguments_do_not_mix() -> None:
    one = [wire(1)]
    named = [{"name": "a", "value": wire(1)}]
    (planned,) = plan(execute("SELECT :a", args=one, named_args=named))
    assert planned.error.code == "ARGS_BOTH_POSITIONAL_AND_NAMED"
    batch = {"steps": [{"stmt": {"sql": "SELECT :a", "args": one, "named_args": named}}]}
    (planned,) = plan({"type": "batch", "batch": batch})
    assert isinstance(planned, Refused)


# ---------------------------------------------------------------- conditions

OK, FAILED, SKIPPED = b"{}", StatementError("no", "SQLITE_ERROR"), None


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ({"type": "ok", "step": 0}, True),
        ({"type": "ok", "step": 1}, False),
        ({"type": "ok", "step": 2}, False),
        ({"type": "error", "step": 0}, False),
        ({"type": "error", "step": 1}, True),
        ({"type": "error", "step": 2}, False),
        ({"type": "not", "cond": {"type": "ok", "step": 2}}, True),
        ({"type": "and", "conds": []}, True),
        ({"type": "or", "conds": []}, False),
        ({"type": "and", "conds": [{"type": "ok", "step": 0}, {"type": "ok", "step": 1}]}, False),
        ({"type": "or", "conds": [{"type": "ok", "step": 0}, {"type": "ok", "step": 1}]}, True),
        ({"type": "is_autocommit"}, True),
    ],
)
def test_conditions(condition: dict[str, Any], expected: bool) -> None:
    steps = [{"stmt": {"sql": "x"}}] * 3 + [{"stmt": {"sql": "x"}, "condition": condition}]
    (planned,) = plan({"type": "batch", "batch": {"steps": steps}})
    assert isinstance(planned, RunBatch)
    assert hrana.holds(planned.steps[3].condition, [OK, FAILED, SKIPPED], True) is expected


@pytest.mark.parametrize("step", [1, 2, -1, 1 << 40])
def test_a_condition_refers_to_earlier_steps_only(step: int) -> None:
    steps = [
        {"stmt": {"sql": "x"}},
        {"stmt": {"sql": "x"}, "condition": {"type": "not", "cond": {"type": "ok", "step": step}}},
    ]
    message = refused({"type": "batch", "batch": {"steps": steps}})
    assert message == "Invalid reference to step in a batch condition"


# ---------------------------------------------------------------- arguments


def arranged(parameters: list[str | None], *args: Any, **named: Any) -> Any:
    return hrana.arrange(Step("", args, tuple(named.items())), parameters)


def test_names_are_found_with_and_without_their_prefix() -> None:
    step = Step("", (), ((":a", 1), ("b", 2), ("@c", 3), ("d", 4)))
    assert hrana.arrange(step, [":a", "@b", "@c", "$d"]) == (1, 2, 3, 4)


def test_the_exact_name_is_preferred() -> None:
    step = Step("", (), (("@a", 1), (":a", 2)))
    assert hrana.arrange(step, [":a", "@a"]) == (2, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: arranged([None]),
        lambda: arranged([None], 1, 2),
        lambda: arranged([":a", ":b"], a=1),
        lambda: arranged([":a"], a=1, b=2),
        lambda: arranged([":a", None], a=1),
    ],
)
def test_arguments_that_do_not_match_are_refused(call: Any) -> None:
    with pytest.raises(StatementError) as caught:
        call()
    assert caught.value.code == "ARGS_INVALID"
    assert caught.value.message.startswith("Arguments do not match SQL parameters: ")


# ---------------------------------------------------------------- answers and errors


def test_an_error_has_a_code_that_is_a_string() -> None:
    body = json.loads(hrana.error_json(hrana.sqlite_error("UNIQUE constraint failed: t.a", 2067)))
    assert body == {
        "message": "SQLite error: UNIQUE constraint failed: t.a",
        "code": "SQLITE_CONSTRAINT",
        "extended_code": 2067,
    }
    assert json.loads(hrana.error_json(StatementError("x", "ARGS_INVALID"))) == {
        "message": "x",
        "code": "ARGS_INVALID",
    }
    assert hrana.sqlite_error("x", 250).code == "SQLITE_UNKNOWN"


def test_an_error_while_compiling_tells_its_place(session: Session) -> None:
    with pytest.raises(StatementError) as caught:
        session.look(Step("SELECT nope"))
    assert caught.value.code == "SQL_INPUT_ERROR"
    assert caught.value.message == "SQL input error: no such column: nope (at offset 7)"


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("", "SQL_NO_STATEMENT"),
        ("  -- nothing\n/* here */ ;; ", "SQL_NO_STATEMENT"),
        ("SELECT 1; SELECT 2", "SQL_MANY_STATEMENTS"),
        ("SELECT 1; x", "SQL_MANY_STATEMENTS"),
        ("ATTACH 'other.db' AS o", "SQL_PARSE_ERROR"),
        ("VACUUM INTO 'copy.db'", "SQL_PARSE_ERROR"),
        ("vacuum main /* */ into 'copy.db'", "SQL_PARSE_ERROR"),
        ("PRAGMA journal_mode=DELETE", "SQL_PARSE_ERROR"),
        ("PRAGMA main.journal_mode(delete)", "SQL_PARSE_ERROR"),
        ("/**/PRAGMA -- x\n synchronous = off", "SQL_PARSE_ERROR"),
        ("PRAGMA wal_checkpoint", "SQL_PARSE_ERROR"),
        ("PRAGMA writable_schema=1", "SQL_PARSE_ERROR"),
        ("SELECT '" + "x" * hrana.MAX_STATEMENT + "'", "SQL_TOO_LONG"),
    ],
)
def test_what_may_not_run_through_a_server_is_refused(
    session: Session, sql: str, code: str
) -> None:
    with pytest.raises(StatementError) as caught:
        session.prepare(sql)
    assert caught.value.code == code
    assert hrana.is_refusal(caught.value)


@pytest.mark.parametrize(
    "sql",
    [
        "PRAGMA synchronous=OFF",
        "SELECT 1; PRAGMA foreign_keys=ON",
        "; PRAGMA synchronous=OFF",
        "\ufeffPRAGMA synchronous=OFF",
        "EXPLAIN PRAGMA synchronous=OFF",
        "explain /**/ query plan pragma [main] . 'synchronous' (off)",
        "PRAGMA\n--\nsynchronous=OFF",
    ],
)
def test_a_pragma_that_is_refused_has_had_no_effect(session: Session, sql: str) -> None:
    """SQLite carries out many pragmas while it compiles them."""
    with pytest.raises(StatementError):
        session.prepare(sql)
    with pytest.raises(StatementError):
        session.describe(sql)
    values = [
        json.loads(session.look(Step(f"PRAGMA {name}")))["rows"][0][0]["value"]
        for name in ("synchronous", "foreign_keys")
    ]
    assert values == ["2", "0"]


def test_a_shared_connection_does_not_even_compile_what_would_change_it() -> None:
    shared = Session(Database(":memory:"), shared=True)
    for sql in (
        "PRAGMA foreign_keys=ON",
        "explain pragma foreign_keys(1)",
        "PRAGMA main.user_version=3",
    ):
        with pytest.raises(NotSharedError):
            shared.prepare(sql)
        with pytest.raises(NotSharedError):
            shared.split(sql.encode(), 0)
    assert json.loads(shared.look(Step("PRAGMA foreign_keys")))["rows"][0][0]["value"] == "0"
    shared.close()


@pytest.mark.parametrize("sql", ["SELECT 1;", "SELECT 1 ; -- end", ";SELECT 1", "SELECT 1;;"])
def test_semicolons_and_blanks_around_a_statement_are_fine(session: Session, sql: str) -> None:
    assert json.loads(session.look(Step(sql)))["rows"]


@pytest.mark.parametrize(
    ("sql", "yes"),
    [
        ("BEGIN READONLY", True),
        ("begin transaction readonly;", True),
        (" -- c\n BEGIN /* x", False),
        ("BEGIN READONLY; DROP TABLE t", False),
        ("BEGIN", False),
    ],
)
def test_begin_readonly_is_recognised(sql: str, yes: bool) -> None:
    assert hrana.is_readonly_begin(sql) is yes


def test_batch_answers_keep_results_and_errors_apart() -> None:
    body = json.loads(hrana.batch_result([b'{"rows":[]}', FAILED, None]))
    result = body["response"]["result"]
    assert result["step_results"] == [{"rows": []}, None, None]
    assert result["step_errors"] == [None, {"message": "no", "code": "SQLITE_ERROR"}, None]


def test_a_result_tells_what_the_statement_did(session: Session) -> None:
    def run(sql: str) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(session.run(session.prepare(sql), Step(sql)))
        return body

    created = run("CREATE TABLE t(a INTEGER PRIMARY KEY, b VARCHAR(3))")
    assert (created["affected_row_count"], created["last_insert_rowid"]) == (0, None)
    inserted = run("WITH x(v) AS (VALUES (1), (2)) INSERT INTO t(b) SELECT v FROM x")
    assert (inserted["affected_row_count"], inserted["last_insert_rowid"]) == (2, "2")
    updated = run("UPDATE t SET b = 'z' WHERE a = 1")
    assert (updated["affected_row_count"], updated["last_insert_rowid"]) == (1, None)
    selected = run("SELECT a, b, a + 1 AS c FROM t")
    assert selected["affected_row_count"] == 0
    assert selected["cols"] == [
        {"name": "a", "decltype": "INTEGER"},
        {"name": "b", "decltype": "VARCHAR(3)"},
        {"name": "c", "decltype": None},
    ]
    assert {
        "rows_read",
        "rows_written",
        "query_duration_ms",
        "replication_index",
    } <= selected.keys()


def test_columns_follow_a_schema_that_changed(session: Session) -> None:
    session.database.exec("CREATE TABLE t(a)")
    assert len(json.loads(session.look(Step("SELECT * FROM t")))["cols"]) == 1
    session.database.exec("ALTER TABLE t ADD COLUMN b INT")
    assert [col["name"] for col in json.loads(session.look(Step("SELECT * FROM t")))["cols"]] == [
        "a",
        "b",
    ]


def test_counters_are_those_of_the_stream(session: Session) -> None:
    session.native.set_counters(7, 8, 9)
    sql = "SELECT last_insert_rowid(), changes(), total_changes()"
    (row,) = json.loads(session.look(Step(sql)))["rows"]
    assert [unwire(value) for value in row] == [7, 8, 9]


def test_rows_can_be_left_out(session: Session) -> None:
    body = json.loads(session.look(Step("SELECT 1", want_rows=False)))
    assert body["rows"] == []
    assert len(body["cols"]) == 1


def test_describe_tells_parameters_and_columns(session: Session) -> None:
    body = json.loads(session.describe("SELECT :a AS x, ?2, @c"))
    result = body["response"]["result"]
    assert [param["name"] for param in result["params"]] == [":a", "?2", "@c"]
    assert result["cols"][0] == {"name": "x", "decltype": None}
    assert (result["is_explain"], result["is_readonly"]) == (False, True)
    explain = json.loads(session.describe("EXPLAIN SELECT 1"))["response"]["result"]
    assert explain["is_explain"] is True


def test_messages_decode_into_structs_once() -> None:
    body = hrana.decode_cursor(b'{"batch":{"steps":[]}}')
    assert isinstance(body, msgspec.Struct)
    assert body.baton is None
