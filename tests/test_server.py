"""The server over real sockets: pipelines, cursors, streams, limits, the native protocol."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from sealing import log_file, reader
from serving import (
    Client,
    app_of,
    batch,
    execute,
    outcome,
    rows,
    serving,
    transaction,
)

from nearlite import delivered, errors, serve
from nearlite.exchange import HttpError
from nearlite.limits import Limits
from nearlite.position import Position
from nearlite.server import App
from nearlite.wire import End, PageSetReader, Status

EITHER = True

CLOSE = {"type": "close"}
GET_AUTOCOMMIT = {"type": "get_autocommit"}
FOREVER = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) SELECT count(*) FROM c"
LONG = (
    "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 60000) "
    "SELECT max(i) FROM c"
)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """One server for tests that bring their own tables."""
    folder = tmp_path_factory.mktemp("shared")
    with serving(app_of(folder / "data.db", durability="normal")) as port:
        yield port


@pytest.fixture(params=[True, False], ids=["whole", "in-pieces"])
def client(shared: int, request: pytest.FixtureRequest) -> Iterator[Client]:
    client = Client(shared, whole=request.param)
    client.run("DROP TABLE IF EXISTS t", "CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
    yield client
    client.close()


def limited(path: Path, **limits: Any) -> App:
    """An application with other limits than the usual ones."""
    return app_of(path, durability="normal", limits=Limits(**limits))


# ---------------------------------------------------------------- cold paths


def test_version_checks_and_health(client: Client) -> None:
    for path in ("/v2", "/v3"):
        hello = client.request("GET", path)
        assert (hello.status, hello.body[:31]) == (
            200,
            b"Hello, this is HTTP API v" + path[2:].encode() + b" (Hra",
        )
    assert client.request("GET", "/health").body == b""
    assert client.request("GET", "/version").body.startswith(b"nearlite ")
    assert client.request("HEAD", "/health").status == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "NOT_FOUND"),
        ("POST", "/v4/pipeline", 404, "NOT_FOUND"),
        ("GET", "/nl/v1/else", 404, "NOT_FOUND"),
        ("GET", "/v3/pipeline", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/health", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/nl/v1/status", 405, "METHOD_NOT_ALLOWED"),
    ],
)
def test_error_bodies_are_what_every_client_reads(
    client: Client, method: str, path: str, status: int, code: str
) -> None:
    reply = client.request(method, path)
    assert reply.status == status
    assert reply.headers["content-type"] == "application/json"
    assert reply.json["code"] == reply.json["error"]["code"] == code
    assert reply.json["message"] == reply.json["error"]["message"]
    assert reply.headers["access-control-allow-origin"] == "*"


def test_browsers_may_ask_from_anywhere(client: Client) -> None:
    reply = client.request(
        "OPTIONS", "/v2/pipeline", access_control_request_headers="authorization, content-type"
    )
    assert reply.status == 204
    assert reply.headers["access-control-allow-origin"] == "*"
    assert reply.headers["access-control-allow-headers"] == "authorization, content-type"
    assert "POST" in reply.headers["access-control-allow-methods"]


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("http://evil.example", 403),
        ("null", 403),
        ("http://localhost:3000", 200),
        ("http://127.0.0.1:5173", 200),
    ],
)
def test_without_a_token_a_foreign_page_cannot_write(
    client: Client, origin: str, status: int
) -> None:
    body = json.dumps({"requests": [execute("SELECT 1"), CLOSE]}).encode()
    reply = client.request("POST", "/v2/pipeline", body, origin=origin, content_type="text/plain")
    assert reply.status == status


def test_repeated_slashes_are_collapsed(client: Client) -> None:
    body = json.dumps({"requests": [execute("SELECT 1"), CLOSE]}).encode()
    assert client.request("POST", "//v2///pipeline", body).status == 200
    assert client.request("GET", "//nl/v1//status").status == 200


# ---------------------------------------------------------------- pipelines


@pytest.mark.parametrize("version", [2, 3])
def test_the_smallest_exchange(client: Client, version: int) -> None:
    answer = client.pipeline(execute("SELECT ? AS x", 1), CLOSE, version=version)
    assert (answer["baton"], answer["base_url"]) == (None, None)
    (first, second) = answer["results"]
    assert first["response"]["type"] == "execute"
    assert rows(outcome(first)) == [[1]]
    assert second == {"type": "ok", "response": {"type": "close"}}


def test_all_requests_run_even_if_earlier_ones_failed(client: Client) -> None:
    answer = client.pipeline(
        execute("INSERT INTO t VALUES (1, 1)"),
        execute("INSERT INTO t VALUES (1, 2)"),
        execute("SELECT nope"),
        execute("INSERT INTO t VALUES (2, 2)"),
        execute("SELECT count(*) FROM t"),
        {"type": "describe", "sql": "SELECT b FROM t WHERE a = :a"},
        {"type": "sequence", "sql": "DELETE FROM t; INSERT INTO t VALUES (9, 9);"},
        execute("SELECT * FROM t"),
        CLOSE,
    )
    results = answer["results"]
    assert len(results) == 9
    assert [result["type"] for result in results] == ["ok", "error", "error"] + ["ok"] * 6
    assert rows(outcome(results[4])) == [[2]]
    assert outcome(results[5])["params"] == [{"name": ":a"}]
    assert rows(outcome(results[7])) == [[9, 9]]


def test_a_table_may_be_made_and_used_in_one_pipeline(client: Client) -> None:
    answer = client.pipeline(
        execute("DROP TABLE IF EXISTS made"),
        execute("CREATE TABLE made(x)"),
        execute("INSERT INTO made VALUES (1)"),
        batch(
            "CREATE TABLE IF NOT EXISTS made2(x)",
            "INSERT INTO made2 VALUES (2)",
            "DROP TABLE made2",
        ),
        execute("SELECT x FROM made"),
        CLOSE,
    )
    assert [result["type"] for result in answer["results"]] == ["ok"] * 6
    assert outcome(answer["results"][3])["step_errors"] == [None] * 3
    assert rows(outcome(answer["results"][4])) == [[1]]


def test_a_parse_error_in_any_step_fails_the_whole_batch(client: Client) -> None:
    answer = client.pipeline(batch("INSERT INTO t VALUES (1, 1)", "selec 1"), CLOSE)
    assert answer["results"][0]["type"] == "error"
    assert client.rows("SELECT count(*) FROM t") == [[0]]


def test_errors_of_steps_are_kept_apart(client: Client) -> None:
    answer = client.pipeline(
        batch("SELECT 1", "SELECT nope", ("SELECT 2", {"type": "error", "step": 1})), CLOSE
    )
    result = outcome(answer["results"][0])
    assert [step is not None for step in result["step_results"]] == [True, False, True]
    assert result["step_errors"][1]["code"] == "SQL_INPUT_ERROR"


def test_a_protocol_error_is_a_400_and_nothing_has_run(client: Client) -> None:
    requests = [execute("INSERT INTO t VALUES (1, 1)"), {"type": "execute", "stmt": {"sql_id": 7}}]
    body = json.dumps({"requests": requests}).encode()
    reply = client.request("POST", "/v3/pipeline", body)
    assert (reply.status, reply.json["message"]) == (400, "SQL text 7 not found")
    assert client.rows("SELECT count(*) FROM t") == [[0]]


def test_rows_are_answered_while_the_schema_changes(client: Client) -> None:
    assert client.rows("SELECT * FROM t") == []
    client.run("ALTER TABLE t ADD COLUMN c DEFAULT 5", "INSERT INTO t(a) VALUES (1)")
    assert client.rows("SELECT * FROM t") == [[1, None, 5]]


@pytest.mark.parametrize("where", ["reader", "writer", "own", "transaction"])
def test_no_connection_judges_by_a_schema_that_is_gone(client: Client, where: str) -> None:
    """SQLite compiles by the schema it read last, and does not look whether that is the newest one
    before it says that a table has more columns than values."""
    narrow = ["DROP TABLE shape", "CREATE TABLE shape(a, b)"]
    insert = execute("INSERT INTO shape VALUES (1, 2)")
    client.run("DROP TABLE IF EXISTS shape", "CREATE TABLE shape(a, b, c)")
    client.run("INSERT INTO shape VALUES (1, 2, 3)")  # the writer has seen it
    client.rows("SELECT * FROM shape")  # the reader, too
    stream = client.pipeline(
        execute("CREATE TEMP TABLE mine(a)"), execute("SELECT * FROM shape"), GET_AUTOCOMMIT
    )
    if where == "writer":
        client.pipeline(*map(execute, ["BEGIN", *narrow, "COMMIT"]), CLOSE)
        client.rows("SELECT * FROM shape")  # only the writer has not
    else:
        client.run(*narrow)
    before = [execute("BEGIN")] if where == "transaction" else []
    baton = stream["baton"] if where in ("own", "transaction") else None
    answer = client.pipeline(*before, insert, baton=baton)
    assert answer["results"][-1]["type"] == "ok", answer
    for left in {stream["baton"], answer["baton"]} - {baton}:
        client.pipeline(CLOSE, baton=left)


def test_a_read_that_overruns_its_budget_is_answered_from_a_thread(client: Client) -> None:
    assert client.rows(LONG) == [[60000]]
    answer = client.pipeline(batch("SELECT 1", LONG), CLOSE)
    assert rows(outcome(answer["results"][0])["step_results"][1]) == [[60000]]


def test_short_reads_are_not_held_up_by_long_ones(client: Client, shared: int) -> None:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        slow = Client(shared)
        body = json.dumps({"requests": [execute(FOREVER), CLOSE]}).encode()
        future = pool.submit(slow.request, "POST", "/v3/pipeline", body)
        for _ in range(20):
            assert client.rows("SELECT 1") == [[1]]
        assert not future.done()
        assert slow.connection.sock is not None
        slow.connection.sock.shutdown(socket.SHUT_RDWR)  # it leaves: the statement is stopped
        with pytest.raises((http.client.HTTPException, OSError)):
            future.result(10)
    assert client.rows("SELECT 1") == [[1]]


def test_an_endless_write_ends_with_its_client(client: Client, shared: int) -> None:
    """Nobody else may have to wait for it for ever."""
    endless = (
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) "
        "INSERT INTO t(b) SELECT max(i) FROM c"
    )
    leaving = Client(shared)
    body = json.dumps({"requests": [execute(endless), CLOSE]}).encode()
    leaving.connection.request("POST", "/v3/pipeline", body)
    leaving.connection.close()
    answer = client.pipeline(execute("INSERT INTO t(b) VALUES (5)"), CLOSE)
    assert answer["results"][0]["type"] == "ok"
    assert client.rows("SELECT count(*) FROM t WHERE b > 1000000") == [[0]]


def test_a_description_in_a_transaction_is_not_its_first_read(client: Client, shared: int) -> None:
    """It would be what the transaction goes on from, and a commit of somebody else would end that."""
    begun = client.pipeline(execute("BEGIN"), {"type": "describe", "sql": "SELECT a FROM t"})
    other = Client(shared)
    assert other.run("INSERT INTO t(b) VALUES (5)")[0]["affected_row_count"] == 1
    told = client.pipeline(
        execute("INSERT INTO t(b) VALUES (6)"), execute("COMMIT"), CLOSE, baton=begun["baton"]
    )
    assert [result["type"] for result in told["results"]] == ["ok"] * 3
    assert client.rows("SELECT count(*) FROM t") == [[2]]


def test_a_result_of_many_megabytes_is_answered(client: Client) -> None:
    sql = (
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 40) "
        "SELECT hex(zeroblob(50000)) FROM c"
    )
    got = client.rows(sql)
    assert len(got) == 40
    assert {len(row[0]) for row in got} == {100_000}


def test_a_result_beyond_the_limit_is_refused(client: Client) -> None:
    sql = (
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 700) "
        "SELECT hex(zeroblob(50000)) FROM c"
    )
    (result,) = client.run(sql)
    assert result["code"] == "RESPONSE_TOO_LARGE"


TOO_MUCH = "INSERT INTO t(b) VALUES (1) RETURNING hex(zeroblob(35000000))"


@pytest.mark.parametrize(
    "before",
    [[], ["CREATE TEMP TABLE mine(a)"], ["BEGIN"], ["BEGIN", "SAVEPOINT s"]],
    ids=["shared", "own", "transaction", "savepoint"],
)
def test_a_write_whose_answer_is_too_large_is_undone(client: Client, before: list[str]) -> None:
    texts = [*before, "INSERT INTO t VALUES (7, 7)", TOO_MUCH, "INSERT INTO t VALUES (9, 9)"]
    if "BEGIN" in before:
        texts.append("COMMIT")
    answer = client.pipeline(*[execute(sql) for sql in texts], CLOSE)
    errors = {i: r["error"] for i, r in enumerate(answer["results"]) if r["type"] == "error"}
    at = len(before) + 1
    assert list(errors) == [at], errors
    assert errors[at]["code"] == "RESPONSE_TOO_LARGE"
    assert client.rows("SELECT a FROM t ORDER BY a") == [[7], [9]]


def test_writes_with_rows_fail_on_a_stream_as_they_do_elsewhere(client: Client) -> None:
    """They run in a savepoint there, which must not show."""
    client.run(
        "DROP TABLE IF EXISTS child",
        "DROP TABLE IF EXISTS parent",
        "CREATE TABLE parent(id INTEGER PRIMARY KEY)",
        "CREATE TABLE child(p REFERENCES parent DEFERRABLE INITIALLY DEFERRED)",
        "INSERT INTO t VALUES (1, 1)",
    )
    texts = [
        "PRAGMA foreign_keys=ON",
        "INSERT INTO child VALUES (5) RETURNING p",
        "INSERT INTO t VALUES (2, 2) RETURNING a",
        "INSERT INTO t VALUES (3, 3), (1, 1) RETURNING a",
        "INSERT OR FAIL INTO t VALUES (4, 4), (1, 1) RETURNING a",
        "INSERT OR ROLLBACK INTO t VALUES (5, 5), (1, 1) RETURNING a",
        "BEGIN",
        "INSERT INTO child VALUES (5) RETURNING p",
        "INSERT INTO parent VALUES (5) RETURNING id",
        "COMMIT",
    ]
    answer = client.pipeline(*[execute(sql) for sql in texts], GET_AUTOCOMMIT, CLOSE)
    codes = [result.get("error", {}).get("extended_code") for result in answer["results"]]
    assert codes == [None, 787, None, 1555, 1555, 1555, *[None] * 6]
    assert answer["results"][-2]["response"]["is_autocommit"]
    assert client.rows("SELECT a FROM t ORDER BY a") == [[1], [2], [4]]
    assert client.rows("SELECT p FROM child") == [[5]]


# ---------------------------------------------------------------- streams and transactions


def test_a_transaction_over_several_requests(client: Client) -> None:
    first = client.pipeline(
        execute("BEGIN IMMEDIATE"), execute("INSERT INTO t VALUES (1, 'x')"), GET_AUTOCOMMIT
    )
    assert outcome(first["results"][2])["is_autocommit"] is False
    other = Client(client.port)
    assert other.rows("SELECT count(*) FROM t") == [[0]]
    second = client.pipeline(execute("COMMIT"), GET_AUTOCOMMIT, CLOSE, baton=first["baton"])
    assert outcome(second["results"][1])["is_autocommit"] is True
    assert second["baton"] is None
    assert other.rows("SELECT count(*) FROM t") == [[1]]
    other.close()


def test_closing_a_stream_rolls_back(client: Client) -> None:
    first = client.pipeline(execute("BEGIN"), execute("INSERT INTO t VALUES (1, 'x')"))
    client.pipeline(CLOSE, baton=first["baton"])
    assert client.rows("SELECT count(*) FROM t") == [[0]]


def test_savepoints_work_on_a_stream(client: Client) -> None:
    first = client.pipeline(execute("SAVEPOINT s"), execute("INSERT INTO t VALUES (1, 1)"))
    client.pipeline(execute("ROLLBACK TO s"), execute("RELEASE s"), CLOSE, baton=first["baton"])
    assert client.rows("SELECT count(*) FROM t") == [[0]]


def test_a_group_that_cannot_keep_a_request_runs_it_alone(client: Client) -> None:
    client.run(
        "DROP TABLE IF EXISTS fragile",
        "CREATE TABLE fragile(a)",
        "CREATE TRIGGER IF NOT EXISTS stop BEFORE INSERT ON fragile "
        "BEGIN SELECT RAISE(ROLLBACK, 'no') ; END",
    )
    results = client.run(
        "INSERT INTO t VALUES (1, 1)",
        "INSERT INTO fragile VALUES (1)",
        "INSERT INTO t VALUES (2, 2)",
    )
    assert [result.get("code") for result in results] == [None, "SQLITE_CONSTRAINT", None]
    assert client.rows("SELECT a FROM t") == [[1], [2]]


def test_begin_readonly_refuses_writes(client: Client) -> None:
    first = client.pipeline(
        execute("BEGIN TRANSACTION READONLY"), execute("SELECT count(*) FROM t")
    )
    second = client.pipeline(
        execute("INSERT INTO t VALUES (1, 1)"), execute("COMMIT"), CLOSE, baton=first["baton"]
    )
    assert outcome(second["results"][0])["code"] == "SQLITE_READONLY"
    assert second["results"][1]["type"] == "ok"
    assert client.run("INSERT INTO t VALUES (1, 1)")[0]["affected_row_count"] == 1


def test_settings_and_temporary_tables_stay_with_their_stream(client: Client) -> None:
    first = client.pipeline(
        execute("PRAGMA foreign_keys=ON"),
        execute("CREATE TEMP TABLE mine(x)"),
        execute("INSERT INTO mine VALUES (1)"),
    )
    second = client.pipeline(
        execute("PRAGMA foreign_keys"), execute("SELECT x FROM mine"), CLOSE, baton=first["baton"]
    )
    assert [rows(outcome(result)) for result in second["results"][:2]] == [[[1]], [[1]]]
    assert client.rows("PRAGMA foreign_keys") == [[0]]
    assert "no such table" in client.run("SELECT x FROM mine")[0]["message"]


def test_counters_follow_the_stream_across_connections(client: Client) -> None:
    ask = execute("SELECT last_insert_rowid(), changes(), total_changes()")
    first = client.pipeline(execute("INSERT INTO t VALUES (41, 1), (42, 1)"), ask)
    assert rows(outcome(first["results"][1])) == [[42, 2, 2]]
    client.run("INSERT INTO t VALUES (99, 1)")
    second = client.pipeline(
        ask,
        execute("BEGIN"),
        ask,
        execute("DELETE FROM t WHERE a = 41"),
        execute("COMMIT"),
        baton=first["baton"],
    )
    assert rows(outcome(second["results"][0])) == [[42, 2, 2]]
    assert rows(outcome(second["results"][2])) == [[42, 2, 2]]
    third = client.pipeline(ask, CLOSE, baton=second["baton"])
    assert rows(outcome(third["results"][0])) == [[42, 1, 3]]


def test_stored_texts_belong_to_the_stream(client: Client) -> None:
    first = client.pipeline({"type": "store_sql", "sql_id": 1, "sql": "SELECT 11"})
    stored = {"type": "execute", "stmt": {"sql_id": 1}}
    second = client.pipeline(stored, {"type": "close_sql", "sql_id": 1}, baton=first["baton"])
    assert rows(outcome(second["results"][0])) == [[11]]
    body = json.dumps({"baton": second["baton"], "requests": [stored]}).encode()
    assert client.request("POST", "/v3/pipeline", body).json["message"] == "SQL text 1 not found"


def test_a_baton_is_good_once(client: Client) -> None:
    baton = client.pipeline(execute("SELECT 1"))["baton"]
    client.pipeline(execute("SELECT 1"), baton=baton)
    body = json.dumps({"baton": baton, "requests": []}).encode()
    reply = client.request("POST", "/v3/pipeline", body)
    assert (reply.status, reply.json["code"]) == (400, "BATON_REUSED")
    assert reply.json["message"] == "Received a baton that has already been used"


@pytest.mark.parametrize("baton", ["", "x", "AAAA", "A" * 66, "%%%"])
def test_a_forged_baton_is_refused(client: Client, baton: str) -> None:
    body = json.dumps({"baton": baton, "requests": []}).encode()
    reply = client.request("POST", "/v3/pipeline", body)
    assert (reply.status, reply.json["code"]) == (400, "BATON_INVALID")


def test_a_baton_of_an_autocommit_stream_outlives_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    with serving(app_of(path)) as port:
        client = Client(port)
        plain = client.pipeline(execute("SELECT 1"))["baton"]
        open_ = client.pipeline(execute("BEGIN"))["baton"]
        client.close()
    with serving(app_of(path)) as port:
        client = Client(port)
        assert rows(outcome(client.pipeline(execute("SELECT 2"), baton=plain)["results"][0])) == [
            [2]
        ]
        body = json.dumps({"baton": open_, "requests": []}).encode()
        reply = client.request("POST", "/v3/pipeline", body)
        assert (reply.status, reply.json["code"]) == (400, "STREAM_EXPIRED")
        client.close()


def test_a_transaction_that_others_wait_for_is_taken_away(tmp_path: Path) -> None:
    with serving(limited(tmp_path / "data.db", contended_seconds=0.3)) as port:
        holder, waiter = Client(port), Client(port)
        waiter.run("CREATE TABLE t(a)")
        held = holder.pipeline(execute("BEGIN IMMEDIATE"), execute("INSERT INTO t VALUES (1)"))
        assert waiter.run("INSERT INTO t VALUES (2)")[0]["affected_row_count"] == 1
        late = holder.pipeline(
            execute("INSERT INTO t VALUES (3)"),
            batch("INSERT INTO t VALUES (4)", "COMMIT"),
            GET_AUTOCOMMIT,
            baton=held["baton"],
        )
        assert outcome(late["results"][0])["code"] == "TRANSACTION_TIMEOUT"
        assert [error["code"] for error in outcome(late["results"][1])["step_errors"]] == [
            "TRANSACTION_TIMEOUT"
        ] * 2
        assert outcome(late["results"][2])["is_autocommit"] is True
        fresh = holder.pipeline(execute("INSERT INTO t VALUES (5)"), CLOSE, baton=late["baton"])
        assert fresh["results"][0]["type"] == "ok"
        assert waiter.rows("SELECT a FROM t ORDER BY a") == [[2], [5]]


def test_a_statement_of_a_transaction_that_others_wait_for_is_stopped(tmp_path: Path) -> None:
    with serving(limited(tmp_path / "data.db", contended_seconds=0.3)) as port:
        holder, waiter = Client(port), Client(port)
        waiter.run("CREATE TABLE t(a)")
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            held = holder.pipeline(execute("BEGIN IMMEDIATE"), execute("INSERT INTO t VALUES (1)"))
            running = pool.submit(
                holder.pipeline, execute(FOREVER), execute("COMMIT"), CLOSE, baton=held["baton"]
            )
            assert waiter.run("INSERT INTO t VALUES (2)")[0]["affected_row_count"] == 1
            codes = [outcome(result).get("code") for result in running.result(10)["results"]]
            assert codes == ["TRANSACTION_TIMEOUT", "TRANSACTION_TIMEOUT", None]
        assert waiter.rows("SELECT a FROM t") == [[2]]


def test_a_transaction_may_not_last_for_ever(tmp_path: Path) -> None:
    with serving(limited(tmp_path / "data.db", transaction_seconds=0.3)) as port:
        client = Client(port)
        client.run("CREATE TABLE t(a)")
        first = client.pipeline(execute("BEGIN"), execute("INSERT INTO t VALUES (1)"))
        deadline = time.monotonic() + 10
        stock = reader(tmp_path / "data.db", timeout=10, isolation_level=None)
        stock.execute("INSERT INTO t VALUES (2)")  # waits for the lock
        assert time.monotonic() < deadline
        stock.close()
        late = client.pipeline(execute("COMMIT"), CLOSE, baton=first["baton"])
        assert outcome(late["results"][0])["code"] == "TRANSACTION_TIMEOUT"
        assert client.rows("SELECT a FROM t") == [[2]]


def test_idle_streams_end_and_their_clients_do_not_notice(tmp_path: Path) -> None:
    app = limited(tmp_path / "data.db", idle_seconds=0.2)
    with serving(app) as port:
        client = Client(port)
        baton = client.pipeline(execute("SELECT 1"))["baton"]
        deadline = time.monotonic() + 10
        assert app._routes._executor is not None
        while len(app._routes._executor.streams):
            assert time.monotonic() < deadline
            client.request("GET", "/health")
        assert rows(outcome(client.pipeline(execute("SELECT 2"), baton=baton)["results"][0])) == [
            [2]
        ]


def test_transactions_of_many_clients_take_turns(client: Client, shared: int) -> None:
    def transfer(number: int) -> int:
        own = Client(shared)
        done = 0
        for i in range(5):
            first = own.pipeline(execute("BEGIN"), execute("SELECT 1"))
            second = own.pipeline(
                execute("ROLLBACK"), execute("BEGIN IMMEDIATE"), baton=first["baton"]
            )
            third = own.pipeline(
                execute("INSERT INTO t(b) VALUES (?)", number * 100 + i),
                execute("COMMIT"),
                CLOSE,
                baton=second["baton"],
            )
            done += sum(result["type"] == "ok" for result in third["results"]) == 3
        own.close()
        return done

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(transfer, range(6))) == 30
    assert client.rows("SELECT count(*) FROM t") == [[30]]


def test_connections_of_streams_are_limited(tmp_path: Path) -> None:
    with serving(limited(tmp_path / "data.db", max_transactions=2)) as port:
        client = Client(port)
        held = [client.pipeline(execute("BEGIN"))["baton"] for _ in range(2)]
        answer = client.pipeline(execute("BEGIN"), CLOSE)
        assert outcome(answer["results"][0])["code"] == "TRANSACTION_BUSY"
        client.pipeline(CLOSE, baton=held[0])
        assert client.pipeline(execute("BEGIN"), CLOSE)["results"][0]["type"] == "ok"


def test_a_client_that_disconnects_is_rolled_back(client: Client, shared: int) -> None:
    first = client.pipeline(execute("BEGIN IMMEDIATE"), execute("INSERT INTO t VALUES (1, 1)"))
    raw = socket.create_connection(("127.0.0.1", shared))
    body = json.dumps({"baton": first["baton"], "requests": [execute(FOREVER)]}).encode()
    raw.sendall(
        b"POST /v3/pipeline HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )
    raw.close()
    (result,) = client.run("INSERT INTO t VALUES (2, 2)")  # gets its turn at once, not after 5 s
    assert result["affected_row_count"] == 1
    assert client.rows("SELECT a FROM t") == [[2]]


# ---------------------------------------------------------------- cursors


def entries(client: Client, *steps: Any, baton: str | None = None) -> tuple[Any, list[Any]]:
    body = json.dumps({"baton": baton, "batch": batch(*steps)["batch"]}).encode()
    reply = client.request("POST", "/v3/cursor", body)
    assert reply.status == 200, reply.body
    head, *lines = [json.loads(line) for line in reply.body.splitlines()]
    return head, lines


def test_a_cursor_answers_entries(client: Client) -> None:
    head, lines = entries(
        client,
        "SELECT 1 AS x UNION ALL SELECT 2",
        ("SELECT 3", {"type": "error", "step": 0}),
        "SELECT nope",
    )
    assert head["base_url"] is None
    assert [line["type"] for line in lines] == [
        "step_begin",
        "row",
        "row",
        "step_end",
        "step_error",
    ]
    assert lines[0] == {"type": "step_begin", "step": 0, "cols": [{"name": "x", "decltype": None}]}
    assert lines[3] == {"type": "step_end", "affected_row_count": 0, "last_insert_rowid": None}
    assert lines[4]["step"] == 2
    assert rows(
        outcome(client.pipeline(execute("SELECT 5"), baton=head["baton"])["results"][0])
    ) == [[5]]


def test_a_cursor_that_is_larger_than_memory_allows_comes_in_pieces(client: Client) -> None:
    sql = (
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 30000) "
        "SELECT i, hex(zeroblob(100)) FROM c"
    )
    head, lines = entries(client, sql, "SELECT 'end'")
    assert [line["row"][0]["value"] for line in lines[1:30001]] == [str(i) for i in range(1, 30001)]
    assert [line["type"] for line in lines[30001:]] == ["step_end", "step_begin", "row", "step_end"]
    assert rows(
        outcome(client.pipeline(execute("SELECT 5"), baton=head["baton"])["results"][0])
    ) == [[5]]


def test_a_cursor_writes_and_keeps_its_transaction(client: Client) -> None:
    _, lines = entries(client, "INSERT INTO t VALUES (7, 'x') RETURNING b")
    assert lines[2] == {"type": "step_end", "affected_row_count": 1, "last_insert_rowid": "7"}
    head, lines = entries(client, "BEGIN", "INSERT INTO t VALUES (8, 'y')")
    assert [line["type"] for line in lines] == ["step_begin", "step_end"] * 2
    assert client.rows("SELECT count(*) FROM t") == [[1]]
    _, lines = entries(client, "COMMIT", "SELECT count(*) FROM t", baton=head["baton"])
    assert lines[3]["row"] == [{"type": "integer", "value": "2"}]


def test_a_client_that_leaves_a_cursor_frees_its_connection(client: Client, shared: int) -> None:
    raw = socket.create_connection(("127.0.0.1", shared))
    sql = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) SELECT hex(zeroblob(1000)) FROM c"
    body = json.dumps({"batch": batch(sql)["batch"]}).encode()
    raw.sendall(
        b"POST /v3/cursor HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    )
    assert raw.recv(1000).startswith(b"HTTP/1.1 200")
    raw.close()
    assert client.run("INSERT INTO t VALUES (1, 1)")[0]["affected_row_count"] == 1


# ---------------------------------------------------------------- limits


def test_a_body_that_is_too_large_is_refused_before_it_is_read(client: Client, shared: int) -> None:
    raw = socket.create_connection(("127.0.0.1", shared))
    raw.sendall(b"POST /v3/pipeline HTTP/1.1\r\nhost: x\r\ncontent-length: 70000000\r\n\r\n")
    assert raw.recv(100).startswith(b"HTTP/1.1 413")
    raw.close()


def test_a_statement_that_is_too_long_is_refused(client: Client) -> None:
    (result,) = client.run("SELECT '" + "x" * (1 << 20) + "'")
    assert result["code"] == "SQL_TOO_LONG"


def test_a_client_that_does_not_take_its_answer_is_cut_off(tmp_path: Path) -> None:
    app = limited(tmp_path / "data.db", contended_seconds=60.0)
    app._deadlines.seconds = 0.2
    with serving(app) as port:
        client = Client(port)
        client.run("CREATE TABLE t(a)")
        raw = socket.create_connection(("127.0.0.1", port))
        endless = (
            "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) "
            "SELECT hex(zeroblob(10000)) FROM c"
        )
        steps = batch("BEGIN IMMEDIATE", "INSERT INTO t VALUES (1)", endless)["batch"]
        body = json.dumps({"batch": steps}).encode()
        raw.sendall(
            b"POST /v3/cursor HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        seen = b""
        while b'"row"' not in seen:
            seen += raw.recv(1000)
        # Its transaction goes with it: this write would else wait for a minute.
        assert client.run("INSERT INTO t VALUES (2)")[0]["affected_row_count"] == 1
        assert client.rows("SELECT a FROM t") == [[2]]
        raw.close()


def test_a_body_that_does_not_come_is_answered(tmp_path: Path) -> None:
    app = app_of(tmp_path / "data.db", durability="normal")
    app._deadlines.seconds = 0.2
    with serving(app) as port:
        raw = socket.create_connection(("127.0.0.1", port))
        raw.sendall(b"POST /v3/pipeline HTTP/1.1\r\nhost: x\r\ncontent-length: 50\r\n\r\n{")
        assert raw.recv(100).startswith(b"HTTP/1.1 408")
        raw.close()


def test_requests_with_a_body_of_a_megabyte_follow_each_other(client: Client) -> None:
    for _ in range(3):
        answer = client.pipeline(execute("SELECT length(?)", "x" * (1 << 20)), CLOSE)
        assert rows(outcome(answer["results"][0])) == [[1 << 20]]


def test_a_head_that_never_ends_is_cut_off(shared: int) -> None:
    raw = socket.create_connection(("127.0.0.1", shared))
    raw.settimeout(10)
    try:
        raw.sendall(b"GET /health HTTP/1.1\r\n")
        for number in range(1000):
            raw.sendall(b"h%d: %b\r\n" % (number, b"v" * 1000))
        assert raw.recv(1) == b""
    except (ConnectionResetError, BrokenPipeError):
        pass
    raw.close()


def test_garbage_is_answered_or_dropped_without_a_traceback(
    client: Client, shared: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for junk in (b"\x00" * 100, b"GET\r\n\r\n", b"POST /v3/pipeline HTTP/9.9\r\n\r\n"):
            raw = socket.create_connection(("127.0.0.1", shared))
            raw.sendall(junk)
            raw.close()
        raw = socket.create_connection(("127.0.0.1", shared))
        raw.sendall(b"POST /v3/pipeline HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{")
        raw.close()
        assert client.rows("SELECT 1") == [[1]]
    assert not [record for record in caplog.records if record.exc_info]


# ---------------------------------------------------------------- who may


def test_a_token_is_needed_where_one_is_set(tmp_path: Path) -> None:
    with serving(app_of(tmp_path / "data.db", auth_token="s3cret")) as port:
        plain = Client(port)
        body = json.dumps({"requests": [execute("SELECT 1"), CLOSE]}).encode()
        for path in ("/v2/pipeline", "/v3/cursor", "/nl/v1/sql"):
            reply = plain.request("POST", path, body)
            assert (reply.status, reply.json["code"]) == (401, "AUTH_HTTP_HEADER_MISSING")
            assert reply.headers["www-authenticate"] == "Bearer"
        for given in ("Bearer wrong", "Basic s3cret", "Bearer ", "s3cret", "Bearer s3cret2"):
            assert plain.request("POST", "/v2/pipeline", body, authorization=given).status == 401
        assert plain.request("GET", "/nl/v1/status").status == 401
        assert plain.request("GET", "/health").status == 200
        right = Client(port, token="s3cret")
        assert right.rows("SELECT 1") == [[1]]
        assert (
            plain.request("POST", "/v2/pipeline", body, authorization="bearer s3cret").status == 200
        )


def test_listening_to_the_network_without_a_token_is_refused() -> None:
    for host in ("0.0.0.0", "192.0.2.1", "::", "example.org"):
        with pytest.raises(errors.ProgrammingError, match="--no-auth"):
            serve.check_exposure(host, trusting=True)
        serve.check_exposure(host, trusting=False)
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        serve.check_exposure(host, trusting=True)


def test_addresses() -> None:
    assert serve.listen("127.0.0.1:8080") == ("127.0.0.1", 8080)
    assert serve.listen("[::1]:1") == ("::1", 1)
    assert serve.listen(":80") == ("0.0.0.0", 80)
    for wrong in ("", "host", "host:", "host:x", "host:70000"):
        with pytest.raises(errors.ProgrammingError):
            serve.listen(wrong)


def test_no_secret_is_in_a_repr(tmp_path: Path) -> None:
    assert "s3cret" not in repr(app_of(tmp_path / "data.db", auth_token="s3cret"))


# ---------------------------------------------------------------- native protocol


def status(client: Client) -> Status:
    reply = client.request("GET", "/nl/v1/status")
    assert reply.status == 200
    found = Status.decode(reply.body)
    assert Position.parse(reply.headers["nearlite-position"]) == found.position
    return found


def pages_of(body: bytes) -> tuple[Any, int]:
    """Header and number of pages of a page set, checked by the reader that replicas use."""
    reader = PageSetReader()
    events = list(reader.receive(body))
    reader.close()
    header = events[0]
    assert isinstance(events[-1], End)
    for event in events[1:-1]:
        event.chunk.close()
    return header, header.header.count


def test_status_moves_with_commits(client: Client) -> None:
    before = status(client)
    client.run("INSERT INTO t VALUES (1, 1)")
    after = status(client)
    assert after.position > before.position
    assert (after.hash, after.page_size) != (before.hash, 0)


def test_changes_since_a_position(client: Client) -> None:
    before = status(client)
    client.run("INSERT INTO t VALUES (1, 1)")
    after = status(client)
    reply = client.request("GET", f"/nl/v1/changes/{before.position}?hash={before.hash:016x}")
    assert (reply.status, reply.headers["content-type"]) == (
        200,
        "application/vnd.nearlite.pageset",
    )
    assert reply.headers["cache-control"] == "private"
    assert Position.parse(reply.headers["nearlite-position"]) == after.position
    pages_of(reply.body)
    nothing = client.request("GET", f"/nl/v1/changes/{after.position}")
    assert (nothing.status, nothing.body) == (204, b"")
    assert nothing.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("how", ["replaced", "removed"])
def test_a_file_that_was_replaced_is_not_written_to_any_more(tmp_path: Path, how: str) -> None:
    path = tmp_path / "data.db"
    with serving(app_of(path, durability="normal")) as port:
        client = Client(port)
        client.run("CREATE TABLE t(a)", "INSERT INTO t VALUES (1)")
        away = tmp_path / "away.db"
        path.rename(away)
        if how == "replaced":
            path.write_bytes(b"")
        limit = time.monotonic() + 20
        body = json.dumps({"requests": [execute("INSERT INTO t VALUES (2)"), CLOSE]}).encode()
        while (reply := client.request("POST", "/v3/pipeline", body)).status == 200:
            assert time.monotonic() < limit
        assert (reply.status, reply.json["code"]) == (503, "DATABASE_REPLACED")
        assert client.request("GET", "/nl/v1/status").status == 503
        path.unlink(missing_ok=True)
        away.rename(path)  # it was a mistake
        while (reply := client.request("POST", "/v3/pipeline", body)).status == 503:
            assert time.monotonic() < limit
        assert client.rows("SELECT count(*) > 1 FROM t") == [[1]]


def test_connections_beyond_the_limit_are_refused_and_the_others_served(
    tmp_path: Path,
) -> None:
    with serving(limited(tmp_path / "data.db", max_connections=3)) as port:  # has one itself
        served = [Client(port), Client(port)]
        for client in served:
            assert client.rows("SELECT 1") == [[1]]
        refused = Client(port)
        reply = refused.request("GET", "/health")
        assert (reply.status, reply.json["code"]) == (503, "TOO_MANY_CONNECTIONS")
        assert reply.headers["retry-after"] == "1"
        assert reply.headers["connection"] == "close"
        for client in served:
            assert client.rows("SELECT 1") == [[1]]
        served[0].close()
        limit = time.monotonic() + 20
        while Client(port).request("GET", "/health").status == 503:
            assert time.monotonic() < limit


def test_a_client_that_stands_still_holds_up_no_roll(tmp_path: Path) -> None:
    app = app_of(tmp_path / "data.db", durability="normal", roll_bytes=1 << 20)
    with serving(app) as port:
        client, slow = Client(port), Client(port)
        client.run("CREATE TABLE t(b)")
        before = status(client)
        client.run("INSERT INTO t VALUES (randomblob(60000000))")  # more than sockets take in
        middle = status(client).position
        slow.connection.request("GET", f"/nl/v1/changes/{before.position}")
        answer = slow.connection.getresponse()
        limit = time.monotonic() + 20
        while status(client).position.generation == middle.generation:
            assert time.monotonic() < limit
            client.run("INSERT INTO t VALUES (1)")
        header, pages = pages_of(answer.read())
        assert header.header.target == middle
        assert pages > 60_000_000 / 4096


def test_a_long_poll_is_answered_by_the_next_commit(client: Client, shared: int) -> None:
    here = status(client).position
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        poll = Client(shared)
        future = pool.submit(poll.request, "GET", f"/nl/v1/changes/{here}?wait=20")
        # Some of the commits may come before the poll has enrolled: one of them is seen.
        while not future.done():
            client.run("INSERT INTO t(b) VALUES (1)")
        assert future.result(10).status == 200
        poll.close()


def test_a_long_poll_ends_empty_at_its_time(client: Client) -> None:
    here = status(client).position
    began = time.monotonic()
    assert client.request("GET", f"/nl/v1/changes/{here}?wait=0.2").status == 204
    assert 0.15 < time.monotonic() - began < 10


def test_refusals_of_the_native_protocol(client: Client) -> None:
    here = status(client)
    at = here.position
    cases = [
        (f"changes/{Position(at.lineage ^ 1, at.generation, at.frame)}", 409, "LINEAGE_MISMATCH"),
        (f"changes/{Position(at.lineage, at.generation + 1, 0)}", 409, "POSITION_AHEAD"),
        (f"changes/{at}?hash={here.hash ^ 1:016x}", 409, "STATE_MISMATCH"),
        ("changes/nowhere", 400, "BAD_REQUEST"),
        (f"changes/{at}?hash=1", 400, "BAD_REQUEST"),
        (f"changes/{at}?wait=x", 400, "BAD_REQUEST"),
        (f"changes/{at}?wait=nan", 400, "BAD_REQUEST"),
    ]
    for path, code, name in cases:
        reply = client.request("GET", f"/nl/v1/{path}")
        assert (reply.status, reply.json["code"]) == (code, name), path


def test_a_snapshot_is_a_page_set_of_everything(client: Client) -> None:
    here = status(client)
    for query in ("", "?z=1"):
        reply = client.request("GET", "/nl/v1/snapshot" + query)
        assert reply.status == 200
        _, pages = pages_of(reply.body)
        assert pages == here.pages


def sql(client: Client, at: Status, *requests: Any, baton: str | None = None) -> tuple[Any, bytes]:
    """``POST sql``: the pipeline's answer and the page set behind it."""
    body = json.dumps({"baton": baton, "requests": requests}).encode()
    reply = client.request(
        "POST",
        "/nl/v1/sql",
        body,
        nearlite_position=str(at.position),
        nearlite_hash=f"{at.hash:016x}",
    )
    assert (reply.status, reply.headers["content-type"]) == (200, "application/vnd.nearlite.answer")
    size = int.from_bytes(reply.body[:4], "big")
    return json.loads(reply.body[4 : 4 + size]), reply.body[4 + size :]


