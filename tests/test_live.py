"""sync_interval="live": a change is here as it happens, whatever the network, other threads and processes do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import history
import pytest
import stack
from history import History
from primaries import Served, primary
from sealing import reader
from test_background import count, eventually
from test_hostile import Server, http

import nearlite
from nearlite.live import FIRST_PAUSE, HEARTBEAT, LONGEST_PAUSE, Live, Pauses
from nearlite.replica import Replica

EITHER = True

SOON = HEARTBEAT / 3
"""Seconds; nothing here may have to wait for the end of a poll."""


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with primary(tmp_path) as made:
        made.remote(isolation_level=None).execute("CREATE TABLE t(a)")
        yield made


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as made:
        yield made


def live(served: Served, **options: Any) -> Any:
    """A live replica whose poll is open."""
    con = served.replica(sync_interval="live", **options)
    eventually(lambda: con._replica.background.follows)
    return con


def polls(served: Served) -> list[str]:
    return [path for path in served.seen if "/changes/" in path]


# ---------------------------------------------------------------- what it is for


def test_what_others_write_arrives_by_itself_with_one_request_each(served: Served) -> None:
    con = live(served)
    remote = served.remote(isolation_level=None)
    served.seen.clear()
    for n in range(1, 6):
        remote.execute("INSERT INTO t VALUES(1)")
        eventually(lambda n=n: count(con) == n)
    assert len(polls(served)) <= 6  # the one after the last change is open, or on its way
    assert con.last_sync_error is None
    assert 0 <= con.lag < SOON


def test_follow_makes_a_plain_connection_live(served: Served) -> None:
    con = served.replica()
    con.follow()
    con.follow()  # it is: nothing happens
    served.remote(isolation_level=None).execute("INSERT INTO t VALUES(1)")
    eventually(lambda: count(con) == 1)
    assert threads().count("nearlite-live") == 1


def test_live_comes_before_every_interval(served: Served) -> None:
    con = live(served)
    served.replica(sync_interval=0.01)
    served.seen.clear()
    served.remote(isolation_level=None).execute("INSERT INTO t VALUES(1)")
    eventually(lambda: count(con) == 1)
    assert len(polls(served)) <= 2


def test_the_next_request_is_sent_before_a_page_set_is_applied(served: Served) -> None:
    con = live(served)
    # To ask takes a look at where the file stands, and that the lock.
    eventually(lambda: served.app._feed.polls.waiting == 1)
    with con._replica._applying:  # nothing can be applied
        token = served.remote(isolation_level=None)
        token.execute("INSERT INTO t VALUES(zeroblob(1000000))")
        after = f"/changes/{token.last_write_position}"
        eventually(lambda: any(path.endswith(after) for path in served.seen))
        with closing(reader(con._replica.path)) as stock:
            assert stock.execute("SELECT count(*) FROM t").fetchone() == (0,)
    eventually(lambda: count(con) == 1)
    assert sum(path.endswith(after) for path in served.seen) == 1


def test_own_writes_do_not_wait_for_the_poll(served: Served) -> None:
    con = live(served, isolation_level=None)
    began = time.monotonic()
    for n in range(1, 4):
        con.execute("INSERT INTO t VALUES(1)")
        assert count(con) == n
    assert time.monotonic() - began < SOON
    served.remote(isolation_level=None).execute("INSERT INTO t VALUES(1)")
    eventually(lambda: count(con) == 4)
    assert con.last_sync_error is None


def test_a_large_change_arrives_whole(served: Served) -> None:
    con = live(served)
    served.remote(isolation_level=None).execute("INSERT INTO t VALUES(zeroblob(40000000))")
    eventually(lambda: count(con) == 1)
    assert con.execute("PRAGMA quick_check").fetchone() == ("ok",)


# ---------------------------------------------------------------- the end


def threads() -> list[str]:
    return [
        t.name
        for t in threading.enumerate()
        if t.name.startswith(("nearlite-live", "nearlite-replica"))
    ]


def test_close_ends_a_poll_at_once(served: Served) -> None:
    con = live(served)
    began = time.monotonic()
    con.close()
    assert time.monotonic() - began < SOON
    assert threads() == []


FOLLOWER = """
import sys, nearlite
con = nearlite.connect(sys.argv[1], sync_url=sys.argv[2], sync_interval="live")
while not con._replica.background.follows:
    pass
try:
    print("following", flush=True)
    sys.stdin.read()
except KeyboardInterrupt:
    sys.exit(130)
