"""Many that wait for one commit: encoded once, told to all, and none of them forgotten."""

from __future__ import annotations

import concurrent.futures
import re
import resource
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from serving import Client, serving
from stock import Stock

from nearlite import polls as polls_module
from nearlite import sending, serve
from nearlite.answers import Answer
from nearlite.applications import PrimaryApp
from nearlite.position import Position
from nearlite.primary import Primary
from nearlite.server import App
from nearlite.sync import Local
from nearlite.wire import CompactSet, Status, WholeSet, is_compact

EITHER = True

SOON = 20.0  # seconds; a poll that is forgotten ends after POLL only
POLL = 25
KINDS = ["z=0&v=2", "z=1&v=2", "z=0", ""]
MANY = 3 * polls_module.SLICE


class Counting(Primary):
    """Counts the page sets that are made."""

    made: Counter[tuple[Position, bool, bool]]

    def changes(self, start: Position, *args: Any, **options: Any) -> Answer | None:
        answer = super().changes(start, *args, **options)
        if answer is not None:
            self.made[start, options["compress"], options["compact"]] += 1
        return answer


@dataclass
class Served:
    """A server with its application.

    Attributes:
      made: page sets, by what was asked.
    """

    app: App
    port: int
    made: Counter[tuple[Position, bool, bool]]

    @property
    def waiting(self) -> int:
        assert self.app._feed is not None
        return self.app._feed.polls.waiting

    def until_waiting(self, count: int) -> None:
        """Return when so many long polls are open."""
        client = Client(self.port)
        end = time.monotonic() + SOON
        while self.waiting != count:
            assert time.monotonic() < end, f"{self.waiting} wait, not {count}"
            client.request("GET", "/health")


@contextmanager
def plain(app: App) -> Iterator[int]:
    """Under uvicorn as it comes: nothing of ours around the application."""
    listening = serve.bind("127.0.0.1", 0)
    config = uvicorn.Config(app, log_config=None, lifespan="on", backlog=1024)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        threading.Event().wait(0.001)
    yield listening.getsockname()[1]
    server.should_exit = True
    thread.join(SOON)
    assert not thread.is_alive()
    listening.close()


SERVERS: dict[str, Callable[[App], Any]] = {"serve": serving, "plain uvicorn": plain}


@contextmanager
def served(path: Path, how: str = "serve", **options: Any) -> Iterator[Served]:
    made: Counter[tuple[Position, bool, bool]] = Counter()

    def owner() -> Primary:
        primary = Counting.open(path, **{"durability": "normal", **options})
        primary.made = made  # type: ignore[attr-defined]
        return primary

    app = PrimaryApp(path, owner)
    with SERVERS[how](app) as port:
        Client(port).run("CREATE TABLE t(a)")
        yield Served(app, port, made)
        for client in _open:
            client.close()
        _open.clear()


@pytest.fixture(params=list(SERVERS))
def both(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path / "data.db", request.param) as found:
        yield found


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path / "data.db") as found:
        yield found


_open: list[Waiter] = []
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


class Waiter:
    """A raw connection with a long poll.

    Attributes:
      since: where it stands.
    """

    def __init__(self, port: int, since: Local, query: str = KINDS[0], wait: float = POLL) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=SOON)
        _open.append(self)
        self._query = query
        self._rest = b""
        self.ask(since, wait)

    def ask(self, since: Local, wait: float = POLL) -> None:
        self.since = since
        known = f"hash={since.hash:016x}&" if "v=2" in self._query else ""
        target = f"/nl/v1/changes/{since.position}?{known}{self._query}&wait={wait}"
        self.socket.sendall(f"GET {target} HTTP/1.1\r\nHost: h\r\n\r\n".encode())

    def answer(self) -> tuple[int, bytes, bytes]:
        """Status, head and body."""
        data = self._rest
        while (end := data.find(b"\r\n\r\n") + 4) < 4:
            data += self._receive()
        length = _LENGTH.search(data[:end])
        size = int(length[1]) if length is not None else 0
        while len(data) < end + size:
            data += self._receive()
        self._rest = data[end + size :]
        return int(data[9:12]), data[:end], data[end : end + size]

    def _receive(self) -> bytes:
        piece = self.socket.recv(1 << 20)
        if not piece:
            raise ConnectionError("the server closed the connection")
        return piece

    def set(self) -> Local:
        """Where the page set leads that comes next."""
        status, head, body = self.answer()
        assert status == 200, head
        header = (CompactSet(body, self.since) if is_compact(body) else WholeSet(body)).header
        assert header.start == self.since.position
        assert f"\r\nnearlite-position: {header.target}\r\n".encode() in head.lower()
        return Local(header.target, header.hash_target, header.pages, header.page_size)

    def close(self) -> None:
        self.socket.close()


