"""The databases of a sidecar behind one address: changes of each, how all of them stand, and nothing else."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import json
import os
import re
import threading
from concurrent.futures import CancelledError
from time import time as now
from typing import Final

from nearlite import errors
from nearlite.access import Authority, Open
from nearlite.asked import EDGE, query_of
from nearlite.change_service import ChangeService, is_poll
from nearlite.changes import CHANGES
from nearlite.cold import program_version
from nearlite.exchange import (
    JSON,
    NO_STORE,
    Answering,
    Client,
    Deadlines,
    Headers,
    HttpError,
    Receive,
    Scope,
    Send,
    Shortcut,
    header,
    refuse_socket,
)
from nearlite.guarding import Guard
from nearlite.hooks import Guarded, Hooks
from nearlite.limits import Limits
from nearlite.members import Member
from nearlite.meters import Meters
from nearlite.sidecar_metrics import Served, metrics_text

DATABASES: Final = "/nl/v1/databases"
HEALTH: Final = "/health"
METRICS: Final = "/metrics"
_VERSION: Final = "/version"
_SLASHES: Final = re.compile(r"/{2,}")
_POLL: Final = CHANGES.encode()
_DATABASE: Final = "/db/"
_DRAIN: Final = 2.0  # seconds in which followers are to take what was committed last
_TURN: Final = 0.02  # seconds between two looks whether they have
_RETIRE: Final = 2.0  # seconds that a thread waits for the event loop
_ALLOW: Final = ((b"allow", b"GET, HEAD, OPTIONS"),)
_AGAIN: Final = ((b"retry-after", b"1"),)


class Sidecar:
    """An ASGI application. Event loop thread only, but for `changed`.

    Args:
      authority: knows who may read; None: whoever reaches the server.
      limits: of the server.
      hooks: are told of requests.
      exposed: other machines reach it, and no token is asked for.

    Attributes:
      members: the databases, by name; filled before it is served.
      meters: count requests.
    """

    def __init__(
        self,
        *,
        authority: Authority | None = None,
        limits: Limits | None = None,
        hooks: Hooks | None = None,
        exposed: bool = False,
    ) -> None:
        self.members: dict[str, Member] = {}
        self.limits = limits or Limits()
        self.meters = Meters(None if hooks is None else Guarded(hooks))
        self._authority = authority or Open()
        self._exposed = exposed
        self._deadlines = Deadlines(self.limits)
        self._answering = Answering(self._deadlines)
        self._guard = Guard(self._answering, self.meters)
        self._services: dict[str, ChangeService] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False

    # ------------------------------------------------------------------ life

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self._loop = asyncio.get_running_loop()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self.stop_waiting()
        self._loop = None
        await send({"type": "lifespan.shutdown.complete"})

    def changed(self, name: str) -> None:
        """A database was opened, or is about to be closed. On any other thread; returns when nobody uses it."""
        loop = self._loop
        if loop is None:
            return
        retired = threading.Event()

        def retire() -> None:
            service = self._services.pop(name, None)
            if service is not None:
                service.stop()
            retired.set()

        try:
            loop.call_soon_threadsafe(retire)
        except RuntimeError:  # it has ended meanwhile
            return
        retired.wait(_RETIRE)

    def stop_waiting(self) -> None:
        """Answer long polls now: the server is about to end."""
        self._stopped = True
        for service in self._services.values():
            service.stop()

    def drain_now(self) -> None:
        """Let followers take what was committed last. On any other thread; returns when they have, or soon."""
        loop = self._loop
        if loop is None:
            return
        draining = self._drain()
        try:
            future = asyncio.run_coroutine_threadsafe(draining, loop)
        except RuntimeError:  # it has ended meanwhile
            draining.close()
            return
        with contextlib.suppress(TimeoutError, concurrent.futures.TimeoutError, CancelledError):
            future.result(2 * _DRAIN)

    async def _drain(self) -> None:
        """Let those who follow take what was committed up to now; for _DRAIN seconds at most."""
        waiting = {name: service.waiting for name, service in self._services.items()}
        loop = asyncio.get_running_loop()
        until = loop.time() + _DRAIN
        for name in waiting:
            with contextlib.suppress(
                OSError, errors.Error
            ):  # told of by whoever looks all the time
                await loop.run_in_executor(None, self.members[name].look)
        while loop.time() < until and not all(  # noqa: ASYNC110 - it happens once, at the end
            service.drained and service.waiting >= waiting.get(name, 0)
            for name, service in self._services.items()
        ):
            await asyncio.sleep(_TURN)

    # ------------------------------------------------------------------ dispatch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(receive, send)
        elif kind == "http":
            await self._guard(scope, send, self._handle(scope, receive, send))
        elif kind == "websocket":
            await receive()
            refusal = HttpError(
                403, "CHANGES_ONLY", "Only changes are served here, over plain HTTP; no SQL is run"
            )
            await refuse_socket(scope, send, refusal)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = _SLASHES.sub("/", scope["path"])
        if scope["method"] == "OPTIONS":  # and nothing for pages from elsewhere
            await self._answering.whole(send, 204, b"", headers=_ALLOW)
        elif path == HEALTH:
            self._only_get(scope)
            await self._health(scope, send)
        elif path == METRICS:
            self._authority.access(scope, "")
            self._only_get(scope)
            await self._metrics(scope, send)
        elif path == DATABASES:
            self._only_get(scope)
            await self._databases(scope, send)
        elif path == _VERSION:
            self._only_get(scope)
            text = f"nearlite {program_version()}\n".encode()
            await self._answering.whole(send, 200, text, b"text/plain", head=_is_head(scope))
        else:
            name, below = self._choose(path)
            self._authority.access(scope, name)
            await self._service(name).answer(below, scope, receive, send)

    def _only_get(self, scope: Scope) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            raise HttpError(405, "METHOD_NOT_ALLOWED", "The method is not allowed here", _ALLOW)

    def _choose(self, path: str) -> tuple[str, str]:
        """The database that a path is for, and the path below it. Raises HttpError 404: none is."""
        if path.startswith(_DATABASE):
            name, slash, rest = path[len(_DATABASE) :].partition("/")
            return name, slash + rest or "/"
        if len(self.members) == 1:
            return next(iter(self.members)), path
        raise HttpError(
            404,
            "NOT_FOUND",
            "There are several databases here, each at /db/NAME/; none at this path",
        )

    def _service(self, name: str) -> ChangeService:
        """Raises HttpError: 404 there is no such database, 503 it is not open."""
        found = self._services.get(name)
        if found is not None:
            return found
        member = self.members.get(name)
        if member is None:
            raise HttpError(404, "UNKNOWN_DATABASE", "There is no such database here")
        source = member.source if member.open else None
        if self._stopped or source is None:
            why = "the server is about to end" if self._stopped else self._told(member.trouble)
            raise HttpError(503, "DATABASE_NOT_OPEN", f"The database is not open: {why}", _AGAIN)
        pulled, rolling = member.pulled or (None, None)
        made = self._services[name] = ChangeService(
            source,
            self._answering,
            self._deadlines,
            guard=self._guard,
            version=program_version(),
            upstream=member.upstream,
            pulled=pulled,
            rolling=rolling,
        )
        return made

    def _told(self, why: str | None) -> str:
        """A reason, for whoever may know of paths."""
        return "its sidecar's log says why" if self._exposed or why is None else why

    def shortcut(self, scope: Scope) -> Shortcut | None:
        """What answers a long poll where it is received, without ASGI; see nearlite.server.App."""
        if scope["method"] != "GET":
            return None
        try:
            name, below = self._choose(_SLASHES.sub("/", scope["path"]))
            if not is_poll(below):
                return None
            until = self._authority.access(scope, name).until
            self._service(name)
        except HttpError:
            return None
        edge = header(scope, EDGE)

        def poll(target: bytes, _varying: Headers, body: bytes, client: Client) -> bool:
            service = self._services.get(name)
            begins = target.find(_POLL)
            if service is None or body or begins < 0 or now() >= until:
                return False
            return service.poll(target[begins:], client, edge)

        return poll

    # ------------------------------------------------------------------ which there are

    async def _databases(self, scope: Scope, send: Send) -> None:
        """``GET nl/v1/databases?path=&name=``: the name of the one that is asked for, if it is here.

        By its path if one has it, else by its name. What paths there are is not told.
        """
        query = query_of(scope.get("query_string", b""))
        path, name = query.get("path"), query.get("name")
        found = None
        if path is not None:
            found = next((one for one in self.members.values() if _is_at(one, path)), None)
        if found is None and name is not None:
            found = self.members.get(name)
        self._authority.access(scope, "" if found is None else found.name)
        body = {"databases": [] if found is None else [{"name": found.name}]}
        text = json.dumps(body).encode()
        await self._answering.whole(send, 200, text, JSON, (NO_STORE,), head=_is_head(scope))

    # ------------------------------------------------------------------ how they stand

    async def _health(self, scope: Scope, send: Send) -> None:
        """``GET health``: 200, or 503; with the reasons for whoever may read the databases."""
        loop = asyncio.get_running_loop()
        members = list(self.members.values())

        def look() -> dict[str, str]:
            found = {one.name: one.failing for one in members}
            return {name: why for name, why in found.items() if why is not None}

        failing = await loop.run_in_executor(None, look)
        body: dict[str, object] = {"status": "bad" if failing else "ok"}
        try:
            self._authority.access(scope, "")
        except HttpError:
            pass
        else:
            told = {name: self._told(why) for name, why in failing.items()}
            body["databases"] = {one.name: told.get(one.name, "ok") for one in members}
        status = 503 if failing else 200
        text = json.dumps(body).encode()
        await self._answering.whole(send, status, text, JSON, (NO_STORE,), head=_is_head(scope))

    async def _metrics(self, scope: Scope, send: Send) -> None:
        served = {
            name: Served(service.feed.replicas(), service.waiting, service.feed.sent)
            for name, service in self._services.items()
        }
        members = list(self.members.values())
        text, kind = await asyncio.get_running_loop().run_in_executor(
            None,
            lambda: metrics_text(self.meters, members, served, exposed=self._exposed),
        )
        await self._answering.whole(send, 200, text, kind, (NO_STORE,), head=_is_head(scope))


def _is_head(scope: Scope) -> bool:
    return bool(scope["method"] == "HEAD")


def _is_at(member: Member, path: str) -> bool:
    """Whether a database is at a path, as its configuration has it or as the system does.

    What a client names is compared as text: no file of that name is looked for.
    """
    one = member.settings
    return path == one.written or os.path.normpath(path) in (one.path, os.path.realpath(one.path))