"""


class Follower:
    """A program with a live replica, in a process of its own."""

    def __init__(self, path: Path, url: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", FOLLOWER, path, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "following\n"

    def __enter__(self) -> subprocess.Popen[str]:
        return self.process

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


def test_a_program_that_ends_or_is_interrupted_does_not_wait(
    served: Served, tmp_path: Path
) -> None:
    for end in (lambda p: p.stdin.close(), lambda p: p.send_signal(signal.SIGINT)):
        with Follower(tmp_path / "replica.db", served.url) as process:
            began = time.monotonic()
            end(process)
            assert process.wait(60) in (0, 130)
            assert time.monotonic() - began < SOON


def test_close_while_the_primary_cannot_even_be_connected_to(tmp_path: Path) -> None:
    """A listener with a full backlog: connecting hangs, and nothing can wake it."""
    with primary(tmp_path) as served:
        served.replica().close()
    with socket.socket() as full, closing(socket.socket()) as first:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first.connect(full.getsockname())
        held = []
        for _ in range(8):  # more than any backlog that was rounded up
            held.append(socket.socket())
            held[-1].setblocking(False)
            held[-1].connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}"
        con = nearlite.connect(tmp_path / "replica.db", sync_url=url, sync_interval="live")
        eventually(lambda: con._replica.transport.connecting)
        began = time.monotonic()
        con.close()
        assert time.monotonic() - began < SOON
        for each in held:
            each.close()


# ---------------------------------------------------------------- failures


def test_a_primary_that_comes_back_is_followed_again_with_all_that_was_missed(
    tmp_path: Path,
) -> None:
    there = stack.Primary(tmp_path / "primary.db")
    with closing(nearlite.connect(there.url, isolation_level=None)) as remote:
        remote.execute("CREATE TABLE t(a)")
    con = nearlite.connect(tmp_path / "replica.db", sync_url=there.url, sync_interval="live")
    with closing(con):
        eventually(lambda: con._replica.background.follows)
        there.kill()
        eventually(lambda: isinstance(con.last_sync_error, nearlite.OfflineError))
        lag = con.lag
        eventually(lambda: con.lag > lag)
        there.start()
        with closing(nearlite.connect(there.url, isolation_level=None)) as remote:
            for _ in range(5):
                remote.execute("INSERT INTO t VALUES(1)")
        eventually(lambda: count(con) == 5)
        eventually(lambda: con.last_sync_error is None)
    there.kill()


def test_a_wrong_token_is_survived_and_the_right_one_works(tmp_path: Path) -> None:
    tokens = ["secret"]
    with primary(tmp_path, auth_token="secret") as served:
        remote = served.remote(auth_token="secret", isolation_level=None)
        remote.execute("CREATE TABLE t(a)")
        con = served.replica(auth_token=lambda: tokens[0], sync_interval="live")
        eventually(lambda: served.app._feed.polls.waiting == 1)
        tokens[0] = "wrong"
        remote.execute("INSERT INTO t VALUES(1)")  # what was asked before comes
        eventually(lambda: count(con) == 1)
        remote.execute("INSERT INTO t VALUES(1)")
        eventually(lambda: isinstance(con.last_sync_error, nearlite.UnauthorizedError))
        tokens[0] = "secret"
        eventually(lambda: count(con) == 2)
        eventually(lambda: con.last_sync_error is None)


class Scripted(Server):
    """Gives one answer after the other; the last one again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.answers: list[bytes | Callable[[], bytes] | None] = []
        self.enough = threading.Event()
        self.until = 0

    def send(self, connection: socket.socket) -> None:
        if self.until and self.requests >= self.until:
            self.enough.set()
        if not self.answers:
            return super().send(connection)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if callable(answer):
            answer = answer()
        if answer is not None:  # None: not a byte, ever
            connection.sendall(answer)
        return None


