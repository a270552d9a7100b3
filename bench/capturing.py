"""A database that a plain sqlite3 process writes, captured by a process of its own, and a live replica.

Each role is a process: the application, the capture behind HTTP, the program with the replica. What they say is
timed by CLOCK_MONOTONIC, which is the same for all.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from peers import remove_database

# Commits as it is asked to: how many, and how many a second (0: one after the other).
_WRITER = """
import json, sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
run, clock = connection.execute, time.monotonic
run("PRAGMA journal_mode=WAL")
run("PRAGMA synchronous=NORMAL")
run("CREATE TABLE IF NOT EXISTS tick(i INTEGER PRIMARY KEY, n INTEGER, text TEXT)")
run("INSERT OR IGNORE INTO tick SELECT value, 0, 'some text' FROM json_each(?)", (json.dumps(list(range(100))),))
n = 0
print("ready", flush=True)
for line in sys.stdin:
    count, rate = json.loads(line)
    done, took, began = [], [], clock()
    for i in range(count):
        n += 1
        if rate:
            due = began + i / rate
            while (left := due - clock()) > 0:
                if left > 0.0003:
                    time.sleep(left - 0.0002)
        start = clock()
        run("UPDATE tick SET n = ? WHERE i = ?", (n, n % 100 if rate != 30 else 0))
        end = clock()
        done.append(end)
        took.append(end - (due if rate else start))
    took.sort()
    print(json.dumps({"n": n, "done": done if rate == 30 else [], "per_second": count / (clock() - began),
        "p50": took[count // 2], "p99": took[count * 99 // 100]}), flush=True)
"""

_CAPTURE = """
import socket, sys
from pathlib import Path
from nearlite import serve
from nearlite.applications import PrimaryApp
from nearlite.capture import Capture
path = Path(sys.argv[1])
captures = []
def opened():
    captures.append(Capture.open(path))
    return captures[0]
listening = serve.bind("127.0.0.1", 0)
listening.listen(64)
print(listening.getsockname()[1], flush=True)
server = serve.server(PrimaryApp(path, opened))
server.run(sockets=[listening])
print(captures[0].stand(), flush=True)
"""

_REPLICA = """
import sys, nearlite
connection = nearlite.connect(sys.argv[1], sync_url=sys.argv[2], sync_interval="live")
connection.sync()
print("live", flush=True)
for line in sys.stdin:
    while connection.execute("SELECT max(n) FROM tick").fetchone()[0] < int(line):
        connection.sync()
    print("there", flush=True)
"""


class Child:
    """A process that is spoken to in lines."""

    def __init__(self, stack: ExitStack, program: str, *arguments: object) -> None:
        self._child = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", program, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(self._child.kill)
        self.pid = self._child.pid
        self.first = self.line()

    def line(self) -> str:
        """What it says next."""
        assert self._child.stdout is not None
        return self._child.stdout.readline().strip()

    def ask(self, what: object) -> str:
        """Tell it, and what it says."""
        assert self._child.stdin is not None
        self._child.stdin.write(f"{json.dumps(what)}\n")
        self._child.stdin.flush()
        return self.line()

    def processor_seconds(self) -> float:
        """That it has used so far. Linux only."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100


class Captured:
    """The three of them; without `capture` the writer is alone."""

    def __init__(self, stack: ExitStack, folder: Path, *, capture: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.replica_path = folder / "data.db", folder / "replica.db"
        remove_database(self.path)
        remove_database(self.replica_path)
        self.writer = Child(stack, _WRITER, self.path)
        self.capture = self.replica = None
        if capture:
            self.capture = Child(stack, _CAPTURE, self.path)
            url = f"http://127.0.0.1:{self.capture.first}"
            self.replica = Child(stack, _REPLICA, self.replica_path, url)

    def commit(self, count: int, rate: int) -> dict[str, float]:
        """Have so many committed; the replica has them when this returns."""
        found: dict[str, float] = json.loads(self.writer.ask([count, rate]))
        if self.replica is not None:
            self.replica.ask(found["n"])
        return found


@contextmanager
def captured(folder: Path, *, capture: bool = True) -> Iterator[Captured]:
    """All of it, until the block ends."""
    with ExitStack() as stack:
        yield Captured(stack, folder, capture=capture)
