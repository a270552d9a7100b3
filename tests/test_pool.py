"""nearlite.Replica: connections for threads, and for workers that are forked or spawned."""

from __future__ import annotations

import http.client
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
from primaries import Served, primary
from test_background import count, eventually

import nearlite
from nearlite import sharing

EITHER = True


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with primary(tmp_path) as made:
        made.remote(isolation_level=None).execute("CREATE TABLE t(a)")
        yield made


@pytest.fixture
def replica(served: Served, tmp_path: Path) -> Iterator[nearlite.Replica]:
    with nearlite.Replica(tmp_path / "replica.db", sync_url=served.url) as made:
        yield made
    assert not sharing._entries


# ---------------------------------------------------------------- one process


def test_a_block_is_a_transaction(replica: nearlite.Replica) -> None:
    with replica.connection() as con:
        con.execute("INSERT INTO t VALUES(1)")
    with pytest.raises(RuntimeError), replica.connection() as con:
        con.execute("INSERT INTO t VALUES(2)")
        raise RuntimeError
    with replica.connection() as con:
        assert count(con) == 1
        assert not con.in_transaction


def test_connections_are_kept_and_found_as_they_were_made(replica: nearlite.Replica) -> None:
    with replica.connection() as first:
        first.row_factory = nearlite.Row
        first.text_factory = bytes
        first.freshness = "primary"
    with replica.connection() as again:
        assert again is first
        assert (again.row_factory, again.text_factory, again.freshness) == (None, str, "local")
        again.isolation_level = None
        again.execute("BEGIN")
        again.execute("SELECT * FROM t").fetchall()
    with replica.connection() as again:
        assert not again.in_transaction
        again.close()
    with replica.connection() as other:
        assert other is not again
        assert count(other) == 0


def test_a_connection_whose_primary_has_gone_is_not_kept_in_its_transaction(
    tmp_path: Path,
) -> None:
    with primary(tmp_path) as served:
        served.remote(isolation_level=None).execute("CREATE TABLE t(a)")
        replica = nearlite.Replica(tmp_path / "r.db", sync_url=served.url, network_timeout=5.0)
        lost = replica.connection()
        con = lost.__enter__()
        con.execute("INSERT INTO t VALUES(1)")
    with replica:
        with pytest.raises(nearlite.SyncError):  # it cannot be committed
            lost.__exit__(None, None, None)
        with replica.connection() as con:
            assert not con.in_transaction
            assert count(con) == 0


def test_threads_share_what_there_is(served: Served, tmp_path: Path) -> None:
    used: set[int] = set()
    with (
        nearlite.Replica(tmp_path / "r.db", sync_url=served.url, max_size=3) as replica,
        ThreadPoolExecutor(8) as pool,
    ):

        def read(_: int) -> int:
            with replica.connection() as con:
                used.add(id(con))
                return count(con)

        assert set(pool.map(read, range(200))) == {0}
        assert 1 <= len(used) <= 3


def test_when_all_are_in_use_the_next_one_waits(served: Served, tmp_path: Path) -> None:
    with (
        nearlite.Replica(tmp_path / "r.db", sync_url=served.url, max_size=1) as replica,
        ThreadPoolExecutor(1) as pool,
    ):
        with replica.connection() as con:
            with (
                pytest.raises(nearlite.OperationalError, match="became free"),
                replica.connection(timeout=0.05),
            ):
                pytest.fail("there is only one")
            waiting = pool.submit(lambda: replica.connection().__enter__())
            assert not waiting.done()
        assert waiting.result(20) is con
        waiting = None


def test_closed_is_closed(served: Served, tmp_path: Path) -> None:
    replica = nearlite.Replica(tmp_path / "r.db", sync_url=served.url)
    with replica.connection() as con:
        replica.close()
        replica.close()
        assert count(con) == 0  # it is given back first
    assert not con._open
    for use in (replica.connection().__enter__, replica.connect, replica.sync, replica.stats):
        with pytest.raises(nearlite.ProgrammingError, match="closed"):
            use()
    assert not sharing._entries


