"""kill -9 of whoever writes a captured database, and of whoever captures it: followers end equal, page set by page set.

The capture is a child that runs the test build where fault points exist; what it leaves is opened by the normal one.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import stack
from pagemodel import PageModel
from stock import dump, run
from test_capture import create, equal, until
from test_primary import bootstrap, follow

from nearlite.capture import Capture
from nearlite.position import Position

SECONDS = 6.0  # of random kills
ROWS = 200

WRITER = """
import random, sqlite3, sys
path, seed, auto = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
rng = random.Random(seed)
connection = sqlite3.connect(path, timeout=60, isolation_level=None)
run = connection.execute
run("PRAGMA synchronous=" + rng.choice(["OFF", "NORMAL", "FULL"]))
run(f"PRAGMA wal_autocheckpoint={auto}")
print("ready", flush=True)
while True:
    what = rng.random()
    run(rng.choice(["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"]))
    for _ in range(1 if what < 0.9 else 100):
        a, b = rng.sample(range(200), 2)
        run("UPDATE account SET sum = sum - 7, pad = randomblob(?) WHERE id = ?", (rng.randrange(900), a))
        run("UPDATE account SET sum = sum + 7 WHERE id = ?", (b,))
    run("ROLLBACK" if what < 0.05 else "COMMIT")
    if 0.88 < what < 0.885:
        run("VACUUM")
    if 0.885 < what < 0.89:
        run("PRAGMA wal_checkpoint(" + rng.choice(["PASSIVE", "FULL", "RESTART", "TRUNCATE"]) + ")").fetchall()
"""

SPILLS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA cache_size=5")
connection.execute("BEGIN")
connection.execute("UPDATE account SET pad = randomblob(3000)")
print("spilled", flush=True)
sys.stdin.read()
"""

CAPTURE = """
import sys, threading
from nearlite import capture
from nearlite._native import faults
capture._QUIET, capture._ROLL_PAUSE = 0.3, 0.02
opened = capture.Capture.open(sys.argv[1], roll_frames=30)
def tell(position):
    state = opened.state()
    print(state.position, state.hash, flush=True)
opened.subscribe(lambda position: told.set())
told = threading.Event()
print("ready", flush=True)
while True:
    told.wait()
    told.clear()
    tell(None)
"""

POINTS = [
    "capture.moved",
    "capture.released",
    "capture.reopened",  # another file: tests/test_capture_faults.py
    "capture.repinned",
]


def test_every_fault_point_of_the_capture_has_its_crash():
    import nearlite.capture

    assert nearlite.capture
    from nearlite._native import faults

    mine = [name for name in faults.names() if name.startswith("capture.")]
    assert sorted(mine) == POINTS


def writer(path: Path, seed: int, auto: int) -> subprocess.Popen:
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(seed), str(auto)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "ready\n"
    return child


def capture(path: Path, fault: str = "") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CAPTURE, str(path)],
        env={**os.environ, "NEARLITE_FFI": "test", "NL_FAULT": fault},
        stdout=subprocess.PIPE,
        text=True,
    )


def accounts(path: Path) -> Path:
    return create(
        path,
        "CREATE TABLE account(id INTEGER PRIMARY KEY, sum, pad)",
        f"WITH n(i) AS (VALUES(0) UNION ALL SELECT i+1 FROM n WHERE i<{ROWS - 1}) "
        "INSERT INTO account SELECT i, 100, randomblob(900) FROM n",
    )


def goes_on(path: Path, model: PageModel, told: list[str], tmp_path: Path) -> int:
    """A capture starts; who stands at a position that was told goes on; answers the pages that took."""
    with Capture.open(path) as opened:
        for line in told[-20:]:
            position, state_hash = line.split()
            answer = opened.changes(Position.parse(position), int(state_hash))
            assert answer is not None or Position.parse(position) == opened.latest
            if answer is not None:
                answer.close()
        carried = follow(opened, model)
        equal(opened, model, tmp_path)
    return carried


def consistent(path: Path) -> None:
    """No transaction is torn."""
    assert run(path, "SELECT sum(sum) FROM account") == [[ROWS * 100]]
    dump(path)


def told_by(child: subprocess.Popen) -> list[str]:
    """What it told, but for a line that it was killed in."""
    lines = child.communicate()[0].splitlines(keepends=True)
    return [line for line in lines if line.count(" ") and line.endswith("\n")]


@pytest.mark.parametrize("point", [*POINTS[:2], POINTS[3], *stack.PRIMARY_POINTS, "roll.copy"])
def test_killed_at(tmp_path, point):
    path = accounts(tmp_path / "data.db")
    with Capture.open(path) as opened:
        model = bootstrap(opened)
    child = capture(path, f"{point}:kill")
    writes = None
    try:
        if child.stdout.readline() == "ready\n":
            writes = writer(path, 1, 1000)
            if point.startswith("capture."):
                checkpoints(path, child)
        child.wait(30)
    finally:
        if writes is not None:
            writes.kill()
            writes.communicate()
    told = told_by(child)
    assert child.returncode == -signal.SIGKILL, f"{point} was not passed"
    goes_on(path, model, told, tmp_path)
    consistent(path)


def checkpoints(path: Path, child: subprocess.Popen) -> None:
    """Truncating checkpoints of another program, until the child is dead."""
    connection = sqlite3.connect(path, timeout=10, isolation_level=None)
    end = time.monotonic() + 20
    while child.poll() is None and time.monotonic() < end:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        threading.Event().wait(0.02)
    connection.close()


@pytest.mark.parametrize("seed", range(2))
def test_random_kills_of_writer_and_capture(tmp_path, seed):
    """Without a full copy after the first: what a follower is sent stays below what the database has."""
    rng = random.Random(seed)
    path = accounts(tmp_path / "data.db")
    with Capture.open(path) as opened:
        model = bootstrap(opened)
        lineage = opened.latest.lineage
    end = time.monotonic() + SECONDS
    told: list[str] = []
    while time.monotonic() < end:
        child = capture(path)
        assert child.stdout.readline() == "ready\n"
        writes = writer(path, rng.randrange(1000), rng.choice([0, 20, 1000]))
        threading.Event().wait(rng.random() * 0.8)
        for victim in rng.sample([child, writes], 2):
            victim.kill()
            victim.wait()
            threading.Event().wait(rng.random() * 0.05)
        writes.communicate()
        told = told_by(child)
        goes_on(path, model, told, tmp_path)
        consistent(path)
    assert model.at.lineage == lineage


def test_a_writer_that_is_killed_in_a_transaction_leaves_nothing(tmp_path):
    """A7: its frames stand in the WAL, are not published, and are written over by the next."""
    path = accounts(tmp_path / "data.db")
    with Capture.open(path) as opened:
        model = bootstrap(opened)
        child = subprocess.Popen(
            [sys.executable, "-c", SPILLS, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout.readline() == "spilled\n"
        before = opened.state()
        assert os.stat(f"{path}-wal").st_size > 100_000
        child.kill()
        child.communicate()
        assert opened.state() == before
        run(path, "UPDATE account SET pad = 'after' WHERE id = 3")
        until(lambda: opened.latest > before.position)
        equal(opened, model, tmp_path)
