"""Repair: a replica of which nothing is believed becomes equal to its primary; only what differs travels."""

from __future__ import annotations

import logging
import os
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import primaries
import pytest
from sealing import edit_page, page_of, reader, rot, wal_of

import nearlite
from nearlite import errors
from nearlite._native.applier import Applier
from nearlite._native.database import Database
from nearlite.replica import Replica

EITHER = True

PAGE = 4096


@pytest.fixture
def served(tmp_path: Path) -> Iterator[primaries.Served]:
    with primaries.primary(tmp_path) as here:
        with closing(here.remote(isolation_level=None)) as remote:
            remote.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
            remote.execute("CREATE INDEX i ON t(b)")
            grow(remote, 400)
        yield here


def grow(remote: Any, rows: int, size: int = 2000) -> None:
    remote.executemany("INSERT INTO t(b) VALUES(randomblob(?))", [(size,) for _ in range(rows)])


def synced(served: primaries.Served, path: Path) -> None:
    """A replica at `path`, closed, whole in its main file."""
    replica = Replica(str(path), served.url)
    replica.open()
    replica.sync()
    replica.close()
    assert not wal_of(path).exists()


def damage(path: Path, *pages: int) -> None:
    """Flip a byte in each of these pages."""
    for page in pages:
        rot(path, page)


def pages_of(path: Path) -> int:
    with closing(reader(path)) as database:
        found: int = database.execute("PRAGMA page_count").fetchone()[0]
    return found


def diverge(path: Path, *pages: int) -> None:
    """Other content in these pages and a header that says so, as a bug or a lost write of the primary leaves it."""
    for page in pages:
        edit_page(path, page, 100, bytes([page_of(path, page)[100] ^ 0x55]))
    with closing(Applier(str(path))) as applier:
        _, found = applier.full_hash()
    edit_page(path, 1, 84, found.to_bytes(8, "big"))


def check_equal(served: primaries.Served, path: Path) -> None:
    """Every page is what the primary has, in the eyes of stock SQLite, too."""
    with closing(Applier(str(path))) as applier:
        state, found = applier.full_hash()
    assert found == state.hash
    with closing(reader(path)) as stock, closing(reader(served.path)) as source:
        assert stock.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        for sql in ("SELECT * FROM t ORDER BY a", "SELECT * FROM sqlite_schema"):
            assert stock.execute(sql).fetchall() == source.execute(sql).fetchall()
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            stock.execute("DELETE FROM t")


def opened_and_synced(served: primaries.Served, path: Path, **options: Any) -> Any:
    replica = Replica(str(path), served.url, **options)
    try:
        replica.open()
        return replica.sync()
    finally:
        replica.close()


