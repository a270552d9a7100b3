"""Group commit: one COMMIT for many requests, each with exactly the effect it would have had alone."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sealing import reader
from serving import batch, execute, outcome, rows, transaction

from nearlite import hrana
from nearlite.group import Job
from nearlite.hrana import Planner
from nearlite.logstate import Durability
from nearlite.primary import Primary
from nearlite.session import Session
from nearlite.streams import Turn
from nearlite.writer import Writer

EITHER = True

SCHEMA = """
    CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE);
    CREATE TABLE parent(id INTEGER PRIMARY KEY);
    CREATE TABLE child(id INTEGER PRIMARY KEY, p REFERENCES parent(id) DEFERRABLE INITIALLY DEFERRED);
    CREATE TABLE fragile(a);
    CREATE TRIGGER stop BEFORE INSERT ON fragile WHEN new.a = 'rollback'
        BEGIN SELECT RAISE(ROLLBACK, 'rolled back by a trigger'); END;
    CREATE TRIGGER fail BEFORE INSERT ON fragile WHEN new.a = 'fail'
        BEGIN SELECT RAISE(FAIL, 'failed by a trigger'); END;
"""
PRIMARY_KEY, FOREIGN_KEY = 1555, 787  # extended result codes


class Bench:
    """A writer whose groups the test decides: while the turn is held, jobs pile up."""

    def __init__(
        self, path: Path, *, foreign_keys: bool = False, durability: Durability = "normal"
    ) -> None:
        self.path = path
        self.primary = Primary.open(path, durability=durability)
        session = Session(self.primary.connect(), foreign_keys=foreign_keys, shared=True)
        session.database.exec(SCHEMA)
        self.primary.after_commit()
        self.commits: list[object] = []
        self.done: dict[int, threading.Event] = {}
        self.primary.subscribe(self.commits.append)
        self.turn = Turn()
        self.writer = Writer(
            lambda: session, lambda _: self.primary.after_commit(), self.turn, self._deliver, 30.0
        )
        self.writer.start()

    def _deliver(self, jobs: list[Job]) -> None:
        for job in jobs:
            job.resolve(job)

    def job(self, *requests: Any, cursor: bool = False, counters: Any = (0, 0, 0)) -> Job:
        body = json.dumps({"requests": requests}).encode()
        done = threading.Event()
        job = Job(
            Planner(3, {}).plan(hrana.decode_pipeline(body).requests),
            counters,
            lambda _job: done.set(),
            cursor=cursor,
        )
        self.done[id(job)] = done
        return job

    def group(self, *jobs: Job) -> None:
        """Run jobs as one group."""
        held = threading.Event()
        ticket = self.turn.request(held.set)
        assert held.wait(10)
        for job in jobs:
            self.writer.submit(job)
        self.turn.release(ticket)
        for job in jobs:
            assert self.done[id(job)].wait(10), "a job was not answered"

    def ask(self, sql: str) -> list[Any]:
        """What stock SQLite reads."""
        connection = reader(f"file:{self.path}?mode=ro", uri=True)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()

    def close(self) -> None:
        self.writer.stop()
        self.primary.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path / "data.db")
    yield bench
    bench.close()
    assert bench.ask("PRAGMA integrity_check") == [("ok",)]


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Bench]:
    """Foreign keys enforced."""
    bench = Bench(tmp_path / "strict.db", foreign_keys=True)
    yield bench
    bench.close()
    assert bench.ask("PRAGMA foreign_key_check") == []


def outcomes(job: Job) -> list[Any]:
    assert job.failure is None
    return [outcome(json.loads(result)) for result in job.results]


def codes(job: Job) -> list[str | None]:
    return [result.get("code") for result in outcomes(job)]


def insert(a: int, b: object = None) -> dict[str, Any]:
    return execute("INSERT INTO t VALUES (?, ?)", a, b)


def test_many_requests_are_one_commit(bench: Bench) -> None:
    jobs = [bench.job(insert(i)) for i in range(50)]
    bench.group(*jobs)
    assert [codes(job) for job in jobs] == [[None]] * 50
    assert bench.ask("SELECT count(*) FROM t") == [(50,)]
    assert len(bench.commits) == 1


def test_a_failed_request_leaves_the_others_alone(bench: Bench) -> None:
    jobs = [bench.job(insert(1)), bench.job(insert(1)), bench.job(insert(2))]
    bench.group(*jobs)
    assert [codes(job) for job in jobs] == [[None], ["SQLITE_CONSTRAINT"], [None]]
    assert outcomes(jobs[1])[0]["extended_code"] == PRIMARY_KEY
    assert bench.ask("SELECT a FROM t") == [(1,), (2,)]
    assert len(bench.commits) == 1


def test_or_fail_keeps_its_earlier_rows_as_in_autocommit(bench: Bench) -> None:
    failing = bench.job(execute("INSERT OR FAIL INTO t(a, b) VALUES (1, 1), (2, 1), (3, 3)"))
    by_trigger = bench.job(execute("INSERT INTO fragile VALUES ('kept'), ('fail'), ('never')"))
    bench.group(bench.job(insert(10)), failing, by_trigger, bench.job(insert(11)))
    assert codes(failing) == ["SQLITE_CONSTRAINT"]
    assert codes(by_trigger) == ["SQLITE_CONSTRAINT"]
    assert bench.ask("SELECT a FROM t") == [(1,), (10,), (11,)]
    assert bench.ask("SELECT a FROM fragile") == [("kept",)]


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT OR ROLLBACK INTO t VALUES (1, NULL)",
        "INSERT INTO fragile VALUES ('rollback')",
    ],
)
def test_a_statement_that_ends_the_transaction_leaves_the_group(bench: Bench, sql: str) -> None:
    earlier, later = bench.job(insert(1)), bench.job(insert(3))
    fatal = bench.job(insert(2), execute(sql), insert(4))
    bench.group(earlier, fatal, later)
    assert codes(earlier) == codes(later) == [None]
    assert fatal.finished == 1  # the rest is run alone, in order, by whoever asked
    assert codes(fatal) == [None]
    assert bench.ask("SELECT a FROM t") == [(1,), (2,), (3,)]


def test_many_statements_that_end_the_transaction_do_not_cost_a_group_each_time(
    bench: Bench,
) -> None:
    jobs = [
        bench.job(insert(i), execute("INSERT OR ROLLBACK INTO t VALUES (0, 0)")) for i in range(30)
    ]
    bench.group(*jobs)
    assert bench.ask("SELECT count(*) FROM t") == [(30,)]
    assert [job.finished for job in jobs] == [1] * 30


def test_a_violated_deferred_foreign_key_fails_its_request_alone(strict: Bench) -> None:
    broken = strict.job(execute("INSERT INTO child VALUES (1, 99)"))
    fine = strict.job(
        execute("INSERT INTO parent VALUES (1)"), execute("INSERT INTO child VALUES (2, 1)")
    )
    strict.group(strict.job(insert(1)), broken, fine, strict.job(insert(2)))
    assert outcomes(broken)[0]["extended_code"] == FOREIGN_KEY
    assert codes(fine) == [None, None]
    assert strict.ask("SELECT id FROM child") == [(2,)]
    assert strict.ask("SELECT a FROM t") == [(1,), (2,)]
    assert len(strict.commits) == 1


def test_a_deferred_foreign_key_may_be_satisfied_later_in_the_same_transaction(
    strict: Bench,
) -> None:
    job = strict.job(
        transaction("INSERT INTO child VALUES (1, 5)", "INSERT INTO parent VALUES (5)")
    )
    strict.group(job)
    assert outcomes(job)[0]["step_errors"] == [None] * 5
    assert strict.ask("SELECT p FROM child") == [(5,)]


def test_a_transaction_whose_commit_fails_is_rolled_back_by_its_client(strict: Bench) -> None:
    job = strict.job(
        transaction("INSERT INTO parent VALUES (1)", "INSERT INTO child VALUES (1, 99)")
    )
    strict.group(strict.job(insert(1)), job)
    (result,) = outcomes(job)
    assert result["step_errors"][3]["extended_code"] == FOREIGN_KEY
    assert result["step_results"][4] is not None  # ROLLBACK ran, because COMMIT had failed
    assert strict.ask("SELECT count(*) FROM parent") == [(0,)]
    assert strict.ask("SELECT count(*) FROM t") == [(1,)]


def test_or_fail_with_a_violated_foreign_key_keeps_nothing_as_in_autocommit(strict: Bench) -> None:
    sql = "INSERT OR FAIL INTO child(id, p) VALUES (1, 99), (1, 99)"
    alone = sqlite3.connect(":memory:", isolation_level=None)
    alone.executescript("PRAGMA foreign_keys=ON;" + SCHEMA)
    with pytest.raises(sqlite3.IntegrityError):
        alone.execute(sql)
    job = strict.job(execute(sql))
    strict.group(job)
    assert codes(job) == ["SQLITE_CONSTRAINT"]
    assert strict.ask("SELECT * FROM child") == alone.execute("SELECT * FROM child").fetchall()
    alone.close()


def test_a_batch_with_begin_and_commit_is_atomic_within_the_group(bench: Bench) -> None:
    good = bench.job(transaction("INSERT INTO t VALUES (1, 1)", "INSERT INTO t VALUES (2, 2)"))
    bad = bench.job(transaction("INSERT INTO t VALUES (3, 3)", "INSERT INTO t VALUES (1, 4)"))
    bench.group(good, bad, bench.job(insert(5)))
    (result,) = outcomes(bad)
    assert [error and error["code"] for error in result["step_errors"]] == [
        None,
        None,
        "SQLITE_CONSTRAINT",
        None,
        None,
    ]
    assert [step is not None for step in result["step_results"]] == [True, True, False, False, True]
    assert bench.ask("SELECT a FROM t") == [(1,), (2,), (5,)]
    assert len(bench.commits) == 1


def test_autocommit_is_answered_as_if_the_transaction_were_real(bench: Bench) -> None:
    auto, inside = {"type": "is_autocommit"}, {"type": "not", "cond": {"type": "is_autocommit"}}
    job = bench.job(
        batch(
            ("INSERT INTO t VALUES (1, 1)", auto),
            ("COMMIT", None),
            ("BEGIN", auto),
            ("BEGIN", None),
            ("INSERT INTO t VALUES (2, 2)", inside),
            ("INSERT INTO t VALUES (3, 3)", auto),
            ("COMMIT", inside),
            ("ROLLBACK", None),
        ),
        {"type": "get_autocommit"},
    )
    bench.group(job)
    result, autocommit = outcomes(job)
    messages = [error and error["message"] for error in result["step_errors"]]
    assert messages == [
        None,
        "SQLite error: cannot commit - no transaction is active",
        None,
        "SQLite error: cannot start a transaction within a transaction",
        None,
        None,
        None,
        "SQLite error: cannot rollback - no transaction is active",
    ]
    assert autocommit["is_autocommit"] is True
    assert bench.ask("SELECT a FROM t") == [(1,), (2,)]


@pytest.mark.parametrize(
    "request_",
    [
        batch("INSERT INTO t VALUES (1, 1)", "BEGIN", "INSERT INTO t VALUES (2, 2)"),
        batch("INSERT INTO t VALUES (1, 1)", "SAVEPOINT s"),
        batch("INSERT INTO t VALUES (1, 1)", "PRAGMA foreign_keys=ON"),
        batch("INSERT INTO t VALUES (1, 1)", "CREATE TEMP TABLE x(a)"),
        batch("INSERT INTO t VALUES (1, 1)", "VACUUM"),
        batch("INSERT INTO t VALUES (1, 1)", "INSERT INTO fragile VALUES ('rollback')"),
        {"type": "sequence", "sql": "INSERT INTO t VALUES (1, 1); BEGIN; SELECT 1"},
        execute("SAVEPOINT s"),
        execute(
            "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c) SELECT count(*) FROM c"
        ),
    ],
)
def test_what_cannot_be_part_of_a_group_leaves_nothing_in_it(bench: Bench, request_: Any) -> None:
    before, after, job = bench.job(insert(10)), bench.job(insert(11)), bench.job(request_)
    bench.group(before, job, after)
    assert job.finished == 0
    assert job.failure is None
    assert codes(before) == codes(after) == [None]
    assert bench.ask("SELECT a FROM t") == [(10,), (11,)]


def test_a_script_is_run_statement_by_statement_and_stops_at_the_first_error(bench: Bench) -> None:
    script = "CREATE TABLE n(x); INSERT INTO n VALUES (1); INSERT INTO t VALUES (1, 1), (1, 2); DROP TABLE n"
    job = bench.job({"type": "sequence", "sql": script})
    whole = bench.job(
        {"type": "sequence", "sql": "BEGIN; INSERT INTO t VALUES (7, 7); COMMIT; SELECT 1;"}
    )
    bench.group(job, whole)
    assert codes(job) == ["SQLITE_CONSTRAINT"]
    assert outcomes(whole) == [{"type": "sequence"}]
    assert bench.ask("SELECT x FROM n") == [(1,)]
    assert bench.ask("SELECT a FROM t") == [(7,)]


def test_rows_of_returning_are_answered(bench: Bench) -> None:
    job = bench.job(execute("INSERT INTO t(b) VALUES ('x'), ('y') RETURNING a, b"))
    bench.group(job)
    (result,) = outcomes(job)
    assert rows(result) == [[1, "x"], [2, "y"]]
    assert result["affected_row_count"] == 2


def test_counters_belong_to_the_stream(bench: Bench) -> None:
    ask = execute("SELECT last_insert_rowid(), changes(), total_changes()")
    first = bench.job(insert(70), ask)
    other = bench.job(execute("INSERT INTO t VALUES (80, 1), (81, 2), (82, 3)"), ask)
    reader = bench.job(ask, execute("DELETE FROM fragile"), counters=(5, 6, 7))
    bench.group(first, other, reader)
    assert rows(outcomes(first)[1]) == [[70, 1, 1]]
    assert rows(outcomes(other)[1]) == [[82, 3, 3]]
    assert rows(outcomes(reader)[0]) == [[5, 6, 7]]
    assert (first.counters, other.counters) == ((70, 1, 1), (82, 3, 3))
    assert reader.counters == (5, 0, 7)


def test_a_cursor_with_writes_is_answered_in_entries(bench: Bench) -> None:
    job = bench.job(
        batch("INSERT INTO t VALUES (1, 'x') RETURNING b", "INSERT INTO t VALUES (1, 1)"),
        cursor=True,
    )
    bench.group(job)
    entries = [json.loads(line) for line in job.results[0].splitlines()]
    assert [entry["type"] for entry in entries] == ["step_begin", "row", "step_end", "step_error"]
    assert entries[3]["step"] == 1


def test_a_statement_that_fills_the_database_leaves_the_group(bench: Bench) -> None:
    """SQLite ends the transaction with it. A COMMIT that fails is told to all: test_disk_full.py."""
    pages = bench.ask("PRAGMA page_count")[0][0]
    bench.writer._session.database.exec(f"PRAGMA max_page_count={pages}")
    jobs = [bench.job(insert(1)), bench.job(execute("INSERT INTO t VALUES (2, ?)", "x" * 100_000))]
    bench.group(*jobs, bench.job(insert(3)))
    assert [(codes(job), job.finished) for job in jobs] == [([None], 1), ([], 0)]
    assert bench.ask("SELECT a FROM t") == [(1,), (3,)]


def test_a_lock_held_by_another_process_fails_everybody_and_changes_nothing(bench: Bench) -> None:
    bench.writer._session.database.set_busy_timeout(20)
    stranger = reader(bench.path, isolation_level=None)
    stranger.execute("BEGIN IMMEDIATE")
    jobs = [bench.job(insert(1), {"type": "get_autocommit"}), bench.job(insert(2))]
    bench.group(*jobs)
    stranger.execute("ROLLBACK")
    stranger.close()
    assert [job.failure and job.failure.code for job in jobs] == ["SQLITE_BUSY"] * 2
    assert [job.results for job in jobs] == [[], []]
    bench.group(bench.job(insert(3)))
    assert bench.ask("SELECT a FROM t") == [(3,)]


def test_a_request_that_waited_too_long_is_refused_and_not_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "late.db")
    bench.writer._wait = 0.0
    job = bench.job(insert(1))
    job.queued -= 1
    bench.group(job)
    assert job.failure is not None
    assert job.failure.code == "TRANSACTION_BUSY"
    assert bench.ask("SELECT count(*) FROM t") == [(0,)]
    bench.close()


def test_a_write_that_lasts_is_kept_out_of_groups_afterwards(bench: Bench) -> None:
    bench.writer._running.patience = 1e9
    quick = "INSERT INTO t VALUES (1, 1)"
    bench.group(bench.job(execute(quick)))
    assert not bench.writer.lasts(quick)
    bench.writer._running.patience = -1.0  # from now on anything counts as lasting
    slow = "INSERT INTO t VALUES (2, 2)"
    bench.group(bench.job(execute(slow)))
    assert bench.writer.lasts(slow)
    assert not bench.writer.lasts(quick)


def test_nothing_is_answered_before_its_commit(bench: Bench) -> None:
    seen: list[Any] = []
    jobs: Sequence[Job] = [bench.job(insert(i)) for i in range(5)]
    for job in jobs:
        resolve = job.resolve

        def look(job: Job, resolve: Any = resolve) -> None:
            seen.append(bench.ask("SELECT count(*) FROM t")[0][0])
            resolve(job)

        job.resolve = look
    bench.group(*jobs)
    assert seen == [5] * 5


def test_a_failure_of_our_own_is_told_to_everybody_in_the_group(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Session.run

    def failing(self: Session, prepared: Any, step: Any, **more: Any) -> bytes:
        if step.args and step.args[0] == 2:
            raise MemoryError
        return run(self, prepared, step, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Session, "run", failing)
        jobs = [bench.job(insert(i)) for i in (1, 2, 3)]
        bench.group(*jobs)
    assert [job.failure.code for job in jobs if job.failure] == ["INTERNAL_ERROR"] * 3
    assert bench.ask("SELECT count(*) FROM t") == [(0,)]
    bench.group(*[bench.job(insert(i)) for i in (1, 2, 3)])
    assert bench.ask("SELECT count(*) FROM t") == [(3,)]