class Scene:
    """A replica at the first of three states, behind a server that says what it is told to."""

    def __init__(
        self, folder: Path, *, timeout: float = 20.0, sizes: tuple[int, ...] = (1, 1, 1)
    ) -> None:
        source = History(folder / "source.db", page_size=512)
        self.moments = [source.step("CREATE TABLE t(a)")]
        self.moments += [source.step(f"INSERT INTO t VALUES(zeroblob({size}))") for size in sizes]
        source.db.close()
        self.server = Scripted()
        self.server.raw = http(history.wire_set(None, self.moments[0]))
        self.replica = Replica(str(folder / "replica.db"), self.server.url, timeout=timeout)
        self.replica.open()
        self.server.requests = 0
        self.failures: list[tuple[Exception, float]] = []
        self.live = Live(
            self.replica,
            failed=lambda error, pause: self.failures.append((error, pause)),
            heartbeat=0.2,
        )
        self.thread = threading.Thread(target=self.live.run)

    def step(self, old: int, new: int) -> bytes:
        return http(history.wire_set(self.moments[old], self.moments[new]))

    def nothing(self, since: int) -> bytes:
        position = self.moments[since].position
        return f"HTTP/1.1 204 No Content\r\nNearlite-Position: {position}\r\n\r\n".encode()

    def is_at(self, number: int) -> bool:
        return self.replica.state().position == self.moments[number].position

    def __enter__(self) -> Scene:
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()
        self.replica.close()
        self.thread.join(20)
        assert not self.thread.is_alive()
        self.server.close()


def test_a_poll_that_is_not_answered_is_dead(tmp_path: Path) -> None:
    with Scene(tmp_path, timeout=0.3) as scene:
        scene.server.answers = [scene.nothing(0), None, scene.step(0, 1), None]
        scene.thread.start()
        eventually(lambda: scene.is_at(1))
        assert isinstance(scene.failures[0][0], nearlite.OfflineError)
        assert "deadline" in str(scene.failures[0][0])


def test_the_first_attempt_after_a_failure_is_at_once_and_the_next_ones_are_not(
    tmp_path: Path,
) -> None:
    with Scene(tmp_path) as scene:
        scene.server.answers, scene.server.hang_up, scene.server.until = [b""], True, 6
        began = time.monotonic()
        scene.thread.start()
        assert scene.server.enough.wait(20)
        assert time.monotonic() - began > (FIRST_PAUSE + 2 * FIRST_PAUSE + 4 * FIRST_PAUSE) / 2
    assert [pause == 0 for _, pause in scene.failures[:3]] == [True, False, False]


