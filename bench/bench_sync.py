"""Replicas against libsql's: bootstrap, catching up, an empty sync, a forwarded write.

Bad would be: a bootstrap or catch-up whose time is not that of reading, sending and writing the
bytes, an empty sync() that costs more than one request on a kept-alive connection, a forwarded
write in autocommit that costs more than one, a transaction of one write that costs more than two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pairs import Pairs, Sample, median_of, timed
from peers import remove_database
from systems import LIBSQL, LIBSQL_ON_US, OURS, System
from workload import ROWS_OF_20000_PAGES, change_every, fill, page_count

Open = Iterator[Callable[[], Sample]]
SUM_OF_N = "SELECT count(*), sum(n) FROM page"


@contextmanager
def bootstrap(system: System, folder: Path) -> Open:
    """Connect, sync and read something, with no file there: seconds."""
    path = folder / "replica.db"
    with system.serve(folder) as server:
        fill(server, ROWS_OF_20000_PAGES)
        assert abs(page_count(server) - 20_000) < 100

        def first_sync() -> None:
            with system.replica(path, server.url) as replica:
                replica.sync()
                # By row id: a count would read the whole file and measure SQLite.
                newest = replica.execute("SELECT max(id) FROM page").fetchone()
                assert newest == (ROWS_OF_20000_PAGES,)

        def sample() -> float:
            remove_database(path)
            return timed(first_sync)

        yield sample


@contextmanager
def incremental(system: System, folder: Path) -> Open:
    """sync() after every fourth page was changed on the primary: seconds."""
    with system.serve(folder) as server:
        fill(server, ROWS_OF_20000_PAGES)
        with system.replica(folder / "replica.db", server.url) as replica:
            replica.sync()

            def sample() -> float:
                change_every(server, 4)
                seconds = timed(replica.sync)
                (theirs,) = server.run(SUM_OF_N)[0]
                assert replica.execute(SUM_OF_N).fetchone() == tuple(int(str(v)) for v in theirs)
                return seconds

            yield sample


@contextmanager
def _small(system: System, folder: Path, **options: object) -> Iterator[Any]:
    """A replica of a database with one table of notes."""
    with system.serve(folder) as server:
        server.run("CREATE TABLE note(id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
        with system.replica(folder / "replica.db", server.url, **options) as replica:
            replica.sync()
            yield replica


@contextmanager
def empty_sync(system: System, folder: Path) -> Open:
    """sync() when there is nothing new: median of 200, seconds."""
    with _small(system, folder) as replica:
        yield lambda: median_of(replica.sync, 200)


@contextmanager
def forwarded(system: System, folder: Path, *, autocommit: bool) -> Open:
    """INSERT on the replica, on the primary and visible on the replica: median of 100, seconds."""
    options: dict[str, object] = {"isolation_level": None} if autocommit else {}
    with _small(system, folder, **options) as replica:

        def write() -> None:
            replica.execute("INSERT INTO note(text) VALUES (?)", ("hello",))
            if not autocommit:
                replica.commit()

        def sample() -> float:
            (before,) = replica.execute("SELECT count(*) FROM note").fetchone()
            seconds = median_of(write, 100)
            # Read-your-writes is part of what is measured: a side that skipped it would be faster.
            (after,) = replica.execute("SELECT count(*) FROM note").fetchone()
            assert after == before + 100
            return seconds

        yield sample


def _both(
    side: Callable[..., Any], tmp_path: Path, ours: System = OURS, **options: object
) -> dict[str, Any]:
    return {
        name: partial(side, system, tmp_path / system.name, **options)
        for name, system in (("ours", ours), ("peer", LIBSQL))
    }


def bench_bootstrap_of_20000_pages(pairs: Pairs, tmp_path: Path) -> None:
    pairs("bootstrap", **_both(bootstrap, tmp_path), rounds=7)


def bench_incremental_sync_of_5000_pages(pairs: Pairs, tmp_path: Path) -> None:
    pairs("incremental", **_both(incremental, tmp_path), rounds=9)


def bench_empty_sync(pairs: Pairs, tmp_path: Path) -> None:
    pairs("empty_sync", **_both(empty_sync, tmp_path), rounds=9)


def bench_forwarded_write_in_autocommit(pairs: Pairs, tmp_path: Path) -> None:
    pairs("forward_autocommit", **_both(forwarded, tmp_path, autocommit=True), rounds=9)


def bench_forwarded_write_in_a_transaction(pairs: Pairs, tmp_path: Path) -> None:
    pairs("forward_commit", **_both(forwarded, tmp_path, autocommit=False), rounds=9)


def bench_libsql_client_bootstraps_from_us(pairs: Pairs, tmp_path: Path) -> None:
    pairs("pull_bootstrap", **_both(bootstrap, tmp_path, LIBSQL_ON_US), rounds=7)


def bench_libsql_client_syncs_from_us(pairs: Pairs, tmp_path: Path) -> None:
    pairs("pull_incremental", **_both(incremental, tmp_path, LIBSQL_ON_US), rounds=7)


def bench_libsql_client_finds_nothing_new_here(pairs: Pairs, tmp_path: Path) -> None:
    pairs("pull_empty", **_both(empty_sync, tmp_path, LIBSQL_ON_US), rounds=7)