def test_a_connection_of_ones_own(replica: nearlite.Replica) -> None:
    with replica.connect(isolation_level=None) as con:
        con.execute("INSERT INTO t VALUES(1)")
        replica.wait_for(con.last_write_position)
    con.close()
    assert replica.position == con.last_write_position


def test_it_syncs_follows_and_tells(served: Served, replica: nearlite.Replica) -> None:
    told: Queue[nearlite.Change] = Queue()
    stop = replica.on_change(told.put)
    remote = served.remote(isolation_level=None)
    remote.execute("INSERT INTO t VALUES(1)")
    assert replica.sync().position == remote.last_write_position
    assert told.get(timeout=20).tables == {"t"}
    stop()
    replica.follow()
    eventually(lambda: replica.stats().follows)
    remote.execute("INSERT INTO t VALUES(1)")
    replica.wait_for(str(remote.last_write_position))
    assert replica.last_sync_error is None
    assert 0 <= replica.lag < 20


def test_options_reach_every_connection(served: Served, tmp_path: Path) -> None:
    with (
        nearlite.Replica(
            tmp_path / "r.db", sync_url=served.url, isolation_level=None, freshness=5.0
        ) as replica,
        replica.connection() as con,
    ):
        assert (con.isolation_level, con.freshness) == (None, 5.0)
    for wrong in ({"max_size": 0}, {"freshness": "x"}, {"sync_interval": "x"}):
        with pytest.raises(nearlite.ProgrammingError):
            nearlite.Replica(tmp_path / "r.db", sync_url=served.url, **wrong)
    assert not sharing._entries


def test_it_is_pickled_by_what_it_was_made_of(served: Served, replica: nearlite.Replica) -> None:
    with pickle.loads(pickle.dumps(replica)) as copy, copy.connection() as con:
        assert count(con) == 0


# ---------------------------------------------------------------- workers


FORK = """
import os, sys, nearlite
told = os.pipe()
replica = nearlite.Replica(sys.argv[1], sync_url=sys.argv[2], sync_interval="live")
replica.on_change(lambda change: os.write(told[1], b"x"))
with replica.connection() as con:  # in the pool when the fork comes
    con.execute("INSERT INTO t VALUES('parent')")
pids = []
for n in range(3):
    pid = os.fork()
    if pid == 0:
        with replica.connection() as con:
            con.execute("INSERT INTO t VALUES(?)", (n,))
        seen = set()
        while len(seen) < 4:
            with replica.connection() as con:
                seen = {row[0] for row in con.execute("SELECT a FROM t")}
        os._exit(0)
    pids.append(pid)
codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
while True:
    with replica.connection() as con:
        if con.execute("SELECT count(*) FROM t").fetchone() == (4,):
            break
replica.close()
print(codes)
"""