def here(port: int) -> Local:
    status = Status.decode(Client(port).request("GET", "/nl/v1/status").body)
    return Local(status.position, status.hash, status.pages, status.page_size)


def test_a_transaction_is_encoded_once_for_all_who_ask_the_same(both: Served) -> None:
    since = here(both.port)
    waiters = [Waiter(both.port, since, kind) for kind in KINDS for _ in range(MANY)]
    both.until_waiting(len(waiters))
    both.made.clear()
    Client(both.port).run("INSERT INTO t VALUES (1)")
    now = here(both.port)
    for waiter in waiters:
        assert waiter.set() == now
    assert both.waiting == 0
    # The last two kinds differ in nothing that matters to what they are told.
    assert both.made == {
        (since.position, False, True): 1,
        (since.position, True, True): 1,
        (since.position, False, False): 1,
    }


def test_those_who_ask_the_same_are_sent_the_same_bytes(ours: Served) -> None:
    since = here(ours.port)
    for round_ in range(3):  # first parsed, then known heads
        waiters = [Waiter(ours.port, since) for _ in range(MANY)]
        ours.until_waiting(MANY)
        Client(ours.port).run(f"INSERT INTO t VALUES ({round_})")
        assert len({waiter.answer() for waiter in waiters}) == 1
        since = here(ours.port)


def test_clients_that_leave_are_forgotten_and_the_others_told(both: Served) -> None:
    since = here(both.port)
    waiters = [Waiter(both.port, since) for _ in range(20)]
    both.until_waiting(20)
    for waiter in waiters[::2]:
        waiter.close()
    both.until_waiting(10)
    Client(both.port).run("INSERT INTO t VALUES (1)")
    now = here(both.port)
    for waiter in waiters[1::2]:
        assert waiter.set() == now
        waiter.ask(now)
    both.until_waiting(10)
    for waiter in waiters[1::2]:
        waiter.close()
    both.until_waiting(0)
    assert both.app._feed is not None
    assert both.app._feed.polls._groups == {}
    assert both.app._feed.polls._ends == {}


def test_one_whose_time_is_over_ends_alone(both: Served) -> None:
    since = here(both.port)
    long = [Waiter(both.port, since) for _ in range(3)]
    both.until_waiting(3)
    began = time.monotonic()
    short = [Waiter(both.port, since, wait=wait) for wait in (0.3, 0.1, 0.3, 0.5)]
    for waiter in short:
        status, head, body = waiter.answer()
        assert (status, body) == (204, b"")
        assert f"\r\nnearlite-position: {since.position}\r\n".encode() in head.lower()
        assert b"\r\ncache-control: no-store\r\n" in head.lower()
    assert time.monotonic() - began > 0.49
    assert both.waiting == 3
    short[0].ask(since)  # on the same connection
    both.until_waiting(4)
    Client(both.port).run("INSERT INTO t VALUES (1)")
    now = here(both.port)
    assert [waiter.set() for waiter in (*long, short[0])] == [now] * 4


def test_a_poll_that_does_not_wait_is_answered_at_once(both: Served) -> None:
    waiter = Waiter(both.port, here(both.port), wait=0)
    assert waiter.answer()[0] == 204
    assert both.waiting == 0


