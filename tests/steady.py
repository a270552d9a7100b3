"""A primary under a steady load, a live replica of it, and readers of the replica's file.

Each in a process of its own: the primary, a writer that offers so many transactions a second over HTTP, a
program with the live replica, three readers with stock sqlite3. What the writer sends carries its clock,
which is the same for all processes of a machine: a reader's lag is the age of the newest transaction that
it sees, counted from when that was sent. `make bench` measures with it, tests/test_steady.py looks for
what is wrong.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import sqlite3
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nearlite
from nearlite import inspection, spawn

CONNECTIONS = 8
READERS = 3
ACCOUNTS = 100
CENTS = 1000  # of each account at the beginning
_NAP = 0.001  # seconds between two looks of a reader: on few cores one that spins takes the time it measures

# One INSERT is one transaction over four tables: two accounts whose sum stays, and the pulse.
SCHEMA = f"""
CREATE TABLE account(id INTEGER PRIMARY KEY, cents INTEGER NOT NULL);
CREATE TABLE pulse(at INTEGER NOT NULL, n INTEGER NOT NULL);
CREATE TABLE transfer(id INTEGER PRIMARY KEY, a INTEGER, b INTEGER, at INTEGER, text TEXT);
CREATE INDEX transfer_text ON transfer(text);
CREATE TRIGGER booked AFTER INSERT ON transfer BEGIN
    UPDATE account SET cents = cents - 1 WHERE id = new.a;
    UPDATE account SET cents = cents + 1 WHERE id = new.b;
    UPDATE pulse SET at = new.at, n = n + 1;
END;
INSERT INTO account WITH RECURSIVE c(i) AS (VALUES(0) UNION ALL SELECT i + 1 FROM c WHERE i < {ACCOUNTS - 1})
    SELECT i, {CENTS} FROM c;
INSERT INTO pulse VALUES(0, 0);
"""
INSERT = "INSERT INTO transfer(a, b, at, text) VALUES(?, ?, ?, ?)"
THE_END = -1  # instead of a clock


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a load.

    Attributes:
      commits: that the writer sent, all of which were answered.
      seconds: that it took.
      transactions: that reached the replica.
      reads: of all readers together, each of a whole and consistent state.
      lag_p50, lag_p99, lag_longest: seconds, of all reads while the load lasted.
      replica_wal, primary_wal: bytes, the largest that any reader saw.
    """

    commits: int
    seconds: float
    transactions: int
    reads: int
    lag_p50: float
    lag_p99: float
    lag_longest: float
    replica_wal: int
    primary_wal: int


