"""Raw-socket clients that wait at a primary, as live replicas do: one long poll open on each connection.

Usage: python bench/waiting.py URL CONNECTIONS

All connect at once and ask. The first line says that they wait. Then, whenever all have had an answer that leads
to the same newer position, one line of JSON: that position, and when each had the whole of it
(CLOCK_MONOTONIC, which is the same for all processes). Each asks again as soon as it has its answer, from
where that leads. Ends with its standard input.
"""

from __future__ import annotations

import json
import re
import select
import socket
import sys
import time
from urllib.parse import urlsplit

from nearlite.sync import Local
from nearlite.wire import CompactSet, Status, WholeSet, is_compact

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n")
_WAIT = 20  # seconds


def _ask(host: str, since: Local) -> bytes:
    target = f"/nl/v1/changes/{since.position}?hash={since.hash:016x}&z=0&v=2&wait={_WAIT}"
    return f"GET {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: waiting\r\n\r\n".encode()


def _status(host: str, port: int) -> Status:
    with socket.create_connection((host, port), timeout=60) as connection:
        connection.sendall(
            f"GET /nl/v1/status HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
        )
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return Status.decode(answer.partition(b"\r\n\r\n")[2])


class Clients:
    """So many connections to one primary, each with a long poll."""

    def __init__(self, url: str, count: int) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self._host = parts.hostname
        self._port = parts.port
        self._count = count
        self._poll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._partial: dict[int, bytes] = {}
        self._asked: dict[int, Local] = {}  # where each stands
        self._next: dict[tuple[Local, bytes], Local] = {}  # where an answer leads
        self._requests: dict[Local, bytes] = {}
        self._had: dict[str, list[float]] = {}

    def connect(self) -> None:
        """Connect all at once, and ask."""
        status = _status(self._host, self._port)
        here = Local(status.position, status.hash, status.pages, status.page_size)
        for _ in range(self._count):
            made = socket.socket()
            made.setblocking(False)
            made.connect_ex((self._host, self._port))
            self._sockets[made.fileno()] = made
            self._poll.register(made.fileno(), select.EPOLLOUT)
        left = self._count
        while left:
            for number, _ in self._poll.poll():
                made = self._sockets[number]
                failed = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if failed:
                    raise OSError(failed, "a connection failed")
                self._ask(number, here)
                self._poll.modify(number, select.EPOLLIN)
                left -= 1

    def run(self) -> None:
        """Take answers until the standard input ends."""
        self._poll.register(0, select.EPOLLIN)
        while True:
            for number, _ in self._poll.poll():
                if number == 0:
                    return
                data = self._partial.pop(number, b"") + self._sockets[number].recv(1 << 20)
                end = data.find(b"\r\n\r\n") + 4
                length = _LENGTH.search(data[:end]) if end > 3 else None
                if length is None or len(data) < end + int(length[1]):
                    if not data:
                        raise ConnectionError("the server closed a connection")
                    self._partial[number] = data
                    continue
                self._answered(number, data, data[end:])

    def _ask(self, number: int, since: Local) -> None:
        self._asked[number] = since
        request = self._requests.get(since)
        if request is None:
            request = self._requests[since] = _ask(self._host, since)
        self._sockets[number].send(request)

    def _answered(self, number: int, data: bytes, body: bytes) -> None:
        at = time.monotonic()
        since = self._asked[number]
        if data.startswith(b"HTTP/1.1 204 "):
            self._ask(number, since)
            return
        key = since, data
        leads = self._next.get(key)
        if leads is None:
            leads = self._next[key] = _read(data, body, since)
        self._ask(number, leads)
        had = self._had.setdefault(str(leads.position), [])
        had.append(at)
        if len(had) == self._count:
            print(json.dumps({"position": str(leads.position), "at": had}), flush=True)
            del self._had[str(leads.position)]  # others may be further already
            self._next.clear()
            self._requests.clear()


def _read(data: bytes, body: bytes, since: Local) -> Local:
    """Where a page set leads."""
    assert data.startswith(b"HTTP/1.1 200 "), data[:200]
    head = CompactSet(body, since).header if is_compact(body) else WholeSet(body).header
    return Local(head.target, head.hash_target, head.pages, head.page_size)


def main() -> None:
    """Entry point."""
    clients = Clients(sys.argv[1], int(sys.argv[2]))
    clients.connect()
    print("waiting", flush=True)
    clients.run()


if __name__ == "__main__":
    main()
