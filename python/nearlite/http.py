"""Transport: requests to one server over kept-alive connections, each with an absolute deadline.

urllib3 opens the connections (TLS, certificates, proxies); the exchanges themselves are written to
and read from its socket in channel.py and message.py, because a steady small exchange through a urllib3
pool costs 0.24-0.30 ms on loopback.

Every read and write is bounded by the request's deadline, not by a time-out per call: a server that
dribbles a byte a second cannot hold a caller beyond it.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import urllib3
import urllib3.connection

from nearlite.channel import Channel, Deadline, reason_of
from nearlite.errors import AnswerError, OfflineError, ProgrammingError, TokenInClearWarning
from nearlite.message import Answer
from nearlite.network import DEFAULT, Network, split_url
from nearlite.sync import REQUEST_SENT

__all__ = ["Deadline", "Response", "Sent", "Token", "Transport", "normalise_url"]

Token = str | Callable[[], str] | None

_SCHEMES: Final = {"http": "http", "https": "https", "libsql": "https"}
# An error body is a sentence; anything longer is not one of ours.
_ERROR_BODY_LIMIT: Final = 64 * 1024
_USER_AGENT: Final = "nearlite"


def normalise_url(url: str) -> str:
    """`url` with a scheme of http or https and exactly one trailing slash.

    Raises:
      ProgrammingError: another scheme, no host, no such port, or credentials inside the URL.
    """
    if not isinstance(url, str):
        raise ProgrammingError(f"a primary's URL is a str, not {type(url).__name__}")
    parts = split_url(url)
    scheme = None if parts is None else _SCHEMES.get(parts.scheme)
    if parts is None or scheme is None:
        raise ProgrammingError(
            "a primary's URL is http://, https:// or libsql://, a host, :port if need be, and a path"
        )
    if parts.username is not None or parts.password is not None:
        raise ProgrammingError("pass the token as auth_token, not inside the URL")
    path = parts.path.rstrip("/") + "/"
    return urlunsplit((scheme, parts.netloc, path, "", ""))


def checked_token(token: object) -> str | None:
    """What is sent as a bearer token. Raises ProgrammingError, without it, for what cannot be sent."""
    if token is None:
        return None
    if not isinstance(token, str):
        raise ProgrammingError(f"the token is a str, not {type(token).__name__}")
    if not (token.isascii() and token.isprintable()):
        raise ProgrammingError("the token contains a line break, or is not printable ASCII")
    return token


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


_warned: set[str] = set()


def _warn_of_clear(where: str) -> None:
    """Once for a host, wherever the program connects to it."""
    if where not in _warned:
        _warned.add(where)
        warnings.warn(
            f"the token is sent to {where} in clear (http://): whoever sees it on its way can use it; connect to "
            "https://",
            TokenInClearWarning,
            stacklevel=2,
        )


class Response:
    """An answer whose body is read by the caller, within the request's deadline.

    Attributes:
      status: HTTP status.
      received: bytes of body read so far.
    """

    def __init__(self, transport: Transport, channel: Channel, answer: Answer) -> None:
        self._transport = transport
        self._channel: Channel | None = channel
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
            raise self._transport.offline(reason_of(error), sent=True) from error
        self.received += count
        if count == 0 or self._answer.length == 0:
            self._finish()
        return count

    def ended(self) -> bool:
        """Whether no more of the body comes; waits for what tells it.

        Raises:
          OfflineError: the connection broke or the deadline passed.
        """
        try:
            ended = self._answer.ended()
        except OSError as error:
            self.close()
            raise self._transport.offline(reason_of(error), sent=True) from error
        if ended:
            self._finish()
        return ended

    def read(self, limit: int) -> bytes:
        """The rest of the body, at most `limit` bytes.

        Raises:
          OfflineError: the connection broke or the deadline passed.
          AnswerError: the body is longer than `limit`.
        """
        data = bytearray()
        room = memoryview(bytearray(min(limit + 1, self.length or 65536) or 1))
        while count := self.readinto(room):
            data += room[:count]
            if len(data) > limit:
                self.close()
                raise AnswerError(
                    f"the primary's answer was refused: it is longer than {limit} bytes"
                )
        self._finish()
        return bytes(data)

    def error_body(self) -> bytes:
        """The beginning of an error's body, never raising for its length; without the token, if that is in it."""
        try:
            body = self.read(_ERROR_BODY_LIMIT)
        except AnswerError:
            return b""
        return self._transport.without_token(body.decode("latin-1")).encode("latin-1")

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


