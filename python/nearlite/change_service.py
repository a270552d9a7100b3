"""One database's changes over HTTP, and nothing else: no SQL, no write, however a request asks for them.

What runs SQL (routes.py and what it knows) is not even imported here; tests/test_sidecar_service.py walks the
imports. What a token allows beyond reading changes is of no interest.
"""

from __future__ import annotations

from typing import Final, NoReturn, Protocol

from nearlite.access import Access
from nearlite.changes import CHANGES, Feed
from nearlite.exchange import (
    NO_STORE,
    Answering,
    Client,
    Deadlines,
    HttpError,
    Receive,
    Scope,
    Send,
    read_body,
)
from nearlite.guarding import Guard
from nearlite.leaving import Leaving
from nearlite.libsql import Frames, Libsql, is_asked
from nearlite.source import Source, Upstream

_NATIVE: Final = "/nl/v1/"
_ALLOW: Final = b"GET, HEAD, OPTIONS"
_SQL: Final = frozenset(
    (
        *("/", "/v1/execute", "/v1/batch", "/v2/pipeline", "/v3/pipeline", "/v3/cursor"),
        *("/v3-protobuf/pipeline", "/v3-protobuf/cursor", "/nl/v1/sql"),
    )
)
CHANGES_ALONE: Final = Access(write=False, push=False)
"""What whoever is let in may do here."""


class PulledFrom(Protocol):
    """What libSQL's replicas can be fed from."""

    page_size: int

    @property
    def pulls(self) -> Frames:
        """Its generations as frames."""


class Rolling(Protocol):
    """Who empties the WAL: nearlite.capture.Capture."""

    def want_roll(self) -> None:
        """As soon as that can be tried."""


class ChangeService:
    """Answers replicas of one database. Event loop thread only.

    Args:
      source: what they are fed from.
      answering, deadlines: of the server.
      guard: answers the exceptions of what is sent late.
      version: of this program.
      upstream: of a replica that serves replicas.
      pulled: what libSQL's replicas pull from; None: they are not answered.
      rolling: who empties its WAL.
    """

    def __init__(
        self,
        source: Source,
        answering: Answering,
        deadlines: Deadlines,
        *,
        guard: Guard,
        version: str,
        upstream: Upstream | None = None,
        pulled: PulledFrom | None = None,
        rolling: Rolling | None = None,
    ) -> None:
        self._source = source
        self._answering = answering
        self._deadlines = deadlines
        self.feed = Feed(source, answering, version, guard=guard, upstream=upstream)
        self._libsql: Libsql | None = None
        if pulled is not None and rolling is not None:
            self._libsql = Libsql(
                pulled.pulls,
                _NothingTaken(),
                pulled.page_size,
                _NobodyWrites(rolling),
                answering,
                deadlines,
            )

    async def answer(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        """A request; `path`: below the database. Raises HttpError."""
        method = scope["method"]
        if path in _SQL and not (path == "/" and method in ("GET", "HEAD")):
            raise HttpError(
                403,
                "CHANGES_ONLY",
                "Only changes are served here: no SQL is run, nothing was carried out. The application writes the "
                "primary's file itself",
            )
        if path == "/nl/v1/repair":
            if method != "POST":
                raise _not_allowed(b"POST, OPTIONS")
            body = await read_body(scope, receive, self._deadlines)
            await self.feed.repair(scope, send, body)
        elif path.startswith(_NATIVE):
            if method not in ("GET", "HEAD"):
                raise _not_allowed(_ALLOW)
            await self._native(path[len(_NATIVE) :], scope, receive, send)
        elif self._libsql is not None and is_asked(path):
            if method != "GET":
                raise _not_allowed(b"GET, OPTIONS")
            await self._libsql.answer(path, scope, receive, send, CHANGES_ALONE)
        else:
            raise HttpError(404, "NOT_FOUND", "There is nothing at this path")

    async def _native(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        if name == "status":
            await self.feed.status(scope, send)
        elif name == "authorized":
            await self._answering.whole(send, 204, b"", headers=(NO_STORE,))
        elif scope["method"] == "HEAD":
            raise _not_allowed(b"GET, OPTIONS")
        elif name.startswith("changes/"):
            leaving = Leaving(receive)
            try:
                await self.feed.changes(scope, send, name[8:], leaving)
            finally:
                leaving.close()
        elif name == "snapshot":
            await self.feed.snapshot(scope, send)
        else:
            raise HttpError(404, "NOT_FOUND", "There is nothing at this path")

    def poll(self, target: bytes, client: Client, edge: bytes | None) -> bool:
        """A long poll that came whole; False when nothing was done."""
        return self.feed.poll(target, client, edge)

    @property
    def waiting(self) -> int:
        """Replicas in a long poll."""
        return self.feed.polls.waiting

    @property
    def drained(self) -> bool:
        """Whether all who wait have what there is."""
        latest = self._source.latest
        return all(start == latest for start, _ in self.feed.polls.standing())

    def stop(self) -> None:
        """Answer all that wait; let go of what is kept."""
        self.feed.stop()
        if self._libsql is not None:
            self._libsql.close()


def is_poll(path: str) -> bool:
    """Whether a path below a database is that of a long poll."""
    return path.startswith(CHANGES)


def _not_allowed(methods: bytes) -> HttpError:
    return HttpError(
        405, "METHOD_NOT_ALLOWED", "The method is not allowed here", ((b"allow", methods),)
    )


class _NothingTaken:
    """Frames of others are refused before anybody asks."""

    waiting = False

    def push(self, _generation: int, _first: int, _frames: bytes, _baton: str | None) -> NoReturn:
        raise HttpError(403, "CHANGES_ONLY", "Only changes are served here; nothing was changed")

    def expire(self) -> None:
        """There is nothing."""

    def stop(self) -> None:
        """There is nothing."""


class _NobodyWrites:
    """Args: rolling: who empties the WAL."""

    def __init__(self, rolling: Rolling) -> None:
        self._rolling = rolling

    async def in_turn(self, _work: object) -> NoReturn:
        raise HttpError(403, "CHANGES_ONLY", "Only changes are served here; nothing was changed")

    def want_roll(self) -> None:
        self._rolling.want_roll()
