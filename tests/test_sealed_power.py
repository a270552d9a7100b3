"""Rule D4: wherever the power fails, a sealed file opens and holds what was committed, or a little more."""

from __future__ import annotations

import random
from contextlib import closing
from pathlib import Path

import pytest
from power import Disk, marks, recorded

import nearlite

KEY = bytes(range(32))

# Each transaction counts, and leaves a row whose length says which it was. What is behind a mark is durable.
WORK = """
import os, random, sys
import nearlite
folder, seed, synchronous = sys.argv[1], int(sys.argv[2]), sys.argv[3]
rng = random.Random(seed)
con = nearlite.connect(folder + "/a.db", encryption_key=bytes(range(32)), isolation_level=None)
con.execute(f"PRAGMA synchronous={synchronous}")
con.execute("PRAGMA wal_autocheckpoint=20")
con.execute("PRAGMA cache_size=5")
marks = os.open(folder + "/marks", os.O_WRONLY | os.O_CREAT, 0o600)
def mark(n):
    os.pwrite(marks, n.to_bytes(4, "big"), 0)
    os.fsync(marks)
con.execute("CREATE TABLE t(n INTEGER PRIMARY KEY, b)")
mark(0)
for n in range(1, 80):
    con.execute("BEGIN")
    con.execute("INSERT INTO t VALUES(?, zeroblob(?))", (n, n * 997 % 20000))
    if n % 5 == 0:
        con.execute("UPDATE t SET b = zeroblob(length(b))")
        con.execute("UPDATE t SET b = zeroblob(length(b)) WHERE n % 2")
    if n % 7 == 0:
        con.execute("DELETE FROM t WHERE n = ?", (n - 6,))
    con.execute("COMMIT")
    mark(n)
    if n % 11 == 0:
        con.execute("PRAGMA wal_checkpoint(%s)" % rng.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"]))
    if n == 40:
        con.execute("VACUUM")
con.close()
"""


def expected(n: int) -> list[tuple[int, int]]:
    gone = {m - 6 for m in range(7, n + 1, 7)}
    return [(m, m * 997 % 20000) for m in range(1, n + 1) if m not in gone]


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
@pytest.mark.parametrize("seed", range(3))
def test_wherever_the_power_fails(disk_folder: Path, seed: int, synchronous: str) -> None:
    folder = disk_folder
    found = folder.with_name("found")
    operations = recorded(WORK, folder, folder, seed, synchronous)
    disk, rng = Disk(operations, folder), random.Random(seed)
    # From when the file exists for certain: linked, and its folder synced.
    linked = next(i for i, op in enumerate(operations) if op.kind == "l")
    exists = (
        next(i for i in range(linked, len(operations)) if operations[i].path == str(folder)) + 1
    )
    known = marks(operations)
    assert len(operations) > 300
    states = set()
    for _ in range(400):
        count = rng.randrange(exists, len(operations) + 1)
        disk.after(count, rng).place(folder, found)
        with closing(nearlite.connect(found / "a.db", encryption_key=KEY)) as con:
            assert con.execute("PRAGMA integrity_check").fetchall() == [("ok",)], count
            told = [int.from_bytes(data, "big") for at, data in known if at <= count]
            if not con.execute("SELECT name FROM sqlite_schema").fetchall():
                assert not told or synchronous == "NORMAL"
                continue
            rows = con.execute("SELECT n, length(b) FROM t ORDER BY n").fetchall()
        n = rows[-1][0] if rows else 0
        assert rows == expected(n), count
        if synchronous == "FULL" and told:
            assert n >= told[-1], count
        states.add(n)
    assert len(states) > 20
