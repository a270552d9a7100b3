"""Load on a WebSocket server that speaks Hrana: a rate and a p99 for a fixed number of connections.

Usage: python bench/socket_load.py URL CONNECTIONS SECONDS < frames

Standard input: requests as JSON, one a line, that each connection sends in turn, one at a time, on a stream of
its own. Prints one line of JSON. An event loop (uvloop) and raw frames, made before the clock starts: a WebSocket
library would be the slower half of the measurement.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

_MASK = b"\0\0\0\0"  # a mask like any other, and nothing to do
_BEGINNING = 3  # answers: upgrade, hello, open_stream


@dataclass(frozen=True, slots=True)
class SocketLoad:
    """What one run saw.

    Attributes:
      requests: answers; any error ends the run.
      per_second: requests divided by the time of the run.
      p50, p99: seconds from request to answer.
    """

    requests: int
    per_second: float
    p50: float
    p99: float


def socket_load(
    url: str, requests: Sequence[object], *, connections: int, seconds: float
) -> SocketLoad:
    """Send `requests` in turn over WebSockets, from a process of its own."""
    lines = "\n".join(json.dumps(request) for request in requests)
    command = [sys.executable, str(Path(__file__).resolve()), url, str(connections), str(seconds)]
    done = subprocess.run(
        command, input=lines, capture_output=True, text=True, timeout=seconds + 60, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return SocketLoad(**json.loads(done.stdout))


def frame(message: object) -> bytes:
    """A text frame of a client."""
    text = json.dumps(message).encode()
    size = len(text)
    if size < 126:
        return b"\x81" + bytes([0x80 | size]) + _MASK + text
    return b"\x81\xfe" + size.to_bytes(2, "big") + _MASK + text


class _Connection(asyncio.Protocol):
    """One WebSocket. Messages to it are complete when as many bytes are there as their head says."""

    def __init__(self, url: str, frames: Sequence[bytes], ready: asyncio.Future[None]) -> None:
        self._url = urlsplit(url)
        self._frames = frames
        self._ready = ready
        self._next = 0
        self._awaited = _BEGINNING
        self._held = b""
        self._sent = 0.0
        self.end = 0.0
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.times: list[float] = []
        self.transport: asyncio.Transport

    def connection_made(self, transport) -> None:
        self.transport = transport
        key = base64.b64encode(os.urandom(16))
        transport.write(
            b"GET / HTTP/1.1\r\nHost: %b\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: %b\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Protocol: hrana2\r\n\r\n" % (self._url.netloc.encode(), key)
        )

    def start(self, end: float) -> None:
        self.end = end
        self._send()

    def _send(self) -> None:
        data = self._frames[self._next % len(self._frames)]
        self._next += 1
        self._sent = time.perf_counter()
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        try:
            self._receive(data)
        except Exception as error:  # noqa: BLE001 - asyncio would only log it
            self.connection_lost(error)

    def _receive(self, data: bytes) -> None:
        if self._held:
            data = self._held + data
        while data:
            if self._awaited == _BEGINNING:
                size = data.find(b"\r\n\r\n") + 4
                if size == 3:
                    break
            else:
                size = data[1] + 2 if data[1] < 126 else int.from_bytes(data[2:4], "big") + 4
                if len(data) < size:
                    break
            self._message(data[:size])
            data = data[size:]
        self._held = data

    def _message(self, data: bytes) -> None:
        if not self._awaited:
            now = time.perf_counter()
            if b'"type":"response_ok"' not in data:
                raise RuntimeError(data[:500])
            self.times.append(now - self._sent)
            if now < self.end:
                self._send()
            else:
                self.done.set_result(None)
            return
        if self._awaited == _BEGINNING:
            if not data.startswith(b"HTTP/1.1 101 "):
                raise RuntimeError(data[:500])
            self.transport.write(frame({"type": "hello", "jwt": None}))
            opening = {"type": "open_stream", "stream_id": 0}
            self.transport.write(frame({"type": "request", "request_id": 0, "request": opening}))
        elif b'"hello_ok"' not in data and b'"response_ok"' not in data:
            raise RuntimeError(data[:500])
        self._awaited -= 1
        if not self._awaited:
            self._ready.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        for future in (self._ready, self.done):
            if not future.done():
                future.set_exception(exc or ConnectionError("the server closed a connection"))


async def _run(
    url: str, requests: Sequence[object], connections: int, seconds: float
) -> SocketLoad:
    loop = asyncio.get_running_loop()
    frames = [
        frame({"type": "request", "request_id": number, "request": request})
        for number, request in enumerate(requests, 1)
    ]
    parts = urlsplit(url)
    opened = []
    for at in range(connections):
        turned = frames[at:] + frames[:at]
        ready: asyncio.Future[None] = loop.create_future()

        def made(turned: Sequence[bytes] = turned, ready: asyncio.Future[None] = ready):
            return _Connection(url, turned, ready)

        _, protocol = await loop.create_connection(made, parts.hostname, parts.port)
        opened.append(protocol)
        await ready
    began = time.perf_counter()
    for protocol in opened:
        protocol.start(began + seconds)
    await asyncio.gather(*[protocol.done for protocol in opened])
    took = time.perf_counter() - began
    times = sorted(time for protocol in opened for time in protocol.times)
    for protocol in opened:
        protocol.transport.abort()
    return SocketLoad(
        len(times), len(times) / took, times[len(times) // 2], times[len(times) * 99 // 100]
    )


if __name__ == "__main__":
    import dataclasses

    import uvloop

    address, count, duration = sys.argv[1:]
    asked = [json.loads(line) for line in sys.stdin]
    seen = uvloop.run(_run(address, asked, int(count), float(duration)))
    print(json.dumps(dataclasses.asdict(seen)))
