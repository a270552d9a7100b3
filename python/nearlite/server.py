"""SQL over HTTP and WebSocket (Hrana) and the native protocol, as one ASGI application.

The hot paths are dispatched by hand: pipeline, cursor, changes, sql. Routing, middleware and a
request object would cost more than the statement. Everything else is Starlette's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from time import time as now
from typing import Final, Protocol

from nearlite.access import Access, Authority, Open, bearer
from nearlite.announcing import LISTEN, Announcing
from nearlite.asked import EDGE
from nearlite.changes import CHANGES, Feed
from nearlite.cold import cold_paths, program_version
from nearlite.compression import ACCEPTED, accepted
from nearlite.console import PAGE, STATE, Console
from nearlite.dumping import DUMP, Dumping
from nearlite.exchange import (
    CORS,
    DELIVERY,
    NO_STORE,
    Answering,
    Client,
    ClientGoneError,
    Deadlines,
    Headers,
    HttpError,
    Message,
    Receive,
    Scope,
    Send,
    Shortcut,
    failed,
    header,
    read_body,
    refuse_socket,
)
from nearlite.exposition import Sample, text_of
from nearlite.guarding import Guard
from nearlite.hooks import Guarded, Hooks
from nearlite.last_errors import LastErrors
from nearlite.leaving import Leaving
from nearlite.libsql import is_asked
from nearlite.limits import Limits
from nearlite.meters import Meters, request_of
from nearlite.replica import Replica
from nearlite.routes import ALONE, CURSOR, PROTOBUF, PROTOBUF_CURSOR, REPAIR, VERSIONS
from nearlite.source import Source, Upstream

log = logging.getLogger("nearlite.server")

_CURSORS: Final = (CURSOR, PROTOBUF_CURSOR)
_SLASHES: Final = re.compile(r"/{2,}")
_ACCESS: Final = b"nearlite-access"
_READ: Final = b"read"
AUTHORIZED: Final = "/nl/v1/authorized"
METRICS: Final = "/metrics"
AUTHORIZED_SECONDS: Final = 10
"""For so long a cache in front may take a token for good."""
_FOR_THE_TOKEN: Final = (
    (b"cache-control", b"public, max-age=%d, must-revalidate" % AUTHORIZED_SECONDS),
    (b"vary", b"authorization"),
)


class Served(Source, Protocol):
    """What is served: a primary, or a replica that serves replicas."""

    def close(self) -> None:
        """End with a roll."""


class SqlRoutes(Protocol):
    """Where SQL that arrives is run."""

    @property
    def displaced(self) -> bool:
        """Whether the database's file was replaced or removed under the server."""

    async def pipeline(
        self, path: str, scope: Scope, receive: Receive, send: Send, access: Access
    ) -> None:
        """One of VERSIONS, or PROTOBUF."""

    async def cursor(
        self, path: str, scope: Scope, receive: Receive, send: Send, access: Access
    ) -> None:
        """CURSOR or PROTOBUF_CURSOR."""

    async def alone(
        self, path: str, scope: Scope, receive: Receive, send: Send, access: Access
    ) -> None:
        """One of ALONE."""

    def short(self, path: str, scope: Scope, body: bytes, client: Client, access: Access) -> bool:
        """A pipeline that has come whole; False when nothing was done."""

    async def socket(
        self, scope: Scope, receive: Receive, send: Send, grant: Callable[[str | None], Access]
    ) -> None:
        """A WebSocket; `grant` is what the holder of a token may do. Raises HttpError: not accepted."""

    async def close(self) -> None:
        """Finish or end what is under way."""


class PullRoutes(Protocol):
    """Where libSQL's replicas are answered."""

    async def answer(
        self, path: str, scope: Scope, receive: Receive, send: Send, access: Access
    ) -> None:
        """A request to one of their paths."""

    def close(self) -> None:
        """Let go of what is kept for them."""


