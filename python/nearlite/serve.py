"""Runs the ASGI application with uvicorn: where it listens, how it ends, whom it cuts off."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, Protocol

import uvicorn

from nearlite import errors
from nearlite.connection import protocol
from nearlite.exchange import Receive, Scope, Send
from nearlite.http import is_loopback
from nearlite.limits import Limits
from nearlite.websocket import Outbox, WebSocket

log = logging.getLogger("nearlite.server")

SHUTDOWN_SECONDS: Final = 5
"""Requests under way may take so long to end after SIGTERM."""
BACKLOG: Final = 16_384
"""Connections that may wait to be accepted, if the system allows so many: all replicas come back at once."""
_RESERVED: Final = 512  # descriptors, or a quarter of them: database connections, archives
_FEW: Final = 4096  # descriptors
_ENDLESS: Final = 1 << 20  # descriptors, where the system names no limit
_PORTABLE: Final = 10_240  # and where it has one all the same
_KEEP_ALIVE: Final = 75  # seconds; longer than what proxies and HTTP clients keep


class Serves(Protocol):
    """What can be served: nearlite.server.App, nearlite.hosting.Hosting, the admin API."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""

    def stop_waiting(self) -> None:
        """Answer long polls now: the server is about to end."""


class _Server(uvicorn.Server):
    """uvicorn's server; long polls are answered as soon as it is asked to end.

    Args:
      config: of uvicorn.
      app: what is served.
      beside: another application, and where it listens, for as long as this one is served.
      tls: of both.
      patience: seconds for TLS's handshake.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        app: Serves,
        beside: tuple[Serves, socket.socket] | None = None,
        tls: ssl.SSLContext | None = None,
        patience: float = 30.0,
    ) -> None:
        super().__init__(config)
        self._app = app
        self._tls = tls
        self._patience = patience
        self._beside = beside
        self._second: tuple[uvicorn.Server, asyncio.Task[None]] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        with contextlib.nullcontext() if self._tls is None else self._handshakes():
            await super().startup(sockets)
        if self._beside is not None and not self.should_exit:
            app, listening = self._beside
            second = server(app, self._tls)
            # Without signal handlers: those are of the first one, which ends both.
            task = asyncio.get_running_loop().create_task(second._serve([listening]))  # noqa: SLF001
            self._second = second, task
        if threading.current_thread() is threading.main_thread():  # the process is the server's
            # What exists now lives as long as the process: the collector need not look at it
            # again and again in the middle of requests.
            gc.collect()
            gc.freeze()

    @contextlib.contextmanager
    def _handshakes(self) -> Iterator[None]:
        """A client has as long for TLS's handshake as for a request's head. uvicorn has no option for it."""
        loop: Any = asyncio.get_running_loop()
        loop.create_server = partial(loop.create_server, ssl_handshake_timeout=self._patience)
        try:
            yield
        finally:
            del loop.create_server

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._app.stop_waiting()
        if self._second is not None:
            second, task = self._second
            second.should_exit = True
            await asyncio.wait({task})
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


def check_exposure(host: str, *, trusting: bool) -> None:
    """Refuse to let the network in without a token, unless that is what is wanted.

    Args:
      host: where it is going to listen.
      trusting: whoever reaches it is trusted, and nobody has said that this is meant.

    Raises:
      errors.ProgrammingError: with what to do.
    """
    if trusting and not is_loopback(host):
        raise errors.ProgrammingError(
            f"{host} can be reached from other machines, and without a token anybody there could "
            "read and write the database. Give --auth-token TOKEN (or NEARLITE_AUTH_TOKEN), or "
            "--auth-jwt-key-file FILE, listen on 127.0.0.1, or say --no-auth if that is what you want. Nothing was started"
        )


def shows_console(host: str, *, trusting: bool, asked: bool | None) -> bool:
    """Whether the console is to be seen.

    Args:
      host: where the server is going to listen.
      trusting: whoever reaches it is trusted.
      asked: whether it is wanted; None: if there is nothing against it.

    Raises:
      errors.ProgrammingError: it is wanted where everybody could use it; with what to do.
    """
    exposed = trusting and not is_loopback(host)
    if asked and exposed:
        raise errors.ProgrammingError(
            f"{host} can be reached from other machines, and without a token anybody there could run SQL on the "
            "console's page. Give --auth-token-file FILE (or NEARLITE_AUTH_TOKEN), or --auth-jwt-key-file FILE, listen on "
            "127.0.0.1, or leave --console out. Nothing was started"
        )
    return not exposed if asked is None else asked


def warn_of_clear(host: str) -> None:
    """Say that tokens will travel in clear, if anybody can see them on their way."""
    if not is_loopback(host):
        log.warning(
            "clients send their tokens to %s in clear: whoever sees them on their way can use them. Give "
            "--tls-cert and --tls-key, or let a proxy that speaks TLS stand in front of 127.0.0.1",
            host,
        )


def check_admin(host: str, *, token: str | None) -> None:
    """Refuse to let the network administrate without a token.

    Raises:
      errors.ProgrammingError: with what to do.
    """
    if token is None and not is_loopback(host):
        raise errors.ProgrammingError(
            f"{host} can be reached from other machines, and without a token anybody there could make and "
            "delete databases. Give --admin-token-file FILE (or NEARLITE_ADMIN_TOKEN), or let the admin API "
            "listen on 127.0.0.1. Nothing was started"
        )


def end_when_told() -> None:
    """From here on SIGTERM ends the process in order: also where it is the first one of a container, which the system
    spares that signal unless it is asked for, and in a first download, whose file is removed then.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))