def test_made_before_a_fork_it_works_in_the_children(served: Served, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK, tmp_path / "replica.db", served.url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[0, 0, 0]\n", "")


SPAWN = """
import multiprocessing, sys, nearlite

def work(replica, n, done):
    with replica.connection() as con:
        con.execute("INSERT INTO t VALUES(?)", (n,))
    seen = 0
    while seen < 2:
        with replica.connection() as con:
            seen = con.execute("SELECT count(*) FROM t").fetchone()[0]
    done.put(replica.stats().follows)
    replica.close()

if __name__ == "__main__":
    replica = nearlite.Replica(sys.argv[1], sync_url=sys.argv[2], sync_interval="live")
    context = multiprocessing.get_context("spawn")
    done = context.Queue()
    workers = [context.Process(target=work, args=(replica, n, done)) for n in range(2)]
    for worker in workers:
        worker.start()
    found = [done.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    print(found, replica.stats().follows, [worker.exitcode for worker in workers])
    replica.close()
"""


def test_given_to_processes_that_are_spawned(served: Served, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(SPAWN)
    done = subprocess.run(
        [sys.executable, "program.py", "replica.db", served.url],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # One of all follows: who made it first.
    assert (done.stdout, done.stderr) == ("[False, False] True [0, 0]\n", "")


APPLICATION = """
import json, os
import nearlite

replica = nearlite.Replica(os.environ["REPLICA"], sync_url=os.environ["PRIMARY"], sync_interval="live")

def answer():
    with replica.connection() as con:
        (rows,) = con.execute("SELECT count(*) FROM t").fetchone()
    return json.dumps({"pid": os.getpid(), "rows": rows, "follows": replica.stats().follows}).encode()

def wsgi(environ, start_response):
    body = answer()
    start_response("200 OK", [("Content-Length", str(len(body))), ("Connection", "close")])
    return [body]

async def asgi(scope, receive, send):
    if scope["type"] != "http":
        return
    headers = [(b"connection", b"close")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer()})
"""

# A worker that is forked just when the master is told to end does not hear of it: gunicorn waits for it.
GUNICORN = [
    "gunicorn",
    "--workers",
    "3",
    "--graceful-timeout",
    "5",
    "--no-control-socket",
    "--bind",
]
UVICORN = ["uvicorn", "--workers", "2", "--lifespan", "off", "--log-level", "warning"]


@contextmanager
def workers(served: Served, tmp_path: Path, command: Callable[[int], list[str]]) -> Iterator[int]:
    """A server with worker processes; its port."""
    (tmp_path / "application.py").write_text(APPLICATION)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    environment = {
        **os.environ,
        "REPLICA": str(tmp_path / "replica.db"),
        "PRIMARY": served.url,
        "PYTHONPATH": str(tmp_path),
        "PYTHONWARNINGS": "ignore",
    }
    with subprocess.Popen(
        [sys.executable, "-m", *command(port)], cwd=tmp_path, env=environment
    ) as process:
        try:
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def ask(port: int) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("GET", "/")
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found
    except (OSError, http.client.HTTPException):  # it is only just starting
        return {}
    finally:
        connection.close()


@pytest.mark.parametrize(
    "command",
    [
        lambda port: [*GUNICORN, f"127.0.0.1:{port}", "application:wsgi"],
        lambda port: [*GUNICORN, f"127.0.0.1:{port}", "--preload", "application:wsgi"],
        lambda port: [*UVICORN, "--port", str(port), "application:asgi"],
    ],
    ids=["gunicorn", "gunicorn --preload", "uvicorn"],
)
def test_workers_of_a_server_all_see_the_data_and_one_of_them_syncs(
    served: Served, tmp_path: Path, command: Callable[[int], list[str]]
) -> None:
    with workers(served, tmp_path, command) as port:
        end = time.monotonic() + 60
        while not ask(port):
            assert time.monotonic() < end, "the server did not start"
        remote = served.remote(isolation_level=None)
        follows: dict[int, bool] = {}
        for n in range(1, 4):
            remote.execute("INSERT INTO t VALUES(1)")
            seen: dict[int, int] = {}

            def all_have_it(n: int = n, seen: dict[int, int] = seen) -> bool:
                found = ask(port)
                if found:
                    seen[found["pid"]] = found["rows"]
                    follows[found["pid"]] = found["follows"]
                return len(seen) >= 2 and set(seen.values()) == {n}

            eventually(all_have_it)
        assert sum(follows.values()) <= 1  # none: it is the process that forked them


def test_threads_that_use_it_while_another_forks(served: Served, tmp_path: Path) -> None:
    script = """
import os, sys, threading, nearlite
replica = nearlite.Replica(sys.argv[1], sync_url=sys.argv[2])
stop = threading.Event()
def use():
    while not stop.is_set():
        with replica.connection() as con:
            con.execute("SELECT count(*) FROM t").fetchone()
threads = [threading.Thread(target=use) for _ in range(4)]
for thread in threads:
    thread.start()
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        with replica.connection() as con:
            os._exit(con.execute("SELECT count(*) FROM t").fetchone()[0])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
stop.set()
for thread in threads:
    thread.join()
replica.close()
print("done")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, tmp_path / "replica.db", served.url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("done\n", "")
