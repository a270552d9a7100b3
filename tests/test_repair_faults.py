"""Repair, interrupted: killed at every dangerous instant, full disks, failing ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import stack
from sealing import page_of, put_page, reader

from nearlite import comparing
from nearlite._native import faults
from nearlite.errors import SyncError
from nearlite.replica import Replica

EITHER = True

POINTS = [
    "repair.surveyed",
    "repair.compared",
    "repair.arrived",
    "repair.begin",
    "apply.write",
    "apply.written",
    "apply.indexed",
    "apply.commit",
    "apply.committed",
]
Rows = list[tuple[int, bytes]]


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stack.Primary]:
    served = stack.Primary(tmp_path_factory.mktemp("primary") / "primary.db")
    with closing(Replica(str(tmp_path_factory.mktemp("writer") / "w.db"), served.url)) as writer:
        writer.open()
        fill = (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300) "
            "INSERT INTO t SELECT i, randomblob(3000) FROM n"
        )
        create = "CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)"
        stack.outcomes(writer.forward(stack.pipeline(create, fill), visible=False))
    yield served
    served.kill()


@pytest.fixture
def damaged(primary: stack.Primary, tmp_path: Path) -> Iterator[Path]:
    """A replica with flipped bytes in the blobs of 100 pages: it can be read, and differs."""
    path = tmp_path / "replica.db"
    with closing(Replica(str(path), primary.url)) as replica:
        replica.open()
        replica.sync()
    for number in range(20, 220, 2):
        page = bytearray(page_of(path, number))
        page[-50:-43] = b"damaged"
        put_page(path, number, page)
    yield path
    faults.clear()


def rows(path: Path) -> Rows:
    """What stock SQLite reads."""
    with closing(reader(path)) as stock:
        assert stock.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found: Rows = stock.execute("SELECT a, b FROM t ORDER BY a").fetchall()
    return found


def run_sync(pipe: Connection, path: str, url: str, fault: stack.Fault) -> None:
    """One sync, killed at a fault point."""
    comparing._AT_ONCE = 1  # type: ignore[misc]
    replica = Replica(path, url)
    replica.open()
    stack._arm([fault])
    replica.sync()
    pipe.send("done")


def check_repaired(primary: stack.Primary, path: Path, before: Rows) -> None:
    with closing(Replica(str(path), primary.url)) as replica:
        replica.open()
        replica.sync()
        assert not replica.sync().repaired
        state, found = replica._applier.full_hash()
    assert state.hash == found
    assert all(b"damaged" not in blob for _, blob in rows(path))
    assert rows(path) != before


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_any_instant_it_is_the_old_file_or_the_new_one(
    primary: stack.Primary, damaged: Path, point: str
) -> None:
    before = rows(damaged)
    child = stack.Process(run_sync, str(damaged), primary.url, (point, 0))
    assert child.messages() == []
    assert child.join() == -9
    after = rows(damaged)
    whole = all(b"damaged" not in blob for _, blob in after)
    assert after == before or whole
    assert whole == (point == "apply.committed")
    check_repaired(primary, damaged, before)


@pytest.mark.parametrize("kind", [faults.EIO, faults.ENOSPC])
@pytest.mark.parametrize("point", [p for p in POINTS if p != "apply.committed"])
def test_a_failing_disk_leaves_the_file_as_it_was(
    primary: stack.Primary, damaged: Path, monkeypatch: pytest.MonkeyPatch, point: str, kind: int
) -> None:
    monkeypatch.setattr(comparing, "_AT_ONCE", 1)
    before = rows(damaged)
    with closing(Replica(str(damaged), primary.url)) as replica:
        replica.open()
        faults.arm(point, kind)
        with pytest.raises(SyncError) as caught:
            replica.sync()
    assert ("disk is full" in str(caught.value)) == (kind == faults.ENOSPC) or "No space" in str(
        caught.value
    )
    assert rows(damaged) == before
    check_repaired(primary, damaged, before)


def test_two_processes_repair_one_file_at_once(primary: stack.Primary, damaged: Path) -> None:
    before = rows(damaged)
    children = [
        stack.Process(run_sync, str(damaged), primary.url, ("apply.checkpoint", 1000))
        for _ in range(3)
    ]
    assert [child.messages() for child in children] == [["done"]] * 3
    assert [child.join() for child in children] == [0] * 3
    check_repaired(primary, damaged, before)


@pytest.mark.plain
def test_the_lock_byte_page_is_compared_with_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule B6, in a process of its own, as the pending byte is moved for all that is open in it."""
    child = stack.Process(run_with_lock_page, str(tmp_path))
    assert child.messages() == ["repaired", [1, True]]
    assert child.join() == 0


def run_with_lock_page(pipe: Connection, folder: str) -> None:
    import primaries
    from test_repair import damage, grow

    from nearlite._native._lib import lib

    lib.nl_test_pending_byte(4096 * 64)
    with primaries.primary(Path(folder)) as served:
        remote: Any = served.remote(isolation_level=None)
        remote.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
        grow(remote, 200)
        path = Path(folder) / "replica.db"
        for _ in range(2):
            replica = Replica(str(path), served.url)
            replica.open()
            done = replica.sync()
            replica.close()
            damage(path, 65, 90)  # the lock-byte page, whose content is nobody's, and another
        pipe.send("repaired")
        pipe.send([done.pages, done.repaired])
