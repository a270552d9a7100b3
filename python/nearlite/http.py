"""Transport: requests to one server over kept-alive connections, each with an absolute deadline.

urllib3 opens the connections (TLS, certificates, proxies); the exchanges themselves are written to
and read from its socket here and in message.py, because a steady small exchange through a urllib3
pool costs 0.24-0.30 ms on loopback.

Every read and write is bounded by the request's deadline, not by a time-out per call: a server that
dribbles a byte a second cannot hold a caller beyond it.
"""

from __future__ import annotations

import contextlib
import io
import ipaddress
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import urllib3
import urllib3.connection

from nearlite.errors import OfflineError, ProgrammingError
from nearlite.message import Answer, MessageError

Token = str | Callable[[], str] | None

_SCHEMES: Final = {"http": "http", "https": "https", "libsql": "https"}
# An error body is a sentence; anything longer is not one of ours.
_ERROR_BODY_LIMIT: Final = 64 * 1024
_USER_AGENT: Final = "nearlite"


def normalise_url(url: str) -> str:
    """`url` with a scheme of http or https and exactly one trailing slash.

    Raises:
      ProgrammingError: another scheme, no host, or credentials inside the URL.
    """
    parts = urlsplit(url)
    scheme = _SCHEMES.get(parts.scheme)
    if scheme is None or not parts.hostname:
        raise ProgrammingError("a primary's URL starts with http://, https:// or libsql://")
    if parts.username is not None or parts.password is not None:
        raise ProgrammingError("pass the token as auth_token, not inside the URL")
    path = parts.path.rstrip("/") + "/"
    return urlunsplit((scheme, parts.netloc, path, "", ""))


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


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


class _Channel:
    """One connection to the server, kept alive between requests."""

    def __init__(self, connection: urllib3.connection.HTTPConnection) -> None:
        assert connection.sock is not None
        self._connection = connection  # keeps TLS state and the socket alive
        self._sock = connection.sock
        self._line = _Line(self._sock)
        self._reader = io.BufferedReader(self._line, 64 * 1024)
        self.used = False

    def exchange(self, request: bytes, deadline: Deadline) -> Answer:
        """Send a whole request, read the answer's head."""
        self._line.deadline = deadline
        self._sock.settimeout(deadline.left())
        self._sock.sendall(request)
        return Answer(self._reader)

    def close(self) -> None:
        self._connection.close()

    def dropped(self) -> bool:
        """Whether the server closed the idle connection (or sent what nobody asked for)."""
        poll = select.poll()  # not select(): descriptors may be above its limit
        poll.register(self._sock, select.POLLIN)
        return bool(poll.poll(0))


