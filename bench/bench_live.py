"""Commit done on the primary -> visible to a reader in another process on a live replica, loopback.

Three processes beside this one: the primary, the program with the live replica, and a reader with
Python's own sqlite3 on the replica's file. The clock starts when the writer has the answer to its commit
and stops when a SELECT of the reader returns the new value; CLOCK_MONOTONIC is the same for all. No
registry has a live embedded replica to compare with.

Bad would be: a latency that knows of a polling interval, or a tail of tens of milliseconds.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pairs import Pairs, Sample
from peers import remove_database
from systems import OURS, nearlite_below

Open = Iterator[Callable[[], Sample]]
COMMITS = 300  # a sample

_REPLICA = """
import sys, nearlite
connection = nearlite.connect(sys.argv[1], sync_url=sys.argv[2], sync_interval="live")
connection.wait_for(sys.argv[3])
print("live", flush=True)
sys.stdin.read()
"""

# It looks every 20 us or so: on two cores a reader that spins would take the time that it measures.
_READER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
read = connection.execute
clock = time.monotonic
seen = 0
print("reading", flush=True)
while True:
    (value,) = read("SELECT n FROM tick").fetchone()
    if value == seen:
        time.sleep(0.00002)
        continue
    at, seen = clock(), value
    print(value, at, flush=True)
"""


def _child(stack: ExitStack, program: str, *arguments: object) -> subprocess.Popen[str]:
    child = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    stack.callback(child.kill)
    assert child.stdout is not None
    assert child.stdout.readline()
    return child


@contextmanager
def visible(folder: Path, *figures: str, levels: int = 0) -> Open:
    """Latencies of commits one after the other: p50 and p99, seconds; through so many replicas between."""
    import nearlite

    path = folder / "replica.db"
    remove_database(path)
    with OURS.serve(folder) as server, ExitStack() as stack:
        url = server.url
        for level in range(levels):
            url = stack.enter_context(nearlite_below(folder / f"level{level}", url)).url
        writer: Any = stack.enter_context(_closing(nearlite.connect(server.url)))
        writer.isolation_level = None
        writer.execute("CREATE TABLE tick(n INTEGER)")
        writer.execute("INSERT INTO tick VALUES(0)")
        _child(stack, _REPLICA, path, url, writer.last_write_position)
        reader = _child(stack, _READER, path)
        assert reader.stdout is not None
        lines = reader.stdout
        number = 0

        def once() -> float:
            nonlocal number
            number += 1
            writer.execute("UPDATE tick SET n = ?", (number,))
            done = time.monotonic()
            value, at = lines.readline().split()
            assert int(value) == number
            time.sleep(0.002)  # commits of different clients, not one that waits for the last
            return max(0.0, float(at) - done)

        def sample() -> Sample:
            found = sorted(once() for _ in range(COMMITS))
            return dict(
                zip(figures, (found[COMMITS // 2], found[COMMITS * 99 // 100]), strict=True)
            )

        yield sample


@contextmanager
def _closing(connection: Any) -> Iterator[Any]:
    try:
        yield connection
    finally:
        connection.close()


def bench_commit_until_visible_on_a_live_replica(pairs: Pairs, tmp_path: Path) -> None:
    keys = ("live", "live_p99")
    pairs(*keys, ours=partial(visible, tmp_path, *keys), rounds=5)


def bench_the_same_through_one_replica_in_between(pairs: Pairs, tmp_path: Path) -> None:
    keys = ("live_tree", "live_tree_p99")
    pairs(*keys, ours=partial(visible, tmp_path, *keys, levels=1), rounds=5)