class Sent:
    """A request that is under way, whose answer somebody will wait for."""

    def __init__(self, transport: Transport, channel: Channel) -> None:
        self._transport = transport
        self._channel: Channel | None = channel
        self._lease = channel, channel.lease

    def answer(self, deadline: Deadline) -> Response:
        """Wait for the head of the answer, once.

        Raises:
          OfflineError: no answer before the deadline, or the connection is gone.
        """
        channel, self._channel = self._channel, None
        assert channel is not None
        try:
            answer = channel.answer(deadline)
        except OSError as error:
            channel.close()
            raise self._transport.offline(reason_of(error), sent=True) from error
        channel.used = True
        return Response(self._transport, channel, answer)

    def abort(self) -> None:
        """End it under whoever waits for the answer or reads it, on whatever thread.

        Without effect when the answer has been read to its end: the connection is somebody else's then.
        """
        self._transport.abort(*self._lease)

    def close(self) -> None:
        """Nobody wants the answer: the connection ends. Without effect after :meth:`answer`."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


class Transport:
    """Requests to one base URL. Safe for use by many threads, each request on its own connection.

    Args:
      url: the database's URL; ``libsql://`` means https.
      token: bearer token, or a callable that answers it for each request, or None.
      timeout: seconds for one request when the caller names no deadline.
      network: certificates, proxy and headers.

    Raises:
      ProgrammingError: not such a URL, a token that cannot be sent, or certificates that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Token = None,
        timeout: float = 30.0,
        network: Network = DEFAULT,
    ) -> None:
        self.url = normalise_url(url)
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        self._host = parts.hostname
        self._tls = parts.scheme == "https"
        self._port = parts.port or (443 if self._tls else 80)
        self._base = parts.path
        self.network = network
        # What the program has given is read at once, for it to hear what is wrong with it.
        self._tls_context = network.context() if self._tls and network is not DEFAULT else None
        headers = {"User-Agent": _USER_AGENT, **dict(network.headers)}
        self._has_token = any(name.lower() == "authorization" for name in headers)
        self._fixed = (
            f"Host: {parts.netloc}",
            *(f"{name}: {value}" for name, value in headers.items()),
        )
        self._token = token if callable(token) else checked_token(token)
        self._shown = ""  # the token that was sent last
        self.timeout = timeout
        self.loopback = is_loopback(self._host)
        self._in_clear = not (self._tls or self.loopback)
        if self._has_token and self._in_clear:
            _warn_of_clear(self._host)
        self._idle: list[Channel] = []
        self._channels: weakref.WeakSet[Channel] = weakref.WeakSet()  # idle ones and others
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._closed = False
        self.connecting = 0
        """Connections that are being made; nothing can end that sooner than their deadlines."""

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
                raise self.offline(reason_of(error), sent=True) from error
            channel.used = True
            return Response(self, channel, answer)

    def send(
        self,
        path: str,
        deadline: Deadline,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Sent:
        """Send a GET, or with a body a POST, and do not wait for its answer.

        Raises:
          OfflineError: it could not be sent.
        """
        method = "GET" if body is None else "POST"
        request = self._encode(method, path, body, headers or {})
        channel = self._channel(deadline)
        try:
            channel.send(request, deadline)
        except OSError as error:
            channel.close()
            raise self.offline(reason_of(error), sent=True) from error
        return Sent(self, channel)

    def _encode(
        self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]
    ) -> bytes:
        """One request, head and body, to be sent by one system call when it is small."""
        lines = [f"{method} {self._base}{path} HTTP/1.1", *self._fixed]
        token = self._token
        if callable(token):
            token = checked_token(token())
        if token and not self._has_token:
            if self._in_clear:
                _warn_of_clear(self._host)
            lines.append(f"Authorization: Bearer {token}")
            self._shown = token
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join(lines)
        if not (head.isascii() and "".join(lines).isprintable()):
            raise ProgrammingError("a header contains what is not printable ASCII")
        return head.encode() + b"\r\n\r\n" + (body or b"")

    # ------------------------------------------------------------------ connections

    def _channel(self, deadline: Deadline) -> Channel:
        while True:
            with self._lock:
                if self._closed:
                    raise _closed()
                if self._pid != os.getpid():  # forked: the sockets are the parent's
                    self._idle.clear()
                    self._channels.clear()
                    self._pid = os.getpid()
                channel = self._idle.pop() if self._idle else None
            if channel is None:
                return self._connect(deadline)
            if not channel.dropped():
                return channel
            channel.close()

    def _connect(self, deadline: Deadline) -> Channel:
        with self._lock:
            self.connecting += 1
        try:
            connection = self.network.connection(
                self._host,
                self._port,
                context=self._context(),
                local=self.loopback,
                timeout=deadline.left(),
            )
            connection.connect()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise self.offline(reason_of(error), sent=False) from error
        finally:
            with self._lock:
                self.connecting -= 1
        channel = Channel(connection)
        with self._lock:
            self._channels.add(channel)
            if not self._closed:
                return channel
        channel.close()  # closed while it was being made
        raise _closed()

    def _context(self) -> ssl.SSLContext | None:
        if self._tls and self._tls_context is None:
            self._tls_context = self.network.context()
        return self._tls_context

    def release(self, channel: Channel) -> None:
        """Keep a connection whose answer was read to its end."""
        with self._lock:
            channel.lease += 1
            if not self._closed and self._pid == os.getpid() and len(self._idle) < 8:
                self._idle.append(channel)
                return
        channel.close()

    def abort(self, channel: Channel, lease: int) -> None:
        """End a connection under the thread that uses it, if it has not been given back since."""
        with self._lock:
            if channel.lease == lease:
                channel.abort()

    def close(self) -> None:
        """Close the idle connections, and end the requests under way of other threads at once."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            channels = list(self._channels)
        if self._pid == os.getpid():  # those of the parent of a fork are its own
            for channel in idle:
                channel.close()
            for channel in channels:
                channel.abort()

    # ------------------------------------------------------------------ errors

    def without_token(self, text: str) -> str:
        """What a server says, fit for errors and logs: some repeat the token that they refuse."""
        return text.replace(self._shown, "(the token)") if self._shown else text

    def offline(self, reason: str, *, sent: bool) -> OfflineError:
        """The one exception of this module."""
        text = f"the primary at {self.url} could not be reached: {reason}"
        state = REQUEST_SENT if sent else "nothing was sent"
        return OfflineError(text, state=state, action="try again")


def _closed() -> ProgrammingError:
    return ProgrammingError("the connection to the primary is closed")
