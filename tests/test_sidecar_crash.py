"""kill -9 of the writer, the primary's sidecar and the follower, at moments of chance: followers end equal.

And without a second copy: the replica stays the same file, and what it receives after a kill is little.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from sidecars import Sidecar, holds, primary, read, replica
from soaking import Soak
from stock import Stock, run
from test_background import eventually

TURNS = 6
MOST = 40  # rows until a kill
WRITER = """
import random, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
connection.execute(f"PRAGMA wal_autocheckpoint={sys.argv[2]}")
for _ in sys.stdin:
    connection.execute("BEGIN IMMEDIATE")
    for _ in range(random.choice((1, 1, 1, 50))):
        connection.execute("INSERT INTO t(b) VALUES(randomblob(?))", (random.randrange(2000),))
    connection.execute("COMMIT")
    print(connection.execute("SELECT max(i) FROM t").fetchone()[0], flush=True)
"""
EVERYTHING = "SELECT count(*), sum(i), sum(length(b)), max(b) FROM t"


@contextmanager
def writing(path: Path, autocheckpoint: int) -> Iterator[subprocess.Popen[str]]:
    """The application: for each line it commits, and prints the number of its last row; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(autocheckpoint)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        process.stdout.close()


def commits(writer: subprocess.Popen[str], count: int) -> int:
    """Have it commit so often and once more, which is under way; the last row that was acknowledged."""
    assert writer.stdin is not None
    assert writer.stdout is not None
    writer.stdin.write("\n" * (count + 1))
    lines = [writer.stdout.readline() for _ in range(count)]
    return int(lines[-1])


@pytest.mark.soak
def test_kills_at_random_cost_nothing_and_no_second_copy(tmp_path: Path, soak: Soak) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    chance = random.Random(seed)
    here, there = tmp_path / "primary", tmp_path / "replica"
    here.mkdir()
    run(
        here / "db",
        "PRAGMA journal_mode=WAL",
        "CREATE TABLE t(i INTEGER PRIMARY KEY, b)",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2000) "
        "INSERT INTO t(b) SELECT randomblob(2000) FROM n",
    )
    more = "    roll-bytes: 512KiB\n"
    with ExitStack() as stack:
        one: Sidecar = stack.enter_context(primary(here, more))
        at = f"127.0.0.1:{one.port}"
        two: Sidecar = stack.enter_context(replica(there, one.url))
        eventually(lambda: holds(there / "db", 2000))
        inode = (there / "db").stat().st_ino
        for _ in soak.turns(TURNS):
            before = (here / "db").stat().st_size + (here / "db-wal").stat().st_size
            victim = chance.choice(("writer", "primary", "follower", "both"))
            with writing(here / "db", chance.choice((0, 10, 1000))) as writer:
                acknowledged = commits(writer, chance.randint(1, MOST))
                if victim in ("primary", "both"):
                    one.kill()
                if victim in ("follower", "both"):
                    two.kill()
                if victim != "writer":
                    acknowledged = commits(writer, chance.randint(1, MOST))
            if victim in ("primary", "both"):
                one = stack.enter_context(primary(here, more, at=at))
            if victim in ("follower", "both"):
                two = stack.enter_context(replica(there, one.url))
            with Stock(here / "db") as stock:
                rows = stock.execute("SELECT count(*) FROM t")[0][0]
            assert rows >= acknowledged
            eventually(lambda n=rows: holds(there / "db", n))
            assert read(there / "db", EVERYTHING) == read(here / "db", EVERYTHING)
            assert (there / "db").stat().st_ino == inode
            if victim in ("follower", "both"):
                received = two.metric("nearlite_replica_received_bytes_total", "db")
                assert received is not None
                assert received < before / 2  # what is new is less than that
            soak.count(kills=2 if victim == "both" else 1)
        for path in (here / "db", there / "db"):
            assert read(path, "PRAGMA integrity_check") == "[('ok',)]"
        eventually(two.healthy)
        assert "Traceback" not in one.log + two.log
