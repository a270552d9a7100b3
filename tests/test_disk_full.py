"""The primary's disk is full: everybody is told, nothing acknowledged is lost, and it goes on by itself.

A preloaded library refuses every write to the folder with ENOSPC while a marker file exists, below
SQLite and below Python, in a process of its own.
"""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from serving import Client
from stock import run

import nearlite
from nearlite.wire import Status

EITHER = True

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("full") / "full.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", made, HERE / "full.c", "-ldl"], check=True)
    return made


class Disk:
    """A primary on a disk that can be full, and a replica on another one."""

    def __init__(
        self,
        library: Path,
        folder: Path,
        *,
        part: str = "",
        roll: str = "16MiB",
        durability: str = "full",
    ) -> None:
        self.folder = folder / "disk"
        self.folder.mkdir()
        self.path = self.folder / "data.db"
        self.replica_path = folder / "replica.db"
        self._marker = folder / "full"
        self.broken = folder / "broken"
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "NL_FULL": str(self._marker),
            "NL_BROKEN": str(self.broken),
            "NL_DISK": f"{self.folder}/{part}",
        }
        self._command = [sys.executable, "-m", "nearlite", "serve", str(self.path)]
        self._command += ["--roll-bytes", roll, "--durability", durability, "--listen"]
        self._environment = environment
        self.port = 0
        self.start()

    def start(self) -> None:
        self.server = subprocess.Popen(
            [*self._command, f"127.0.0.1:{self.port}"],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self.server.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.server.stdout.readline())
        assert found is not None
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def end(self, *, kill: bool = False) -> None:
        (self.server.kill if kill else self.server.terminate)()
        self.server.communicate(timeout=30)

    def full(self) -> None:
        self._marker.touch()

    def has_room(self) -> None:
        self._marker.unlink()

    def replica(self) -> Any:
        return nearlite.connect(self.replica_path, sync_url=self.url, isolation_level=None)

    def equal(self, replica: Any) -> None:
        """The replica is the primary's state, page by page."""
        done = replica.sync()
        with closing(Client(self.port)) as client:
            status = Status.decode(client.request("GET", "/nl/v1/status").body)
        state, found = replica._replica._applier.full_hash()
        assert (status.position, status.hash) == (done.position, found)
        assert state.hash == found


@pytest.fixture
def make(library: Path, tmp_path: Path) -> Iterator[Callable[..., Disk]]:
    made: list[Disk] = []

    def disk(**options: Any) -> Disk:
        made.append(Disk(library, tmp_path, **options))
        return made[-1]

    yield disk
    for each in made:
        if each.server.poll() is None:
            each.end()


@pytest.mark.parametrize("durability", ["full", "normal"])
def test_a_full_disk_fails_writes_and_nothing_else(
    make: Callable[..., Disk], durability: str
) -> None:
    disk = make(durability=durability)
    with closing(disk.replica()) as replica, closing(nearlite.connect(disk.url)) as remote:
        replica.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        replica.execute("INSERT INTO t VALUES(1, 'kept')")
        disk.full()

        def in_a_transaction() -> None:
            replica.execute("BEGIN")
            replica.execute("INSERT INTO t VALUES(5, 5)")
            replica.execute("COMMIT")

        def remotely() -> None:
            remote.execute("INSERT INTO t VALUES(6, 6)")
            remote.commit()

        for write in (
            lambda: replica.execute("INSERT INTO t VALUES(2, 2)"),
            lambda: replica.execute("INSERT INTO t VALUES(2, zeroblob(3000000))"),
            lambda: replica.executemany("INSERT INTO t VALUES(?, 3)", [(3,), (4,)]),
            lambda: replica.executescript("INSERT INTO t VALUES(8, 8);INSERT INTO t VALUES(9, 9)"),
            in_a_transaction,
            remotely,
        ):
            with pytest.raises(nearlite.DiskFullError, match="primary") as caught:
                write()
            assert isinstance(caught.value, sqlite3.OperationalError)
            assert caught.value.sqlite_errorcode == sqlite3.SQLITE_FULL
            assert not caught.value.data_at_risk
            assert "no data is at risk" in str(caught.value)
            replica.rollback()
            remote.rollback()
            for reader in (replica, remote):
                assert reader.execute("SELECT * FROM t").fetchall() == [(1, "kept")]
        assert replica.sync().pages == 0
        disk.has_room()
        replica.execute("INSERT INTO t VALUES(7, 'after')")
        for reader in (replica, remote):
            assert reader.execute("SELECT * FROM t").fetchall() == [(1, "kept"), (7, "after")]
        disk.equal(replica)
    disk.end()
    assert run(disk.path, "PRAGMA integrity_check") == [["ok"]]


