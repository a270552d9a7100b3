"""on_change: who listens hears of every change, by its tables, and disturbs nobody."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest
from primaries import Served, primary
from test_background import count, eventually

import nearlite
from nearlite import Change

EITHER = True

SECONDS = 30


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with primary(tmp_path) as made:
        remote = made.remote(isolation_level=None)
        remote.executescript("CREATE TABLE t(a); CREATE TABLE u(a); CREATE INDEX i ON u(a)")
        yield made


def listening(con: Any) -> Queue[Change]:
    told: Queue[Change] = Queue()
    con.on_change(told.put)
    return told


def told_until(told: Queue[Change], position: nearlite.Position) -> set[str]:
    """All tables that were named up to there."""
    names: set[str] = set()
    while True:
        change = told.get(timeout=SECONDS)
        names |= change.tables
        if change.position == position:
            return names


@pytest.mark.parametrize("interval", [None, "live"])
def test_a_change_is_told_by_its_table(served: Served, interval: Any) -> None:
    con = served.replica(sync_interval=interval)
    told = listening(con)
    remote = served.remote(isolation_level=None)
    for table in ("t", "u", "t"):
        remote.execute(f"INSERT INTO {table} VALUES(1)")
        con.wait_for(remote.last_write_position)
        assert told_until(told, remote.last_write_position) == {table}
    remote.execute("CREATE TABLE v(a)")
    con.wait_for(remote.last_write_position)
    assert told_until(told, remote.last_write_position) == {"v", "sqlite_schema"}
    remote.execute("DROP TABLE u")
    con.wait_for(remote.last_write_position)
    assert told_until(told, remote.last_write_position) >= {"u", "sqlite_schema"}


def test_own_writes_are_told_too(served: Served) -> None:
    con = served.replica(isolation_level=None)
    told = listening(con)
    con.execute("INSERT INTO u VALUES(1)")
    assert told_until(told, con.last_write_position) == {"u"}


def test_through_checkpoints_and_restarts_of_the_wal(served: Served) -> None:
    con = served.replica(isolation_level=None)
    told = listening(con)
    for n in range(4):
        con.execute("INSERT INTO t VALUES(zeroblob(3000000))")
        assert told_until(told, con.last_write_position) == {"t"}
        con._replica._applier.checkpoint("truncate" if n % 2 else "restart", wait=5)


def test_who_reads_in_the_callback_finds_the_change(served: Served) -> None:
    con = served.replica(isolation_level=None)
    seen: Queue[int] = Queue()

    def look(change: Change) -> None:
        with closing(nearlite.connect(con._replica.path)) as own:
            seen.put(count(own))
        assert con._replica.state(wait=5).position == change.position  # nothing is locked

    con.on_change(look)
    con.execute("INSERT INTO t VALUES(1)")
    assert seen.get(timeout=SECONDS) == 1


def test_a_callback_that_raises_is_logged_and_the_others_are_called(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    con = served.replica(isolation_level=None)

    def fail(_: Change) -> None:
        raise RuntimeError("of the program")

    con.on_change(fail)
    told = listening(con)
    con.execute("INSERT INTO t VALUES(1)")
    assert told.get(timeout=SECONDS).tables == {"t"}
    con.execute("INSERT INTO u VALUES(1)")
    assert told.get(timeout=SECONDS).tables == {"u"}
    assert "of the program" in caplog.text
    assert count(con) == 1


def test_changes_come_together_for_a_slow_listener(served: Served) -> None:
    con = served.replica(isolation_level=None)
    entered, go_on = threading.Event(), threading.Event()
    told: Queue[Change] = Queue()

    def slow(change: Change) -> None:
        told.put(change)
        entered.set()
        go_on.wait(SECONDS)

    con.on_change(slow)
    con.execute("INSERT INTO t VALUES(1)")
    assert entered.wait(SECONDS)
    con.execute("INSERT INTO u VALUES(1)")
    con.execute("INSERT INTO t VALUES(1)")
    assert count(con) == 2  # it holds up nobody
    go_on.set()
    told.get(timeout=SECONDS)
    assert told_until(told, con.last_write_position) == {"t", "u"}


def test_who_has_heard_enough(served: Served) -> None:
    con = served.replica(isolation_level=None)
    told: Queue[Change] = Queue()
    end = con.on_change(told.put)
    con.execute("INSERT INTO t VALUES(1)")
    told.get(timeout=SECONDS)
    end()
    end()
    eventually(lambda: not running())
    assert not con._replica.listeners.any
    con.execute("INSERT INTO t VALUES(1)")
    again = listening(con)
    con.execute("INSERT INTO u VALUES(1)")
    assert told_until(again, con.last_write_position) == {"u"}
    with pytest.raises(Empty):
        told.get_nowait()
    con.close()
    assert not running()


def running() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "nearlite-changes"]


def test_a_callback_may_close_the_connection(served: Served) -> None:
    con = served.replica(isolation_level=None, check_same_thread=False)
    closed = threading.Event()

    def close(_: Change) -> None:
        con.close()
        closed.set()

    con.on_change(close)
    con.execute("INSERT INTO t VALUES(1)")
    assert closed.wait(SECONDS)
    eventually(lambda: not running())


WRITER = """
import sys, nearlite
con = nearlite.connect(sys.argv[1], sync_url=sys.argv[2], isolation_level=None)
for line in sys.stdin:
    con.execute(line)
    print(con.last_write_position, flush=True)
"""


def test_what_another_process_applies_is_a_change_of_all_tables(
    served: Served, tmp_path: Path
) -> None:
    con = served.replica(isolation_level=None)
    told = listening(con)
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, tmp_path / "replica.db", served.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("INSERT INTO u VALUES(1)\n")
        process.stdin.flush()
        there = nearlite.Position.parse(process.stdout.readline().strip())
        assert told_until(told, there) >= {"t", "u"}
        con.execute("INSERT INTO t VALUES(1)")  # from there on it is exact again
        assert told_until(told, con.last_write_position) == {"t"}


def test_nothing_is_looked_at_while_nobody_listens(
    served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    con = served.replica(isolation_level=None)
    con.execute("INSERT INTO t VALUES(1)")
    assert con._replica.listeners._noted == []
    assert not running()
