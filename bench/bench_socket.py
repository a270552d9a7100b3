"""SQL over WebSocket against sqld: point selects from 16 connections, one at a time on each.

Bad would be: a task or a hop to a thread for a read, a system call for each of a client's wake-ups, a p99 that
shows them waiting behind each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench_pipeline import CONNECTIONS, ROWS, SECONDS, Serve, notes
from pairs import Pairs, Sample
from peers import sqld
from socket_load import socket_load
from systems import nearlite_serve


@contextmanager
def reads(serve: Serve, folder: Path) -> Iterator[Callable[[], Sample]]:
    """Point selects by primary key: requests per second, and their p99 in seconds."""
    select = "SELECT id, text FROM note WHERE id = ?"
    requests = [
        {
            "type": "execute",
            "stream_id": 0,
            "stmt": {
                "sql": select,
                "args": [{"type": "integer", "value": str(1 + i * 97 % ROWS)}],
            },
        }
        for i in range(64)
    ]
    with notes(serve, folder) as server:
        url = server.url.replace("http", "ws", 1)

        def sample() -> Sample:
            run = socket_load(url, requests, connections=CONNECTIONS, seconds=SECONDS)
            return {"socket_reads": run.per_second, "socket_reads_p99": run.p99}

        yield sample


def bench_socket_reads(pairs: Pairs, tmp_path: Path) -> None:
    pairs(
        *("socket_reads", "socket_reads_p99"),
        ours=partial(reads, nearlite_serve, tmp_path / "nearlite"),
        peer=partial(reads, sqld, tmp_path / "sqld"),
        rounds=5,
    )