def test_a_log_that_cannot_be_written_hides_what_it_does_not_know(
    make: Callable[..., Disk],
) -> None:
    """There is room in the WAL and none for the log: a commit that is durable, and shown later."""
    disk = make(part="data.db-nearlite")
    with closing(disk.replica()) as replica, closing(nearlite.connect(disk.url)) as remote:
        replica.execute("CREATE TABLE t(a INTEGER PRIMARY KEY)")
        replica.execute("INSERT INTO t VALUES(1)")
        disk.full()
        with pytest.raises(nearlite.DiskFullError) as caught:
            replica.execute("INSERT INTO t VALUES(2)")
        assert "was carried out on the primary" in caught.value.state
        assert "do not repeat" in caught.value.action
        with pytest.raises(nearlite.DiskFullError) as caught:
            replica.execute("INSERT INTO t VALUES(3)")
        assert caught.value.state == "nothing was carried out"
        with pytest.raises(nearlite.DiskFullError) as caught:
            replica.sync()
        assert "stays at" in caught.value.state
        assert replica.execute("SELECT a FROM t").fetchall() == [(1,)]
        remote.execute("INSERT INTO t VALUES(4)")
        remote.commit()  # durable; that no replica can be shown it is not this client's concern
        with pytest.raises(nearlite.DiskFullError):
            nearlite.connect(disk.replica_path.with_name("new.db"), sync_url=disk.url)
        assert not disk.replica_path.with_name("new.db").exists()
        disk.has_room()
        disk.equal(replica)
        assert replica.execute("SELECT a FROM t").fetchall() == [(1,), (2,), (4,)]


def test_rolls_that_fail_are_made_up_for(make: Callable[..., Disk]) -> None:
    disk = make(part="data.db-nearlite", roll="100kB")
    with closing(disk.replica()) as replica:
        replica.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b)")
        disk.full()
        with closing(nearlite.connect(disk.url, isolation_level=None)) as remote:
            for _ in range(5):
                remote.execute("INSERT INTO t(b) VALUES(zeroblob(60000))")
        disk.has_room()
        disk.equal(replica)
        for _ in range(5):
            replica.execute("INSERT INTO t(b) VALUES(zeroblob(60000))")
        disk.equal(replica)
        assert replica.execute("SELECT count(*) FROM t").fetchone() == (10,)


@pytest.mark.parametrize("part", ["", "data.db-nearlite"])
def test_a_primary_killed_on_a_full_disk_loses_nothing(
    make: Callable[..., Disk], part: str
) -> None:
    disk = make(part=part)
    with closing(disk.replica()) as replica:
        replica.execute("CREATE TABLE t(a INTEGER PRIMARY KEY)")
        acknowledged = set()
        for i in range(10):
            if i == 5:
                disk.full()
            try:
                with closing(nearlite.connect(disk.url, isolation_level=None)) as remote:
                    remote.execute("INSERT INTO t VALUES(?)", (i,))
                acknowledged.add(i)
            except nearlite.DiskFullError:
                assert i >= 5
        assert len(acknowledged) >= 5
        disk.end(kill=True)
        disk.has_room()
        disk.start()
        disk.equal(replica)
        assert {row[0] for row in replica.execute("SELECT a FROM t")} == acknowledged


def test_a_commit_that_cannot_be_synced_is_not_acknowledged(make: Callable[..., Disk]) -> None:
    disk = make()
    with closing(disk.replica()) as replica, closing(nearlite.connect(disk.url)) as remote:
        replica.execute("CREATE TABLE t(a INTEGER PRIMARY KEY)")
        replica.execute("INSERT INTO t VALUES(1)")
        disk.broken.touch()

        def in_a_transaction() -> None:
            remote.execute("INSERT INTO t VALUES(3)")
            remote.execute("INSERT INTO t VALUES(4)")
            remote.commit()

        for write in (lambda: replica.execute("INSERT INTO t VALUES(2)"), in_a_transaction):
            with pytest.raises(nearlite.OperationalError) as caught:
                write()
            assert caught.value.sqlite_errorname == "SQLITE_IOERR_FSYNC"
            remote.rollback()
        for reader in (replica, remote):
            assert reader.execute("SELECT a FROM t").fetchall() == [(1,)]
        disk.broken.unlink()
        replica.execute("INSERT INTO t VALUES(5)")
        disk.equal(replica)
        disk.end(kill=True)
        disk.start()
        disk.equal(replica)
        assert replica.execute("SELECT a FROM t").fetchall() == [(1,), (5,)]
    disk.end()
    assert run(disk.path, "PRAGMA integrity_check") == [["ok"]]