def test_a_write_is_answered_with_its_page_set(client: Client) -> None:
    before = status(client)
    answer, page_set = sql(client, before, execute("INSERT INTO t VALUES (1, 'x')"), CLOSE)
    assert outcome(answer["results"][0])["last_insert_rowid"] == "1"
    header, pages = pages_of(page_set)
    assert pages > 0
    after = status(client)
    _, nothing = sql(client, after, execute("SELECT 1"), CLOSE)
    assert nothing == b""
    assert header is not None


def test_a_transaction_brings_its_page_set_with_commit(client: Client) -> None:
    before = status(client)
    answer, page_set = sql(
        client, before, execute("BEGIN"), execute("INSERT INTO t VALUES (1, 'x')")
    )
    assert [result["type"] for result in answer["results"]] == ["ok", "ok"], answer
    assert page_set == b""
    answer, page_set = sql(client, before, execute("COMMIT"), CLOSE, baton=answer["baton"])
    assert pages_of(page_set)[1] > 0


def test_a_batch_of_thousands_of_steps_is_one_transaction(client: Client) -> None:
    before = status(client)
    inserts = ["INSERT INTO t(b) VALUES (1)"] * 2000
    answer, page_set = sql(client, before, transaction(*inserts), CLOSE)
    assert outcome(answer["results"][0])["step_errors"] == [None] * 2003
    pages_of(page_set)
    assert client.rows("SELECT count(*) FROM t") == [[2000]]