def test_flipped_bytes_are_found_and_only_their_pages_travel(
    served: primaries.Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "replica.db"
    synced(served, path)
    pages = random.Random(1).sample(range(2, pages_of(path) + 1), 7)
    damage(path, *pages)
    with caplog.at_level(logging.WARNING, "nearlite"):
        done = opened_and_synced(served, path)
    assert done.repaired
    assert done.pages == 7
    assert done.bytes < 8 * (PAGE + 100)
    (record,) = caplog.records
    assert "does not hold what its header says" in record.getMessage()
    assert "7 of" in record.getMessage()
    check_equal(served, path)


def test_a_damaged_schema_is_repaired(served: primaries.Served, tmp_path: Path) -> None:
    """The whole of page 1 behind its header: no SQL can be compiled until it is repaired."""
    path = tmp_path / "replica.db"
    synced(served, path)
    edit_page(path, 1, 100, random.Random(2).randbytes(PAGE - 100))
    with closing(reader(path)) as stock, pytest.raises(sqlite3.DatabaseError):
        stock.execute("SELECT count(*) FROM t").fetchone()
    done = opened_and_synced(served, path)
    assert (done.repaired, done.pages) == (True, 1)
    check_equal(served, path)


@pytest.mark.parametrize("page_size", [512, 65536])
def test_other_page_sizes(tmp_path: Path, page_size: int) -> None:
    Database(str(tmp_path / "primary.db"), page_size=page_size).close()  # where files are sealed
    with closing(reader(tmp_path / "primary.db")) as database:
        database.execute(f"PRAGMA page_size={page_size}")
        database.execute("PRAGMA journal_mode=wal")
        database.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
        database.executemany("INSERT INTO t(b) VALUES(randomblob(?))", [(30_000,)] * 40)
        database.commit()
    with primaries.primary(tmp_path) as served:
        path = tmp_path / "replica.db"
        synced(served, path)
        last = pages_of(path)
        damage(path, 2, last // 2, last)
        done = opened_and_synced(served, path)
        assert (done.repaired, done.pages) == (True, 3)
        check_equal(served, path)


def test_ranges_are_compared_before_single_pages(tmp_path: Path) -> None:
    """A database of more pages than are compared at once: hashes of 64 pages first, then few of pages."""
    Database(str(tmp_path / "primary.db"), page_size=512).close()  # where files are sealed
    with closing(reader(tmp_path / "primary.db")) as database:
        database.execute("PRAGMA page_size=512")
        database.execute("PRAGMA journal_mode=wal")
        database.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
        database.executemany("INSERT INTO t(b) VALUES(randomblob(?))", [(60_000,)] * 150)
        database.commit()
    with primaries.primary(tmp_path) as served:
        path = tmp_path / "replica.db"
        synced(served, path)
        pages = pages_of(path)
        assert pages > 16_384
        damage(path, 3, 63, 64, 65, 8_000, pages)
        asked = served.seen.count("/nl/v1/repair")
        done = opened_and_synced(served, path)
        assert done.pages == 6
        assert served.seen.count("/nl/v1/repair") - asked == 2
        check_equal(served, path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("in_memory", [100_000, 1 << 30])
def test_a_large_repair_comes_chunk_by_chunk(
    served: primaries.Served,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    in_memory: int,
    compressed: bool,
) -> None:
    """Kept in an unlinked file, or in memory; packed, or as it is."""
    from nearlite import arriving, receiving

    monkeypatch.setattr(receiving, "_SMALL_SET", 1000)
    monkeypatch.setattr(arriving, "IN_MEMORY", in_memory)
    path = tmp_path / "replica.db"
    synced(served, path)
    remote = served.remote(isolation_level=None)
    remote.execute("UPDATE t SET b = zeroblob(2001) WHERE a > 5")
    damage(path, 3)
    told: list[Any] = []
    replica = Replica(str(path), served.url, progress=told.append)
    replica.transport.loopback = not compressed
    replica.open()
    done = replica.sync()
    replica.close()
    assert done.repaired
    assert (done.bytes < done.pages * PAGE / 2) == compressed
    assert (told[0].pages, told[-1].pages) == (0, done.pages)
    assert told[0].total_pages == done.pages
    check_equal(served, path)


def test_a_repair_ends_by_its_deadline(served: primaries.Served, tmp_path: Path) -> None:
    path = tmp_path / "replica.db"
    synced(served, path)
    damage(path, 3)
    replica = Replica(str(path), served.url)
    replica.open()
    with pytest.raises(errors.SyncError) as caught:
        replica.sync(timeout=0.0005, repair=True)
    assert "no data is at risk" in str(caught.value)
    assert replica.sync(repair=True).repaired
    replica.close()
    check_equal(served, path)


def test_a_primary_that_commits_during_the_comparison_loses_nothing(
    served: primaries.Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the first answer and the last it writes, rolls, grows and shrinks."""
    from nearlite import comparing as module

    monkeypatch.setattr(module, "_AT_ONCE", 1)
    remote = served.remote(isolation_level=None)
    path = tmp_path / "replica.db"
    synced(served, path)
    damage(path, 5, 100, 300)
    count = served.remote(isolation_level=None)
    todo = iter([lambda: grow(count, 300), lambda: remote.execute("DELETE FROM t WHERE a > 90")])
    post = module.Comparison._post

    def interrupted(self: Any, ask: Any, deadline: Any) -> Any:
        answer = post(self, ask, deadline)
        step = next(todo, None)
        if step is not None:
            step()
        return answer

    monkeypatch.setattr(module.Comparison, "_post", interrupted)
    assert opened_and_synced(served, path).repaired
    assert next(todo, None) is None
    opened_and_synced(served, path)
    check_equal(served, path)


def test_a_file_that_was_cut_off_is_made_whole(served: primaries.Served, tmp_path: Path) -> None:
    path = tmp_path / "replica.db"
    synced(served, path)
    pages = pages_of(path)
    os.truncate(path, (pages - 100) * PAGE - 1000)
    with closing(reader(path)) as stock, pytest.raises(sqlite3.DatabaseError):
        stock.execute("SELECT count(*) FROM t").fetchone()
    connection = served.replica("replica.db")
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (400,)
    connection.sync()
    check_equal(served, path)


@pytest.mark.plain  # parts of two files, as bytes
def test_a_copy_without_its_wal_becomes_whole(
    served: primaries.Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Rule C1: page 1 checkpointed, the rest only in the -wal, which nobody copied."""
    path, copy = tmp_path / "replica.db", tmp_path / "copy.db"
    synced(served, path)
    before = path.read_bytes()
    served.remote(isolation_level=None).execute("UPDATE t SET b = randomblob(1000) WHERE a % 5 = 0")
    opened_and_synced(served, path)
    after = path.read_bytes()
    copy.write_bytes(after[:PAGE] + before[PAGE : len(after)])
    caplog.clear()
    opened_and_synced(served, copy)
    assert "repaired" in caplog.text
    check_equal(served, copy)


@pytest.mark.plain  # that of stock SQLite
def test_a_copy_by_the_backup_api_is_repaired(served: primaries.Served, tmp_path: Path) -> None:
    """Rule C2: it is at no position, as page 1 is changed: one page."""
    path, copy = tmp_path / "replica.db", tmp_path / "copy.db"
    synced(served, path)
    with closing(reader(path)) as source, closing(reader(copy)) as target:
        source.backup(target)
    done = opened_and_synced(served, copy)
    assert (done.repaired, done.pages) == (True, 1)
    check_equal(served, copy)


def test_a_replica_older_than_the_log_gets_what_differs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from serving import serving

    from nearlite.applications import PrimaryApp
    from nearlite.primary import Primary

    path = tmp_path / "replica.db"
    with primaries.primary(tmp_path) as served:
        remote = served.remote(isolation_level=None)
        remote.execute("CREATE TABLE t(a INTEGER PRIMARY KEY, b BLOB)")
        grow(remote, 400)
        synced(served, path)
        remote.execute("UPDATE t SET b = randomblob(2000) WHERE a = 7")
    for index in (tmp_path / "primary.db-nearlite").glob("*.index"):
        index.unlink()  # as retention leaves it
    primary = Primary.open(tmp_path / "primary.db")
    with closing(primary.connect()) as database:
        database.exec("INSERT INTO t(b) VALUES(zeroblob(9000))")
    primary.close()
    for index in (tmp_path / "primary.db-nearlite").glob("*.index"):
        index.unlink()
    with serving(
        PrimaryApp(tmp_path / "primary.db", lambda: Primary.open(tmp_path / "primary.db"))
    ) as port:
        replica = Replica(str(path), f"http://127.0.0.1:{port}")
        replica.open()
        with caplog.at_level(logging.WARNING, "nearlite"):
            done = replica.sync()
        assert done.repaired
        assert 1 < done.pages < 20
        assert "does not tell what changed" in caplog.text
        assert not replica.sync().repaired
        replica.close()
    with closing(reader(path)) as stock:
        assert stock.execute("SELECT count(*) FROM t").fetchone() == (401,)
        assert stock.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_replica_that_diverged_at_the_same_position_is_repaired(
    served: primaries.Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "replica.db"
    synced(served, path)
    diverge(path, 50, 60)
    with caplog.at_level(logging.WARNING, "nearlite"):
        done = opened_and_synced(served, path)
    assert (done.repaired, done.pages) == (True, 2)
    assert "STATE_MISMATCH" in caplog.text
    check_equal(served, path)


def test_damage_that_an_apply_runs_into_is_repaired(
    served: primaries.Served, tmp_path: Path
) -> None:
    """Nothing was known of it at the start: the file was taken for the one that was closed last."""
    path = tmp_path / "replica.db"
    synced(served, path)
    stat = path.stat()
    damage(path, *range(2, 200))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    served.remote(isolation_level=None).execute("UPDATE t SET b = randomblob(1900) WHERE a % 3 = 0")
    done = opened_and_synced(served, path)
    assert done.repaired
    check_equal(served, path)


def test_a_forwarded_write_on_a_damaged_replica_repairs_it_first(
    served: primaries.Served, tmp_path: Path
) -> None:
    path = tmp_path / "replica.db"
    synced(served, path)
    damage(path, 77)
    connection = served.replica("replica.db", isolation_level=None)
    connection.execute("INSERT INTO t(b) VALUES(x'01')")
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (401,)
    check_equal(served, path)


def test_a_forwarded_write_on_a_replica_that_diverged_repairs_it_afterwards(
    served: primaries.Served, tmp_path: Path
) -> None:
    """The write is carried out; its page set leads from a state that this replica does not have."""
    path = tmp_path / "replica.db"
    synced(served, path)
    diverge(path, 50)
    connection = served.replica("replica.db", isolation_level=None)
    connection.execute("INSERT INTO t(b) VALUES(x'01')")
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (401,)
    connection.close()
    check_equal(served, path)


def test_readers_go_on_and_see_the_old_or_the_new_state(
    served: primaries.Served, tmp_path: Path
) -> None:
    """A stock reader keeps its snapshot through the repair; one that begins afterwards sees the new one."""
    path = tmp_path / "replica.db"
    synced(served, path)
    with closing(reader(path, isolation_level=None)) as stock:
        stock.execute("BEGIN")
        (old,) = stock.execute("SELECT count(*) FROM t").fetchone()
        served.remote(isolation_level=None).execute("DELETE FROM t WHERE a > 100")
        connection = served.replica("replica.db")
        assert connection.sync(repair=True).repaired
        assert stock.execute("SELECT count(*) FROM t").fetchone() == (old,)
        assert stock.execute("SELECT sum(length(b)) FROM t").fetchone() == (400 * 2000,)
        stock.execute("COMMIT")
        assert stock.execute("SELECT count(*) FROM t").fetchone() == (100,)
    check_equal(served, path)


_READER = """
import sys
from sealing import reader
print("ready", flush=True)
seen = 0
while True:
    connection = reader(sys.argv[1])
    for _ in range(3):
        versions = connection.execute("SELECT DISTINCT substr(b, 1, 4) FROM t").fetchall()
        assert len(versions) == 1, versions
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        seen += 1
    connection.close()
    if versions == [("last",)]:
        break
print(seen)
"""


def test_readers_of_other_programs_never_see_half_a_repair(
    served: primaries.Served, tmp_path: Path
) -> None:
    path = tmp_path / "replica.db"
    remote = served.remote(isolation_level=None)
    fill = "UPDATE t SET b = ? || hex(randomblob(700))"
    remote.execute(fill, ("zero",))
    synced(served, path)
    readers = [
        subprocess.Popen(
            [sys.executable, "-c", _READER, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
        )
        for _ in range(2)
    ]
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
        connection = served.replica("replica.db")
        for n in range(9):
            remote.execute(fill, (f"n{n:03}" if n < 8 else "last",))
            assert connection.sync(repair=True).repaired
            connection._replica.checkpoint()
        for reader in readers:
            text, _ = reader.communicate(timeout=60)
            assert reader.returncode == 0
            assert int(text) > 0
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    check_equal(served, path)


@pytest.mark.parametrize("rows", [10, 1000])
def test_the_file_grows_and_shrinks_to_the_size_of_the_primary(
    served: primaries.Served, tmp_path: Path, rows: int
) -> None:
    path = tmp_path / "replica.db"
    synced(served, path)
    remote = served.remote(isolation_level=None)
    remote.execute("DELETE FROM t WHERE a > ?", (rows,))
    grow(remote, max(0, rows - 400))
    remote.execute("VACUUM")
    damage(path, 2, 9)
    assert opened_and_synced(served, path).repaired
    assert pages_of(path) == pages_of_primary(served)
    check_equal(served, path)


def pages_of_primary(served: primaries.Served) -> int:
    with closing(reader(served.path)) as source:
        (pages,) = source.execute("PRAGMA page_count").fetchone()
    return int(pages)


# ---------------------------------------------------------------- what is not overwritten


def test_a_plain_copy_of_the_primary_is_taken_over_only_when_asked(
    served: primaries.Served, tmp_path: Path
) -> None:
    path = tmp_path / "copy.db"
    with closing(reader(served.path)) as source, closing(reader(path)) as target:
        source.backup(target)
    served.remote(isolation_level=None).execute("UPDATE t SET b = zeroblob(2000) WHERE a = 3")
    content = path.read_bytes()
    with pytest.raises(errors.NotAReplicaError):
        served.replica("copy.db")
    assert path.read_bytes() == content
    connection = served.replica("copy.db", adopt=True)
    assert served.seen.count("/nl/v1/snapshot") == 0
    assert connection.execute("SELECT b FROM t WHERE a = 3").fetchone() == (bytes(2000),)
    connection.close()
    check_equal(served, path)


def test_a_database_in_rollback_mode_can_be_adopted(
    served: primaries.Served, tmp_path: Path
) -> None:
    path = tmp_path / "copy.db"
    with closing(reader(path)) as database:
        database.execute("CREATE TABLE other(x)")
        database.executemany("INSERT INTO other VALUES(?)", [("x" * 999,)] * 3000)
        database.commit()
    served.replica("copy.db", adopt=True).close()
    check_equal(served, path)


def test_another_lineage_is_refused_unless_the_user_insists(
    served: primaries.Served, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = tmp_path / "replica.db"
    with primaries.primary(tmp_path / "elsewhere") as other:
        other.remote(isolation_level=None).execute("CREATE TABLE mine(a)")
        synced(other, path)
    damage(path, 2)  # even a damaged one
    replica = Replica(str(path), served.url)
    replica.open()
    content = path.read_bytes()
    with pytest.raises(errors.LineageError) as caught:
        replica.sync()
    assert "does not hold what its header says" in str(caught.value)
    assert path.read_bytes() == content
    with pytest.raises(errors.LineageError) as caught:  # a write looks at it first, too
        replica.forward(b'{"requests": []}', visible=True)
    assert "nothing was carried out" in caught.value.state
    assert path.read_bytes() == content
    assert replica.sync(repair=True).repaired
    replica.close()
    check_equal(served, path)


def test_a_restored_primary_is_refused_unless_the_user_insists(
    served: primaries.Served, tmp_path: Path
) -> None:
    path = tmp_path / "replica.db"
    synced(served, path)
    damage(path, 9)
    frame = int.from_bytes(page_of(path, 1)[80:84], "big")
    edit_page(path, 1, 80, (frame + 1).to_bytes(4, "big"))  # one frame ahead
    with pytest.raises(errors.PrimaryRestoredError) as caught:
        opened_and_synced(served, path)
    assert caught.value.data_at_risk
    connection = served.replica("replica.db")
    assert connection.sync(repair=True).repaired
    connection.close()
    check_equal(served, path)


def test_a_disk_without_room_is_found_before_anything_is_written(
    served: primaries.Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule H: the WAL grows by the whole set."""
    path = tmp_path / "replica.db"
    synced(served, path)
    damage(path, *range(10, 40))
    real = os.statvfs

    def nearly_full(where: Any) -> os.statvfs_result:
        found = list(real(where))
        found[4] = 10  # f_bavail
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", nearly_full)
    with pytest.raises(errors.DiskFullError, match="are free"):
        opened_and_synced(served, path)
    monkeypatch.undo()
    assert opened_and_synced(served, path).repaired


# ---------------------------------------------------------------- several at once, schemas


def test_two_repairs_of_one_file_at_once(
    served: primaries.Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second finds under the write lock that its survey is out of date, and looks again."""
    from nearlite import repair as module

    path = tmp_path / "replica.db"
    synced(served, path)
    damage(path, 20, 30, 40)
    apply, others = module._apply, []

    def later(*args: Any) -> Any:
        monkeypatch.setattr(module, "_apply", apply)
        others.append(opened_and_synced(served, path))
        return apply(*args)

    monkeypatch.setattr(module, "_apply", later)
    done = opened_and_synced(served, path)
    assert (done.repaired, others[0].repaired) == (True, True)
    assert others[0].pages == 3
    assert done.pages == 3 + 1  # the first look, and page 1 of the second
    check_equal(served, path)


def test_rule_b7_our_connections_see_a_schema_that_changed_under_its_cookie(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """e17: `public` and `salary` have each other's root page, and the cookie is the same."""
    for folder, tables in (("a", ("public", "salary")), ("b", ("salary", "public"))):
        (tmp_path / folder).mkdir()
        with closing(reader(tmp_path / folder / "primary.db")) as database:
            database.execute("PRAGMA journal_mode=wal")
            for table in tables:
                database.execute(f"CREATE TABLE {table}(x)")
                database.execute(f"INSERT INTO {table} VALUES('{table}')")
            database.commit()
    path = tmp_path / "b" / "replica.db"
    with primaries.primary(tmp_path / "a") as first:
        synced(first, path)
    with primaries.primary(tmp_path / "b") as second:
        local = nearlite.connect(path)
        (cookie,) = local.execute("PRAGMA schema_version").fetchone()
        with closing(reader(tmp_path / "b" / "primary.db")) as database:
            database.execute(f"PRAGMA schema_version={cookie}")
        assert local.execute("SELECT x FROM public").fetchall() == [("public",)]
        replica = Replica(str(path), second.url)
        replica.open()
        with caplog.at_level(logging.WARNING, "nearlite"):
            assert replica.sync(repair=True).repaired
        assert "must open it again" in caplog.text
        assert local.execute("SELECT x FROM public").fetchall() == [("public",)]
        assert local.execute("SELECT x FROM salary").fetchall() == [("salary",)]
        local.close()
        replica.close()