def run_at(
    listening: socket.socket,
    host: str,
    app: Serves,
    tls: ssl.SSLContext | None,
    tell: Callable[[str], str],
) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Args:
      listening: bound.
      host: as it is called.
      app: what is served.
      tls: over TLS.
      tell: the line on standard output that says so, with the URL.
    """
    raise_limit()
    listening.listen(BACKLOG)  # from here on clients wait instead of being refused
    name = f"[{host}]" if ":" in host else host
    scheme = "http" if tls is None else "https"
    print(tell(f"{scheme}://{name}:{listening.getsockname()[1]}"), flush=True)
    end_when_told()  # uvicorn stops in order and then raises the signal again: it was no failure
    server(app, tls).run(sockets=[listening])


def run(app: Serves, host: str, port: int) -> None:
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


def raise_limit() -> None:
    """Let the process have as many descriptors as it may: each client that waits holds one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (_ENDLESS, _PORTABLE) if hard == resource.RLIM_INFINITY else (hard,):
        if soft == resource.RLIM_INFINITY or soft >= wanted:
            break
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            break
    if room() < _FEW - _RESERVED:
        log.warning(
            "this process may open %d files, so at most %d clients can be connected, and each live "
            "replica is one all the time; raise the limit where it is started (ulimit -n, "
            "LimitNOFILE=)",
            resource.getrlimit(resource.RLIMIT_NOFILE)[0],
            room(),
        )


def limit() -> int:
    """Descriptors that this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _ENDLESS if soft == resource.RLIM_INFINITY else soft


def room() -> int:
    """Connections that there are descriptors for."""
    soft = limit()
    return soft - min(_RESERVED, soft // 4)


def server(
    app: Serves,
    tls: ssl.SSLContext | None = None,
    *,
    beside: tuple[Serves, socket.socket] | None = None,
) -> uvicorn.Server:
    """The configured server, not yet running.

    Args:
      app: what is served.
      tls: over TLS.
      beside: another application that it serves as well, and where that listens; the same way.
    """
    limits = getattr(app, "limits", None) or Limits()
    config = uvicorn.Config(
        app,
        http=protocol(
            getattr(app, "shortcut", _no_shortcut),
            most=room(),
            limits=limits,
            meters=getattr(app, "meters", None),
        ),
        backlog=BACKLOG,
        ws=partial(WebSocket, limits=limits, outbox=Outbox()),  # type: ignore[arg-type]
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,  # who asks is looked at only where no proxy stands in between
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    if tls is not None:
        config.load()
        config.ssl = tls
    return _Server(config, app, beside, tls, limits.client_seconds)


def _no_shortcut(_scope: Scope) -> None:
    """An application that is mounted in another one has none: the other would not be asked."""