def test_a_write_of_another_lineage_is_refused_and_not_run(client: Client) -> None:
    here = status(client).position
    body = json.dumps({"requests": [execute("INSERT INTO t VALUES (1, 1)"), CLOSE]}).encode()
    for at, code in (
        (Position(here.lineage ^ 1, 1, 1), "LINEAGE_MISMATCH"),
        (Position(here.lineage, here.generation + 9, 1), "POSITION_AHEAD"),
    ):
        reply = client.request("POST", "/nl/v1/sql", body, nearlite_position=str(at))
        assert (reply.status, reply.json["code"]) == (409, code)
    assert client.request("POST", "/nl/v1/sql", body).status == 400
    assert client.rows("SELECT count(*) FROM t") == [[0]]


def test_a_replica_whose_history_is_gone_is_answered_without_a_page_set(client: Client) -> None:
    here = status(client)
    gone = Status(Position(here.position.lineage, 0, 1), 0, 0, 0, 0, 0, "")
    answer, page_set = sql(client, gone, execute("INSERT INTO t VALUES (1, 1)"), CLOSE)
    assert answer["results"][0]["type"] == "ok"
    assert page_set == b""


# ---------------------------------------------------------------- life


@pytest.mark.parametrize("told", [True, False], ids=["with lifespan", "without"])
def test_the_application_can_be_mounted(tmp_path: Path, told: bool) -> None:
    """As docs/server.md has it; and by somebody who has not read that."""
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import Mount, Route

    import nearlite

    inner = app_of(tmp_path / "data.db")

    @contextlib.asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        await inner.startup()
        yield
        await inner.shutdown()

    async def stop(_request: Any) -> Response:
        await inner.shutdown()
        return Response()

    routes = [Mount("/database", app=inner), Route("/stop", stop)]
    outer: Any = Starlette(routes=routes, lifespan=lifespan if told else None)
    outer.stop_waiting = inner.stop_waiting
    with serving_mounted(outer) as port:
        client = Client(port)
        body = json.dumps({"requests": [execute("SELECT 1"), CLOSE]}).encode()
        assert client.request("POST", "/database/v2/pipeline", body).status == 200
        assert client.request("GET", "/database/nl/v1/status").status == 200
        assert client.request("GET", "/database/v2").status == 200
        client.close()
        url = f"http://127.0.0.1:{port}/database"
        with contextlib.closing(nearlite.connect(tmp_path / "r.db", sync_url=url)) as replica:
            replica.execute("CREATE TABLE t(a)")
            replica.execute("INSERT INTO t VALUES(1)")
            replica.commit()
            assert replica.execute("SELECT a FROM t").fetchall() == [(1,)]
        if not told:
            assert Client(port).request("GET", "/stop").status == 200
    state = json.loads(log_file(tmp_path / "data.db", "state.json"))
    assert state["clean"] is True


