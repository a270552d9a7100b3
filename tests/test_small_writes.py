"""Writes outside a transaction that are run on the server's event loop instead of in a group."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Client, app_of, execute, outcome, serving, write_against_a_lock

from nearlite import atonce
from nearlite.writer import Writer

EITHER = True

LONG = (
    "INSERT INTO t(b) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 60000) "
    "SELECT i FROM c"
)
SCRIPT = [
    "CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE)",
    "CREATE TABLE child(a REFERENCES t)",
    "INSERT INTO t(b) VALUES('first')",
    "INSERT INTO t(b) VALUES('second'), ('third')",
    "SELECT changes(), total_changes(), last_insert_rowid()",
    "INSERT INTO t(b) VALUES('first')",
    "INSERT INTO nowhere VALUES(1)",
    "INSERT INTO child VALUES(99)",
    "INSERT INTO child VALUES(last_insert_rowid())",
    "UPDATE t SET b = b || '!' WHERE a > 1",
    "UPDATE t SET b = 'x' WHERE a = 99",
    "INSERT INTO t(b) VALUES('fourth') RETURNING a, b",
    "DELETE FROM t WHERE a = 1",
    "INSERT INTO t(a, b) VALUES('no number', 1)",
    "SELECT * FROM t",
]


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write finds nobody else writing, however quickly they follow one another."""
    monkeypatch.setattr(atonce, "_ALONE_SECONDS", 0.0)


@pytest.fixture
def handed_over(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Jobs that the writing thread was given."""
    jobs: list[int] = []
    submit = Writer.submit

    def noted(writer: Writer, job: Any) -> None:
        jobs.append(len(job.plans))
        submit(writer, job)

    monkeypatch.setattr(Writer, "submit", noted)
    return jobs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.db"


@pytest.fixture
def client(path: Path, alone: None, handed_over: list[int]) -> Iterator[Client]:
    with serving(app_of(path, durability="normal")) as port:
        client = Client(port)
        client.run("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        handed_over.clear()
        yield client


def answers(path: Path, durability: str) -> list[Any]:
    """What each statement of SCRIPT is answered, one request each on one stream."""
    found: list[Any] = []
    with serving(app_of(path, durability=durability, foreign_keys=True)) as port:
        client, baton = Client(port), None
        for sql in SCRIPT:
            answer = client.pipeline(execute(sql), baton=baton)
            baton = answer["baton"]
            found.append(outcome(answer["results"][0]))
    return [{**each, "query_duration_ms": 0} if "cols" in each else each for each in found]


def test_it_makes_no_difference_where_a_write_runs(
    tmp_path: Path, alone: None, handed_over: list[int]
) -> None:
    here = answers(tmp_path / "here.db", "normal")
    inline = len(handed_over)
    there = answers(tmp_path / "there.db", "full")  # always in a group
    assert here == there
    assert inline < (len(handed_over) - inline) // 2


def test_a_small_write_needs_no_thread(client: Client, handed_over: list[int]) -> None:
    (result,) = client.run("INSERT INTO t(b) VALUES('quick')")
    assert (result["affected_row_count"], result["last_insert_rowid"]) == (1, "1")
    assert handed_over == []
    client.run(f"INSERT INTO t(b) VALUES('{'large' * 5000}')")
    assert len(handed_over) == 1


def test_writes_that_follow_one_another_closely_are_gathered(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atonce, "_ALONE_SECONDS", 60.0)
    gathered: list[Any] = []
    submit = atonce.AtOnce.submit

    def noted(at_once: atonce.AtOnce, job: Any) -> None:
        gathered.append(job)
        submit(at_once, job)

    monkeypatch.setattr(atonce.AtOnce, "submit", noted)
    with serving(app_of(path, durability="normal")) as port:
        client = Client(port)
        client.run("CREATE TABLE t(a)")
        client.run("INSERT INTO t VALUES(1)")
        assert client.rows("SELECT * FROM t") == [[1]]
    assert len(gathered) == 1  # the second


def test_a_write_that_lasts_is_run_once_in_the_thread(
    client: Client, handed_over: list[int]
) -> None:
    (result,) = client.run(LONG)
    assert result["affected_row_count"] == 60000
    assert len(handed_over) == 1
    assert client.rows("SELECT count(*), max(a) FROM t") == [[60000, 60000]]
    (failed,) = client.run(LONG.replace("SELECT i FROM", "SELECT i, i FROM"))
    assert "columns" in failed["message"]


@pytest.mark.plain
def test_a_lock_of_another_program_is_waited_for_in_the_thread(client: Client, path: Path) -> None:
    insert = "INSERT INTO t(b) VALUES('ours')"
    (result,) = write_against_a_lock(client.port, path, lambda: client.run(insert))
    assert result["last_insert_rowid"] == "2"
    assert client.rows("SELECT b FROM t") == [["theirs"], ["ours"]]


def test_a_transaction_of_another_stream_is_waited_for(client: Client) -> None:
    other = Client(client.port)
    begun = other.pipeline(execute("BEGIN IMMEDIATE"), execute("INSERT INTO t(b) VALUES('first')"))
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.run, "INSERT INTO t(b) VALUES('second')")
        other.pipeline(execute("COMMIT"), baton=begun["baton"])
        waiting.result(30)
    assert client.rows("SELECT b FROM t") == [["first"], ["second"]]


def test_what_steps_do_not_count_leaves_the_event_loop(
    path: Path, alone: None, handed_over: list[int]
) -> None:
    app = app_of(path, durability="normal")
    with serving(app) as port:
        client = Client(port)
        client.run("CREATE TABLE t(a)", "INSERT INTO t VALUES(1)")
        executor = app._routes._executor
        assert executor is not None
        assert executor._reads._spare == []
        assert client.rows("SELECT length(hex(zeroblob(20000000)))") == [[40000000]]
        assert len(executor._reads._spare) == 1  # it was run on one of these
        handed_over.clear()
        (made,) = client.run("INSERT INTO t VALUES(zeroblob(20000000))")
        assert made["affected_row_count"] == 1
        assert client.rows("SELECT sum(length(a)) FROM t") == [[20000001]]
        (gone,) = client.run("DELETE FROM t")
        assert gone["affected_row_count"] == 2
        assert len(handed_over) == 2
