"""A cursor's statement ends with the cursor, however that ends."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from serving import Client, app_of, batch, execute, serving

import nearlite
from nearlite._native.database import Database
from nearlite.hrana import RunBatch, Step
from nearlite.limits import Limits
from nearlite.owned import Owned
from nearlite.session import Session
from nearlite.streams import Stream, Turn

EITHER = True

MANY = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 20000) SELECT i, t.a FROM c, t"


def test_a_cursor_that_is_given_up_keeps_no_statement_open(tmp_path: Path) -> None:
    database = Database(str(tmp_path / "data.db"))
    database.exec("PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES('x')")
    for pieces in (1, 2):
        stream = Stream(1, 0.0)
        stream.session = Session(database)
        work = Owned(Turn(), lambda _: None).cursor(stream, RunBatch([Step(MANY)]))
        for _ in range(pieces):
            assert next(work)
        assert database.has_snapshot
        work.close()
        assert not database.has_snapshot
    database.close()


def test_a_cursor_with_a_long_text_is_answered_to_its_end(tmp_path: Path) -> None:
    with serving(app_of(tmp_path / "data.db")) as port:
        client = Client(port)
        client.run("CREATE TABLE t(a)", "INSERT INTO t VALUES('x')")
        sql = f"/* {'longer than what is kept compiled' * 1000} */ {MANY}"
        body = json.dumps({"batch": batch("BEGIN", sql, "COMMIT")["batch"]}).encode()
        lines = client.request("POST", "/v3/cursor", body).body.splitlines()
        kinds = [json.loads(line)["type"] for line in lines[1:]]
        assert kinds.count("row") == 20_000
        assert kinds.count("step_end") == 3


# ---------------------------------------------------------------- a client that does not fetch

ROWS = 8_000
WRITES = (
    f"WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {ROWS}) "
    "INSERT INTO t SELECT i FROM c RETURNING hex(zeroblob(2000))"
)
READS = (
    f"WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < {ROWS}) "
    "SELECT hex(zeroblob(2000)) FROM c, (SELECT count(*) FROM t)"
)
TIMEOUT = "TRANSACTION_TIMEOUT"


@contextmanager
def paused(port: int, *steps: str) -> Iterator[Callable[[], list[Any]]]:
    """A cursor over HTTP of which the first row was taken; gives what fetches the entries.

    Its stream has a setting, and so a connection of its own.
    """
    setting = Client(port)
    baton = setting.pipeline(execute("PRAGMA foreign_keys = ON"))["baton"]
    body = json.dumps({"baton": baton, "batch": batch(*steps)["batch"]}).encode()
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        raw.settimeout(20)
        raw.connect(("127.0.0.1", port))
        raw.sendall(
            b"POST /v3/cursor HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        answer = http.client.HTTPResponse(raw)
        answer.begin()
        assert answer.status == 200
        # The head comes before the batch runs; behind the first row it is running.
        first: list[bytes] = []
        while not first or b'"row"' not in first[-1]:
            first.append(answer.readline())

        def fetch() -> list[Any]:
            return [json.loads(line) for line in [*first, *answer.read().splitlines()]]

        yield fetch
        answer.close()


def limits(**seconds: float) -> Limits:
    return Limits(client_seconds=60, **seconds)


@pytest.mark.parametrize("steps", [(WRITES,), ("BEGIN", WRITES), ("BEGIN IMMEDIATE", READS)])
def test_others_write_while_rows_of_a_write_are_not_fetched(
    tmp_path: Path, steps: tuple[str, ...]
) -> None:
    """Not when the client comes back, but when they have waited long enough."""
    with serving(app_of(tmp_path / "data.db", limits=limits(contended_seconds=1.0))) as port:
        client = Client(port)
        client.run("CREATE TABLE t(a)")
        with paused(port, *steps) as fetch:
            (result,) = client.run("INSERT INTO t VALUES ('other')")
            assert result["affected_row_count"] == 1
            assert client.rows("SELECT a FROM t") == [["other"]]
            entries = fetch()
        assert entries[-1]["type"] == "step_error"
        assert entries[-1]["error"]["code"] == TIMEOUT
        assert "rolled back" in entries[-1]["error"]["message"]
        assert 0 < sum(entry["type"] == "row" for entry in entries[1:]) < ROWS


def test_a_write_whose_rows_all_go_out_is_kept(tmp_path: Path) -> None:
    with serving(app_of(tmp_path / "data.db")) as port:
        client = Client(port)
        client.run("CREATE TABLE t(a)")
        with paused(port, WRITES) as fetch:
            entries = fetch()
        assert entries[-1] == {
            "type": "step_end", "affected_row_count": ROWS, "last_insert_rowid": str(ROWS)
        }  # fmt: skip
        assert client.rows("SELECT count(*) FROM t") == [[ROWS]]


def test_a_write_whose_client_goes_is_undone(tmp_path: Path) -> None:
    with serving(app_of(tmp_path / "data.db")) as port:
        client = Client(port)
        client.run("CREATE TABLE t(a)")
        with paused(port, WRITES):
            pass
        client.run("INSERT INTO t VALUES ('other')")
        assert client.rows("SELECT a FROM t") == [["other"]]


def test_what_fails_a_commit_is_told_behind_the_rows(tmp_path: Path) -> None:
    with serving(app_of(tmp_path / "data.db")) as port:
        client = Client(port)
        client.run(
            "CREATE TABLE p(a PRIMARY KEY)",
            "CREATE TABLE t(a REFERENCES p DEFERRABLE INITIALLY DEFERRED)",
        )
        with paused(port, WRITES, "SELECT count(*) FROM t") as fetch:
            entries = fetch()
        kinds = [entry["type"] for entry in entries[1:]]
        assert kinds.count("row") == ROWS + 1
        assert kinds.count("step_end") == 1
        failed = entries[ROWS + 2]
        assert failed["type"] == "step_error"
        assert failed["error"]["code"].startswith("SQLITE_CONSTRAINT")
        assert client.rows("SELECT count(*) FROM t") == [[0]]


def test_a_cursor_that_only_reads_does_not_hold_its_state_for_ever(tmp_path: Path) -> None:
    app = app_of(tmp_path / "data.db", limits=limits(transaction_seconds=0.2))
    with serving(app) as port:
        client = Client(port)
        client.run("CREATE TABLE t(a)")
        with paused(port, READS) as fetch:
            deadline = time.monotonic() + 20
            while not app.counts.timeouts and time.monotonic() < deadline:
                client.run("SELECT 1")
            entries = fetch()
        assert entries[-1]["error"]["code"] == TIMEOUT
        assert "not fetched" in entries[-1]["error"]["message"]


@pytest.mark.parametrize("stop", ["progress", "function"])
def test_a_statement_that_is_stopped_in_a_large_batch_answers_its_own_rows_again(stop: str) -> None:
    """Its next short result was read from where its buffer had been, which others had by then."""
    armed = []
    sql = "SELECT a, b, f(a) FROM t WHERE a >= ? AND a < ?"
    with closing(nearlite.connect(":memory:")) as connection:
        connection.create_function("f", 1, lambda _a: 1 // 0 if armed and stop == "function" else 0)
        connection.execute("CREATE TABLE t(a, b)")
        connection.execute("CREATE TABLE secret(a, b)")
        rows = [(i, "x" * 300) for i in range(3000)]
        connection.executemany("INSERT INTO t VALUES (?, ?)", rows)
        connection.execute("INSERT INTO secret VALUES (5, ?)", ("s" * 300,))
        for turn in range(5):
            cursor = connection.execute(sql, (0, 3000))
            cursor.fetchone()
            armed.append(1)
            if stop == "progress":
                connection.set_progress_handler(lambda: 1, 500)
            with pytest.raises(nearlite.OperationalError):
                cursor.fetchall()
            connection.set_progress_handler(None, 0)
            armed.clear()
            for other in range(3):
                connection.execute(f"SELECT a, b, {turn} FROM secret, (SELECT {other})").fetchall()
            assert connection.execute(sql, (5, 6)).fetchall() == [(5, "x" * 300, 0)]
