"""Groups of writes that the event loop commits itself: all of them, or none, which the thread then runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sealing import reader
from serving import batch, execute, outcome

from nearlite import atonce, hrana
from nearlite.atonce import AtOnce
from nearlite.group import Job
from nearlite.hrana import Planner
from nearlite.primary import Primary
from nearlite.session import Session
from nearlite.streams import Turn

EITHER = True

SCHEMA = """
    CREATE TABLE t(a INTEGER PRIMARY KEY, b UNIQUE);
    CREATE TABLE fragile(a);
    CREATE TRIGGER stop BEFORE INSERT ON fragile
        BEGIN SELECT RAISE(ROLLBACK, 'rolled back by a trigger'); END;
"""
LONG = (
    "INSERT INTO t(b) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 60000) "
    "SELECT i FROM c"
)


class Bench:
    """Runs jobs as one turn of an event loop would.

    Attributes:
      commits: positions announced since the schema was made.
      handed: jobs that the writing thread is to run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.primary = Primary.open(path, durability="normal")
        self.session = Session(self.primary.connect(), shared=True)
        self.session.database.exec(SCHEMA)
        self.primary.after_commit()
        self.commits: list[object] = []
        self.handed: list[Job] = []
        self.answered: list[Job] = []
        self.primary.subscribe(self.commits.append)
        self.turn = Turn()

    def run(self, *jobs: Job) -> None:
        async def turn() -> None:
            at_once = AtOnce(
                lambda: self.session,
                self.turn,
                steps=50_000,
                small=lambda _step: True,
                committed=lambda _: self.primary.after_commit(),
                hand_over=self.handed.append,
            )
            for job in jobs:
                assert at_once.takes(job.plans)
                at_once.submit(job)
            for _ in range(len(jobs) + 1):  # turns: one for each job at most
                await asyncio.sleep(0)

        asyncio.run(turn())

    def job(self, *requests: Any) -> Job:
        body = json.dumps({"requests": requests}).encode()
        plans = Planner(3, {}).plan(hrana.decode_pipeline(body).requests)
        return Job(plans, (0, 0, 0), self.answered.append)

    def answers(self, job: Job) -> list[Any]:
        assert self.answered.count(job) == 1
        return [outcome(json.loads(result)) for result in job.results]

    def rows(self) -> list[Any]:
        """What stock SQLite reads."""
        connection = reader(f"file:{self.path}?mode=ro", uri=True)
        try:
            return [row[0] for row in connection.execute("SELECT b FROM t ORDER BY a")]
        finally:
            connection.close()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setattr(atonce, "_GROUP_SECONDS", 60.0)  # however busy the machine is
    bench = Bench(tmp_path / "data.db")
    yield bench
    assert bench.turn.take() is not None  # it is always given back
    bench.session.close()
    bench.primary.close()


def test_jobs_of_one_turn_are_one_commit(bench: Bench) -> None:
    jobs = [
        bench.job(execute("INSERT INTO t(b) VALUES('one')"), execute("SELECT changes()")),
        bench.job(execute("INSERT INTO t(b) VALUES('one')")),
        bench.job(batch("BEGIN", "INSERT INTO t(b) VALUES('two')", "ROLLBACK")),
        bench.job(execute("INSERT INTO t(b) VALUES('three') RETURNING a")),
    ]
    bench.run(*jobs)
    assert len(bench.commits) == 1
    assert bench.handed == []
    assert bench.rows() == ["one", "three"]
    first, failed, undone, last = map(bench.answers, jobs)
    assert first[0]["last_insert_rowid"] == "1"
    assert failed[0]["code"] == "SQLITE_CONSTRAINT"
    assert undone[0]["step_errors"] == [None] * 3
    assert last[0]["rows"] == [[{"type": "integer", "value": "2"}]]


@pytest.mark.parametrize(
    "stopped", [LONG, "INSERT INTO fragile VALUES(1)"], ids=["lasts", "ends the transaction"]
)
def test_what_is_stopped_takes_nothing_along(bench: Bench, stopped: str) -> None:
    jobs = [
        bench.job(execute("INSERT INTO t(b) VALUES('before')")),
        bench.job(execute(stopped)),
        bench.job(execute("INSERT INTO t(b) VALUES('after')")),
    ]
    bench.run(*jobs)
    assert bench.handed == jobs
    assert bench.commits == []
    assert bench.rows() == []
    assert not bench.session.native.in_transaction
    bench.run(bench.job(execute("INSERT INTO t(b) VALUES('next')")))
    assert bench.rows() == ["next"]


def test_a_read_that_lasts_leaves_the_group_to_the_others(bench: Bench) -> None:
    slow = (
        "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 7000) "
        "SELECT count(*) FROM c"  # more steps than the loop has, fewer than a group in the thread
    )
    mixed = bench.job(execute("INSERT INTO t(b) VALUES('kept')"), execute(slow))
    other = bench.job(execute("INSERT INTO t(b) VALUES('other')"))
    bench.run(mixed, other)
    assert bench.handed == []
    assert (mixed.finished, other.finished) == (1, 1)  # the rest runs alone
    assert bench.rows() == ["kept", "other"]


def test_another_programs_lock_is_the_threads_to_wait_for(bench: Bench) -> None:
    stock = reader(bench.path, isolation_level=None)
    stock.execute("BEGIN IMMEDIATE")
    job = bench.job(execute("INSERT INTO t(b) VALUES('mine')"))
    bench.run(job)
    stock.execute("ROLLBACK")
    stock.close()
    assert bench.handed == [job]
    assert bench.rows() == []


def test_a_turn_that_another_has_is_the_threads_to_wait_for(bench: Bench) -> None:
    ticket = bench.turn.take()
    assert ticket is not None
    job = bench.job(execute("INSERT INTO t(b) VALUES('mine')"))
    bench.run(job)
    bench.turn.release(ticket)
    assert bench.handed == [job]


def test_a_client_that_left_is_not_written_for(bench: Bench) -> None:
    gone = bench.job(execute("INSERT INTO t(b) VALUES('gone')"))
    gone.cancelled = True
    stays = bench.job(execute("INSERT INTO t(b) VALUES('stays')"))
    bench.run(gone, stays)
    assert bench.rows() == ["stays"]
    assert bench.handed == []


def test_reads_get_their_turn_between_groups(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atonce, "_GROUP_SECONDS", 0.0)
    jobs = [bench.job(execute("INSERT INTO t(b) VALUES(?)", number)) for number in range(3)]
    bench.run(*jobs)
    assert len(bench.commits) == 3
    assert bench.rows() == [0, 1, 2]
    for job in jobs:
        bench.answers(job)


def test_large_requests_are_not_tried(bench: Bench) -> None:
    async def takes(*requests: Any) -> bool:
        at_once = AtOnce(
            lambda: bench.session,
            bench.turn,
            steps=1,
            small=lambda step: len(step.sql) < 100,
            committed=lambda _: bench.primary.after_commit(),
            hand_over=bench.handed.append,
        )
        return at_once.takes(bench.job(*requests).plans)

    write = "INSERT INTO t(b) VALUES(1)"
    assert asyncio.run(takes(execute(write), batch(write), {"type": "get_autocommit"}))
    assert not asyncio.run(takes(execute(write), execute(write + " " * 100)))
    assert not asyncio.run(takes(batch(*[write] * 9)))
    assert not asyncio.run(takes({"type": "sequence", "sql": write}))
