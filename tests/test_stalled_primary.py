"""A primary that stands still or dribbles holds up nobody but the call that listens to it, and that
call ends by its deadline."""

from __future__ import annotations

import fcntl
import os
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path

import history
import pytest
from history import History, Moment
from sealing import reader
from test_hostile import Server, http

from nearlite import wire
from nearlite.errors import AnswerError, OfflineError, SyncError
from nearlite.pulling import SyncResult
from nearlite.replica import Replica

EITHER = True

LONG = 600.0  # seconds; nobody waits so long
READ_LOCKS = 123, 5  # bytes of the -shm that a reader needs one of, and how many


class Stalling(Server):
    """Sends the first `before` bytes of its answer, and the rest when it is told to `go_on`."""

    def __init__(self) -> None:
        super().__init__()
        self.before: int | None = None
        self.stalled = threading.Event()
        self.go_on = threading.Event()

    def send(self, connection: socket.socket) -> None:
        if self.before is None:
            return super().send(connection)
        connection.sendall(self.raw[: self.before])
        self.stalled.set()
        self.go_on.wait(60)
        return connection.sendall(self.raw[self.before :])


class Dribbling(Server):
    """Sends ten bytes at a time for ever."""

    dribble = False

    def send(self, connection: socket.socket) -> None:
        if not self.dribble:
            return super().send(connection)
        end = time.monotonic() + 60
        for at in range(0, len(self.raw), 10):
            if time.monotonic() > end:
                break
            connection.sendall(self.raw[at : at + 10])
            time.sleep(0.01)
        return None


class Scene:
    """A replica at `old`; from there to `new` many pages change."""

    def __init__(self, folder: Path, server: Server, *, page_size: int, pages: int) -> None:
        source = History(folder / "primary.db", page_size=page_size)
        self.old = source.step("CREATE TABLE t(a)")
        self.new = source.step(f"INSERT INTO t VALUES(zeroblob({pages * page_size}))")
        self.newer = source.step("INSERT INTO t VALUES('newer')")
        source.db.close()
        self.server = server
        self.path = folder / "replica.db"
        self.server.raw = http(history.wire_set(None, self.old))
        self.replica = self.another()

    def another(self) -> Replica:
        replica = Replica(str(self.path), self.server.url, timeout=LONG)
        replica.open()
        return replica

    def rows(self) -> int:
        """What a process with stock SQLite reads."""
        with closing(reader(self.path, timeout=0)) as c:
            assert c.execute("PRAGMA integrity_check").fetchone() == ("ok",)
            (found,) = c.execute("SELECT count(*) FROM t").fetchone()
        return int(found)

    def stands_at(self, moment: Moment) -> bool:
        state, found = self.replica._applier.full_hash()
        return state.position == moment.position and state.hash == found == moment.hash


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as made:
        yield made


SYNC = """
import sys
from nearlite.replica import Replica
replica = Replica(sys.argv[1], sys.argv[2], timeout=20.0)
replica.open()
print(replica.sync(timeout=20.0).position)
replica.close()
"""


@pytest.mark.parametrize("pages", [1200, 8300], ids=["in memory", "in a file"])
def test_while_one_process_waits_for_bytes_another_one_applies(
    tmp_path: Path, pool: ThreadPoolExecutor, pages: int
) -> None:
    server = Stalling()
    scene = Scene(tmp_path, server, page_size=4096, pages=pages)
    server.raw = http(history.wire_set(scene.old, scene.new))
    server.before = len(server.raw) // 2
    with closing(server), closing(scene.replica):
        stuck: Future[SyncResult] = pool.submit(scene.replica.sync)
        try:
            assert server.stalled.wait(30)
            assert scene.replica.state(wait=5).position == scene.old.position
            healthy = Server()
            healthy.raw = http(history.wire_set(scene.old, scene.new))
            with closing(healthy):
                done = subprocess.run(
                    [sys.executable, "-c", SYNC, scene.path, healthy.url],
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=True,
                )
            assert done.stdout.strip() == str(scene.new.position)
            assert scene.rows() == 1
            assert not stuck.done()
        finally:
            server.go_on.set()
        result = stuck.result(30)
        assert result.position == scene.new.position  # what came is what the other had applied
        assert scene.stands_at(scene.new)
        server.before = None
        server.raw = http(history.wire_set(scene.new, scene.newer))
        assert scene.replica.sync().position == scene.newer.position
        assert scene.rows() == 2


def test_a_large_set_that_is_not_what_it_announces_leaves_the_replica_as_it_was(
    tmp_path: Path,
) -> None:
    scene = Scene(tmp_path, Server(), page_size=4096, pages=8300)
    numbers = history.changed(scene.old, scene.new)
    head = history.header(scene.old, scene.new, numbers)
    pages = list(scene.new.pages)
    pages[-1] = b"x" * 4096  # every digest right, and the state it leads to is another one
    wrong = wire.page_set(head, history.raw_chunks(replace(scene.new, pages=tuple(pages)), numbers))
    with closing(scene.server), closing(scene.replica):
        scene.server.raw = http(b"".join(bytes(piece) for piece in wrong))
        with pytest.raises(AnswerError, match="not the announced one"):
            scene.replica.sync()
        assert scene.stands_at(scene.old)
        scene.server.raw = http(history.wire_set(scene.old, scene.new))
        assert scene.replica.sync().position == scene.new.position
        assert scene.stands_at(scene.new)


