"""One commit, thousands that wait: seconds from before it is sent until the last has its answer.

The primary is one process. Those who wait are raw sockets in two other processes, each with a long poll
that is asked again as soon as it is answered, and 20 live replicas (`sync_interval="live"`) in four. All of them share
the machine's cores with the primary: what they take is in the figures. A raw client has the commit when it has
the whole answer, a replica when its `on_change` is called. The clock, CLOCK_MONOTONIC, starts before the writer
sends its commit.

Bad would be: an answer that is encoded for each who asks; more than some 20 us of the primary for each; a
writer that has to wait until all are told.
"""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from pairs import Pairs, Sample
from peers import Server
from systems import nearlite_serve

Open = Iterator[Callable[[], Sample]]
PROCESSES = 2  # of raw clients
REPLICAS = 20
REPLICA_PROCESSES = 4
COMMITS = 5  # a sample: the median of each of its figures
WAITING = Path(__file__).with_name("waiting.py")

_REPLICAS = """
import json, sys, time, nearlite
folder, url, first, count, since = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
def changed(change):
    # In one piece: each replica has a thread of its own that calls this.
    sys.stdout.write(json.dumps({"position": str(change.position), "at": [time.monotonic()]}) + "\\n")
    sys.stdout.flush()
for number in range(first, first + count):
    connection = nearlite.connect(f"{folder}/replica{number}.db", sync_url=url, sync_interval="live")
    connection.wait_for(since)
    connection.on_change(changed)
    globals()[f"open{number}"] = connection
print("waiting", flush=True)
sys.stdin.read()
"""


def _child(stack: ExitStack, *arguments: object) -> subprocess.Popen[str]:
    child = stack.enter_context(
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    stack.callback(child.kill)
    return child


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line, "a process of clients ended"
    return line


class Writer:
    """Commits one row at a time and knows where each led."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        # Counters are what a client of ours sends: the answer then tells the position.
        self._headers = {"content-type": "application/json", "nearlite-counters": "0,0,0"}

    def commit(self) -> tuple[float, float, str]:
        """When it was sent, when it was answered, and the position it led to."""
        sql = "INSERT INTO note(text) VALUES ('a row that thousands wait for')"
        requests = [{"type": "execute", "stmt": {"sql": sql}}, {"type": "close"}]
        body = json.dumps({"requests": requests})
        sent = time.monotonic()
        self._connection.request("POST", "/v3/pipeline", body, self._headers)
        answer = self._connection.getresponse()
        answer.read()
        return sent, time.monotonic(), answer.headers["nearlite-position"]

    def close(self) -> None:
        self._connection.close()


@contextmanager
def reached(count: int, folder: Path) -> Open:
    """p50, p99 and last of `count` raw clients and the replicas together, and the latency of a commit that
    comes while they are told of another; seconds.
    """
    key = f"fanout_{count}"
    with nearlite_serve(folder) as server, ExitStack() as stack:
        server.run("CREATE TABLE note(id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
        writer = Writer(server)
        stack.callback(writer.close)
        _, _, position = writer.commit()
        each = REPLICAS // REPLICA_PROCESSES
        replicas = [
            _child(stack, "-c", _REPLICAS, folder, server.url, n * each, each, position)
            for n in range(REPLICA_PROCESSES)
        ]
        raw = [_child(stack, WAITING, server.url, count // PROCESSES) for _ in range(PROCESSES)]
        for child in (*replicas, *raw):
            assert _line(child) == "waiting\n"

        def told(position: str) -> list[float]:
            """When each had what led there."""
            at: list[float] = []
            for child in [*raw, *replicas * each]:
                while (line := json.loads(_line(child)))["position"] != position:
                    pass
                at += line["at"]
            assert len(at) == count + REPLICAS
            return sorted(at)

        def once() -> Sample:
            time.sleep(0.5)  # all have asked again
            sent, _, position = writer.commit()
            at = told(position)
            time.sleep(0.5)
            writer.commit()
            time.sleep(at[len(at) // 4] - sent)  # in the middle of telling that
            middle, answered, position = writer.commit()
            told(position)
            return {
                key: at[-1] - sent,
                f"{key}_p50": at[len(at) // 2] - sent,
                f"{key}_p99": at[len(at) * 99 // 100] - sent,
                f"{key}_writer": answered - middle,
            }

        def sample() -> Sample:
            found = [once() for _ in range(COMMITS)]
            return {name: sorted(each[name] for each in found)[COMMITS // 2] for name in found[0]}

        yield sample


def _bench(pairs: Pairs, count: int, folder: Path) -> None:
    key = f"fanout_{count}"
    pairs(
        *(key, f"{key}_p50", f"{key}_p99", f"{key}_writer"),
        ours=partial(reached, count, folder),
        rounds=5,
    )


def bench_2000_live_replicas_are_reached(pairs: Pairs, tmp_path: Path) -> None:
    _bench(pairs, 2_000, tmp_path)


def bench_10000_live_replicas_are_reached(pairs: Pairs, tmp_path: Path) -> None:
    _bench(pairs, 10_000, tmp_path)