class App:
    """One database behind HTTP: who may ask, what is asked for, and how it goes wrong.

    Args:
      path: the database file; the server's own things lie in the folder `path`-nearlite.
      authority: knows who may ask for what; None: whoever reaches the server.
      name: of the database, where tokens name one.
      shared_cache: polls of live replicas may be answered by a cache that stands in front.
      limits: of the server.
      metrics: ``GET /metrics`` tells what was counted.
      hooks: are told of requests, commits, rolls.
      console: ``GET /`` is a page that shows how the server stands.
      region: where it stands, in its owner's words.

    Attributes:
      limits: the same.
      meters: count requests; whoever runs the connections uses them. None: nobody asked for them.
    """

    def __init__(
        self,
        path: Path,
        *,
        authority: Authority | None = None,
        name: str = "default",
        shared_cache: bool = False,
        limits: Limits | None = None,
        metrics: bool = False,
        hooks: Hooks | None = None,
        console: bool = False,
        region: str | None = None,
    ) -> None:
        self._hooks = None if hooks is None else Guarded(hooks)
        self.meters = Meters(self._hooks) if metrics or hooks is not None else None
        self._tells = metrics
        self.limits = limits or Limits()
        self._path = path
        self._name = name
        self._shared_cache = shared_cache
        self._authority = authority or Open()
        self._deadlines = Deadlines(self.limits)
        self._answering = Answering(self._deadlines)
        self._region = region
        self._last_errors = LastErrors() if console else None
        self._console: Console | None = None
        self._guard = Guard(self._answering, self.meters, self._last_errors)
        self._served: Served | None = None
        self._feed: Feed | None = None
        self._starting: asyncio.Lock | None = None
        self._routes: SqlRoutes | None = None
        self._pulls: PullRoutes | None = None
        self._dumping: Dumping | None = None
        self._announcing: Announcing | None = None
        self._cold = cold_paths()

    async def _open(self) -> tuple[Served, Feed, SqlRoutes]:
        """Open what is served; what it raises leaves nothing open."""
        raise NotImplementedError

    def _feed_of(self, served: Served, upstream: Upstream | None = None) -> Feed:
        return Feed(
            served,
            self._answering,
            program_version(),
            guard=self._guard,
            upstream=upstream,
            shared_cache=self._shared_cache,
        )

    def _console_of(
        self, served: Served, feed: Feed, upstream: Replica | None = None, *, reads: bool = False
    ) -> Console | None:
        if self._last_errors is None:
            return None
        return Console(
            served,
            feed,
            self._answering,
            self._last_errors,
            path=self._path,
            version=program_version(),
            region=self._region,
            guarded=not isinstance(self._authority, Open),
            reads=reads,
            upstream=upstream,
        )

    def __repr__(self) -> str:
        return f"<nearlite.App of {str(self._path)!r}>"

    # ------------------------------------------------------------------ life

    async def startup(self) -> None:
        """Open the database; idempotent. Raises what opening raises."""
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self._routes is None:
                self._served, self._feed, self._routes = await self._open()

    def stop_waiting(self) -> None:
        """Answer long polls now: the server is about to end."""
        if self._feed is not None:
            self._feed.stop()
        if self._announcing is not None:
            self._announcing.close()

    async def shutdown(self) -> None:
        """Finish what is queued, roll back what is open, close the database; idempotent."""
        routes, served, pulls = self._routes, self._served, self._pulls
        self._routes = self._served = self._pulls = None
        try:
            self.stop_waiting()
            if pulls is not None:
                pulls.close()
            if self._dumping is not None:
                self._dumping.close()
            if routes is not None:
                await routes.close()
        finally:  # whatever else fails: nobody could open the database again
            if served is not None:
                await asyncio.get_running_loop().run_in_executor(None, served.close)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.startup()
        except Exception as error:  # noqa: BLE001 - the server has to be told, whatever it is
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.shutdown()
        await send({"type": "lifespan.shutdown.complete"})

    # ------------------------------------------------------------------ dispatch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application; it may be mounted below a path."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(receive, send)
            return
        if kind == "websocket":
            await self._socket(scope, receive, send)
            return
        if self.meters is None or DELIVERY in (scope.get("extensions") or {}):
            await self._guard(scope, send, self._handle(scope, receive, send))
        else:  # under another server than ours, which counts where connections are
            await self._measured(scope, receive, send, self.meters)

    async def _measured(self, scope: Scope, receive: Receive, send: Send, meters: Meters) -> None:
        began, status = perf_counter_ns(), 0

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        await self._guard(scope, noted, self._handle(scope, receive, noted))
        took = perf_counter_ns() - began
        meter = meters.meter(_path(scope))
        meter.done(status, took)
        if meters.hooks is not None:
            meters.hooks.request(request_of(scope, None, meter.route, status, took))

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._routes is None:
            await self.startup()
        await self._dispatch(scope, receive, send)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _path(scope)
        method = scope["method"]
        if method == "OPTIONS":
            await preflight(scope, send)
        elif path in VERSIONS or path in _CURSORS or path in ALONE or path == PROTOBUF:
            access = self._admit(scope)
            if method != "POST":
                raise _not_allowed(b"POST, OPTIONS")
            routes = self._routes
            if routes is None:
                raise _shutting_down()
            if path in _CURSORS:
                await routes.cursor(path, scope, receive, send, access)
            elif path in ALONE:
                await routes.alone(path, scope, receive, send, access)
            else:
                await routes.pipeline(path, scope, receive, send, access)
        elif path == REPAIR:
            self._admit(scope)
            if method != "POST":
                raise _not_allowed(b"POST, OPTIONS")
            feed = self._feed
            if feed is None:
                raise _shutting_down()
            await feed.repair(scope, send, await read_body(scope, receive, self._deadlines))
        elif path == AUTHORIZED and method in ("GET", "HEAD"):
            self._authority.access(scope, self._name)
            caching = _FOR_THE_TOKEN if self._shared_cache else (NO_STORE,)
            await self._answering.whole(send, 204, b"", headers=caching)
        elif path.startswith("/nl/v1/"):
            self._admit(scope)
            if method not in ("GET", "HEAD"):
                raise _not_allowed(b"GET, HEAD, OPTIONS")
            await self._native(path[7:], scope, receive, send)
        elif (
            path == METRICS
            and self.meters is not None
            and self._tells
            and method in ("GET", "HEAD")
        ):
            self._admit(scope)
            await self._metrics(scope, send, self.meters)
        elif path == LISTEN:
            access = self._admit(scope)
            if method != "GET":
                raise _not_allowed(b"GET, OPTIONS")
            await self._listen(scope, receive, send, access)
        elif path == DUMP and self._dumping is not None:
            self._admit(scope)
            if method != "GET":
                raise _not_allowed(b"GET, OPTIONS")
            await self._dumping.answer(scope, send)
        elif self._console is not None and (path == STATE or path in PAGE):
            if path == STATE:
                self._admit(scope)
            if method not in ("GET", "HEAD"):
                raise _not_allowed(b"GET, HEAD, OPTIONS")
            await self._console.answer(path, scope, send)
        elif self._pulls is not None and is_asked(path):
            access = self._admit(scope)
            await self._pulls.answer(path, scope, receive, send, access)
        else:
            await self._cold({**scope, "path": path, "root_path": ""}, receive, send)

    def _admit(self, scope: Scope) -> Access:
        """What a request may do. Raises HttpError: nothing, or the database is not there any more."""
        access = self._authority.access(scope, self._name)
        if header(scope, _ACCESS) == _READ:
            access = access.reading()
        routes = self._routes
        if routes is not None and routes.displaced:
            raise HttpError(
                503,
                "DATABASE_REPLACED",
                "The database's file was replaced or removed under the running server; nothing was "
                "carried out. Restart the server to serve what is there now",
            )
        return access

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A WebSocket, which is accepted at the root alone."""
        await receive()
        try:
            self._authority.meet(scope)
            if self._routes is None:
                await self.startup()
            routes = self._routes
            if routes is None:
                raise _shutting_down()
            if _path(scope) not in ("", "/"):
                raise HttpError(404, "NOT_FOUND", "There is nothing at this path")
            given = bearer(scope) if header(scope, b"authorization") is not None else None
            if given is not None:
                self._admit(scope)

            reads = header(scope, _ACCESS) == _READ

            def grant(token: str | None) -> Access:
                access = self._authority.of_token(token or given, self._name)
                return access.reading() if reads else access

            await routes.socket(scope, receive, send, grant)
        except HttpError as error:
            if self._last_errors is not None:
                self._last_errors.note(error.code, error.message)
            await refuse_socket(scope, send, error)
        except (ClientGoneError, OSError):
            pass
        except Exception:
            log.exception("a WebSocket failed")
            await refuse_socket(scope, send, failed())

    async def _metrics(self, scope: Scope, send: Send, meters: Meters) -> None:
        feed, served = self._feed, self._served
        if feed is None or served is None:
            raise HttpError(503, "SHUTTING_DOWN", "The server is about to end")
        sample = self._sample(meters, served, feed)
        text, kind = await asyncio.get_running_loop().run_in_executor(None, text_of, sample)
        head = scope["method"] == "HEAD"
        await self._answering.whole(send, 200, text, kind, (NO_STORE,), head=head)

    def _sample(self, meters: Meters, served: Served, feed: Feed) -> Sample:
        """What there is now of a server that has just been asked."""
        latest, standing = served.latest, feed.polls.standing()
        behind = [(start, count) for start, count in standing if start != latest]
        near = [start for start, _ in behind if start.generation == latest.generation]
        lag = max((latest.frame - start.frame for start in near), default=0)
        gauges = [
            ("http_connections_open", "Connections", float(meters.connections)),
            ("generation", "Generation of the position", float(latest.generation)),
            ("frame", "Frame of the position", float(latest.frame)),
            ("replicas_seen", "Replicas that asked lately", float(feed.replicas())),
            ("replicas_waiting", "Replicas in a long poll", float(feed.polls.waiting)),
            (
                "replicas_behind",
                "Of those, the ones that lack something",
                float(sum(count for _, count in behind)),
            ),
            (
                "replica_lag_frames",
                "Frames that the last of them lacks, in this generation",
                float(lag),
            ),
            ("wal_bytes", "Size of the database's WAL", float(_size(f"{self._path}-wal"))),
            ("database_bytes", "Size of the database file", float(_size(str(self._path)))),
        ]
        return Sample(meters, None, {"version": program_version()}, gauges)

    async def _listen(self, scope: Scope, receive: Receive, send: Send, access: Access) -> None:
        """``GET /beta/listen``."""
        if self._announcing is None:
            raise HttpError(404, "NOT_FOUND", "There is nothing at this path")
        await self._announcing.answer(scope, receive, send, self._answering, access.until)

    # ------------------------------------------------------------------ without ASGI

    def shortcut(self, scope: Scope) -> Shortcut | None:
        """What answers requests with this head where they are received, if they come whole."""
        path, query = scope["path"], scope["query_string"]
        polls = path.startswith(CHANGES) and scope["method"] == "GET"
        if not polls and (path not in VERSIONS or scope["method"] != "POST"):
            return None
        try:
            access = self._admit(scope)
        except HttpError:
            return None
        until, encoding, edge = access.until, accepted(scope), header(scope, EDGE)
        cookie = header(scope, b"cookie")
        cookies: Headers = () if cookie is None else ((b"cookie", cookie),)

        def poll(target: bytes, _varying: Headers, body: bytes, client: Client) -> bool:
            feed, routes = self._feed, self._routes
            if feed is None or routes is None or routes.displaced or body or now() >= until:
                return False
            return feed.poll(target, client, edge)

        def run(_target: bytes, varying: Headers, body: bytes, client: Client) -> bool:
            routes = self._routes
            if routes is None or now() >= until:
                return False
            head: Scope = {
                "path": path,
                "query_string": query,
                "headers": (*varying, *cookies),
                "client": client.address,
                ACCEPTED: encoding,
            }
            return routes.short(path, head, body, client, access)

        return poll if polls else run

    # ------------------------------------------------------------------ native protocol

    async def _native(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        feed = self._feed
        assert feed is not None
        if name == "status":
            await feed.status(scope, send)
        elif scope["method"] == "HEAD":
            raise _not_allowed(b"GET, OPTIONS")
        elif name.startswith("changes/"):
            leaving = Leaving(receive)
            try:
                await feed.changes(scope, send, name[8:], leaving)
            finally:
                leaving.close()
        elif name == "snapshot":
            await feed.snapshot(scope, send)
        else:
            raise HttpError(404, "NOT_FOUND", "There is nothing at this path")


def _path(scope: Scope) -> str:
    """Below where the application is mounted."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    if root and path.startswith(root):
        path = path[len(root) :]
    return _SLASHES.sub("/", path) if "//" in path else path


def _shutting_down() -> HttpError:
    return HttpError(503, "SHUTTING_DOWN", "The server is about to end")


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


async def preflight(scope: Scope, send: Send) -> None:
    """Answer a browser that asks whether a page from elsewhere may ask."""
    wanted = header(scope, b"access-control-request-headers") or b"*"
    headers = [
        CORS,
        (b"access-control-allow-methods", b"GET, HEAD, POST, OPTIONS"),
        (b"access-control-allow-headers", wanted),
        (b"access-control-max-age", b"86400"),
    ]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})


def _not_allowed(methods: bytes) -> HttpError:
    return HttpError(
        405, "METHOD_NOT_ALLOWED", "The method is not allowed here", ((b"allow", methods),)
    )