@pytest.mark.parametrize("where", ["head", "header", "middle", "end"])
def test_a_timeout_is_kept_when_the_primary_stands_still(tmp_path: Path, where: str) -> None:
    server = Stalling()
    scene = Scene(tmp_path, server, page_size=512, pages=1200)
    server.raw = http(history.wire_set(scene.old, scene.new))
    body = server.raw.index(b"\r\n\r\n") + 4
    server.before = {
        "head": body - 10,
        "header": body + 50,
        "middle": len(server.raw) // 2,
        "end": len(server.raw) - 1,
    }[where]
    with closing(server), closing(scene.replica):
        try:
            with pytest.raises(OfflineError, match=r"complete answer|deadline") as caught:
                scene.replica.sync(timeout=0.2)
            assert not caught.value.data_at_risk
            assert scene.replica.last_error is caught.value
        finally:
            server.go_on.set()
        assert scene.stands_at(scene.old)
        server.before = None
        assert scene.replica.sync().position == scene.new.position
        assert scene.replica.last_error is None


def test_each_call_may_have_a_network_timeout_of_its_own(tmp_path: Path) -> None:
    """Connections share the replica, whose own is ten minutes here."""
    server = Stalling()
    scene = Scene(tmp_path, server, page_size=512, pages=10)
    server.before = 0
    with closing(server), closing(scene.replica):
        try:
            with pytest.raises(OfflineError, match="deadline"):
                scene.replica.sync(network_timeout=0.2)
            with pytest.raises(OfflineError, match="deadline") as caught:
                scene.replica.forward(b"{}", visible=True, network_timeout=0.2)
            assert "may have been carried out" in caught.value.state
        finally:
            server.go_on.set()
        assert scene.stands_at(scene.old)


def test_a_timeout_is_kept_when_the_primary_dribbles(tmp_path: Path) -> None:
    server = Dribbling()
    scene = Scene(tmp_path, server, page_size=512, pages=1200)
    server.raw = http(history.wire_set(scene.old, scene.new))
    server.dribble = True
    with closing(server), closing(scene.replica):
        with pytest.raises(OfflineError, match=r"complete answer|deadline"):
            scene.replica.sync(timeout=0.3)
        assert scene.stands_at(scene.old)


def test_a_timeout_is_kept_when_another_process_holds_the_write_lock(
    tmp_path: Path, shm_locks: list[int]
) -> None:
    scene = Scene(tmp_path, Server(), page_size=512, pages=10)
    scene.server.raw = http(history.wire_set(scene.old, scene.new))
    with closing(scene.server), closing(scene.replica):
        free = hold(scene.path, 120, 1, shm_locks)
        with pytest.raises(SyncError, match="write lock") as caught:
            scene.replica.sync(timeout=0.2)
        assert caught.value.sqlite_errorcode == sqlite3.SQLITE_BUSY
        assert not caught.value.data_at_risk
        free()
        assert scene.replica.sync(timeout=10).position == scene.new.position


def test_a_timeout_is_kept_when_a_checkpointer_of_another_program_holds_its_lock(
    tmp_path: Path, shm_locks: list[int]
) -> None:
    """Rule B4: the WAL is not begun anew meanwhile, and that wait belongs to the call, too."""
    scene = Scene(tmp_path, Server(), page_size=512, pages=10)
    scene.server.raw = http(history.wire_set(scene.old, scene.new))
    with closing(scene.server), closing(scene.replica):
        scene.replica.sync()
        scene.replica.background.stop()  # bringing the new file to the disk, it reads: nothing is copied then
        scene.replica.checkpoint()  # all of it: the next apply may begin the WAL anew
        free = hold(scene.path, 121, 1, shm_locks)
        scene.server.raw = http(history.wire_set(scene.new, scene.newer))
        began = time.monotonic()
        with pytest.raises(SyncError) as caught:
            scene.replica.sync(timeout=0.2)
        assert time.monotonic() - began < 4.5  # five seconds were once waited for that lock alone
        assert caught.value.sqlite_errorcode == sqlite3.SQLITE_BUSY
        assert scene.stands_at(scene.new)
        free()
        assert scene.replica.sync().position == scene.newer.position
        assert scene.stands_at(scene.newer)


def test_a_timeout_is_kept_while_the_file_is_read_in_full(
    tmp_path: Path, shm_locks: list[int]
) -> None:
    """Rule C1's hash of a large file takes longer than a caller may want to wait; it is not lost."""
    scene = Scene(tmp_path, Server(), page_size=512, pages=10)
    with closing(scene.server), closing(scene.replica):
        scene.server.raw = http(history.wire_set(scene.old, scene.new))
        with closing(scene.another()) as second:  # which cannot know who wrote the file
            free = hold(scene.path, *READ_LOCKS, shm_locks)  # reading takes long now
            for _ in range(2):
                with pytest.raises(SyncError, match="still being read in full") as caught:
                    second.sync(timeout=0.1)
                assert not caught.value.data_at_risk
            free()
            assert second.sync().position == scene.new.position


@pytest.fixture
def shm_locks() -> Iterator[list[int]]:
    """Descriptors that hold locks; closed at the end."""
    held: list[int] = []
    yield held
    for fd in held:
        with suppress(OSError):
            os.close(fd)


def hold(path: Path, byte: int, count: int, held: list[int]) -> Callable[[], None]:
    """Lock bytes of the -shm as another process would; answers what gives them back."""
    fd = os.open(f"{path}-shm", os.O_RDWR)
    held.append(fd)
    fcntl.lockf(fd, fcntl.LOCK_EX, count, byte)  # the new file may still be on its way to the disk
    return lambda: fcntl.lockf(fd, fcntl.LOCK_UN, count, byte)
