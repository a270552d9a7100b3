"""Who may only read writes by no route."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given, settings
from hypothesis import strategies as st
from serving import Client, app_of, batch, execute, outcome, rows, serving, transaction

import nearlite
from nearlite.tokens import authority

KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = base64.urlsafe_b64encode(KEY.public_key().public_bytes_raw()).decode()
READER = jwt.encode({"a": "ro"}, KEY, "EdDSA")
WRITER = jwt.encode({"a": "rw"}, KEY, "EdDSA")
SCHEMA = """
CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE);
CREATE TABLE log(what, spare);
CREATE TRIGGER noted AFTER INSERT ON t BEGIN INSERT INTO log(what) VALUES(new.b); END;
CREATE VIEW v AS SELECT b FROM t;
CREATE TRIGGER through INSTEAD OF INSERT ON v BEGIN INSERT INTO t(b) VALUES(new.b); END;
CREATE VIRTUAL TABLE f USING fts5(text);
CREATE INDEX i ON log(what);
INSERT INTO t(b) VALUES ('one'), ('two'), ('three');
INSERT INTO f VALUES ('a text'), ('another');
"""
# Each would change the database, or take the lock to write, if it were carried out.
WRITES = [
    "INSERT INTO t(b) VALUES ('new')",
    "INSERT INTO t(b) VALUES ('new') RETURNING a",
    "INSERT OR REPLACE INTO t VALUES (1, 'new')",
    "REPLACE INTO t VALUES (1, 'new')",
    "INSERT INTO t(a, b) VALUES (1, 'x') ON CONFLICT(a) DO UPDATE SET b = 'y'",
    "WITH w(x) AS (SELECT 'new') INSERT INTO t(b) SELECT x FROM w",
    "INSERT INTO v VALUES ('through')",
    "INSERT INTO f VALUES ('more')",
    "INSERT INTO f(f) VALUES ('optimize')",
    "INSERT INTO f(f, rank) VALUES ('automerge', 4)",
    "UPDATE t SET b = b || '!'",
    "UPDATE t SET b = 'x' WHERE a = 99",
    "UPDATE sqlite_schema SET sql = NULL",
    "DELETE FROM t",
    "DELETE FROM t WHERE a = 1 RETURNING *",
    "CREATE TABLE u(a)",
    "CREATE TABLE IF NOT EXISTS u AS SELECT * FROM t",
    "CREATE INDEX j ON t(b)",
    "CREATE VIEW w AS SELECT 1",
    "CREATE TRIGGER z AFTER DELETE ON t BEGIN DELETE FROM log; END",
    "CREATE VIRTUAL TABLE g USING fts5(x)",
    "DROP TABLE t",
    "DROP INDEX i",
    "DROP TRIGGER noted",
    "ALTER TABLE t ADD COLUMN c",
    "ALTER TABLE t RENAME TO tt",
    "ALTER TABLE log DROP COLUMN spare",
    "REINDEX",
    "ANALYZE",
    "VACUUM",
    "VACUUM INTO 'copy.db'",
    "ATTACH 'other.db' AS other",
    "ATTACH ':memory:' AS other",
    "BEGIN IMMEDIATE",
    "BEGIN EXCLUSIVE TRANSACTION",
    "begin/**/immediate",
    "CREATE TEMP TABLE x(a)",
    "CREATE TEMP TRIGGER x AFTER INSERT ON t BEGIN SELECT 1; END",
    "PRAGMA user_version = 7",
    "PRAGMA main.user_version(7)",
    "PRAGMA application_id = 7",
    "PRAGMA schema_version = 99",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA journal_mode = OFF",
    "PRAGMA wal_checkpoint(TRUNCATE)",
    "PRAGMA page_size = 8192",
    "PRAGMA auto_vacuum = 1",
    "PRAGMA writable_schema = 1",
    "PRAGMA encoding = 'UTF-16'",
    "PRAGMA max_page_count = 1",
]
# What changes nothing, or nothing here, is not necessarily refused.
HARMLESS = [
    "SELECT * FROM t",
    "PRAGMA user_version",
    "PRAGMA query_only = 0",
    "PRAGMA query_only = OFF",
    "PRAGMA ignore_check_constraints = 1",
    "PRAGMA legacy_alter_table = 1",
    "PRAGMA optimize",
    "PRAGMA optimize(0x10002)",
    "PRAGMA incremental_vacuum",
    "EXPLAIN DELETE FROM t",
    "EXPLAIN PRAGMA user_version = 8",
    "BEGIN",
    "BEGIN DEFERRED",
    "BEGIN READONLY",
    "SAVEPOINT s",
    "RELEASE s",
    "COMMIT",
    "ROLLBACK",
]


REFUSED = {"SQLITE_READONLY", "SQL_PARSE_ERROR"}


@dataclass
class Served:
    """One database and its clients."""

    path: Path
    port: int
    reader: Client
    writer: Client

    def state(self) -> Any:
        reply = self.writer.request("GET", "/nl/v1/status").json
        return reply["hash"], reply["position"]


def start(stack: ExitStack, path: Path, durability: str) -> Served:
    app = app_of(path, durability=durability, auth_jwt_key=PUBLIC)
    port = stack.enter_context(serving(app))
    served = Served(path, port, Client(port, READER), Client(port, WRITER))
    served.writer.pipeline({"type": "sequence", "sql": SCHEMA}, {"type": "close"})
    return served


@pytest.fixture(scope="module", params=["normal", "full"])
def served(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with ExitStack() as stack:
        path = tmp_path_factory.mktemp(request.param) / "data.db"
        yield start(stack, path, request.param)


def post(client: Client, path: str, body: Any, **headers: str) -> Any:
    return client.request("POST", path, json.dumps(body).encode(), **headers)


def by_pipeline(version: int, kind: str) -> Any:
    def run(client: Client, *statements: str) -> list[Any]:
        if kind == "execute":
            requests = [execute(sql) for sql in statements]
        elif kind == "batch":
            requests = [batch(*statements)]
        elif kind == "sequence":
            requests = [{"type": "sequence", "sql": ";".join(statements)}]
        else:
            requests = [{"type": "describe", "sql": sql} for sql in statements]
        answer = client.pipeline(*requests, {"type": "close"}, version=version)
        found = []
        for result in answer["results"][:-1]:
            if result["type"] == "error":
                found.append(result["error"])
            elif kind == "batch":
                found += [e for e in result["response"]["result"]["step_errors"] if e]
        return found

    return run


def by_cursor(client: Client, *statements: str) -> list[Any]:
    reply = post(client, "/v3/cursor", {"batch": batch(*statements)["batch"]})
    assert reply.status == 200
    head, *entries = map(json.loads, reply.body.splitlines())
    if head["baton"]:
        client.pipeline({"type": "close"}, baton=head["baton"])
    return [entry["error"] for entry in entries if entry["type"] in ("step_error", "error")]


def by_execute_alone(client: Client, *statements: str) -> list[Any]:
    replies = [post(client, "/v1/execute", {"stmt": {"sql": sql}}) for sql in statements]
    assert all(reply.status in (200, 400, 403, 500) for reply in replies)
    return [reply.json for reply in replies if reply.status != 200]


def by_batch_alone(client: Client, *statements: str) -> list[Any]:
    reply = post(client, "/v1/batch", {"batch": batch(*statements)["batch"]})
    if reply.status != 200:
        return [reply.json]
    return [error for error in reply.json["result"]["step_errors"] if error]


def by_replica(client: Client, *statements: str) -> list[Any]:
    status = client.request("GET", "/nl/v1/status").json
    reply = post(
        client,
        "/nl/v1/sql?v=2",
        {"requests": [*map(execute, statements), {"type": "close"}]},
        nearlite_position=status["position"],
        nearlite_hash=status["hash"],
        nearlite_counters="0,0,0",
    )
    assert reply.status == 200
    size = int.from_bytes(reply.body[:4], "big")
    assert len(reply.body) == 4 + size or status["position"] != reply.headers["nearlite-position"]
    answer = json.loads(reply.body[4 : 4 + size])
    return [result["error"] for result in answer["results"] if result["type"] == "error"]


ROUTES = {
    "execute 2": by_pipeline(2, "execute"),
    "execute": by_pipeline(3, "execute"),
    "batch": by_pipeline(3, "batch"),
    "sequence": by_pipeline(3, "sequence"),
    "sequence 2": by_pipeline(2, "sequence"),
    "cursor": by_cursor,
    "v1 execute": by_execute_alone,
    "v1 batch": by_batch_alone,
    "replica": by_replica,
}


@pytest.mark.parametrize("route", ROUTES)
def test_every_write_is_refused(served: Served, route: str) -> None:
    before = served.state()
    for whole in (True, False):
        client = Client(served.port, READER, whole)
        for sql in WRITES:
            (error,) = ROUTES[route](client, sql)
            assert error["code"] in REFUSED or "may not be modified" in error["message"], (
                sql,
                error,
            )
            if sql.startswith(("INSERT", "UPDATE t", "DELETE", "CREATE TABLE", "BEGIN")):
                assert (error["code"], "the token allows reading only" in error["message"]) == (
                    "SQLITE_READONLY",
                    True,
                )
        assert served.state() == before
        client.close()
    # Nobody keeps a lock: others write.
    served.writer.pipeline(execute("UPDATE t SET b = b"), {"type": "close"})


def test_describing_a_write_does_nothing(served: Served) -> None:
    before = served.state()
    describe = by_pipeline(3, "describe")
    for sql in [*WRITES, *HARMLESS]:
        describe(served.reader, sql)
    assert served.state() == before


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_text_by_any_route_changes_anything(served: Served, data: Any) -> None:
    route = ROUTES[data.draw(st.sampled_from(list(ROUTES)))]
    statement = st.sampled_from(WRITES) | st.sampled_from(HARMLESS)
    before = data.draw(st.sampled_from(["", " ", "/* a */", "-- b\n", ";", ";;/**/ "]))
    after = data.draw(st.sampled_from(["", ";", " -- end", ";/**/"]))
    case = data.draw(st.sampled_from([str, str.lower, str.upper]))
    texts = [
        case(f"{before}{sql}{after}")
        for sql in data.draw(st.lists(statement, min_size=1, max_size=4))
    ]
    state = served.state()
    route(served.reader, *texts)
    assert served.state() == state


def test_a_corpus_that_writes_does_write(tmp_path: Path) -> None:
    """The same texts change the database of somebody who may: the tests above could fail."""
    with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as con:
        con.executescript(SCHEMA)
        unchanged = []
        for sql in WRITES[: WRITES.index("REINDEX")]:
            con.execute("SAVEPOINT s")
            before = list(con.iterdump()), con.execute("PRAGMA schema_version").fetchone()
            try:
                con.execute(sql).fetchall()
            except sqlite3.OperationalError:
                pass
            if (list(con.iterdump()), con.execute("PRAGMA schema_version").fetchone()) == before:
                unchanged.append(sql)
            con.execute("ROLLBACK TO s")
            con.execute("RELEASE s")
        assert len(unchanged) <= 5, unchanged


def test_reading_is_as_for_everybody(served: Served) -> None:
    client = served.reader
    assert client.rows("SELECT count(*) FROM t") == [[3]]
    results = client.run(
        "PRAGMA foreign_keys = 1", "PRAGMA foreign_keys", "SELECT a FROM t LIMIT 1"
    )
    assert [rows(result) for result in results] == [[], [[1]], [[1]]]
    # A transaction that reads, which sees one state.
    begun = client.pipeline(execute("BEGIN"), execute("SELECT count(*) FROM log"))
    served.writer.pipeline(execute("INSERT INTO log(what) VALUES('meanwhile')"), {"type": "close"})
    count = rows(outcome(begun["results"][1]))
    again = client.pipeline(
        execute("SELECT count(*) FROM log"), execute("COMMIT"), baton=begun["baton"]
    )
    assert rows(outcome(again["results"][0])) == count
    after = client.pipeline(
        execute("SELECT count(*) FROM log"), {"type": "close"}, baton=again["baton"]
    )
    assert rows(outcome(after["results"][0])) == [[count[0][0] + 1]]
    served.writer.pipeline(execute("DELETE FROM log WHERE what = 'meanwhile'"), {"type": "close"})


def test_of_a_transaction_only_what_reads_is_carried_out(served: Served) -> None:
    state = served.state()
    answer = served.reader.pipeline(
        transaction("INSERT INTO t(b) VALUES('x')"),
        batch("BEGIN", "INSERT INTO t(b) VALUES('x')", "SELECT 1", "COMMIT"),
        {"type": "close"},
    )
    first, second = (result["response"]["result"] for result in answer["results"][:2])
    assert [bool(e) for e in first["step_errors"]] == [True, False, False, True]
    assert [bool(e) for e in second["step_errors"]] == [False, True, False, False]
    assert rows(second["step_results"][2]) == [[1]]
    assert served.state() == state


def test_a_stream_goes_on_only_with_the_same_rights(served: Served) -> None:
    state = served.state()
    held = served.writer.pipeline(execute("BEGIN"), execute("INSERT INTO t(b) VALUES('held')"))
    for requests in (
        [execute("COMMIT")],
        [execute("SELECT count(*) FROM t")],
        [{"type": "close"}],
        [{"type": "get_autocommit"}],
    ):
        for path, body in (
            ("/v3/pipeline", {"requests": requests}),
            ("/v3/cursor", {"batch": batch("COMMIT")["batch"]}),
            ("/nl/v1/sql", {"requests": requests}),
        ):
            position, state_hash = state[1], state[0]
            reply = post(
                served.reader,
                path,
                {"baton": held["baton"], **body},
                nearlite_position=position,
                nearlite_hash=state_hash,
            )
            assert (reply.status, reply.json["code"]) == (403, "FORBIDDEN")
    # It is where it was, and its owner goes on.
    count = served.writer.pipeline(execute("SELECT count(*) FROM t"), baton=held["baton"])
    assert rows(outcome(count["results"][0])) == [[4]]
    served.writer.pipeline(execute("ROLLBACK"), {"type": "close"}, baton=count["baton"])
    # And the other way: what was begun to read is not what somebody writes on.
    begun = served.reader.pipeline(execute("BEGIN"), execute("SELECT 1 FROM t"))
    reply = post(
        served.writer,
        "/v3/pipeline",
        {"baton": begun["baton"], "requests": [execute("INSERT INTO t(b) VALUES(1)")]},
    )
    assert (reply.status, reply.json["code"]) == (403, "FORBIDDEN")
    served.reader.pipeline({"type": "close"}, baton=begun["baton"])
    # A stream that carries nothing belongs to nobody.
    idle = served.writer.pipeline(execute("SELECT 1"))
    (error,) = (
        result["error"]
        for result in served.reader.pipeline(
            execute("DELETE FROM t"), {"type": "close"}, baton=idle["baton"]
        )["results"][:1]
    )
    assert error["code"] == "SQLITE_READONLY"
    assert served.state() == state


def test_a_client_may_ask_to_be_one_who_reads(served: Served) -> None:
    for whole in (True, False):
        client = Client(served.port, WRITER, whole)
        for _ in range(3):
            reply = post(
                client,
                "/v3/pipeline",
                {"requests": [execute("DELETE FROM t"), {"type": "close"}]},
                nearlite_access="read",
            )
            assert reply.json["results"][0]["error"]["code"] == "SQLITE_READONLY"


def test_pages_are_not_pushed(served: Served) -> None:
    for token in (READER, WRITER):
        reply = Client(served.port, token).request("POST", "/sync/1/1/2", bytes(4120))
        assert (reply.status, reply.json["code"]) == (403, "FORBIDDEN")


def test_replicas_of_who_may_only_read(served: Served, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{served.port}"
    state = served.state()
    for connection in (
        nearlite.connect(tmp_path / "r.db", sync_url=url, auth_token=READER, isolation_level=None),
        nearlite.connect(url, auth_token=READER, isolation_level=None),
    ):
        with closing(connection):
            assert connection.execute("SELECT count(*) FROM t").fetchone()[0] == 3
            for sql in ("INSERT INTO t(b) VALUES(1)", "DROP TABLE t", "BEGIN IMMEDIATE"):
                with pytest.raises(nearlite.OperationalError, match="reading only") as caught:
                    connection.execute(sql)
                assert caught.value.sqlite_errorname == "SQLITE_READONLY"
            connection.execute("BEGIN")
            connection.execute("SELECT 1 FROM t")
            connection.execute("COMMIT")
    assert served.state() == state


def test_a_relay_keeps_its_readers_from_writing(served: Served, tmp_path: Path) -> None:
    relay = nearlite.asgi(
        tmp_path / "relay.db",
        upstream=f"http://127.0.0.1:{served.port}",
        upstream_token=WRITER,
        auth_jwt_key=PUBLIC,
        sync_interval=0.05,
    )
    state = served.state()
    with serving(relay) as port:
        reader, writer = Client(port, READER), Client(port, WRITER)
        for route in ROUTES.values():
            for sql in ("DELETE FROM t", "PRAGMA user_version = 7", "BEGIN IMMEDIATE"):
                (error,) = route(reader, sql)
                assert error["code"] == "SQLITE_READONLY"
        held = writer.pipeline(execute("BEGIN"), execute("DELETE FROM t"))
        reply = post(
            reader, "/v3/pipeline", {"baton": held["baton"], "requests": [execute("COMMIT")]}
        )
        assert (reply.status, reply.json["code"]) == (403, "FORBIDDEN")
        writer.pipeline({"type": "close"}, baton=held["baton"])
        assert served.state() == state


def test_without_signed_tokens_everybody_writes() -> None:
    assert authority("t").of_token("t", "x").write