def test_a_server_that_does_not_wait_is_not_asked_without_end(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        scene.server.answers, scene.server.until = [scene.nothing(0)], 6
        began = time.monotonic()
        scene.thread.start()
        assert scene.server.enough.wait(20)
        assert time.monotonic() - began > (FIRST_PAUSE + 2 * FIRST_PAUSE) / 2
        assert scene.failures == []
        assert scene.replica.lag is not None


def test_a_damaged_set_is_not_applied_and_asked_for_again(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        good = scene.step(0, 1)
        bad = good[:-40] + bytes([good[-40] ^ 1]) + good[-39:]
        scene.server.answers = [bad, scene.nothing(0), good, scene.nothing(1)]
        scene.thread.start()
        eventually(lambda: scene.failures)
        assert isinstance(scene.failures[0][0], nearlite.SyncError)
        eventually(lambda: scene.server.requests >= 3)


def test_when_somebody_else_moves_the_file_it_goes_on_from_there(tmp_path: Path) -> None:
    """The answer to what was asked ahead does not fit any more, and is thrown away."""
    with Scene(tmp_path, sizes=(40_000, 1, 1)) as scene:  # 80 pages: the next request goes first
        gate = threading.Event()

        def first() -> bytes:
            gate.wait(20)
            return scene.step(0, 1)

        scene.server.answers = [first, None]
        helper = Server()
        helper.raw = scene.step(0, 2)
        other = Replica(scene.replica.path, helper.url)
        other.open()
        scene.thread.start()
        eventually(lambda: scene.server.requests >= 1)
        with closing(helper), closing(other):
            with scene.replica._applying:
                gate.set()
                eventually(lambda: scene.server.requests >= 2)  # asked ahead, from moment 1
                other.sync()
                scene.server.answers = [scene.step(2, 3), None]
            eventually(lambda: scene.is_at(3))
        assert scene.failures == []


def test_when_somebody_else_moves_the_file_a_small_set_is_left_out(tmp_path: Path) -> None:
    with Scene(tmp_path) as scene:
        gate = threading.Event()

        def first() -> bytes:
            gate.wait(20)
            return scene.step(0, 1)

        scene.server.answers = [first, scene.step(2, 3), None]
        helper = Server()
        helper.raw = scene.step(0, 2)
        other = Replica(scene.replica.path, helper.url)
        other.open()
        scene.thread.start()
        eventually(lambda: scene.server.requests >= 1)
        with closing(helper), closing(other):
            other.sync()
            gate.set()
            eventually(lambda: scene.is_at(3))
        assert scene.failures == []


def test_pauses_grow_to_a_bound_and_begin_anew() -> None:
    pauses = Pauses()
    made = [pauses.next() for _ in range(60)]
    assert made[0] == 0
    assert FIRST_PAUSE / 2 <= made[1] <= FIRST_PAUSE
    assert all(LONGEST_PAUSE / 2 <= pause <= LONGEST_PAUSE for pause in made[-20:])
    assert len(set(made[-20:])) > 1  # not all replicas at once
    pauses.reset()
    assert pauses.next() == 0


def test_a_silent_peer_is_looked_after_by_the_system(served: Served) -> None:
    con = live(served)
    (channel, *_) = con._replica.transport._channels
    option = channel._sock.getsockopt
    assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) <= HEARTBEAT
    assert 0 < option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 30_000


# ---------------------------------------------------------------- many processes


def test_one_process_follows_the_others_see_it_and_one_takes_over(
    served: Served, tmp_path: Path
) -> None:
    with Follower(tmp_path / "replica.db", served.url) as holder:
        con = served.replica(sync_interval="live")
        remote = served.remote(isolation_level=None)
        remote.execute("INSERT INTO t VALUES(1)")
        eventually(lambda: count(con) == 1)
        assert not con._replica.background.follows
        eventually(lambda: con.lag is not None)
        holder.kill()
        holder.wait()
    remote.execute("INSERT INTO t VALUES(2)")
    eventually(lambda: count(con) == 2)
    assert con._replica.background.follows


def test_a_forked_child_follows_on_its_own(served: Served, tmp_path: Path) -> None:
    script = """
import os, sys, nearlite
path, url = sys.argv[1:]
con = nearlite.connect(path, sync_url=url, sync_interval="live")
while not con._replica.background.follows:
    pass
pid = os.fork()
if pid == 0:
    own = nearlite.connect(path, sync_url=url, sync_interval="live")
    os.read(0, 1)
    while own.execute("SELECT count(*) FROM t").fetchone() != (2,):
        pass
    while not own._replica.background.follows:
        pass
    print("child", True, flush=True)
    os._exit(0)
while con.execute("SELECT count(*) FROM t").fetchone() != (1,):
    pass
con.close()
print("parent", flush=True)
os.waitpid(pid, 0)
"""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", script, tmp_path / "replica.db", served.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        remote = served.remote(isolation_level=None)
        remote.execute("INSERT INTO t VALUES(1)")
        assert process.stdout.readline() == "parent\n"
        remote.execute("INSERT INTO t VALUES(2)")
        process.stdin.write("x")
        process.stdin.flush()
        assert process.stdout.readline() == "child True\n"
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_stopped_server_lets_its_followers_go_and_they_wait_for_the_next(
    tmp_path: Path, pool: ThreadPoolExecutor
) -> None:
    with primary(tmp_path) as served:
        served.remote(isolation_level=None).execute("CREATE TABLE t(a)")
        con = nearlite.connect(tmp_path / "replica.db", sync_url=served.url, sync_interval="live")
        eventually(lambda: con._replica.background.follows)
    with closing(con):
        eventually(lambda: con.last_sync_error is not None)
        done: Future[int] = pool.submit(os.getpid)  # other threads go on
        assert done.result(10) == os.getpid()
        assert count_elsewhere(con) == 0


def count_elsewhere(con: Any) -> int:
    with closing(reader(con._replica.path)) as stock:
        return int(stock.execute("SELECT count(*) FROM t").fetchone()[0])


@pytest.mark.parametrize("interval", ["Live", "", 0, -1, True, float("nan")])
def test_an_interval_that_is_none_is_refused(tmp_path: Path, interval: Any) -> None:
    with pytest.raises(nearlite.ProgrammingError, match="sync_interval"):
        nearlite.connect(tmp_path / "r.db", sync_url="http://127.0.0.1:1", sync_interval=interval)
    assert not (tmp_path / "r.db").exists()


def test_a_live_replica_whose_history_is_gone_is_repaired(tmp_path: Path) -> None:
    """What a sync of its own knows to do about a refusal, or about damage, is done."""
    with Scene(tmp_path) as scene:
        gone = b'{"message": "gone", "code": "HISTORY_GONE"}'
        refusal = b"HTTP/1.1 410 Gone\r\nContent-Length: %d\r\n\r\n" % len(gone) + gone
        scene.server.answers = [refusal, scene.step(0, 2), None]
        scene.thread.start()
        eventually(lambda: scene.is_at(2))
        assert scene.failures == []
