"""Rule B5 in a replica as it runs: its WAL stays short, and who keeps it long is named."""

from __future__ import annotations

import fcntl
import logging
import os
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import history
import pytest
from history import History, Moment
from stock import Stock
from test_hostile import Server, http

from nearlite.replica import Replica
from nearlite.upkeep import RESTART_BYTES, readers

EITHER = True

LIMIT = 1 << 20


class Scene:
    """A replica that is brought back and forth between two states, `pages` pages each time."""

    def __init__(self, folder: Path, pages: int) -> None:
        source = History(folder / "primary.db")
        source.step("CREATE TABLE t(a)", f"INSERT INTO t VALUES(zeroblob({pages * 4096}))")
        self.now = source.look()
        self.then = source.step("UPDATE t SET a = randomblob(length(a))")
        source.db.close()
        self.path = folder / "replica.db"
        self.server = Server()
        self.server.raw = http(history.wire_set(None, self.now))
        self.replica = Replica(str(self.path), self.server.url, timeout=20.0, wal_limit=LIMIT)
        self.replica.open()
        self.replica.background.stop()  # the test says when there is a checkpoint

    def advance(self) -> None:
        here, frame = self.now, self.now.position.frame + 1
        there: Moment = replace(self.then, position=replace(here.position, frame=frame))
        self.server.raw = http(history.wire_set(here, there))
        assert self.replica.sync().position == there.position
        self.now, self.then = there, here

    def frames(self) -> int:
        return self.replica.state().wal_frames


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path, 300)
    yield made
    made.replica.close()
    made.server.close()


def test_a_short_wal_is_copied_and_used_again(scene: Scene) -> None:
    scene.advance()
    frames = scene.frames()
    scene.replica.checkpoint()
    assert scene.replica.wal_bytes == 0
    assert scene.frames() == frames  # the next apply begins at its start
    scene.advance()
    assert scene.frames() <= frames


def write_locked(shm: int) -> bool:
    """Whether somebody holds WAL_WRITE_LOCK: RESTART does while it waits, PASSIVE never."""
    asked = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 120, 1, 0)
    answer = struct.unpack("hhqqi", fcntl.fcntl(shm, fcntl.F_GETLK, asked))
    return int(answer[0]) != fcntl.F_UNLCK


def test_above_32_mib_the_readers_of_the_old_wal_are_waited_for(tmp_path: Path) -> None:
    scene = Scene(tmp_path, RESTART_BYTES // 4096 + 100)
    with closing(scene.server), closing(scene.replica), Stock(scene.path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM t")
        scene.advance()
        assert scene.frames() * 4120 > RESTART_BYTES
        shm = os.open(f"{scene.path}-shm", os.O_RDWR)
        waited = False
        with ThreadPoolExecutor(1) as pool:
            for _ in range(100):  # each wait is short: a busy machine may miss some of them
                checkpoint = pool.submit(scene.replica.checkpoint)
                while not checkpoint.done() and not waited:
                    waited = write_locked(shm)
                checkpoint.result()  # ends all the same, without an exception
                if waited:
                    break
        os.close(shm)
        assert waited
        reader.execute("COMMIT")
        scene.replica.checkpoint()
        assert scene.replica.wal_bytes == 0


@pytest.mark.plain
def test_who_keeps_the_wal_is_named_once(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "nearlite")
    scene.advance()
    with Stock(scene.path) as reader:
        reader.execute("BEGIN")
        (before,) = reader.execute("SELECT hex(substr(a, 1, 100)) FROM t")
        for _ in range(3):
            scene.advance()
            scene.replica.checkpoint()
        assert scene.replica.wal_bytes > LIMIT
        said = [record for record in caplog.records if "read transaction" in record.getMessage()]
        assert [record.levelname for record in said] == ["WARNING"]
        assert f"process {reader.process.pid}" in said[0].getMessage()
        assert "No data is at risk" in said[0].getMessage()
        assert reader.execute("SELECT hex(substr(a, 1, 100)) FROM t") == [before]
        reader.execute("COMMIT")
    caplog.clear()
    scene.replica.checkpoint()
    assert scene.replica.wal_bytes == 0
    assert [record.levelname for record in caplog.records] == ["INFO"]
    scene.advance()
    assert scene.frames() < 400  # begun anew
    state, found = scene.replica._applier.full_hash()
    assert state.hash == found


def test_readers_that_need_nothing_of_the_wal_are_not_named(scene: Scene) -> None:
    scene.advance()
    scene.replica.checkpoint()
    with Stock(scene.path) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM t")  # all of it is in the database file
        assert readers(str(scene.path)) == ""
    assert readers(str(scene.path.with_name("nowhere.db"))) == ""
