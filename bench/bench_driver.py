"""Local reads through the driver: the same calls on the same file, against the standard library.

Bad would be: more than one call into C for a point select, a Python object per value on the way, a call into C
for each parameter set, other threads that stand still during a long query.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from pairs import Pairs, Sample
from peers import sqld

Open = Iterator[Callable[[], Sample]]
Connect = Callable[[str], Any]
ROWS = 100_000
SETS = 600_000
LONG = "WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c WHERE i < 6000000) SELECT sum(i) FROM c"
POINT = "SELECT id, text, number, ratio FROM item WHERE id = ?"
SCAN = "SELECT id, text, number, ratio FROM item"
SCHEMA = "CREATE TABLE item(id INTEGER PRIMARY KEY, text TEXT, number INTEGER, ratio REAL)"
FILL = (
    "INSERT INTO item WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c "
    f"WHERE i < {ROWS}) SELECT i, 'item number ' || i, i * 7919, i / 7.0 FROM c"
)
IDS = [1 + number * 7919 % ROWS for number in range(2000)]


def _ours(path: str) -> Any:
    import nearlite  # each side imports only itself

    return nearlite.connect(path)


def _apsw(path: str) -> Any:
    import apsw

    return apsw.Connection(path)


def _file(folder: Path) -> Path:
    path = folder / "items.db"
    if not path.exists():
        with closing(sqlite3.connect(path)) as database:
            database.executescript(f"PRAGMA journal_mode = WAL; {SCHEMA}; {FILL}; PRAGMA optimize")
    return path


def _points(connection: Any) -> float:
    """Seconds of one point select. The loop is bare: what it costs itself would be on both sides."""
    execute = connection.execute
    start = perf_counter()
    for number in IDS:
        row = execute(POINT, (number,)).fetchone()
    seconds = perf_counter() - start
    assert row[:2] == (IDS[-1], f"item number {IDS[-1]}")
    return seconds / len(IDS)


def _scan(connection: Any) -> float:
    """Seconds of one scan."""
    start = perf_counter()
    rows = connection.execute(SCAN).fetchall()
    seconds = perf_counter() - start
    assert len(rows) == ROWS
    return seconds


@contextmanager
def local(connect: Connect, work: Callable[[Any], float], folder: Path) -> Open:
    """Seconds of one point select, or of one scan, on a local file."""
    with closing(connect(str(_file(folder)))) as connection:
        yield lambda: work(connection)


@contextmanager
def libsql_replica(folder: Path) -> Open:
    """Seconds of one point select on a replica of libsql."""
    import libsql_experimental as libsql

    with sqld(folder / "sqld") as server:
        server.run(SCHEMA, FILL)
        path = str(folder / "libsql.db")
        with closing(libsql.connect(path, sync_url=server.url)) as connection:
            connection.sync()
            yield lambda: _points(connection)


@contextmanager
def inserts(connect: Connect) -> Open:
    """Seconds of one executemany of SETS sets into a table in memory, in one transaction."""
    sets = [(i, f"row number {i}", i * 0.5, None) for i in range(SETS)]

    def sample() -> float:
        with closing(connect(":memory:")) as connection:
            connection.execute("CREATE TABLE item(a, b, c, d)")
            cursor = connection.cursor()
            start = perf_counter()
            cursor.execute("BEGIN")
            cursor.executemany("INSERT INTO item VALUES (?, ?, ?, ?)", sets)
            cursor.execute("COMMIT")
            seconds = perf_counter() - start
            assert connection.execute("SELECT count(*) FROM item").fetchone() == (SETS,)
        return seconds

    yield sample


def _counted(seconds: float, ended: threading.Event) -> float:
    """Rounds a second of a loop of plain Python, for so long or until the event."""
    rounds, start = 0, perf_counter()
    while not ended.is_set() and perf_counter() - start < seconds:
        for _ in range(1000):
            pass
        rounds += 1
    return rounds / (perf_counter() - start)


@contextmanager
def beside_a_query(connect: Connect) -> Open:
    """Rounds a second of a loop while another thread is in one long query."""

    def sample() -> float:
        ended = threading.Event()

        def query() -> None:
            with closing(connect(":memory:")) as connection:
                connection.execute(LONG).fetchall()
            ended.set()

        thread = threading.Thread(target=query)
        thread.start()
        rate = _counted(60.0, ended)
        thread.join()
        return rate

    yield sample


@contextmanager
def by_itself() -> Open:
    """The same loop with nothing beside it."""
    yield lambda: _counted(0.5, threading.Event())


def _against(connect: Connect, work: Callable[[Any], float], folder: Path) -> dict[str, Any]:
    return {
        "ours": partial(local, _ours, work, folder),
        "peer": partial(local, connect, work, folder),
    }


def bench_point_select(pairs: Pairs, tmp_path: Path) -> None:
    pairs("point_select", **_against(sqlite3.connect, _points, tmp_path), rounds=51)


def bench_point_select_against_apsw(pairs: Pairs, tmp_path: Path) -> None:
    pairs("point_select_apsw", **_against(_apsw, _points, tmp_path), rounds=51)


def bench_point_select_against_libsql(pairs: Pairs, tmp_path: Path) -> None:
    ours = partial(local, _ours, _points, tmp_path)
    pairs("point_select_libsql", ours=ours, peer=partial(libsql_replica, tmp_path), rounds=9)


def bench_scan(pairs: Pairs, tmp_path: Path) -> None:
    pairs("scan", **_against(sqlite3.connect, _scan, tmp_path), rounds=15)


def bench_scan_against_apsw(pairs: Pairs, tmp_path: Path) -> None:
    pairs("scan_apsw", **_against(_apsw, _scan, tmp_path), rounds=15)


def bench_executemany_against_apsw(pairs: Pairs) -> None:
    pairs("executemany_apsw", ours=partial(inserts, _ours), peer=partial(inserts, _apsw), rounds=5)


def bench_another_thread_goes_on(pairs: Pairs) -> None:
    pairs("another_thread", ours=partial(beside_a_query, _ours), peer=by_itself, rounds=7)
