"""Threads in everything that they may share, for `make races`: ThreadSanitizer watches the C core meanwhile.

Not a test of outcomes: what is refused, because another thread is there or has closed it, is refused.
"""

from __future__ import annotations

import contextlib
import gc
import random
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nearlite

ROUNDS = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
THREADS = 6


class Total:
    """An aggregate, and a window function."""

    def __init__(self) -> None:
        self.rows = 0

    def step(self, *_values: object) -> None:
        """A row comes."""
        self.rows += 1

    def inverse(self, *_values: object) -> None:
        """A row goes."""
        self.rows -= 1

    def value(self) -> int:
        """How many there are."""
        return self.rows

    finalize = value


def operations(connection: Any, path: Path) -> list[Callable[[], Any]]:
    """What any thread may do, at any time, with a connection, its cursors and what it has open."""
    cursor = connection.cursor()
    blob = connection.blobopen("t", "b", 1)
    session = connection.session()
    execute = connection.execute

    def gives_up(status: int, *_pages: int) -> None:
        if status not in (
            nearlite.SQLITE_OK,
            nearlite.SQLITE_DONE,
        ):  # whoever writes may be waiting here as well
            raise nearlite.OperationalError("busy")

    def copied() -> None:
        with contextlib.closing(nearlite.connect(":memory:")) as target:
            connection.backup(target, pages=3, progress=gives_up)

    def elsewhere() -> None:
        with contextlib.closing(nearlite.connect(path, timeout=0.05)) as other:
            other.execute("INSERT INTO t(b) VALUES (?)", (b"other",))
            other.commit()
            other.execute("SELECT count(*) FROM t").fetchone()

    return [
        lambda: execute("SELECT f(a), b FROM t ORDER BY b COLLATE k").fetchall(),
        lambda: execute("SELECT g(a), max(w) FROM (SELECT a, g(a) OVER (ORDER BY a) AS w FROM t)").fetchall(),
        lambda: list(execute("SELECT a FROM t")),
        lambda: cursor.execute("SELECT a, b FROM t, (SELECT 1 UNION SELECT 2)"),
        lambda: cursor.fetchmany(7),
        cursor.fetchone,
        cursor.fetchall,
        lambda: connection.executemany("INSERT INTO t(b) VALUES (?)", [(b"x",)] * 5),
        lambda: connection.executemany("INSERT INTO t(b) VALUES (?)", ((b"y",) for _ in range(5))),
        lambda: execute("DELETE FROM t WHERE a > 300"),
        connection.commit,
        connection.rollback,
        lambda: blob.read(2),
        lambda: blob.seek(0),
        lambda: blob.write(b"z"),
        lambda: nearlite.read_changeset(session.changeset()),
        lambda: connection.create_function("h", 1, lambda value: value),
        lambda: connection.create_collation("other", lambda a, b: 0),
        lambda: connection.set_progress_handler(lambda: 0, 50),
        lambda: connection.set_progress_handler(None, 0),
        lambda: connection.set_authorizer(lambda *_what: nearlite.SQLITE_OK),
        lambda: connection.set_authorizer(None),
        lambda: connection.set_trace_callback(lambda _sql: None),
        lambda: connection.set_trace_callback(None),
        connection.serialize,
        connection.snapshot,
        lambda: list(connection.iterdump()),
        connection.interrupt,
        lambda: connection.total_changes,
        lambda: connection.getlimit(nearlite.SQLITE_LIMIT_LENGTH),
        copied,
        elsewhere,
        gc.collect,
    ]  # fmt: skip


def shared(folder: Path, key: bytes | None) -> None:
    """One connection, and many threads."""
    path = folder / f"{'sealed' if key else 'plain'}.db"
    options: dict[str, Any] = {"encryption_key": key} if key else {}
    connection = nearlite.connect(path, check_same_thread=False, timeout=0.05, **options)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
    connection.executemany("INSERT INTO t VALUES (?, ?)", [(i, bytes(50)) for i in range(200)])
    connection.commit()
    connection.create_function("f", 1, lambda value: value)
    connection.create_window_function("g", 1, Total)
    connection.create_collation("k", lambda a, b: (a > b) - (a < b))
    todo = operations(connection, path)

    def work(seed: int) -> None:
        chosen = random.Random(seed)
        for _ in range(ROUNDS):
            with contextlib.suppress(nearlite.Error, ValueError, BufferError):
                chosen.choice(todo)()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    threads[0].join()
    while True:
        try:
            connection.close()
            break
        except nearlite.ProgrammingError:  # a copy is being made, or a statement runs
            continue
    for thread in threads:
        thread.join()


def main() -> None:
    """Plain, then sealed."""
    sys.setswitchinterval(1e-4)
    with tempfile.TemporaryDirectory() as folder:
        for key in (None, bytes(32)):
            shared(Path(folder), key)
    print("done")


if __name__ == "__main__":
    main()
