"""kill -9 of the primary at every dangerous instant: it starts again, and replicas go on.

The child runs the test build, where fault points exist; what it leaves is opened by the normal one.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import stack
from pagemodel import PageModel
from sealing import reader
from stock import run
from test_primary import bootstrap, execute, follow

from nearlite._native.database import NO_PARAMETERS
from nearlite.position import Position
from nearlite.primary import Primary

EITHER = True

CHILD = """
import sys
from nearlite.primary import Primary
primary = Primary.open(sys.argv[1])
database = primary.connect()
n = int(sys.argv[2])
for round in range(int(sys.argv[3])):
    for i in range(3):
        n += 1
        database.exec(f"INSERT INTO t VALUES({n}, randomblob(6000))")
        state = None
        primary.after_commit()
        state = primary.state()
        print(n, state.position, state.hash, flush=True)
    if round % 3 == 2:
        database.exec("DELETE FROM t WHERE i % 2; VACUUM")
        primary.after_commit()
    primary.roll()
database.close()
primary.close()
print("done", flush=True)
"""

POINTS = sorted([*stack.PRIMARY_POINTS, "generation.closed", "tail.read-page"])


def test_every_fault_point_of_the_log_has_its_crash():
    rooms = ("generation", "log", "roll", "tail")
    mine = [name for name in stack.names() if name.partition(".")[0] in rooms]
    # A roll of what another program writes copies first: see test_capture_crash.py.
    assert sorted(mine) == sorted([*POINTS, "roll.copy"])


def child(path: Path, n: int, rounds: int, fault: str = "") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path), str(n), str(rounds)],
        env={**os.environ, "NEARLITE_FFI": "test", "NL_FAULT": fault},
        stdout=subprocess.PIPE,
        text=True,
    )


def begin(path: Path) -> PageModel:
    with Primary.open(path) as primary:
        execute(primary, "CREATE TABLE t(i INTEGER PRIMARY KEY, b)", "INSERT INTO t VALUES(0, 0)")
        return bootstrap(primary)


def check(path: Path, model: PageModel, told: list[str]) -> None:
    """The primary starts, has what was told, and a replica at every position told goes on."""
    with Primary.open(path) as primary:
        state = primary.state()
        assert primary.verify() == (state.hash, 0)
        acknowledged = max([int(line.split()[0]) for line in told], default=0)
        rows = primary.connect().prepare("SELECT max(i) FROM t").run(NO_PARAMETERS)
        assert rows[0][0] >= acknowledged - acknowledged % 2
        for line in told:
            _, position, state_hash = line.split()
            answer = primary.changes(Position.parse(position), int(state_hash))
            assert answer is not None or Position.parse(position) == state.position
        follow(primary, model)
        execute(primary, "UPDATE t SET b = 'after'")
        follow(primary, model)
        assert model.at == primary.state().position
        assert model.hash == primary.verify()[0]


# Points of the log are passed by every file of a roll: later passes are other instants.
INSTANTS = [(point, 0) for point in POINTS if point != "generation.closed"] + [
    (point, after) for point in POINTS if point.startswith("log.") for after in (2, 3)
]


@pytest.mark.parametrize("glance", [False, True], ids=["alone", "glanced-at"])
@pytest.mark.parametrize(("point", "after"), INSTANTS)
def test_killed_at(tmp_path, point, after, glance):
    path = tmp_path / "data.db"
    model = begin(path)
    process = child(path, 1, 3, f"{point}:kill:{after}")
    told = [line for line in process.communicate()[0].splitlines() if line != "done"]
    if point != "tail.read-page":  # passed only by answers
        assert process.returncode == -signal.SIGKILL
    if glance:
        run(path, "SELECT count(*) FROM t")
    check(path, model, told)


SECTION = [
    "roll.2-archived",
    "roll.3-table",
    "roll.before-unpin",
    "roll.before-checkpoint",
    "roll.after-checkpoint",
    "roll.after-pin",
]


@pytest.mark.parametrize("point", SECTION)
def test_rule_a1_nobody_writes_or_checkpoints_inside_a_roll(tmp_path, point):
    """From before the last frames are copied until the new pin stands: a commit there would be cut off.
    The windows of a roll by SQLite's public calls are microseconds; here the roll stands still in them."""
    path = tmp_path / "data.db"
    model = begin(path)
    process = child(path, 1, 2, f"{point}:stop")
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    try:
        with closing(reader(path, timeout=0, isolation_level=None)) as stock:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                stock.execute("INSERT INTO t VALUES(1000000, 'cut off')")
            assert stock.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[0] == 1
    finally:
        process.send_signal(signal.SIGCONT)
    told = process.communicate()[0].splitlines()
    assert told.pop() == "done"
    check(path, model, told)


def test_killed_while_a_lost_generation_is_closed(tmp_path):
    path = tmp_path / "data.db"
    model = begin(path)
    process = child(path, 1, 9, "log.after-append:kill:4")
    told = process.communicate()[0].splitlines()
    assert process.returncode == -signal.SIGKILL
    run(path, "SELECT count(*) FROM t")
    for point in ["generation.closed:kill", "log.before-rename:kill:1", "log.after-rename:kill:1"]:
        process = child(path, 1, 1, point)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    check(path, model, told)


def test_killed_at_random_instants(tmp_path):
    path = tmp_path / "data.db"
    model = begin(path)
    seed = 20261120
    choose = random.Random(seed)
    n = 0
    for _ in range(6):
        process = child(path, n, 1000)
        told = [process.stdout.readline() for _ in range(choose.randrange(1, 16))]
        process.send_signal(signal.SIGKILL)
        told += process.communicate()[0].splitlines()
        assert process.returncode == -signal.SIGKILL, seed
        told = [line for line in told if len(line.split()) == 3]
        n = int(told[-1].split()[0]) + 1
        check(path, model, told[-12:])