def serving_mounted(app: Any) -> Any:
    import threading

    @contextlib.contextmanager
    def run() -> Iterator[int]:
        listening = serve.bind("127.0.0.1", 0)
        listening.listen(8)
        server = serve.server(app)
        thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()

    return run()


PROGRAM = """
import sys
import nearlite
from nearlite import serve
listening = serve.bind("127.0.0.1", 0)
listening.listen(16)
print(listening.getsockname()[1], flush=True)
serve.server(nearlite.asgi(sys.argv[1])).run(sockets=[listening])
"""


def test_sigterm_ends_in_time_with_everything_kept(tmp_path: Path) -> None:
    path = tmp_path / "data.db"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        client = Client(port)
        client.run("CREATE TABLE t(a)", "INSERT INTO t VALUES (1)")
        client.pipeline(execute("BEGIN IMMEDIATE"), execute("INSERT INTO t VALUES (2)"))
        poll = socket.create_connection(("127.0.0.1", port))
        at = status(client).position
        poll.sendall(
            b"GET /nl/v1/changes/%b?wait=25 HTTP/1.1\r\nhost: x\r\n\r\n" % str(at).encode()
        )
        client.request("GET", "/health")
        began = time.monotonic()
        os.kill(process.pid, signal.SIGTERM)
        assert poll.recv(100).startswith(b"HTTP/1.1 204")
        _, noise = process.communicate(timeout=20)
        assert time.monotonic() - began < 8
        assert b"Traceback" not in noise, noise
        poll.close()
        client.close()
    finally:
        process.kill()
        process.communicate()
    stock = reader(path)
    assert stock.execute("SELECT a FROM t").fetchall() == [(1,)]
    assert stock.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    stock.close()


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE sqlite_dbpage SET data = zeroblob(4096) WHERE pgno = 2",
        "INSERT INTO words_data(id, block) VALUES(99, 'x')",
        "PRAGMA schema_version = 1",
        "UPDATE sqlite_schema SET sql = 'CREATE TABLE t(x)' WHERE name = 't'",
    ],
)
@pytest.mark.parametrize(
    "before",
    [
        [],
        [execute("CREATE TEMP TABLE mine(a)"), execute("PRAGMA writable_schema=ON")],
        [execute("BEGIN"), execute("PRAGMA writable_schema=ON")],
    ],
    ids=["shared", "own", "transaction"],
)
def test_a_client_cannot_damage_the_file(
    client: Client, sql: str, before: list[dict[str, Any]]
) -> None:
    client.run("CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(word)")
    answer = client.pipeline(*before, execute(sql), CLOSE)
    assert "message" in answer["results"][len(before)]["error"]
    assert client.rows("PRAGMA quick_check") == [["ok"]]