def steady(folder: Path, *, rate: int, seconds: float) -> Outcome:
    """Offer `rate` transactions a second for so long; everything has to be right at the end.

    Raises:
      AssertionError: a request was refused, a reader saw what it must not or failed, or the replica is not
        equal to its primary afterwards.
    """
    data, path = folder / "data.db", folder / "replica.db"
    with ExitStack() as stack:
        url = stack.enter_context(spawn.primary(data, "--durability", "normal"))
        with closing(nearlite.connect(url, isolation_level=None)) as connection:
            connection.executescript(SCHEMA)
            begun = connection.execute("SELECT count(*) FROM account").fetchone()[0]
        assert begun == ACCOUNTS
        replica = stack.enter_context(_role("replica", path, url))
        readers = [stack.enter_context(_role("reader", path, data)) for _ in range(READERS)]
        written = offer(url, rate=rate, seconds=seconds, connections=CONNECTIONS)
        seen = [_end(reader) for reader in readers]
        newest = inspection.primary_status(url, token=None, timeout=30.0)
        stats = _end(replica, newest["position"])
        found = inspection.file_status(path)
        assert (found["position"], found["hash"]) == (newest["position"], newest["hash"])
        checks = list(inspection.verify(path, url, token=None, timeout=30.0))
        assert [check.text for check in checks if not check.passed] == []
    lags = sorted(lag for one in seen for lag in one["lags"])
    return Outcome(
        commits=written["commits"],
        seconds=written["seconds"],
        transactions=stats["transactions"],
        reads=len(lags),
        lag_p50=lags[len(lags) // 2],
        lag_p99=lags[len(lags) * 99 // 100],
        lag_longest=lags[-1],
        replica_wal=max(one["wals"][0] for one in seen),
        primary_wal=max(one["wals"][1] for one in seen),
    )


def offer(url: str, *, rate: int, seconds: float, connections: int) -> Any:
    """Send so many transactions a second to a primary with SCHEMA; `commits`, and the `seconds` they took."""
    with _role("writer", url, rate, seconds, connections) as writer:
        return _end(writer)


@contextmanager
def _role(name: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """One of the processes, once it has said that it is ready."""
    command = [sys.executable, __file__, name, *map(str, arguments)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", f"the {name} did not start"
            yield process
        finally:
            process.kill()


def _end(process: subprocess.Popen[str], word: str = "") -> Any:
    """What a process says at its end, when it was told a word."""
    out, _ = process.communicate(word)
    assert process.returncode == 0, f"{process.args}: its error is above"
    return json.loads(out)


# ---------------------------------------------------------------- the processes


def run_replica(path: str, url: str) -> None:
    """Follow; tell the numbers when the position that is read from standard input is here."""
    with nearlite.connect(path, sync_url=url, sync_interval="live") as connection:
        _ready()
        connection.wait_for(sys.stdin.read(), timeout=60.0)
        print(json.dumps(connection.stats().as_dict()))
    connection.close()


def run_reader(path: str, primary: str) -> None:
    """Read whole states until the end of the load comes by."""
    connection = sqlite3.connect(path, timeout=10.0, isolation_level=None)
    read = connection.execute
    lags: list[float] = []
    wals = [0, 0]
    last = 0
    _ready()
    while True:
        read("BEGIN")
        at, n = read("SELECT at, n FROM pulse").fetchone()
        now = time.monotonic_ns()
        (cents,) = read("SELECT sum(cents) FROM account").fetchone()
        (newest,) = read("SELECT coalesce(max(id), 0) FROM transfer").fetchone()
        read("COMMIT")
        if cents != ACCOUNTS * CENTS or newest != n or n < last:
            sys.exit(f"read {cents} cents, {newest} transfers, pulse {n} after {last}")
        last = n
        for which, file in enumerate((path, primary)):
            wals[which] = max(wals[which], os.path.getsize(f"{file}-wal"))
        if at == THE_END:
            break
        if n:
            lags.append((now - at) / 1e9)
        time.sleep(_NAP)
    (found,) = read("PRAGMA integrity_check").fetchone()
    if found != "ok":
        sys.exit(found)
    print(json.dumps({"lags": lags, "wals": wals}))


class _Connection:
    """A kept-alive connection of the writer, one request at a time."""

    def __init__(self, host: str, port: int) -> None:
        self.socket = socket.create_connection((host, port), timeout=60.0)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._head = f"POST /v2/pipeline HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: "
        self._answer = b""

    def send(self, number: int, at: int) -> None:
        """One transaction."""
        a = number * 7 % ACCOUNTS
        values: list[dict[str, str]] = [
            *({"type": "integer", "value": str(value)} for value in (a, (a + 1) % ACCOUNTS, at)),
            {"type": "text", "value": f"{number * 7919 % 1000003:06d} because"},
        ]
        execute = {"type": "execute", "stmt": {"sql": INSERT, "args": values}}
        body = json.dumps({"requests": [execute, {"type": "close"}]})
        self.socket.sendall(f"{self._head}{len(body)}\r\n\r\n{body}".encode())

    def receive(self) -> bool:
        """Take what has come; whether the answer is whole. Ends the process unless it says "ok"."""
        piece = self.socket.recv(65536)
        self._answer += piece
        head, found, body = self._answer.partition(b"\r\n\r\n")
        if piece and not found:
            return False
        length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
        if piece and len(body) < int(length):
            return False
        if not piece or b" 200 " not in head[:20] or body.count(b'"type":"ok"') != 2:
            sys.exit(f"the primary answered {self._answer!r}")
        self._answer = b""
        return True


def run_writer(url: str, rate: str, seconds: str, connections: str) -> None:
    """Send transactions when they are due, the late ones at once; the last one says that it is the end."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    assert host is not None
    assert port is not None
    total, pace = int(float(rate) * float(seconds)), 1 / float(rate)
    selector = selectors.DefaultSelector()
    idle: deque[_Connection] = deque()
    for _ in range(int(connections)):
        connection = _Connection(host, port)
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        idle.append(connection)
    _ready()
    begin = time.monotonic()
    sent = done = 0
    while done < total:
        now = time.monotonic()
        while sent < total and idle and begin + sent * pace <= now:
            idle.popleft().send(sent, time.monotonic_ns())
            sent += 1
        due = max(0.0, begin + sent * pace - time.monotonic())
        for key, _ in selector.select(due if sent < total and idle else None):
            if key.data.receive():
                done += 1
                idle.append(key.data)
    took = time.monotonic() - begin
    idle[0].send(total, THE_END)
    while not idle[0].receive():
        pass
    print(json.dumps({"commits": total + 1, "seconds": took}))


def _ready() -> None:
    print("ready", flush=True)


ROLES = {"replica": run_replica, "reader": run_reader, "writer": run_writer}

if __name__ == "__main__":
    ROLES[sys.argv[1]](*sys.argv[2:])
