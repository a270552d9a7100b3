"""Rules B and C of the replica's file: what stock SQLite, copies and old files must not lead to.

The rules' other tests: B2 in test_syncs.py, B3 in test_apply.py, both in the crash tests, B6 in
test_primary_writers.py, B7 in test_primary_restart.py, E in test_ofd.py, A and F beside primary and server.
"""

from __future__ import annotations

import fcntl
import inspect
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import history
import pytest
from history import History, Moment, advance, replica_of
from sealing import is_on, put_page, reader, wal_of
from test_hostile import Scene, http

from nearlite.errors import NotAReplicaError, SyncError
from nearlite.replica import Replica

EITHER = True


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.replica.close()
    made.server.close()


def stock(path: Path) -> Any:
    return reader(path, timeout=0, isolation_level=None)


def honest(scene: Scene) -> None:
    """The replica stands at `old`, whole, and the next sync brings it to `new`."""
    state, found = scene.replica._applier.full_hash()
    assert state.hash == found == scene.old.hash
    scene.server.raw = http(scene.body)
    assert scene.replica.sync().position == scene.new.position
    state, found = scene.replica._applier.full_hash()
    assert state.hash == found == scene.new.hash


# ---------------------------------------------------------------- A, as far as a replica has part in it


def test_rule_a6_an_apply_outwaits_a_foreign_checkpoint(scene: Scene) -> None:
    """A FULL or TRUNCATE checkpoint holds WRITE (byte 120 of the -shm) while it waits for a reader: as long
    as its program's busy timeout, by default five seconds."""
    assert inspect.signature(Replica).parameters["timeout"].default > 2 * 5.0
    shm = os.open(f"{scene.path}-shm", os.O_RDWR)
    fcntl.lockf(shm, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 120)
    scene.server.raw = http(scene.body)
    syncing = threading.Thread(target=scene.replica.sync)
    syncing.start()
    syncing.join(0.1)
    assert syncing.is_alive()
    fcntl.lockf(shm, fcntl.LOCK_UN, 1, 120)
    syncing.join(10)
    os.close(shm)
    assert not syncing.is_alive()
    assert scene.replica.state().position == scene.new.position


# ---------------------------------------------------------------- B


def full_vacuum(moment: Moment) -> Moment:
    """The same state, claiming auto_vacuum=FULL: offset 64 of page 1 says "incremental"."""
    first = bytearray(moment.pages[0])
    assert first[64:68] == b"\0\0\0\1"
    assert int.from_bytes(first[36:40], "big") > 0, "there must be free pages"
    first[64:68] = bytes(4)
    return replace(moment, pages=(bytes(first), *moment.pages[1:]))


def test_rule_b1_an_apply_never_vacuums_the_replica(tmp_path: Path) -> None:
    """With auto_vacuum=FULL and free pages, a commit of the btree would move pages by itself."""
    source = History(tmp_path / "p.db", auto_vacuum=2)
    source.step("CREATE TABLE t(a)", "INSERT INTO t SELECT zeroblob(100000)")
    source.step("CREATE TABLE u(a)", "INSERT INTO u VALUES(1)")
    old = full_vacuum(source.step("DELETE FROM t"))
    new = full_vacuum(source.step("INSERT INTO u VALUES(2)"))
    source.db.close()
    applier = replica_of(old, tmp_path / "r.db")
    advance(applier, old, new)
    state, found = applier.full_hash()
    assert (state.pages, state.hash) == (len(new.pages), found)
    assert found == new.hash
    with closing(stock(tmp_path / "r.db")) as c:
        assert c.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    applier.close()


def salts(path: Path) -> bytes:
    with wal_of(path).open("rb") as wal:
        return wal.read(24)[16:]


def test_rule_b4_the_wal_restarts_only_under_the_checkpoint_lock(scene: Scene) -> None:
    """Somebody holds WAL_CKPT_LOCK (byte 121 of the -shm) as a checkpointer of any version does."""
    applier = replica_of(scene.old, scene.path.with_name("b4.db"))
    path = scene.path.with_name("b4.db")
    advance(applier, scene.old, scene.new)
    assert applier.checkpoint("passive", wait=0)[0] > 0  # all of it: the next writer may restart
    before = salts(path)
    shm = os.open(f"{path}-shm", os.O_RDWR)
    fcntl.lockf(shm, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 121)
    applying = threading.Thread(target=advance, args=(applier, scene.new, scene.newer))
    applying.start()
    applying.join(0.1)
    assert applying.is_alive()
    assert salts(path) == before
    fcntl.lockf(shm, fcntl.LOCK_UN, 1, 121)
    applying.join(10)
    assert not applying.is_alive()
    os.close(shm)
    assert salts(path) != before
    state, found = applier.full_hash()
    assert state.hash == found == scene.newer.hash
    applier.close()


def test_rule_b5_a_long_reader_neither_stops_applies_nor_keeps_the_wal_for_ever(
    scene: Scene,
) -> None:
    path = scene.path.with_name("b5.db")
    applier = replica_of(scene.old, path)
    other = stock(path)
    other.execute("BEGIN")
    before = other.execute("SELECT * FROM t").fetchall()
    here, there = scene.old, replace(scene.new, position=scene.old.position)
    for i in range(40):
        there = replace(there, position=replace(here.position, frame=here.position.frame + 1))
        advance(applier, here, there)
        applier.checkpoint("passive", wait=0)
        assert other.execute("SELECT * FROM t").fetchall() == before, i
        here, there = there, replace(here, position=there.position)
    grown = applier.state().wal_frames
    assert grown > 40
    other.execute("COMMIT")
    assert other.execute("SELECT * FROM t").fetchall() == before  # an even number of flips
    applier.checkpoint("restart", wait=1)
    there = replace(there, position=replace(here.position, frame=here.position.frame + 1))
    advance(applier, here, there)
    assert applier.state().wal_frames < grown
    other.close()
    applier.close()


