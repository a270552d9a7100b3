"""The two applications: a primary behind HTTP, and a replica that serves replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from nearlite.access import Authority
from nearlite.announcing import LISTEN
from nearlite.changes import Feed
from nearlite.dumping import Dumping
from nearlite.exchange import NO_STORE, Receive, Scope, Send
from nearlite.exposition import Sample
from nearlite.hooks import Hooks
from nearlite.libsql import Frames, Libsql, Taking
from nearlite.limits import Limits
from nearlite.meters import Meters
from nearlite.passing import Passing
from nearlite.pipeline import Executor, Upstream
from nearlite.relay import Relay
from nearlite.routes import Routes
from nearlite.server import App, Served, SqlRoutes
from nearlite.streams import baton_key


class Owner(Upstream, Served, Protocol):
    """A primary."""

    page_size: int

    @property
    def pulls(self) -> Frames:
        """Its generations as frames."""

    @property
    def pushes(self) -> Taking:
        """Takes frames from others."""


class PrimaryApp(App):
    """One database behind HTTP. Build it with `nearlite.asgi`.

    Args:
      path: the database file; the server's own things lie in the folder `path`-nearlite.
      open_owner: opens the primary; called in a thread at the first request or at startup.
      authority: knows who may ask for what; None: whoever reaches the server.
      name: of the database, where tokens name one.
      foreign_keys: enforcement on every connection from the beginning.
      shared_cache: polls of live replicas may be answered by a cache that stands in front.
      limits: of the server.
      metrics: ``GET /metrics`` tells what was counted.
      hooks: are told of requests, commits, rolls.
    """

    def __init__(
        self,
        path: Path,
        open_owner: Callable[[], Owner],
        *,
        authority: Authority | None = None,
        name: str = "default",
        foreign_keys: bool = False,
        shared_cache: bool = False,
        limits: Limits | None = None,
        metrics: bool = False,
        hooks: Hooks | None = None,
    ) -> None:
        super().__init__(
            path,
            authority=authority,
            name=name,
            shared_cache=shared_cache,
            limits=limits,
            metrics=metrics,
            hooks=hooks,
        )
        self._open_owner = open_owner
        self._foreign_keys = foreign_keys

    async def _open(self) -> tuple[Served, Feed, SqlRoutes]:
        loop = asyncio.get_running_loop()
        owner = await loop.run_in_executor(None, self._open_owner)
        try:
            key = await loop.run_in_executor(None, baton_key, Path(f"{self._path}-nearlite"))
            executor = Executor(
                owner,
                key=key,
                limits=self.limits,
                foreign_keys=self._foreign_keys,
                hooks=self._hooks,
            )
            feed = self._feed_of(owner)
            routes = Routes(executor, feed.shown, self._answering, self._deadlines, self._guard)
            self._announcing = executor.announcing
            self._dumping = Dumping(lambda: owner.connect(readonly=True), self._answering)
            self._pulls = Libsql(
                owner.pulls,
                owner.pushes,
                owner.page_size,
                executor,
                self._answering,
                self._deadlines,
            )
        except BaseException:
            await loop.run_in_executor(None, owner.close)
            raise
        return owner, feed, routes

    def _sample(self, meters: Meters, served: Served, feed: Feed) -> Sample:
        sample = super()._sample(meters, served, feed)
        if isinstance(self._routes, Routes):
            executor = self._routes.executor
            sample.counts = executor.counts
            sample.gauges += [
                ("streams_open", "Streams that are kept", float(len(executor.streams))),
                ("transactions_open", "Streams in a transaction", float(executor.transactions)),
            ]
        return sample


class RelayApp(App):
    """One replica behind HTTP: its changes, and its primary's SQL. Build it with `nearlite.asgi`.

    Args:
      path: the replica's file.
      open_relay: opens it; called in a thread at the first request or at startup.
      authority: knows who may ask for what; None: whoever reaches the server.
      name: of the database, where tokens name one.
      shared_cache: polls of live replicas may be answered by a cache that stands in front.
      limits: of the server; those of streams are the primary's.
      metrics: ``GET /metrics`` tells what was counted.
      hooks: are told of requests, commits, rolls.
    """

    def __init__(
        self,
        path: Path,
        open_relay: Callable[[], Relay],
        *,
        authority: Authority | None = None,
        name: str = "default",
        shared_cache: bool = False,
        limits: Limits | None = None,
        metrics: bool = False,
        hooks: Hooks | None = None,
    ) -> None:
        super().__init__(
            path,
            authority=authority,
            name=name,
            shared_cache=shared_cache,
            limits=limits,
            metrics=metrics,
            hooks=hooks,
        )
        self._open_relay = open_relay
        self._above = ""

    async def _listen(self, scope: Scope, _receive: Receive, send: Send) -> None:
        """Clients listen to the primary, or to the one above, which says so again."""
        query = scope["query_string"].decode("latin-1")
        where = self._above.rstrip("/") + LISTEN + (f"?{query}" if query else "")
        told = ((b"location", where.encode("latin-1")), NO_STORE)
        await self._answering.whole(send, 307, b"", headers=told)

    async def _open(self) -> tuple[Served, Feed, SqlRoutes]:
        relay = await asyncio.get_running_loop().run_in_executor(None, self._open_relay)
        self._above = relay.upstream.transport.url
        self._dumping = Dumping(relay.connect, self._answering)
        feed = self._feed_of(relay, relay)
        routes = Passing(relay.upstream.transport, self._answering, self._deadlines)
        return relay, feed, routes
