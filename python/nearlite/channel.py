"""One connection to a server: a request goes out, the head of an answer comes in, each by a deadline.

Another thread may end it at any time: a poll that waits for seconds must not hold up who closes.
"""

from __future__ import annotations

import contextlib
import io
import select
import socket
import ssl
import time
from typing import Final

import urllib3
import urllib3.connection

from nearlite.message import Answer, MessageError

# Bytes that count as progress: a server that dribbles does not keep a caller waiting for ever.
_PROGRESS: Final = 64 * 1024


class Deadline:
    """A point in time on the monotonic clock.

    Args:
      seconds: until then.
      renewed: each 64 KiB of answer received move it to `seconds` from then: the deadline of a long
        download is that it must not stand still.
    """

    __slots__ = ("_fresh", "at", "renewed", "seconds")

    def __init__(self, seconds: float, *, renewed: bool = False) -> None:
        self.seconds = seconds
        self.renewed = renewed
        self.at = time.monotonic() + seconds
        self._fresh = 0

    def left(self) -> float:
        """Seconds until it; raises TimeoutError when it has passed."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no complete answer within {self.seconds:g} seconds")
        return left

    def received(self, count: int) -> None:
        """That many bytes have come."""
        self._fresh += count
        if self._fresh >= _PROGRESS:
            self.restart()

    def restart(self) -> None:
        """There was progress; without effect on a deadline that is not renewed."""
        self._fresh = 0
        if self.renewed:
            self.at = time.monotonic() + self.seconds


class _Line(io.RawIOBase):
    """The receiving half of a socket whose every wait ends by the current deadline."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.deadline = Deadline(0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._sock.settimeout(self.deadline.left())
        count = self._sock.recv_into(buffer)
        self.deadline.received(count)
        return count


# A peer that has gone without a word (a pulled cable, a gateway that forgot the connection) is noticed
# within this many seconds, whether we wait for it or send to it.
_SILENT: Final = 10
_PROBE_EVERY: Final = 5
_GONE: Final = 25
_TCP: Final = {
    "TCP_NODELAY": 1,
    "TCP_KEEPIDLE": _SILENT,
    "TCP_KEEPINTVL": _PROBE_EVERY,
    "TCP_KEEPCNT": (_GONE - _SILENT) // _PROBE_EVERY,
    "TCP_USER_TIMEOUT": _GONE * 1000,
}


def _watch_over(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):  # not a TCP socket after all: the deadlines hold
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _TCP.items():
            if hasattr(socket, name):  # not every system has all of them
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Channel:
    """One connection to the server, kept alive between requests."""

    def __init__(self, connection: urllib3.connection.HTTPConnection) -> None:
        assert connection.sock is not None
        self._connection = connection  # keeps TLS state and the socket alive
        self._sock = connection.sock
        _watch_over(self._sock)
        self._line = _Line(self._sock)
        self._reader = io.BufferedReader(self._line, 64 * 1024)
        self.used = False
        self.lease = 0
        """How often it has been given back: who has it now."""

    def exchange(self, request: bytes, deadline: Deadline) -> Answer:
        """Send a whole request, read the answer's head."""
        self.send(request, deadline)
        return self.answer(deadline)

    def send(self, request: bytes, deadline: Deadline) -> None:
        """Send a whole request."""
        self._sock.settimeout(deadline.left())
        self._sock.sendall(request)

    def answer(self, deadline: Deadline) -> Answer:
        """Read the head of the answer to what was sent; its body is read by the same deadline."""
        self._line.deadline = deadline
        return Answer(self._reader)

    def close(self) -> None:
        """Close the socket; on the thread that uses it."""
        self._connection.close()

    def abort(self) -> None:
        """End it under whoever waits for it, on whatever thread."""
        with contextlib.suppress(OSError):  # closed, or never connected
            # Not SSLSocket's, which takes away what the other thread is reading with.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def dropped(self) -> bool:
        """Whether the server closed the idle connection (or sent what nobody asked for)."""
        poll = select.poll()  # not select(): descriptors may be above its limit
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))


def reason_of(error: BaseException) -> str:
    """One phrase for the ways a connection fails, without addresses of objects in it.

    urllib3 wraps what the socket said, sometimes in a time-out of its own: the cause comes first.
    """
    for candidate in (error.__cause__, error.__context__, error):
        if isinstance(candidate, ConnectionRefusedError):
            return "connection refused"
        if isinstance(candidate, socket.gaierror):
            return "its name does not resolve"
        if isinstance(candidate, ssl.SSLCertVerificationError):
            return f"its certificate was refused: {candidate.verify_message}"
        if isinstance(candidate, ConnectionError):
            return "the connection was closed by the other side"
    if isinstance(error, (TimeoutError, urllib3.exceptions.TimeoutError)):
        return str(error) if "complete answer" in str(error) else "no answer before the deadline"
    if isinstance(error, MessageError):
        return f"its answer could not be read: {error}"
    refused = str(error).partition("Tunnel connection failed: ")[2]
    if refused:
        return f"the proxy refused: {refused}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return type(error).__name__