# ---------------------------------------------------------------- C


def test_rule_c1_a_copy_that_is_not_what_its_header_says_is_found_out(
    scene: Scene, tmp_path: Path
) -> None:
    """As `cp` of the main file in the middle of a checkpoint leaves it: page 1 new, another one old."""
    scene.server.raw = http(scene.body)
    scene.replica.sync()
    scene.replica.close()
    stale = next(n for n in history.changed(scene.old, scene.new) if n > 1)
    for spoil in (False, True):
        copy = tmp_path / f"copy-{spoil}.db"
        shutil.copy(scene.path, copy)
        if spoil:
            put_page(copy, stale, scene.old.pages[stale - 1])
            with closing(stock(copy)) as c:
                assert c.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        scene.server.raw = http(history.wire_set(scene.new, scene.newer))
        with closing(Replica(str(copy), scene.server.url, timeout=5.0)) as replica:
            replica.open()
            if not spoil:
                assert replica.sync().position == scene.newer.position
                continue
            with pytest.raises(SyncError, match="does not hold what its header says") as caught:
                replica.sync()
            assert caught.value.data_at_risk
            assert replica.state().position == scene.new.position


@pytest.mark.plain  # what the backup API of another SQLite makes
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_rule_c2_a_backup_is_no_replica_at_that_position(
    scene: Scene, tmp_path: Path, mode: str
) -> None:
    target = tmp_path / "backup.db"
    with closing(stock(target)) as c, closing(stock(scene.path)) as source:
        c.execute("PRAGMA page_size=512")
        c.execute(f"PRAGMA journal_mode={mode}")
        c.execute("CREATE TABLE own(a)")
        source.backup(c)
    before = target.read_bytes()
    scene.server.raw = http(scene.body)
    replica = Replica(str(target), scene.server.url, timeout=5.0)
    with closing(replica), pytest.raises(SyncError):
        replica.open()
        replica.sync()
    with closing(stock(target)) as c:
        assert c.execute("SELECT count(*) FROM t").fetchone() == (40,)
    assert len(target.read_bytes()) == len(before)


def test_rule_c3_side_files_of_a_deleted_database_never_meet_the_new_one(scene: Scene) -> None:
    path = scene.path.with_name("c3.db")
    old = stock(path)
    old.execute("PRAGMA journal_mode=WAL")
    old.execute("CREATE TABLE secret(a)")
    old.execute("INSERT INTO secret VALUES('old')")
    wal = wal_of(path).read_bytes()
    old.close()
    path.unlink()
    wal_of(path).write_bytes(wal)
    Path(f"{path}-journal").write_bytes(b"\xd9\xd5\x05\xf9 \xa1c\xd7" + bytes(600))
    scene.server.raw = http(history.wire_set(None, scene.old))
    with closing(Replica(str(path), scene.server.url, timeout=5.0)) as replica:
        replica.open()
        with closing(stock(path)) as c:
            assert c.execute("SELECT name FROM sqlite_schema").fetchall() == [("t",)]
            assert c.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO t VALUES(1000, 'x')",
        "DELETE FROM t",
        "CREATE TABLE x(a)",
        "DROP TABLE t",
        "PRAGMA user_version=7",
        "ANALYZE",
        "VACUUM",
        "PRAGMA journal_mode=DELETE",
        "BEGIN IMMEDIATE",
        "REINDEX",
        "PRAGMA incremental_vacuum",
        "PRAGMA wal_checkpoint(TRUNCATE)",
        "PRAGMA optimize",
        "BEGIN EXCLUSIVE",
    ],
)
def test_rule_c4_nothing_that_stock_sqlite_does_changes_a_replica(scene: Scene, sql: str) -> None:
    with closing(stock(scene.path)) as c:
        try:
            c.execute(sql).fetchall()
        except sqlite3.OperationalError as error:
            assert any(word in str(error) for word in ("readonly", "locked", "stays in WAL mode"))
    honest(scene)


def test_rule_c4_a_backup_into_a_replica_is_refused(scene: Scene) -> None:
    plain = {"encryption_key": None} if is_on() else {}
    with closing(stock(scene.path)) as c, closing(type(c)(":memory:", **plain)) as source:
        source.execute("CREATE TABLE intruder(a)")
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            source.backup(c)
    honest(scene)


def test_rule_c4_the_last_close_of_stock_sqlite_keeps_the_position(scene: Scene) -> None:
    scene.server.raw = http(scene.body)
    scene.replica.sync()
    scene.replica.close()
    with closing(stock(scene.path)) as c:
        c.execute("SELECT * FROM t").fetchall()
    assert not wal_of(scene.path).exists()
    again = Replica(str(scene.path), scene.server.url, timeout=5.0)
    again.open()
    with closing(again):
        assert again.state().position == scene.new.position
        scene.server.raw = http(history.wire_set(scene.new, scene.newer))
        assert again.sync().position == scene.newer.position


def test_a_file_that_is_no_replica_is_never_overwritten(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "mine.db"
    with closing(stock(path)) as c:
        c.execute("CREATE TABLE mine(a)")
    before = path.read_bytes()
    with pytest.raises(NotAReplicaError):
        Replica(str(path), scene.server.url, timeout=5.0).open()
    assert path.read_bytes() == before
