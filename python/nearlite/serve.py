"""Runs the ASGI application with uvicorn: where it listens, how it ends, whom it cuts off."""

from __future__ import annotations

import asyncio
import gc
import logging
import socket
import threading
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nearlite import errors
from nearlite.delivery import Delivery
from nearlite.exchange import DELIVERY
from nearlite.server import App, is_loopback

log = logging.getLogger("nearlite.server")

SHUTDOWN_SECONDS: Final = 5
"""Requests under way may take so long to end after SIGTERM."""
CONNECTIONS: Final = 2048
"""HTTP connections at a time; requests of those beyond are answered 503."""
_KEEP_ALIVE: Final = 75  # seconds; longer than what proxies and HTTP clients keep
_HEAD_SECONDS: Final = 30.0  # for the head of a connection's first request
_HEAD_BYTES: Final = 64 << 10
_HEAD_BEGINS: Final = b"HTTP/1.1 "
_GATHERED: Final = 32 << 10  # bytes: copying more costs as much as a system call


class _Transport:
    """A transport that sends the head of an answer together with the first bytes of its body.

    uvicorn writes one after the other, and uvloop hands each to the kernel at once: two system calls
    and two packets, each of which wakes the client (measured: 1.2 times the reads a second without). The
    head waits for the body, but not longer than this turn of the event loop; the whole answer does not:
    the next group of writes begins when the first client of the last one has heard.
    """

    __slots__ = ("_head", "_loop", "_transport", "delivery")

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self.delivery = Delivery(transport)
        self._head: bytes | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        head = self._head
        if head is None:
            if data.startswith(_HEAD_BEGINS):  # or a body that looks so: it is a little late
                self._head = data
                self._loop.call_soon(self._flush)
                return
        else:
            self._head = None
            if len(data) <= _GATHERED:
                data = head + data
            else:
                self._write(head)
        self._write(data)

    def _write(self, data: bytes) -> None:
        self.delivery.wrote(len(data))
        self._transport.write(data)

    def _flush(self) -> None:
        head, self._head = self._head, None
        if head is not None and not self._transport.is_closing():
            self._write(head)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        closing: bool = self._transport.is_closing()
        return closing


class _Protocol(HttpToolsProtocol):
    """uvicorn's protocol with the limits it lacks: on a head that never comes, or never ends, and on connections."""

    _delivery: Delivery
    _extensions: dict[str, Any]
    _head_timer: asyncio.TimerHandle | None = None
    _in_head = True
    _ended = False  # a message ended within the data that is being parsed
    _head_size = 0

    def connection_made(self, transport: Any) -> None:
        gathering = _Transport(transport, self.loop)
        self._delivery = gathering.delivery
        self._extensions = {DELIVERY: self._delivery}
        super().connection_made(gathering)  # type: ignore[arg-type]
        # uvicorn's own limit would answer 503 on connections that were there before, too.
        self.limit_concurrency = 0 if len(self.connections) > CONNECTIONS else None
        self._head_timer = self.loop.call_later(_HEAD_SECONDS, transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_done()
        self._delivery.end()
        super().connection_lost(exc)

    def eof_received(self) -> None:
        self._delivery.eof()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = self._extensions

    def data_received(self, data: bytes) -> None:
        begun_in_head = self._in_head
        super().data_received(data)
        # Data that ended one message and began the next tells little of the latter's head.
        if begun_in_head and self._in_head and not self._ended:
            self._head_size += len(data)
            if self._head_size > _HEAD_BYTES:
                self.transport.abort()
        self._ended = False

    def on_headers_complete(self) -> None:
        self._head_done()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = self._ended = True

    def _head_done(self) -> None:
        self._in_head = False
        self._head_size = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class _Server(uvicorn.Server):
    """uvicorn's server; long polls are answered as soon as it is asked to end."""

    def __init__(self, config: uvicorn.Config, app: App) -> None:
        super().__init__(config)
        self._app = app

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if threading.current_thread() is threading.main_thread():  # the process is the server's
            # What exists now lives as long as the process: the collector need not look at it
            # again and again in the middle of requests.
            gc.collect()
            gc.freeze()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.stop_waiting()
        await super().shutdown(sockets)


def listen(address: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT`` or ``[IPv6]:PORT``.

    Raises:
      errors.ProgrammingError: it is neither.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise errors.ProgrammingError(f"an address is written HOST:PORT, not {address!r}")
    return host.strip("[]") or "0.0.0.0", int(port)  # noqa: S104 - ":8080" is all of them


def check_exposure(host: str, *, auth_token: str | None, no_auth: bool) -> None:
    """Refuse to let the network in without a token, unless that is what is wanted.

    Raises:
      errors.ProgrammingError: with what to do.
    """
    if auth_token == "":
        raise errors.ProgrammingError("the token is empty: anybody could send it")
    if auth_token is None and not no_auth and not is_loopback(host):
        raise errors.ProgrammingError(
            f"{host} can be reached from other machines, and without a token anybody there could "
            "read and write the database. Give --auth-token TOKEN (or NEARLITE_AUTH_TOKEN), listen "
            "on 127.0.0.1, or say --no-auth if that is what you want. Nothing was started"
        )


def run(app: App, host: str, port: int) -> None:
    """Serve until SIGTERM or Ctrl-C. Raises OperationalError when the address cannot be had."""
    with bind(host, port) as listening:
        server(app).run(sockets=[listening])


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address; port 0 takes any free one."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        found = socket.socket(family, socket.SOCK_STREAM)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind((host, port))
        except BaseException:
            found.close()
            raise
    except OSError as error:
        raise errors.OperationalError(
            f"cannot listen on {host}:{port}: {error.strerror}; nothing was started"
        ) from None
    return found


def server(app: App) -> uvicorn.Server:
    """The configured server, not yet running."""
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,  # who asks is looked at only where no proxy stands in between
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    return _Server(config, app)
