"""Catching up after 100,000 updates of the same 1,000 rows: bytes of the answer, and seconds.

A replica that is brought up over a network (compressed chunks), 100,000 transactions and two dozen
generations behind. The measure is the distinct pages that differ between the two states, found in the files
by stock SQLite, 4096 bytes each: a system that ships its log sends 100,000 frames, 412 MB.

Bad would be: bytes that follow the number of updates, or more than the pages have.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from pairs import Pairs, Sample
from peers import Server
from systems import OURS

from nearlite.replica import Replica

Open = Iterator[Callable[[], Sample]]
PAGE = 4096
ROWS = 1000
UPDATES = 100_000
PIPELINE = 500  # transactions in one request


def pages_of(path: Path) -> list[bytes]:
    """The pages of a database, as stock SQLite reads them."""
    copy = path.with_name("copy.db")
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    data = copy.read_bytes()
    copy.unlink()
    return [data[at : at + PAGE] for at in range(0, len(data), PAGE)]


def update(server: Server) -> None:
    """100,000 transactions, of one row each: without BEGIN those of a request would be committed together."""
    for first in range(0, UPDATES, PIPELINE):
        updates = (
            f"UPDATE t SET n = n + 1 WHERE id = {at * 7 % ROWS + 1}"
            for at in range(first, first + PIPELINE)
        )
        server.run(*(text for update in updates for text in ("BEGIN", update, "COMMIT")))


@contextmanager
def catching_up(folder: Path, pages: list[float]) -> Open:
    """Bytes and seconds of one sync(); `pages`: bytes of the pages that differ, a sample each."""
    path = folder / "replica.db"
    with OURS.serve(folder) as server:
        server.run(
            "CREATE TABLE t(id INTEGER PRIMARY KEY, n INTEGER, text TEXT)",
            "INSERT INTO t WITH RECURSIVE c(i) AS "
            f"(VALUES(1) UNION ALL SELECT i + 1 FROM c WHERE i < {ROWS}) "
            "SELECT i, 0, hex(randomblob(50)) FROM c",
        )
        with closing(Replica(str(path), server.url)) as replica:
            replica.open()
            replica.transport.loopback = False  # as if the primary were on another machine

            def sample() -> Sample:
                replica.sync()
                before = pages_of(path)
                update(server)
                counted = replica.stats(ask=True).transactions_behind
                assert counted == UPDATES
                done = replica.sync()
                after = pages_of(path)
                differ = sum(a != b for a, b in zip(before[1:], after[1:], strict=False))
                pages.append(float(differ * PAGE))
                return {"catchup_bytes": float(done.bytes), "catchup_seconds": done.seconds}

            yield sample


@contextmanager
def distinct(pages: list[float]) -> Open:
    """What the pages hold that the sync before has brought."""
    yield lambda: {"catchup_bytes": pages[-1]}


def bench_catching_up(pairs: Pairs, tmp_path: Path) -> None:
    pages: list[float] = []
    pairs(
        *("catchup_bytes", "catchup_seconds"),
        ours=partial(catching_up, tmp_path / "nearlite", pages),
        peer=partial(distinct, pages),
        rounds=1,
        warmup=0,
    )
