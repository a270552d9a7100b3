"""Another program writes the primary's file with stock SQLite: replicas that wait for news are told."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from sealing import log_file
from serving import Client, app_of, serving
from stock import Stock

import nearlite
from nearlite.position import Position
from nearlite.server import App
from nearlite.wire import Status

EITHER = True

POLL = 25  # seconds of a long poll, at whose end everything is noticed
SOON = 12.0  # seconds; what is answered within them was noticed before


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.db"


@pytest.fixture
def app(path: Path) -> App:
    return app_of(path)


@pytest.fixture
def port(app: App) -> Iterator[int]:
    with serving(app) as port:
        Client(port).run("CREATE TABLE t(a)")
        yield port


def position(client: Client) -> str:
    return str(Status.decode(client.request("GET", "/nl/v1/status").body).position)


def waiters(app: App, port: int, count: int) -> None:
    """Return when so many long polls are under way."""
    assert app._feed is not None
    polls = app._feed.polls
    for _ in range(10_000):
        if polls.waiting == count:
            return
        position(Client(port))
    raise AssertionError(f"{polls.waiting} long polls are under way, not {count}")


def poll(port: int, since: str) -> socket.socket:
    waiting = socket.create_connection(("127.0.0.1", port), timeout=SOON)
    waiting.sendall(f"GET /nl/v1/changes/{since}?wait={POLL} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    return waiting


def head(waiting: socket.socket) -> bytes:
    with closing(waiting):
        return waiting.recv(65536)


def test_a_commit_of_another_program_wakes_a_long_poll(app: App, port: int, path: Path) -> None:
    client = Client(port)
    with Stock(path) as other:
        for i in range(3):
            waiting = poll(port, position(client))
            waiters(app, port, 1)
            other.execute(f"INSERT INTO t VALUES({i})")
            assert head(waiting).startswith(b"HTTP/1.1 200 ")
            waiters(app, port, 0)


def test_it_wakes_everybody_who_waits(app: App, port: int, path: Path) -> None:
    here = position(Client(port))
    waiting = [poll(port, here) for _ in range(5)]
    waiters(app, port, 5)
    with Stock(path) as other:
        other.execute("INSERT INTO t VALUES(1)")
    assert [head(each)[:13] for each in waiting] == [b"HTTP/1.1 200 "] * 5


def test_a_replica_that_waits_receives_it(app: App, port: int, path: Path, tmp_path: Path) -> None:
    replica = nearlite.connect(tmp_path / "replica.db", sync_url=f"http://127.0.0.1:{port}")
    with closing(replica), ThreadPoolExecutor(1) as pool:
        syncing = pool.submit(replica._replica.sync, wait=POLL)
        waiters(app, port, 1)
        with Stock(path) as other:
            other.execute("INSERT INTO t VALUES(7)")
        syncing.result(SOON)
        assert replica.execute("SELECT a FROM t").fetchall() == [(7,)]


def test_nobody_looks_when_nobody_waits(app: App, port: int, path: Path) -> None:
    assert app._feed is not None
    polls = app._feed.polls
    waiting = poll(port, position(Client(port)))
    waiters(app, port, 1)
    assert polls._watch is not None
    with Stock(path) as other:
        other.execute("INSERT INTO t VALUES(1)")
    assert head(waiting).startswith(b"HTTP/1.1 200 ")
    for _ in range(200):  # requests, not sleeps: the watch ends with its next look
        if polls._watch is None:
            break
        position(Client(port))
    assert polls._watch is None


def test_commits_of_another_program_alone_make_the_primary_roll(tmp_path: Path) -> None:
    path = tmp_path / "rolled.db"
    with serving(app_of(path, roll_bytes=100_000)) as port, Stock(path) as other:
        other.execute("CREATE TABLE t(a)")
        other.execute("INSERT INTO t VALUES(randomblob(200000))")
        end = time.monotonic() + SOON
        # Nobody asks the server for anything.
        while json.loads(log_file(path, "state.json"))["generation"] == 1:
            assert time.monotonic() < end, "it never rolled"
            threading.Event().wait(0.01)
        # The file is written within the roll, during which the position before it is told.
        while Position.parse(position(Client(port))).generation == 1:
            assert time.monotonic() < end, "the roll never ended"
