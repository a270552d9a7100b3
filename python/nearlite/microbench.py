"""`nearlite bench`: what this machine does, in under a minute and without any other software.

Local reads are compared with Python's own `sqlite3` on an equal file, in alternation, because two
blocks measured one after the other compare the weather of the machine. `make bench` in the repository
compares with other products; this command is for the machine that will run the application.
"""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import nearlite
from nearlite import inspection
from nearlite._native.frames import state_hash
from nearlite.spawn import primary

PAIRS = 9
POINT = "SELECT text FROM item WHERE id = ?"
SCAN = "SELECT id, text, number, ratio FROM item"
INSERT = "INSERT INTO note(text) VALUES (?)"
_BLOCK = 1000  # point selects clocked as one block
_PAGES, _PAGE_SIZE = 8192, 4096


def run(rows: int, console: Console) -> None:
    """Measure and print one table.

    Args:
      rows: rows of the table that is read, bootstrapped and changed.
      console: where the table goes.

    """
    table = Table("what", "nearlite", "sqlite3", "ratio", title=f"nearlite bench, {rows:,} rows")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nearlite-bench-")))
        url = stack.enter_context(primary(folder / "data.db", "--durability", "normal"))
        remote = stack.enter_context(closing(nearlite.connect(url, isolation_level=None)))
        _fill(remote, rows)
        path = str(folder / "replica.db")
        start = time.perf_counter()
        replica = nearlite.connect(path, sync_url=url, isolation_level=None)
        seconds = time.perf_counter() - start
        stack.enter_context(closing(replica))
        size = Path(path).stat().st_size
        table.add_row(f"bootstrap of {size / 1e6:,.1f} MB", f"{seconds:.3f} s", "", "")
        # A copy: two SQLites in one process may share a file on Linux only.
        inspection.backup_file(Path(path), folder / "stock.db")
        stock = stack.enter_context(closing(sqlite3.connect(folder / "stock.db")))
        stock.execute("PRAGMA journal_mode = WAL")  # as the replica is
        _reads(replica, stock, rows, table)
        _replication(remote, replica, rows, table)
        _hash(table)
    console.print(table)


def _fill(remote: Any, rows: int) -> None:
    remote.executescript(
        "CREATE TABLE item(id INTEGER PRIMARY KEY, text TEXT, number INTEGER, ratio REAL);"
        "CREATE TABLE note(id INTEGER PRIMARY KEY, text TEXT);"
    )
    remote.execute(
        "INSERT INTO item WITH RECURSIVE c(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM c "
        "WHERE i < ?) SELECT i, 'item number ' || i, i * 7919, i / 7.0 FROM c",
        (rows,),
    )


def _reads(replica: Any, stock: Any, rows: int, table: Table) -> None:
    """Point selects and scans, ours and stock in turn."""
    ids = [1 + number * 7919 % rows for number in range(_BLOCK)]

    def points(connection: Any) -> None:
        for number in ids:
            connection.execute(POINT, (number,)).fetchone()

    def scan(connection: Any) -> None:
        connection.execute(SCAN).fetchall()

    for what, work, calls in (("point select", points, _BLOCK), ("scan of all rows", scan, 1)):
        pairs = [
            (_clocked(lambda: work(replica)), _clocked(lambda: work(stock)))  # noqa: B023
            for _ in range(PAIRS)
        ]
        ours = statistics.median(pair[0] for pair in pairs) / calls
        theirs = statistics.median(pair[1] for pair in pairs) / calls
        ratio = statistics.median(pair[0] / pair[1] for pair in pairs)
        table.add_row(what, _duration(ours), _duration(theirs), f"{ratio:.2f} x")


def _replication(remote: Any, replica: Any, rows: int, table: Table) -> None:
    """Catching up, empty syncs, forwarded writes."""
    caught = []
    for step in range(PAIRS):
        remote.execute("UPDATE item SET number = number + 1 WHERE id % 10 = ?", (step % 10,))
        caught.append(replica.sync())
    pages = statistics.median(done.pages for done in caught)
    seconds = statistics.median(done.seconds for done in caught)
    what = f"sync of {pages:,.0f} changed pages ({rows // 10:,} rows)"
    table.add_row(what, f"{_duration(seconds)}, {pages / seconds:,.0f} pages/s", "", "")
    empty = statistics.median(_clocked(replica.sync) for _ in range(500))
    table.add_row("sync with nothing new, p50", _duration(empty), "", "")
    one = statistics.median(
        _clocked(lambda: replica.execute(INSERT, ("hello",))) for _ in range(300)
    )
    table.add_row("write on the replica, autocommit, p50", _duration(one), "", "")
    two = statistics.median(_clocked(lambda: _transaction(replica)) for _ in range(300))
    table.add_row("BEGIN, write, COMMIT on the replica, p50", _duration(two), "", "")


def _transaction(replica: Any) -> None:
    replica.execute("BEGIN")
    replica.execute(INSERT, ("hello",))
    replica.execute("COMMIT")


def _hash(table: Table) -> None:
    """How fast a state is hashed: what `nearlite verify` and a first sync of a copy cost."""
    pages = bytes(range(256)) * (_PAGES * _PAGE_SIZE // 256)
    seconds = statistics.median(
        _clocked(lambda: state_hash(pages, _PAGE_SIZE, 1)) for _ in range(PAIRS)
    )
    table.add_row("state hash", f"{len(pages) / seconds / 1e9:.1f} GB/s", "", "")


def _clocked(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"
