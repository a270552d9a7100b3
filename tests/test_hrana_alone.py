"""Hrana 1 over HTTP: statements and batches without streams."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Client, Reply, app_of, execute, serving

EITHER = True


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with serving(app_of(tmp_path / "data.db", durability="normal")) as port:
        made = Client(port)
        made.pipeline(execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE)"))
        yield made


def post(client: Client, path: str, body: Any) -> Reply:
    return client.request("POST", path, json.dumps(body).encode())


def run(client: Client, sql: str, *args: Any, **more: Any) -> Any:
    stmt = execute(sql, *args, **more)["stmt"]
    reply = post(client, "/v1/execute", {"stmt": stmt})
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    return reply.json["result"]


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "query_duration_ms"}


def test_a_statement_is_answered_as_in_a_pipeline(client: Client) -> None:
    assert client.request("GET", "/v1").status == 200
    done = run(client, "INSERT INTO t(b) VALUES(?), (?)", "x", 1 << 60)
    assert (done["affected_row_count"], done["last_insert_rowid"]) == (2, "2")
    sql = "SELECT a, b, 1.5, NULL, x'00ff' FROM t"
    alone, piped = run(client, sql), client.pipeline(execute(sql))["results"][0]
    assert without_times(alone) == without_times(piped["response"]["result"])
    assert alone["rows"][1][1] == {"type": "integer", "value": str(1 << 60)}


def test_a_batch_and_its_conditions(client: Client) -> None:
    steps = [
        {"stmt": {"sql": "INSERT INTO t(b) VALUES(1)"}},
        {"stmt": {"sql": "INSERT INTO t(b) VALUES(1)"}},
        {"stmt": {"sql": "DELETE FROM t"}, "condition": {"type": "ok", "step": 1}},
        {"stmt": {"sql": "SELECT count(*) FROM t"}, "condition": {"type": "error", "step": 1}},
    ]
    reply = post(client, "/v1/batch", {"batch": {"steps": steps}})
    result = reply.json["result"]
    assert [step is not None for step in result["step_results"]] == [True, False, False, True]
    assert result["step_errors"][1]["code"] == "SQLITE_CONSTRAINT"
    assert result["step_results"][3]["rows"] == [[{"type": "integer", "value": "1"}]]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"stmt": {"sql": "SELEC 1"}}, 400, "SQL_INPUT_ERROR"),
        ({"stmt": {"sql": "SELECT * FROM nowhere"}}, 500, "SQLITE_ERROR"),
        ({"stmt": {"sql": ""}}, 400, "SQL_NO_STATEMENT"),
        ({"stmt": {"sql": "SELECT 1; SELECT 2"}}, 400, "SQL_MANY_STATEMENTS"),
        ({"stmt": {"sql": "SELECT ?"}}, 400, "ARGS_INVALID"),
        ({"stmt": {"sql": "INSERT INTO t(a) VALUES(7), (7)"}}, 500, "SQLITE_CONSTRAINT"),
        ({"stmt": {"sql_id": 1}}, 400, "PROTOCOL_ERROR"),
        ({"stmt": {}}, 400, "PROTOCOL_ERROR"),
        ({"batch": {"steps": []}}, 400, "PROTOCOL_ERROR"),
        ([], 400, "PROTOCOL_ERROR"),
    ],
)
def test_what_fails_has_a_status_of_its_own(
    client: Client, body: Any, status: int, code: str
) -> None:
    reply = post(client, "/v1/execute", body)
    assert (reply.status, reply.json["code"]) == (status, code)
    assert reply.json["message"]


def test_nothing_stays_open(client: Client) -> None:
    run(client, "BEGIN IMMEDIATE")
    assert run(client, "INSERT INTO t(b) VALUES('not held up')")["affected_row_count"] == 1
    with pytest.raises(AssertionError):
        run(client, "COMMIT")


@pytest.mark.parametrize("path", ["/v1/execute", "/v1/batch"])
def test_other_methods_and_bodies(client: Client, path: str) -> None:
    assert client.request("GET", path).status == 405
    assert client.request("POST", path, b"{").status == 400
    assert client.request("OPTIONS", path).status == 204


def test_a_relay_hands_them_on(tmp_path: Path) -> None:
    with serving(app_of(tmp_path / "data.db", durability="normal")) as port:
        upstream = f"http://127.0.0.1:{port}"
        with serving(app_of(tmp_path / "replica.db", upstream=upstream)) as relay:
            made = Client(relay)
            run(made, "CREATE TABLE t(a)")
            run(made, "INSERT INTO t VALUES(?)", 5)
            assert run(made, "SELECT a FROM t")["rows"] == [[{"type": "integer", "value": "5"}]]
