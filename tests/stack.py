"""Primary and replica in processes that can be killed, for tests of the whole.

Processes are forked from a server that has imported everything (10 ms instead of 400), and run the test
build, in which fault points exist. Functions whose names begin with `run_` are their main programs.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import sealing

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["stack", "nearlite.primary", "nearlite.serve", "nearlite.replica"])

Fault = tuple[str, int]
"""A fault point that kills, and how many passes it lets through first."""

# Fault points that a primary passes while it serves and rolls.
PRIMARY_POINTS = [
    "generation.bind",
    "log.after-append",
    "log.after-rename",
    "log.before-append",
    "log.before-rename",
    "log.before-sync",
    "roll.1-prepared",
    "roll.2-archived",
    "roll.2-locked",
    "roll.3-table",
    "roll.5-emptied",
    "roll.6-done",
    "roll.after-checkpoint",
    "roll.after-pin",
    "roll.before-checkpoint",
    "roll.before-unpin",
    "roll.checkpoint",
    "tail.read-frames",
]

ROLL_BYTES = 200_000  # small, so that generations roll during a test


def _run(sealed: bool, target: Callable[..., None], *args: Any) -> None:
    """In the child: the files are what they are in the test."""
    # The fork server may have been started by a test of the other kind.
    with sealing.everything_sealed() if sealed else sealing.everything_plain():
        target(*args)


class Process:
    """A child and the pipe to it."""

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        self.pipe, theirs = _context.Pipe()
        # The fork server is started by the first child and passes its environment on to all.
        before = os.environ.get("NEARLITE_FFI")
        os.environ["NEARLITE_FFI"] = "test"
        try:
            arguments = (sealing.is_on(), target, theirs, *args)
            self._process = _context.Process(target=_run, args=arguments, daemon=True)
            self._process.start()
        finally:
            if before is None:
                del os.environ["NEARLITE_FFI"]
            else:
                os.environ["NEARLITE_FFI"] = before
        theirs.close()

    def receive(self, seconds: float = 30.0) -> Any:
        """What it sends next. EOFError when it is dead."""
        if not self.pipe.poll(seconds):
            raise TimeoutError("the child is silent")
        return self.pipe.recv()

    def messages(self, seconds: float = 60.0) -> list[Any]:
        """All it sends until it is dead. TimeoutError when it does not die."""
        found = []
        end = time.monotonic() + seconds
        try:
            while time.monotonic() < end:
                found.append(self.receive())
        except (EOFError, ConnectionResetError):
            return found
        self.kill()
        raise TimeoutError("the child goes on and on")

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._process.kill()
        self.join()

    def join(self, seconds: float = 30.0) -> int | None:
        """Exit code; None while it runs."""
        self._process.join(seconds)
        return self._process.exitcode


def _arm(faults: Sequence[Fault]) -> None:
    from nearlite._native import faults as points

    for name, after in faults:
        points.arm(name, points.KILL, after)


# ---------------------------------------------------------------- the primary


def run_primary(
    pipe: Connection,
    path: str,
    port: int,
    durability: str,
    shared_cache: bool,
    faults: Sequence[Fault],
) -> None:
    from nearlite import serve
    from nearlite.applications import PrimaryApp
    from nearlite.primary import Primary

    def owner() -> Any:
        primary = Primary.open(path, durability=durability, roll_bytes=ROLL_BYTES)  # type: ignore[arg-type]
        _arm(faults)
        return primary

    with serve.bind("127.0.0.1", port) as listening:
        listening.listen(64)
        pipe.send(listening.getsockname()[1])
        app = PrimaryApp(Path(path), owner, shared_cache=shared_cache)
        serve.server(app).run(sockets=[listening])


class Primary:
    """A primary that keeps its port when it is started again."""

    def __init__(self, path: Path, *, durability: str = "full", shared_cache: bool = False) -> None:
        self._path = path
        self._durability = durability
        self._shared_cache = shared_cache
        self._port = 0
        self.start()

    def start(self, *faults: Fault) -> None:
        how = (self._durability, self._shared_cache)
        self.process = Process(run_primary, str(self._path), self._port, *how, faults)
        self._port = self.process.receive()
        self.url = f"http://127.0.0.1:{self._port}"

    def kill(self) -> None:
        self.process.kill()


# ---------------------------------------------------------------- a replica that serves replicas


def run_relay(pipe: Connection, path: str, port: int, url: str, faults: Sequence[Fault]) -> None:
    from nearlite import serve
    from nearlite.applications import RelayApp
    from nearlite.relay import Relay

    def relay() -> Any:
        opened = Relay.open(path, url, roll_bytes=ROLL_BYTES)
        _arm(faults)
        return opened

    with serve.bind("127.0.0.1", port) as listening:
        listening.listen(64)
        pipe.send(listening.getsockname()[1])
        serve.server(RelayApp(Path(path), relay)).run(sockets=[listening])


class Relay:
    """A relay that keeps its port when it is started again."""

    def __init__(self, path: Path, above: str) -> None:
        self.path = path
        self._above = above
        self._port = 0
        self.start()

    def start(self, *faults: Fault) -> None:
        """Start it, killed at those points later on."""
        self.process = Process(run_relay, str(self.path), self._port, self._above, faults)
        self._port = self.process.receive()
        self.url = f"http://127.0.0.1:{self._port}"

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()


# ---------------------------------------------------------------- the replica


def pipeline(*statements: str) -> bytes:
    """A Hrana pipeline of autocommit statements."""
    requests: list[dict[str, Any]] = [
        {"type": "execute", "stmt": {"sql": sql}} for sql in statements
    ]
    return json.dumps({"baton": None, "requests": [*requests, {"type": "close"}]}).encode()


def outcomes(answer: bytes) -> list[Any]:
    """The results of a pipeline's statements.

    Raises AssertionError with the primary's message when one of them failed.
    """
    found = json.loads(answer)["results"][:-1]
    for result in found:
        assert result["type"] == "ok", result
    return [result["response"]["result"] for result in found]


def insert(replica: Any, size: int) -> int:
    """Write a row through a replica; answers the number that the primary gave it."""
    (result,) = outcomes(
        replica.forward(pipeline(f"INSERT INTO t VALUES(NULL, randomblob({size}))"), visible=True)
    )
    return int(result["last_insert_rowid"])


def run_replica(pipe: Connection, path: str, url: str, faults: Sequence[Fault]) -> None:
    """Sync, write and checkpoint for ever; tells the number of each row that was acknowledged."""
    from nearlite.replica import Replica

    _arm(faults)
    replica = Replica(path, url)
    replica.open()
    while True:
        for size in (10, 300, 20_000):
            pipe.send(insert(replica, size))
        replica.sync()
        replica.checkpoint()


def run_names(pipe: Connection) -> None:
    """Tells the names of all fault points."""
    import nearlite.primary
    import nearlite.replica  # noqa: F401
    from nearlite._native import faults

    pipe.send(faults.names())


def names() -> list[str]:
    """All fault points of primary and replica."""
    found: list[str] = Process(run_names).receive()
    return found
