"""Rule E1 under load: both libraries, threads, forks and foreign processes on one file.

Seconds in the default run; minutes in ``make soak``.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from soaking import Soak

SECONDS = 2.0

# Every actor adds rows with its own name until the clock says so and prints how many were committed.
ACTORS = """
import os, sqlite3, sys, threading, time
import nearlite

path, seconds = sys.argv[1], float(sys.argv[2])
end = time.monotonic() + seconds
failures, counts, guard = [], {}, threading.Lock()

def connect(module):
    # A busy time beyond the test's: "locked" is then a failure, not an accident.
    return module.connect(path, seconds + 60, isolation_level=None)

def add(name, module, *, reopen, checkpoint=None):
    n = 0
    try:
        c = connect(module)
        while time.monotonic() < end:
            c.execute("BEGIN IMMEDIATE")
            c.execute("INSERT INTO t(who) VALUES(?)", (name,))
            c.execute("UPDATE total SET n = n + 1")
            c.execute("COMMIT")
            n += 1
            if checkpoint and n % 7 == 0:
                c.execute(f"PRAGMA wal_checkpoint({checkpoint})").fetchall()
            if reopen and n % reopen == 0:
                c.close()
                c = connect(module)
        c.close()
    except Exception as error:
        failures.append(f"{name}: {error!r}")
    with guard:
        counts[name] = n

def read(module):
    try:
        while time.monotonic() < end:
            c = connect(module)
            for _ in range(20):
                rows, total = c.execute(
                    "SELECT (SELECT count(*) FROM t), (SELECT n FROM total)").fetchone()
                if rows != total:
                    failures.append(f"{module.__name__}: {rows} rows, total {total}")
            c.close()
    except Exception as error:
        failures.append(f"reader {module.__name__}: {error!r}")

def fork():
    # A child now and then. It writes through nearlite alone: the stock library does not survive a fork
    # beside other threads, its mutexes stay locked in the child.
    n = 0
    while time.monotonic() < end:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                c = connect(nearlite)
                c.execute("BEGIN IMMEDIATE")
                c.execute("INSERT INTO t(who) VALUES('child')")
                c.execute("UPDATE total SET n = n + 1")
                c.execute("COMMIT")
                c.close()
                code = 0
            except BaseException as error:
                print(f"child: {error!r}", file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        if os.waitpid(pid, 0)[1]:
            failures.append("a child failed")
            break
        n += 1
        time.sleep(0.02)
    counts["child"] = n

threads = [
    threading.Thread(target=add, args=("near", nearlite), kwargs={"reopen": 0, "checkpoint": "PASSIVE"}),
    threading.Thread(target=add, args=("near2", nearlite), kwargs={"reopen": 5, "checkpoint": "TRUNCATE"}),
    threading.Thread(target=add, args=("stock", sqlite3), kwargs={"reopen": 3}),
    threading.Thread(target=read, args=(nearlite,)),
    threading.Thread(target=read, args=(sqlite3,)),
]
for t in threads: t.start()
fork()
for t in threads: t.join()
for failure in failures: print(failure, file=sys.stderr)
print(sum(counts.values()))
"""

FOREIGN = """
import sqlite3, sys, time
end, n = time.monotonic() + float(sys.argv[2]), 0
while time.monotonic() < end:
    c = sqlite3.connect(sys.argv[1], 120, isolation_level=None)
    for _ in range(5):
        c.execute("BEGIN IMMEDIATE")
        c.execute("INSERT INTO t(who) VALUES('foreign')")
        c.execute("UPDATE total SET n = n + 1")
        c.execute("COMMIT")
        n += 1
    c.close()
print(n)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="OFD locks are Linux's")
@pytest.mark.soak
@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_rule_e1_soak(tmp_path: Path, mode: str, soak: Soak) -> None:
    seconds = soak.seconds(SECONDS)
    path = tmp_path / "soak.db"
    c = sqlite3.connect(path, isolation_level=None)
    c.execute(f"PRAGMA journal_mode={mode}")
    c.execute("PRAGMA synchronous=OFF")
    c.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, who)")
    c.execute("CREATE TABLE total(n)")
    c.execute("INSERT INTO total VALUES(0)")
    c.close()
    running = [
        subprocess.Popen(
            [
                sys.executable,
                "-W",
                "ignore",
                "-c",
                textwrap.dedent(script),
                str(path),
                str(seconds),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # its children can be ended with it
        )
        for script in (ACTORS, FOREIGN)
    ]
    deadline = time.monotonic() + 2 * seconds + 100
    try:
        ends = [p.communicate(timeout=max(1.0, deadline - time.monotonic())) for p in running]
    finally:
        for p in running:
            os.killpg(p.pid, signal.SIGKILL) if p.poll() is None else None
    assert [errors for _, errors in ends] == ["", ""]
    c = sqlite3.connect(path)
    rows = c.execute("SELECT count(*) FROM t").fetchone()[0]
    assert rows == sum(int(out) for out, _ in ends)
    assert rows == c.execute("SELECT n FROM total").fetchone()[0]
    assert rows > 20
    soak.count(commits=rows)
    assert c.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    c.close()
