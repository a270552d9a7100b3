"""Commits offered at a fixed rate: each connection sends when it is due, or as soon as it may after that.

Usage: python bench/offered.py URL CONNECTIONS RATE SECONDS < body

Prints commits answered a second, over SECONDS. wrk knows no rate; a program in Python does for a few thousand
requests a second.
"""

from __future__ import annotations

import re
import select
import socket
import sys
import time
from urllib.parse import urlsplit

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n")


def offer(url: str, body: bytes, *, connections: int, rate: float, seconds: float) -> float:
    """POST `body` so many times a second in all; answers per second."""
    parts = urlsplit(url)
    request = (
        b"POST %b HTTP/1.1\r\nHost: %b\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (parts.path.encode(), parts.netloc.encode(), len(body), body)
    )
    opened = []
    poll = select.epoll()
    by_number = {}
    for _ in range(connections):
        made = socket.create_connection((parts.hostname, parts.port), timeout=10)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        opened.append(made)
        by_number[made.fileno()] = made
        poll.register(made.fileno(), select.EPOLLIN)
    began = time.monotonic()
    end = began + seconds
    free = list(opened)
    partial: dict[int, bytes] = {}
    sent = answered = 0
    while (now := time.monotonic()) < end:
        while free and sent < (now - began) * rate:
            free.pop(0).send(request)
            sent += 1
        due = began + (sent + 1) / rate
        for number, _ in poll.poll(max(0.0, min(due, end) - now) if free else end - now):
            data = partial.pop(number, b"") + by_number[number].recv(65536)
            head = data.find(b"\r\n\r\n") + 4
            length = _LENGTH.search(data[:head]) if head > 3 else None
            if length is None or len(data) < head + int(length[1]):
                if not data:
                    raise ConnectionError("the server closed a connection")
                partial[number] = data
                continue
            if b'"type":"error"' in data or not data.startswith(b"HTTP/1.1 200 "):
                raise RuntimeError(data[:500])
            answered += 1
            free.append(by_number[number])
    return answered / seconds


if __name__ == "__main__":
    url, connections, rate, seconds = sys.argv[1:]
    body = sys.stdin.buffer.read()
    print(offer(url, body, connections=int(connections), rate=float(rate), seconds=float(seconds)))