class Response:
    """An answer whose body is read by the caller, within the request's deadline.

    Attributes:
      status: HTTP status.
      received: bytes of body read so far.
    """

    def __init__(self, transport: Transport, channel: _Channel, answer: Answer) -> None:
        self._transport = transport
        self._channel: _Channel | None = channel
        self._answer = answer
        self.status = answer.status
        self.received = 0

    def header(self, name: str) -> str:
        """A header's value by its lower-case name, or the empty string."""
        return self._answer.headers.get(name, "")

    @property
    def length(self) -> int | None:
        """Bytes of body still to come, when the server said so."""
        return self._answer.length

    def readinto(self, buffer: memoryview) -> int:
        """Fill as much of `buffer` as has arrived; 0 at the end of the body.

        Raises:
          OfflineError: the connection broke or the deadline passed.
        """
        try:
            count = self._answer.readinto(buffer)
        except OSError as error:
            self.close()
            raise self._transport.offline(_reason(error), sent=True) from error
        self.received += count
        if count == 0 or self._answer.length == 0:
            self._finish()
        return count

    def read(self, limit: int) -> bytes:
        """The rest of the body, at most `limit` bytes.

        Raises:
          OfflineError: the connection broke or the deadline passed.
          ValueError: the body is longer than `limit`.
        """
        data = bytearray()
        room = memoryview(bytearray(min(limit + 1, self.length or 65536) or 1))
        while count := self.readinto(room):
            data += room[:count]
            if len(data) > limit:
                self.close()
                raise ValueError(f"the answer is longer than {limit} bytes")
        self._finish()
        return bytes(data)

    def error_body(self) -> bytes:
        """The beginning of an error's body, never raising for its length."""
        try:
            return self.read(_ERROR_BODY_LIMIT)
        except ValueError:
            return b""

    def _finish(self) -> None:
        channel, self._channel = self._channel, None
        if channel is None:
            return
        if self._answer.keep_alive:
            self._transport.release(channel)
        else:
            channel.close()

    def close(self) -> None:
        """Give the connection back when the body was read to its end, else close it."""
        if self._answer.length == 0:
            self._finish()
        elif self._channel is not None:
            self._channel.close()
            self._channel = None

    def __enter__(self) -> Response:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Transport:
    """Requests to one base URL. Safe for use by many threads, each request on its own connection.

    Args:
      url: the database's URL; ``libsql://`` means https.
      token: bearer token, or a callable that answers it for each request, or None.
      timeout: seconds for one request when the caller names no deadline.
    """

    def __init__(self, url: str, *, token: Token = None, timeout: float = 30.0) -> None:
        self.url = normalise_url(url)
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        self._host = parts.hostname
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._base = parts.path
        self._fixed = (f"Host: {parts.netloc}", f"User-Agent: {_USER_AGENT}")
        self._token = token
        self.timeout = timeout
        self.loopback = _is_loopback(self._host)
        self._idle: list[_Channel] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._closed = False

    def __repr__(self) -> str:
        return f"<Transport {self.url}>"

    # ------------------------------------------------------------------ requests

    def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        deadline: Deadline | None = None,
        repeatable: bool = True,
    ) -> Response:
        """Send one request and read the answer's head.

        Args:
          path: relative to the base URL.
          repeatable: the request may be sent again when a kept-alive connection turns out to be
            dead before a byte of the answer arrived. False for writes.

        Raises:
          OfflineError: no answer before the deadline. Its text says whether the request had been
            sent, that is, whether a write may have been executed.
        """
        deadline = deadline or Deadline(self.timeout)
        request = self._encode(method, path, body, headers or {})
        while True:
            channel = self._channel(deadline)
            again = repeatable and channel.used
            try:
                answer = channel.exchange(request, deadline)
            except OSError as error:
                channel.close()
                if again and not isinstance(error, TimeoutError):
                    continue
                raise self.offline(_reason(error), sent=True) from error
            channel.used = True
            return Response(self, channel, answer)

    def _encode(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> bytes:
        """One request, head and body, to be sent by one system call when it is small."""
        lines = [f"{method} {self._base}{path} HTTP/1.1", *self._fixed]
        token = self._token() if callable(self._token) else self._token
        if token:
            lines.append(f"Authorization: Bearer {token}")
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join(lines)
        if head.count("\r") + head.count("\n") != 2 * (len(lines) - 1) or not head.isascii():
            raise ProgrammingError("a header or the token contains a line break or is not ASCII")
        return head.encode() + b"\r\n\r\n" + (body or b"")

    # ------------------------------------------------------------------ connections

    def _channel(self, deadline: Deadline) -> _Channel:
        while True:
            with self._lock:
                if self._closed:
                    raise ProgrammingError("the connection to the primary is closed")
                if self._pid != os.getpid():  # forked: the sockets are the parent's
                    self._idle.clear()
                    self._pid = os.getpid()
                channel = self._idle.pop() if self._idle else None
            if channel is None:
                return self._connect(deadline)
            if not channel.dropped():
                return channel
            channel.close()

    def _connect(self, deadline: Deadline) -> _Channel:
        try:
            connection = self._connection(deadline.left())
            connection.connect()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self.offline(_reason(error), sent=False) from error
        assert connection.sock is not None
        with contextlib.suppress(OSError):
            connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return _Channel(connection)

    def _connection(self, timeout: float) -> urllib3.connection.HTTPConnection:
        proxy = (
            None
            if self.loopback or proxy_bypass(self._host)
            else getproxies().get("https" if self._tls else "http")
        )
        kind = (
            urllib3.connection.HTTPSConnection if self._tls else urllib3.connection.HTTPConnection
        )
        options: dict[str, object] = {"timeout": timeout}
        if self._tls:
            options["ssl_context"] = ssl.create_default_context()  # honours SSL_CERT_FILE
        if proxy is None:
            return kind(self._host, self._port, **options)  # type: ignore[arg-type]
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        connection = kind(parts.hostname or "", parts.port or 8080, **options)  # type: ignore[arg-type]
        connection.set_tunnel(self._host, self._port)
        return connection

    def release(self, channel: _Channel) -> None:
        """Keep a connection whose answer was read to its end."""
        with self._lock:
            if not self._closed and self._pid == os.getpid() and len(self._idle) < 8:
                self._idle.append(channel)
                return
        channel.close()

    def close(self) -> None:
        """Close the idle connections; requests under way end by their deadline."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        if self._pid == os.getpid():
            for channel in idle:
                channel.close()

    # ------------------------------------------------------------------ errors

    def offline(self, reason: str, *, sent: bool) -> OfflineError:
        """The one exception of this module."""
        text = f"the primary at {self.url} could not be reached: {reason}"
        state = (
            "the request had been sent and may have been carried out"
            if sent
            else "nothing was sent"
        )
        return OfflineError(text, state=state, action="try again")


def _reason(error: BaseException) -> str:
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
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return type(error).__name__
