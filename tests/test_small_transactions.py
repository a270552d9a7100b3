"""Transactions whose two requests, beginning and COMMIT, are run on the server's event loop."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Client, app_of, batch, execute, outcome, serving, write_against_a_lock

EITHER = True

GET_AUTOCOMMIT = {"type": "get_autocommit"}
IF_BEGUN = {"type": "ok", "step": 0}
LONG = (
    "INSERT INTO t(b) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 60000) "
    "SELECT i FROM c"
)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with serving(app_of(tmp_path / "data.db", durability="normal")) as port:
        yield opened(port)


def opened(port: int) -> Client:
    """A client of a server that has a connection to spare."""
    client = Client(port)
    client.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
    commit(client, begin(client, "INSERT INTO t VALUES(1, 'opens the connection')"))
    return client


def begin(client: Client, *statements: str) -> Any:
    steps = ["BEGIN", *((sql, IF_BEGUN) for sql in statements)]
    return client.pipeline(batch(*steps), GET_AUTOCOMMIT)


def commit(client: Client, begun: Any) -> Any:
    answer = client.pipeline(execute("COMMIT"), GET_AUTOCOMMIT, baton=begun["baton"])
    return [outcome(result) for result in answer["results"]]


def test_a_small_transaction_needs_no_thread(tmp_path: Path) -> None:
    app = app_of(tmp_path / "data.db", durability="normal")
    with serving(app) as port:
        client = opened(port)
        executor = app._routes._executor
        assert executor is not None
        executor._threads._pool.shutdown()  # whatever asks for a thread fails from here on
        begun = begin(client, "INSERT INTO t(b) VALUES('quick')")
        _, inside = (outcome(result) for result in begun["results"])
        assert inside["is_autocommit"] is False
        _, outside = commit(client, begun)
        assert outside["is_autocommit"] is True
        assert client.rows("SELECT count(*) FROM t") == [[2]]


def test_a_commit_that_is_synced_leaves_the_event_loop(tmp_path: Path) -> None:
    app = app_of(tmp_path / "data.db", durability="full")
    with serving(app) as port:
        client = opened(port)
        begun = begin(client, "INSERT INTO t(b) VALUES(2)")
        executor = app._routes._executor
        assert executor is not None
        threads: list[str] = []
        submit = executor._threads._pool.submit

        def noted(work: Any, *args: Any) -> Any:
            threads.append("asked for")
            return submit(work, *args)

        executor._threads._pool.submit = noted  # type: ignore[method-assign, assignment]
        commit(client, begun)
        assert threads == ["asked for"]
        assert client.rows("SELECT count(*) FROM t") == [[2]]


def test_a_write_that_lasts_is_begun_again_in_a_thread(client: Client) -> None:
    begun = begin(client, "INSERT INTO t(b) VALUES('first')", LONG, "SELECT changes()")
    found = outcome(begun["results"][0])
    assert found["step_errors"] == [None] * 4
    assert found["step_results"][1]["last_insert_rowid"] == "2"
    assert found["step_results"][2]["affected_row_count"] == 60000
    assert found["step_results"][3]["rows"] == [[{"type": "integer", "value": "60000"}]]
    assert client.rows("SELECT count(*) FROM t") == [[1]]
    commit(client, begun)
    assert client.rows("SELECT count(*) FROM t") == [[60002]]


@pytest.mark.plain
def test_a_lock_of_another_program_is_waited_for_beside_everybody_else(
    tmp_path: Path,
) -> None:
    app = app_of(tmp_path / "data.db", durability="normal")
    with serving(app) as port:
        client = opened(port)
        executor = app._routes._executor
        assert executor is not None
        # An event loop that waits, waits longer than the client.
        for session in executor._lending.spare:
            session.database.set_busy_timeout(60_000)
        lock_and_write(client, tmp_path / "data.db")


def lock_and_write(client: Client, path: Path) -> None:
    insert = "INSERT INTO t(b) VALUES('ours')"
    begun = write_against_a_lock(client.port, path, lambda: begin(client, insert))
    assert outcome(begun["results"][0])["step_errors"] == [None, None]
    commit(client, begun)
    assert client.rows("SELECT b FROM t WHERE a > 1") == [["theirs"], ["ours"]]


def test_two_transactions_take_their_turns(client: Client) -> None:
    other = Client(client.port)
    commit(client, begin(client, "SELECT 1"))
    both = begin(client, "SELECT 1"), begin(other, "SELECT 1")  # now two connections are to spare
    for begun in both:
        commit(client, begun)
    first = begin(client, "INSERT INTO t(b) VALUES('first')")
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        second = pool.submit(begin, other, "INSERT INTO t(b) VALUES('second')")
        assert client.rows("SELECT count(*) FROM t") == [[1]]
        commit(client, first)
        commit(other, second.result(30))
    assert client.rows("SELECT b FROM t WHERE a > 1") == [["first"], ["second"]]


def test_a_failing_first_write_leaves_its_transaction_open(client: Client) -> None:
    begun = begin(client, "INSERT INTO t VALUES(1, 'taken')")
    found, state = (outcome(result) for result in begun["results"])
    assert found["step_errors"][1]["code"] == "SQLITE_CONSTRAINT"
    assert state["is_autocommit"] is False
    commit(client, begun)
    assert client.rows("SELECT count(*) FROM t") == [[1]]


def test_a_deferred_foreign_key_is_checked_at_the_commit(tmp_path: Path) -> None:
    with serving(app_of(tmp_path / "data.db", durability="normal", foreign_keys=True)) as port:
        client = Client(port)
        client.run(
            "CREATE TABLE p(a PRIMARY KEY)",
            "CREATE TABLE c(a REFERENCES p DEFERRABLE INITIALLY DEFERRED)",
        )
        for _ in range(2):
            begun = begin(client, "INSERT INTO c VALUES(99)")
            answer = client.pipeline(execute("COMMIT"), GET_AUTOCOMMIT, baton=begun["baton"])
            failed, state = (outcome(result) for result in answer["results"])
            assert failed["code"] == "SQLITE_CONSTRAINT"
            assert state["is_autocommit"] is False
            client.pipeline(execute("ROLLBACK"), baton=answer["baton"])
        assert client.rows("SELECT count(*) FROM c") == [[0]]


def test_a_connection_with_settings_serves_others_without_them(tmp_path: Path) -> None:
    app = app_of(tmp_path / "data.db", durability="normal")
    with serving(app) as port:
        client = opened(port)
        client.run("CREATE TABLE c(a REFERENCES t)", "CREATE TABLE p(a CHECK(a > 0))")
        executor = app._routes._executor
        assert executor is not None
        (session,) = executor._lending.spare

        def under(*settings: str, sql: str = "INSERT INTO c VALUES(99)") -> Any:
            requests = [execute(f"PRAGMA {text}") for text in settings]
            answer = client.pipeline(*requests, execute(sql), {"type": "close"})
            return outcome(answer["results"][-2]).get("code")

        for _ in range(2):
            assert under("foreign_keys=ON") == "SQLITE_CONSTRAINT"
            assert under("foreign_keys=OFF") is None
            # BEGIN takes a connection that has been a stream's own.
            begun = begin(client, "INSERT INTO c VALUES(99)")
            assert outcome(begun["results"][0])["step_errors"] == [None, None]
            commit(client, begun)
            text = "INSERT INTO p VALUES(-1)"
            assert under("ignore_check_constraints=1", "foreign_keys=1", sql=text) is None
            assert under("recursive_triggers=1", sql=text) == "SQLITE_CONSTRAINT"
        assert executor._lending.spare == [session]  # the same one all the time
        assert under("case_sensitive_like=1") is None
        assert under("foreign_keys=1", sql="CREATE TEMP TABLE x(a)") is None
        assert session not in executor._lending.spare
        assert executor._lending.owners == set()


def test_what_did_not_stay_in_the_transaction_is_not_run_twice(client: Client) -> None:
    client.run("CREATE UNIQUE INDEX i ON t(b)", "INSERT INTO t(b) VALUES('taken')")
    inside = {"type": "not", "cond": {"type": "is_autocommit"}}
    once = "INSERT INTO t(b) VALUES('once')"
    again = "INSERT INTO t(b) VALUES('again')"
    ended = "INSERT OR ROLLBACK INTO t(b) VALUES('taken')"
    for steps in ([("BEGIN", inside), once, LONG], ["BEGIN", ended, again, LONG]):
        (result, _) = client.pipeline(batch(*steps), {"type": "close"})["results"]
        found = outcome(result)
        assert found["step_errors"][-2:] == [None, None]
        assert found["step_results"][-2]["affected_row_count"] == 1
        client.run("DELETE FROM t WHERE typeof(b) = 'integer'")
    assert client.rows("SELECT b FROM t WHERE b IN ('once', 'again') ORDER BY a") == [
        ["once"],
        ["again"],
    ]