def test_a_large_transaction_is_encoded_once_too(
    both: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in (1 << 30, 1 << 20):  # in memory; in a file
        monkeypatch.setattr(sending, "_IN_MEMORY", limit)
        since = here(both.port)
        waiters = [Waiter(both.port, since) for _ in range(12)]
        both.until_waiting(12)
        both.made.clear()
        Client(both.port).run("INSERT INTO t VALUES (randomblob(3000000))")
        bodies = {waiter.answer()[2] for waiter in waiters}
        assert len(bodies) == 1
        assert WholeSet(bodies.pop()).header.target == here(both.port).position
        assert both.made == {(since.position, False, True): 1}


def test_one_that_waits_alone_takes_a_large_transaction(both: Served) -> None:
    waiter = Waiter(both.port, here(both.port))
    both.until_waiting(1)
    Client(both.port).run("INSERT INTO t VALUES (randomblob(3000000))")
    _, _, body = waiter.answer()
    assert WholeSet(body).header.target == here(both.port).position
    waiter.ask(here(both.port))  # the connection goes on
    both.until_waiting(1)


def test_no_commit_is_missed_while_clients_enrol(tmp_path: Path) -> None:
    """A poll that misses a commit ends empty, or is answered by the next one; there is a last one."""
    with served(tmp_path / "data.db", durability="full") as server:  # commits of another thread
        since = here(server.port)
        ending = threading.Event()

        def follow(kind: str) -> int:
            waiter = Waiter(server.port, since, kind)
            count = 1
            while (to := waiter.set()) != here(server.port) or not ending.is_set():
                waiter.ask(to)
                count += 1
            return count

        def write() -> None:
            client = Client(server.port)
            for i in range(100):
                client.run(f"INSERT INTO t VALUES ({i})")

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            following = [pool.submit(follow, kind) for kind in KINDS[:2] * 4]
            for done in [pool.submit(write) for _ in range(4)]:
                done.result()
            ending.set()
            # Whoever has it all already waits for this one.
            Client(server.port).run("INSERT INTO t VALUES ('last')")
            counts = [each.result() for each in following]  # not one ends empty, or late
        assert min(counts) > 1


def test_a_look_in_a_thread_serves_the_whole_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Far behind: more than is made on the event loop was committed since."""
    monkeypatch.setattr(sending, "_NEAR", 0)
    with served(tmp_path / "data.db") as server:
        since = here(server.port)
        waiters = [Waiter(server.port, since) for _ in range(10)]
        server.until_waiting(10)
        server.made.clear()
        Client(server.port).run("INSERT INTO t VALUES (1)")
        now = here(server.port)
        assert [waiter.set() for waiter in waiters] == [now] * 10
        assert server.made == {(since.position, False, True): 1}


def test_a_refusal_reaches_all_who_wait(ours: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    since = here(ours.port)
    waiters = [Waiter(ours.port, since) for _ in range(5)]
    ours.until_waiting(5)

    def changes(*_args: object, **_options: object) -> None:
        raise OSError("the disk is not there")

    monkeypatch.setattr(ours.app._served, "changes", changes)
    Client(ours.port).run("INSERT INTO t VALUES (1)")
    assert {waiter.answer()[0] for waiter in waiters} == {500}
    monkeypatch.undo()
    waiters[0].ask(since)  # the connections are as they were
    assert waiters[0].set() == here(ours.port)


def test_all_who_wait_are_answered_when_the_server_ends(tmp_path: Path) -> None:
    with served(tmp_path / "data.db") as server:
        since = here(server.port)
        waiters = [Waiter(server.port, since) for _ in range(MANY)]
        server.until_waiting(MANY)
        _open.clear()
    for waiter in waiters:
        status, head, _ = waiter.answer()
        assert status == 204
        with pytest.raises(ConnectionError):
            waiter.answer()
        waiter.close()
        assert b"nearlite-position" in head


def test_idle_connections_end_and_those_that_wait_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "_KEEP_ALIVE", 0.05)
    with served(tmp_path / "data.db") as server:
        since = here(server.port)
        waiter = Waiter(server.port, since, wait=0.5)
        assert waiter.answer()[0] == 204
        waiter.ask(since, wait=0.5)  # of a known head
        assert waiter.answer()[0] == 204
        with pytest.raises(ConnectionError):
            waiter.answer()


def test_commits_that_follow_each_other_closely_are_told_together(
    ours: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiter = Waiter(ours.port, here(ours.port))
    ours.until_waiting(1)
    monkeypatch.setattr(polls_module, "PAUSE", 2.0)
    Client(ours.port).run("INSERT INTO t VALUES (1)")
    first = waiter.set()  # at once
    waiter.ask(first)
    ours.until_waiting(1)
    for i in range(5):
        Client(ours.port).run(f"INSERT INTO t VALUES ({i})")
    assert waiter.set() == here(ours.port)


def test_another_program_s_commits_reach_all(ours: Served, tmp_path: Path) -> None:
    since = here(ours.port)
    waiters = [Waiter(ours.port, since) for _ in range(MANY)]
    ours.until_waiting(MANY)
    with Stock(tmp_path / "data.db") as other:
        other.execute("INSERT INTO t VALUES(1)")
    assert len({waiter.answer() for waiter in waiters}) == 1


@pytest.mark.parametrize("error", [OSError("the disk is full"), RuntimeError("nobody knows why")])
def test_a_look_for_them_that_fails_is_not_the_last(
    error: Exception, ours: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    primary: Any = ours.app._served
    look, failed = primary.after_commit, threading.Event()

    def after_commit() -> Position:
        if not failed.is_set():
            failed.set()
            raise error
        found: Position = look()
        return found

    waiter = Waiter(ours.port, here(ours.port))
    ours.until_waiting(1)
    monkeypatch.setattr(primary, "after_commit", after_commit)
    assert failed.wait(SOON)
    with Stock(tmp_path / "data.db") as other:
        other.execute("INSERT INTO t VALUES(1)")
    assert waiter.set() == here(ours.port)


# ------------------------------------------------------------------ descriptors


def serve_with(folder: Path, limits: str) -> subprocess.Popen[bytes]:
    command = (
        f"{limits}; exec {sys.executable} -m nearlite serve {folder}/data.db --listen 127.0.0.1:0"
    )
    return subprocess.Popen(
        ["/bin/sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def port_of(process: subprocess.Popen[bytes]) -> int:
    assert process.stdout is not None
    line = process.stdout.readline().decode()
    return int(line.rpartition(":")[2])


def test_a_server_takes_all_descriptors_that_it_may(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    process = serve_with(tmp_path, "ulimit -S -n 128")
    try:
        port_of(process)
        seen = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
        assert seen == (hard, hard)
    finally:
        process.terminate()
        process.communicate(timeout=SOON)


def test_a_storm_of_connections_beyond_the_limit_leaves_the_server_well(tmp_path: Path) -> None:
    process = serve_with(tmp_path, "ulimit -n 256")
    try:
        port = port_of(process)
        client = Client(port)
        client.run("CREATE TABLE t(a)")
        since = here(port)
        with ExitStack() as stack:
            storm = []
            for _ in range(400):
                made = stack.enter_context(socket.socket())
                made.setblocking(False)
                made.connect_ex(("127.0.0.1", port))
                storm.append(made)
            # Who was there before goes on, with a database connection of its own, too.
            client.run("PRAGMA foreign_keys = ON", "INSERT INTO t VALUES (1)")
        end = time.monotonic() + SOON
        while True:
            try:
                with closing(Client(port)) as fresh:
                    if fresh.request("GET", "/health").status == 200:
                        break
            except OSError:
                pass
            assert time.monotonic() < end
        waiter = Waiter(port, since)
        waiter.set()
        waiter.close()
    finally:
        process.terminate()
        _, noise = process.communicate(timeout=SOON)
    assert b"may open 256 files" in noise
    assert b"Traceback" not in noise, noise
