"""SQL through an edge, against the same on its primary.

Bad would be: a read that waits for what goes above, a write that asks twice, a position that is waited for in steps of
a timer, idle clients that cost those who ask.
"""

from __future__ import annotations

import re
import socket
import statistics
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from bench_pipeline import INSERT, ROWS, notes
from load import load, pipeline
from pairs import Pairs, Sample
from peers import Server
from systems import nearlite_proxy, nearlite_serve

Open = Iterator[Callable[[], Sample]]
SECONDS = 2
IDLE = 1_000
BUSY = 100
WRITES = 300
SELECT = "SELECT id, text FROM note WHERE id = ?"
BODIES = [pipeline(SELECT, 1 + number * 97 % ROWS) for number in range(64)]


@contextmanager
def edge(folder: Path, *options: str) -> Iterator[tuple[Server, Server]]:
    """A primary with notes, and an edge of it."""
    with (
        notes(partial(nearlite_serve, durability="normal"), folder / "primary") as primary,
        nearlite_proxy(folder / "edge", primary.url, *options) as server,
    ):
        yield primary, server


def _p50(server: Server, bodies: list[str]) -> float:
    return load(f"{server.url}/v2/pipeline", bodies, connections=1, seconds=SECONDS).p50


@contextmanager
def through(bodies: list[str], folder: Path) -> Open:
    """Seconds of one request through an edge, one after the other on one connection."""
    with edge(folder) as (_, server):
        yield lambda: _p50(server, bodies)


@contextmanager
def itself(bodies: list[str], folder: Path) -> Open:
    """The same on a primary."""
    with notes(partial(nearlite_serve, durability="normal"), folder) as server:
        yield lambda: _p50(server, bodies)


class Connection:
    """One kept-alive connection that posts pipelines: little enough of a client not to be measured."""

    def __init__(self, server: Server) -> None:
        host, _, port = server.url.split("//")[1].rstrip("/").partition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, body: str, *headers: str) -> bytes:
        """The whole answer."""
        lines = [
            *("POST /v2/pipeline HTTP/1.1", "Host: edge", "Content-Type: application/json"),
            *(f"Content-Length: {len(body)}", *headers),
        ]
        self._socket.sendall("\r\n".join((*lines, "", body)).encode())
        answer = b""
        while True:
            answer += self._socket.recv(65536)
            head, found, rest = answer.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            if found and length is not None and len(rest) >= int(length[1]):
                return answer

    def close(self) -> None:
        self._socket.close()


@contextmanager
def elsewhere(folder: Path) -> Open:
    """Seconds from the beginning of a read on one edge that asks for what was just written through another."""
    with ExitStack() as stack:
        serve = partial(nearlite_serve, durability="normal")
        primary = stack.enter_context(notes(serve, folder / "primary"))
        edges = [
            stack.enter_context(nearlite_proxy(folder / name, primary.url, "--live"))
            for name in ("here", "there")
        ]
        here, there = map(Connection, edges)
        stack.callback(here.close)
        stack.callback(there.close)

        def sample() -> float:
            times = []
            for number in range(WRITES):
                insert = pipeline("INSERT INTO note(text) VALUES (?) RETURNING id", str(number))
                answer = here.ask(insert)
                position = re.search(rb"nearlite-position: (\S+)", answer)
                row = re.search(rb'"value":"(\d+)"', answer)
                assert position is not None
                assert row is not None
                begun = time.perf_counter()
                read = there.ask(
                    pipeline(SELECT, int(row[1])), f"Nearlite-Position: {position[1].decode()}"
                )
                times.append(time.perf_counter() - begun)
                assert b'"value":"%d"' % number in read
            return statistics.median(times)

        yield sample


@contextmanager
def costs(folder: Path) -> Open:
    """Requests that reach the primary for each write through an edge."""
    with ExitStack() as stack:
        serve = partial(nearlite_serve, durability="normal", metrics=True)
        primary = stack.enter_context(notes(serve, folder / "primary"))
        server = stack.enter_context(
            nearlite_proxy(folder / "edge", primary.url, "--sync-interval", "3600")
        )
        connection = Connection(server)
        stack.callback(connection.close)

        def seen() -> int:
            with urllib.request.urlopen(f"{primary.url}/metrics") as answer:
                text = answer.read().decode()
            found = re.findall(r"^nearlite_http_requests_total\{[^}]*\} (\d+)", text, re.MULTILINE)
            return sum(map(int, found))

        def sample() -> float:
            connection.ask(INSERT)
            before = seen()
            for _ in range(WRITES):
                connection.ask(INSERT)
            return (seen() - before - 1) / WRITES  # one of them was the question itself

        yield sample


@contextmanager
def busy(idle: int, folder: Path) -> Open:
    """Reads a second of BUSY clients, beside `idle` others that have asked once and stay connected."""
    with edge(folder) as (_, server), ExitStack() as stack:
        others = [Connection(server) for _ in range(idle)]
        for other in others:
            stack.callback(other.close)
            other.ask(BODIES[0])

        def sample() -> float:
            run = load(f"{server.url}/v2/pipeline", BODIES, connections=BUSY, seconds=SECONDS)
            for other in others[:: max(1, idle // 10)]:
                assert b" 200 " in other.ask(BODIES[0])[:20]
            return run.per_second

        yield sample


def bench_read_through_an_edge(pairs: Pairs, tmp_path: Path) -> None:
    ours, peer = partial(through, BODIES, tmp_path / "edge"), partial(itself, BODIES, tmp_path)
    pairs("edge_read", ours=ours, peer=peer, rounds=5)


def bench_write_through_an_edge(pairs: Pairs, tmp_path: Path) -> None:
    ours, peer = partial(through, [INSERT], tmp_path / "edge"), partial(itself, [INSERT], tmp_path)
    pairs("edge_write", ours=ours, peer=peer, rounds=5)


def bench_requests_of_a_write(pairs: Pairs, tmp_path: Path) -> None:
    pairs("edge_requests", ours=partial(costs, tmp_path), rounds=3)


def bench_read_on_another_edge(pairs: Pairs, tmp_path: Path) -> None:
    pairs("edge_other", ours=partial(elsewhere, tmp_path), rounds=5)


def bench_many_clients_of_an_edge(pairs: Pairs, tmp_path: Path) -> None:
    pairs(
        "edge_busy",
        ours=partial(busy, IDLE, tmp_path / "idle"),
        peer=partial(busy, 0, tmp_path / "alone"),
        rounds=3,
    )