# ---------------------------------------------------------------- delivered twice


def numbered(client: Client, number: str, *requests: Any, baton: str | None = None) -> Any:
    body = json.dumps({"baton": baton, "requests": [*requests, {"type": "close"}]}).encode()
    return client.request("POST", "/v3/pipeline", body, nearlite_request=number)


def test_a_request_that_is_delivered_twice_is_carried_out_once(client: Client) -> None:
    client.run("DROP TABLE IF EXISTS numbered", "CREATE TABLE numbered(a)")
    insert = execute("INSERT INTO numbered VALUES(1)")
    other = Client(client.port, whole=False)  # does not take the short cut
    for first, second in [(client, other), (other, client), (client, client)]:
        number = secrets.token_hex(8)
        assert numbered(first, number, insert).status == 200
        again = numbered(second, number, insert)
        assert (again.status, again.json["code"]) == (409, "REQUEST_REPEATED")
    assert client.rows("SELECT count(*) FROM numbered") == [[3]]
    other.close()


def test_a_request_that_was_not_carried_out_may_come_again(client: Client) -> None:
    number = secrets.token_hex(8)
    assert numbered(client, number, execute("SELECT 1"), baton="no such").status == 400
    assert numbered(client, number, execute("SELECT 1")).status == 200
    for malformed in ("", "12", "G" * 16, "f" * 17):
        assert numbered(client, malformed, execute("SELECT 1")).json["code"] == "BAD_REQUEST"


def test_numbers_of_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivered, "MANY", 10)
    known = delivered.Delivered()

    def comes(number: int) -> bool:
        try:
            found = known.number({"headers": [(b"nearlite-request", b"%016x" % number)]})
        except HttpError:
            return False
        known.note(found)
        return True

    for number in range(1000):
        assert comes(number)
        assert not any(comes(before) for before in range(max(0, number - 9), number + 1))
    assert comes(0)