GROUP = """
import sys
from pathlib import Path
from serving import execute, transaction
from test_group_commit import Bench, codes, insert

folder, marker = Path(sys.argv[1]), Path(sys.argv[2])
bench = Bench(folder / "data.db", durability="full")
bench.group(bench.job(insert(1)))
commits = len(bench.commits)

def everybody():
    return [
        bench.job(insert(2)),
        bench.job(insert(3), {"type": "get_autocommit"}, execute("SELECT count(*) FROM t")),
        bench.job(transaction("INSERT INTO t VALUES (4, 4)")),
        bench.job(execute("INSERT INTO t VALUES (5, 5) RETURNING a")),
    ]

marker.touch()
jobs = everybody()
bench.group(*jobs)
marker.unlink()
for job in jobs:
    assert job.failure is not None, job
    assert (job.results, job.finished, job.counters) == ([], 0, job.start)
print({(job.failure.code, job.failure.extended_code) for job in jobs})
assert len(bench.commits) == commits
assert bench.ask("SELECT a FROM t") == [(1,)]

jobs = everybody()  # and it goes on
bench.group(*jobs)
assert not any(job.failure for job in jobs)
assert len(bench.commits) == commits + 1
assert bench.ask("SELECT a FROM t") == [(1,), (2,), (3,), (4,), (5,)]
bench.close()
print(bench.ask("PRAGMA integrity_check"))
"""


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("NL_BROKEN", {("SQLITE_IOERR", 1034)}),  # SQLITE_IOERR_FSYNC
        ("NL_FULL", {("SQLITE_FULL", 13)}),
    ],
)
def test_rule_f_a_commit_that_fails_is_told_to_everybody_in_its_group(
    library: Path, tmp_path: Path, broken: str, told: set[tuple[str, int]]
) -> None:
    folder, marker = tmp_path / "disk", tmp_path / "marker"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", GROUP, folder, marker],
        env={
            **os.environ,
            "LD_PRELOAD": str(library),
            "NL_DISK": str(folder),
            broken: str(marker),
        },
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(told), "[('ok',)]"]


# ---------------------------------------------------------------- the replica's disk

REPLICA = """
import sys
from pathlib import Path
import nearlite
path, url, marker = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])

def refused(work):
    marker.touch()
    try:
        work()
    except nearlite.DiskFullError as error:
        assert "on the primary:" not in str(error), error
        assert not error.data_at_risk
        print(error.state)
    else:
        raise AssertionError("nobody noticed")
    marker.unlink()

def rows():
    return replica.execute("SELECT count(*) FROM t").fetchone()[0]

refused(lambda: nearlite.connect(path, sync_url=url))
assert not path.exists()
replica = nearlite.connect(path, sync_url=url, isolation_level=None)
assert rows() == 1
other = nearlite.connect(url, isolation_level=None)
other.execute("INSERT INTO t VALUES(zeroblob(10000))")
refused(replica.sync)
assert rows() == 1
refused(lambda: replica.execute("INSERT INTO t VALUES(3)"))
assert rows() == 1
replica.sync()
assert rows() == 3
for _ in range(4):  # more than is kept in memory
    other.execute("INSERT INTO t VALUES(zeroblob(10000000))")
refused(replica.sync)
assert rows() == 3
replica.sync()
assert rows() == 7
replica.close()
"""


def test_a_full_disk_of_the_replica_leaves_it_as_it_was(
    make: Callable[..., Disk], library: Path, tmp_path: Path
) -> None:
    disk = make(roll="100MiB")
    with closing(nearlite.connect(disk.url, isolation_level=None)) as remote:
        remote.execute("CREATE TABLE t(a)")
        remote.execute("INSERT INTO t VALUES(1)")
    folder, marker = tmp_path / "small", tmp_path / "marker"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", REPLICA, folder / "replica.db", disk.url, marker],
        env={
            **os.environ,
            "LD_PRELOAD": str(library),
            "NL_FULL": str(marker),
            "NL_DISK": str(folder),
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "no local file was created",
        "the replica is as it was",
        "the request was carried out on the primary; the replica is as it was",
        "the replica is as it was",
    ]
    assert run(folder / "replica.db", "PRAGMA integrity_check") == [["ok"]]
