"""What a live replica costs the server's writes: rate with one over rate without, 16 connections.

Two servers, each a process; beside one a process with a live replica, which has to have all that was
committed soon after the load ends. Once flat out (wrk), once with 2,000 commits offered a second. Server, load
and replica share the machine's cores: what the replica takes to apply is in the figures.

Bad would be: a server that does for every commit what it need do for every answer; a replica that falls
behind.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from load import load, pipeline
from pairs import Pairs, Sample
from peers import remove_database
from systems import nearlite_serve

Open = Iterator[Callable[[], Sample]]
CONNECTIONS = 16
SECONDS = 3
OFFERED = 2_000  # a second
INSERT = pipeline("INSERT INTO note(text) VALUES (?)", "hello from one of sixteen connections")
# Requests that wrk gave up at its end may still be carried out.
LAST = "the last one"
COUNT = f"SELECT count(*) FROM note WHERE id <= (SELECT max(id) FROM note WHERE text = '{LAST}')"

_REPLICA = """
import sys, nearlite
from nearlite.position import Position
connection = nearlite.connect(sys.argv[1], sync_url=sys.argv[2], sync_interval="live")
connection.sync()
print("live", flush=True)
for line in sys.stdin:
    connection.wait_for(Position.parse(line.strip()), 10)
    print(connection.execute(sys.argv[3]).fetchone()[0], flush=True)
"""


class Replica:
    """A process with a live replica."""

    def __init__(self, stack: ExitStack, path: Path, url: str) -> None:
        remove_database(path)
        self._child = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", _REPLICA, str(path), url, COUNT],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(self._child.kill)
        assert self._child.stdout is not None
        assert self._child.stdout.readline() == "live\n"

    def rows(self, position: object) -> int:
        """Rows of the replica when it has what was committed by then."""
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(f"{position}\n")
        self._child.stdin.flush()
        return int(self._child.stdout.readline())


@contextmanager
def _writes(rate: Callable[[str], float], folder: Path, *, live: bool) -> Open:
    import nearlite

    with nearlite_serve(folder) as server, ExitStack() as stack:
        server.run("CREATE TABLE note(id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
        replica = Replica(stack, folder / "replica.db", server.url) if live else None
        marker = nearlite.connect(server.url)
        stack.callback(marker.close)

        def sample() -> Sample:
            found = rate(f"{server.url}/v2/pipeline")
            if replica is not None:
                marker.execute("INSERT INTO note(text) VALUES (?)", (LAST,))
                marker.commit()
                there = int(str(server.run(COUNT)[0][0][0]))
                assert replica.rows(marker.last_write_position) == there
            return found

        yield sample


def _flat_out(url: str) -> float:
    return load(url, [INSERT], connections=CONNECTIONS, seconds=SECONDS).per_second


def _offered(url: str) -> float:
    program = Path(__file__).with_name("offered.py")
    command = [sys.executable, str(program), url, str(CONNECTIONS), str(OFFERED), str(SECONDS)]
    done = subprocess.run(command, input=INSERT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def _bench(pairs: Pairs, figure: str, rate: Callable[[str], float], folder: Path) -> None:
    pairs(
        figure,
        ours=partial(_writes, rate, folder / "live", live=True),
        peer=partial(_writes, rate, folder / "alone", live=False),
        rounds=5,
    )


def bench_writes_flat_out_with_a_live_replica(pairs: Pairs, tmp_path: Path) -> None:
    _bench(pairs, "live_flat_out", _flat_out, tmp_path)


def bench_writes_at_an_offered_rate_with_a_live_replica(pairs: Pairs, tmp_path: Path) -> None:
    _bench(pairs, "live_offered", _offered, tmp_path)
