"""The two applications: a primary behind HTTP, and a replica that serves replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Protocol

from nearlite._native.database import Database
from nearlite.access import Access, Authority
from nearlite.announcing import LISTEN
from nearlite.changes import Feed
from nearlite.dumping import Dumping
from nearlite.edge import Edge
from nearlite.exchange import NO_STORE, HttpError, Receive, Scope, Send
from nearlite.exposition import Sample
from nearlite.hooks import Hooks
from nearlite.libsql import Frames, Libsql, Taking
from nearlite.limits import Limits
from nearlite.meters import Counts, Meters
from nearlite.passing import Passing
from nearlite.pipeline import Executor, Upstream
from nearlite.pulled_through import PulledThrough
from nearlite.relay import Relay
from nearlite.relaying import Relaying
from nearlite.routes import Routes
from nearlite.server import App, Served, SqlRoutes
from nearlite.streams import Holders, baton_key
from nearlite.usage import Usage


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
      console, region: as of `App`.
      threads: those of a server of many databases, of which this is one (nearlite.residents).
      prepare: called with each connection that runs SQL, before it does.
      holders: of streams, where this is one of many databases.
      ended: called with what was asked of it, and what it has done, when it is closed.
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
        console: bool = False,
        region: str | None = None,
        threads: ThreadPoolExecutor | None = None,
        prepare: Callable[[Database], None] | None = None,
        holders: Holders | None = None,
        ended: Callable[[Usage, Counts], None] | None = None,
    ) -> None:
        super().__init__(
            path,
            authority=authority,
            name=name,
            shared_cache=shared_cache,
            limits=limits,
            metrics=metrics,
            hooks=hooks,
            console=console,
            region=region,
        )
        self._open_owner = open_owner
        self._foreign_keys = foreign_keys
        self._threads = threads
        self._prepare = prepare
        self._holders = holders
        self._ended = ended
        self._executor: Executor | None = None
        self._owner: Owner | None = None
        self._held: Libsql | None = None

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
                threads=self._threads,
                prepare=self._prepare,
                holders=self._holders,
            )
            feed = self._feed_of(owner)
            self._console = self._console_of(owner, feed)
            routes = Routes(
                executor,
                feed.shown,
                self._answering,
                self._deadlines,
                self._guard,
                self._last_errors,
            )
            self._announcing = executor.announcing
            self._dumping = Dumping(lambda: owner.connect(readonly=True), self._answering)
            pulls = Libsql(
                owner.pulls,
                owner.pushes,
                owner.page_size,
                executor,
                self._answering,
                self._deadlines,
            )
            self._pulls = self._held = pulls
            self._executor = executor
            self._owner = owner
        except BaseException:
            await loop.run_in_executor(None, owner.close)
            raise
        return owner, feed, routes

    def _sample(self, meters: Meters, served: Served, feed: Feed) -> Sample:
        sample = super()._sample(meters, served, feed)
        if isinstance(self._routes, Routes):
            sample.counts = self.counts
            kept, busy = self.streams
            sample.gauges += [
                ("streams_open", "Streams that are kept", float(kept)),
                ("transactions_open", "Streams in a transaction", float(busy)),
            ]
        return sample

    async def shutdown(self) -> None:
        """See `App`."""
        await super().shutdown()
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(self.usage, self.counts)

    # ------------------------------------------------------------------ one of many

    @property
    def owner(self) -> Owner:
        """The primary, while it is open. Raises HttpError 503: it is not."""
        if self._served is None or self._owner is None:
            raise HttpError(503, "SHUTTING_DOWN", "The server is about to end")
        return self._owner

    async def roll(self) -> bool:
        """End the running generation. False: somebody needs its WAL."""
        executor = self._executor
        return executor is not None and await executor.roll()

    def forget_notable(self, what: Literal["top", "slowest"]) -> None:
        """Statements that took long are no longer known."""
        if self._executor is not None:
            self._executor.forget_notable(what)

    @property
    def usage(self) -> Usage:
        """What was asked of it since it was opened."""
        return Usage() if self._executor is None else self._executor.usage

    @property
    def counts(self) -> Counts:
        """What it has done since it was opened."""
        return Counts() if self._executor is None else self._executor.counts

    @property
    def streams(self) -> tuple[int, int]:
        """Streams that are kept, and those of them in a transaction."""
        executor = self._executor
        return (0, 0) if executor is None else (len(executor.streams), executor.transactions)

    @property
    def replicas(self) -> tuple[int, int]:
        """Replicas that asked lately, and those in a long poll."""
        feed = self._feed
        return (0, 0) if feed is None else (feed.replicas(), feed.polls.waiting)

    @property
    def running(self) -> bool:
        """Whether anything is being carried out."""
        return self._executor is not None and self._executor.running

    @property
    def busy(self) -> bool:
        """Whether closing it now would take something from somebody."""
        executor, feed, pulls = self._executor, self._feed, self._held
        return (
            (executor is not None and (executor.running or executor.lent))
            or (feed is not None and feed.polls.waiting > 0)
            or (pulls is not None and pulls.holds)
        )

    @property
    def urgent(self) -> bool:
        """Whether it is to be looked at often."""
        return self._executor is not None and self._executor.lent

    def look(self) -> None:
        """End what is overdue."""
        if self._executor is not None:
            self._executor.look()

    def rest(self) -> None:
        """Give back what only makes the next request faster; while it is not `busy`."""
        if self._executor is not None:
            self._executor.rest()


class RelayApp(App):
    """One replica behind HTTP: its changes, and SQL. Build it with `nearlite.asgi`.

    SQL is its primary's, or where it is an edge: what only looks is run on the replica.

    Args:
      path: the replica's file.
      open_relay: opens it; called in a thread at the first request or at startup.
      authority: knows who may ask for what; None: whoever reaches the server.
      name: of the database, where tokens name one.
      shared_cache: polls of live replicas may be answered by a cache that stands in front.
      limits: of the server; those of streams are the primary's.
      metrics: ``GET /metrics`` tells what was counted.
      hooks: are told of requests, commits, rolls.
      edge: it is one.
      region: where that is, told with its answers.
      console: as of `App`.
      max_staleness: seconds; with a primary that cannot be asked for so long, an edge does not read its replica.
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
        console: bool = False,
        edge: bool = False,
        region: str | None = None,
        max_staleness: float | None = None,
    ) -> None:
        super().__init__(
            path,
            authority=authority,
            name=name,
            shared_cache=shared_cache,
            limits=limits,
            metrics=metrics,
            hooks=hooks,
            console=console,
            region=region,
        )
        self._open_relay = open_relay
        self._edge = edge
        self._max_staleness = max_staleness
        self._above = ""

    async def _listen(self, scope: Scope, _receive: Receive, send: Send, _access: Access) -> None:
        """Clients listen to the primary, or to the one above, which says so again."""
        query = scope["query_string"].decode("latin-1")
        where = self._above.rstrip("/") + LISTEN + (f"?{query}" if query else "")
        told = ((b"location", where.encode("latin-1")), NO_STORE)
        await self._answering.whole(send, 307, b"", headers=told)

    async def _open(self) -> tuple[Served, Feed, SqlRoutes]:
        loop = asyncio.get_running_loop()
        relay = await loop.run_in_executor(None, self._open_relay)
        try:
            key = await loop.run_in_executor(None, baton_key, Path(f"{self._path}-nearlite"))
            self._above = relay.upstream.transport.url
            self._dumping = Dumping(relay.connect, self._answering)
            feed = self._feed_of(relay, relay)
            edge = Edge(
                relay.upstream,
                relay.connect,
                key=key,
                limits=self.limits,
                reads=self._edge,
                region=self._region,
                max_staleness=self._max_staleness,
            )
            self._console = self._console_of(relay, feed, relay.upstream, reads=self._edge)
            routes = Routes(
                edge,
                feed.shown,
                self._answering,
                self._deadlines,
                self._guard,
                self._last_errors,
            )
            passing = Passing(
                relay.upstream.transport, self._answering, self._deadlines, self._last_errors
            )
            self._pulls = PulledThrough(
                relay.upstream.transport,
                relay.spool,
                relay.upstream.background.sync,
                lambda: relay.upstream.estranged,
                self._answering,
                self._deadlines,
            )
        except BaseException:
            await loop.run_in_executor(None, relay.close)
            raise
        relaying = Relaying(
            routes,
            passing,
            self._deadlines,
            edge=self._edge,
            foreign=lambda: relay.upstream.foreign,
        )
        return relay, feed, relaying
