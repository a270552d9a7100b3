"""SQL over HTTP against sqld: reads and writes from 16 connections, by wrk.

Bad would be: reads that leave the event loop for a thread (a hop costs more than the statement),
one fsync per write, a p99 that shows reads waiting behind writes or the garbage collector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from load import load, pipeline
from pairs import Pairs, Sample
from peers import Server, sqld
from systems import nearlite_serve

Open = Iterator[Callable[[], Sample]]
Serve = Callable[[Path], AbstractContextManager[Server]]
CONNECTIONS = 16
SECONDS = 3
ROWS = 10_000
INSERT = pipeline("INSERT INTO note(text) VALUES (?)", "hello from one of sixteen connections")


@contextmanager
def notes(serve: Serve, folder: Path) -> Iterator[Server]:
    with serve(folder) as server:
        server.run(
            "CREATE TABLE note(id INTEGER PRIMARY KEY, text TEXT NOT NULL)",
            "INSERT INTO note(text) WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c "
            f"WHERE i < {ROWS}) SELECT 'note number ' || i FROM c",
        )
        yield server


@contextmanager
def reads(serve: Serve, folder: Path) -> Open:
    """Point selects by primary key: requests per second, and their p99 in seconds."""
    select = "SELECT id, text FROM note WHERE id = ?"
    bodies = [pipeline(select, 1 + i * 97 % ROWS) for i in range(64)]
    with notes(serve, folder) as server:

        def sample() -> Sample:
            run = load(
                f"{server.url}/v2/pipeline", bodies, connections=CONNECTIONS, seconds=SECONDS
            )
            return {"reads": run.per_second, "reads_p99": run.p99}

        yield sample


@contextmanager
def writes(serve: Serve, folder: Path) -> Open:
    """Single-row autocommit inserts: requests per second."""
    with notes(serve, folder) as server:

        def rows() -> int:
            return int(str(server.run("SELECT count(*) FROM note")[0][0][0]))

        def sample() -> Sample:
            before = rows()
            run = load(
                f"{server.url}/v2/pipeline", [INSERT], connections=CONNECTIONS, seconds=SECONDS
            )
            # Status 200 is also what carries SQL errors (sqld answers SQLITE_BUSY so): what counts
            # is the rows that are there, without those still on their way when the clock stopped.
            written = min(rows() - before, run.requests)
            assert written > 0.9 * run.requests
            return run.per_second * written / run.requests

        yield sample


def bench_pipeline_reads(pairs: Pairs, tmp_path: Path) -> None:
    pairs(
        *("reads", "reads_p99"),
        ours=partial(reads, nearlite_serve, tmp_path / "nearlite"),
        peer=partial(reads, sqld, tmp_path / "sqld"),
        rounds=5,
    )


def bench_pipeline_writes_durability_normal(pairs: Pairs, tmp_path: Path) -> None:
    pairs(
        "writes_normal",
        ours=partial(writes, partial(nearlite_serve, durability="normal"), tmp_path / "nearlite"),
        peer=partial(writes, sqld, tmp_path / "sqld"),
        rounds=5,
    )


def bench_pipeline_writes_durability_full(pairs: Pairs, tmp_path: Path) -> None:
    pairs(
        "writes_full",
        ours=partial(writes, partial(nearlite_serve, durability="full"), tmp_path / "nearlite"),
        peer=partial(writes, sqld, tmp_path / "sqld"),
        rounds=5,
    )
