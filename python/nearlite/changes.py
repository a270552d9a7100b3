"""The native protocol's routes (``nl/v1/``) that feed replicas: status, snapshot, changes, repair."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from nearlite import errors
from nearlite.asked import (
    EDGE,
    RETRY_SOON,
    Asked,
    Caching,
    ReplicaOf,
    Seen,
    leads_to,
    page_of,
    poll_of,
    position_of,
    query_of,
    refusals,
)
from nearlite.exchange import (
    JSON,
    NO_STORE,
    Answering,
    Client,
    HttpError,
    Receive,
    Scope,
    Send,
    Whole,
    header,
)
from nearlite.leaving import Leaving
from nearlite.polls import Poll, Polls
from nearlite.refreshing import Refreshing
from nearlite.sending import Sending
from nearlite.shown import Shown
from nearlite.source import PageSet, Source, Upstream
from nearlite.wire import DIFFERENCES_TYPE, Differences, RepairRequest, RequestError, Status

CHANGES: Final = "/nl/v1/changes/"
Guard = Callable[[Scope, Send, Awaitable[None]], Awaitable[None]]


class Feed:
    """Answers replicas. Event loop thread only.

    Args:
      source: the primary, or a replica that serves replicas.
      answering: sends.
      version: of this program, told in status.
      guard: awaits a handler and answers its exceptions.
      upstream: of such a replica.
      shared_cache: a cache in front may answer many live replicas with what one was answered.

    Attributes:
      polls: who waits.
      shown: answers what replicas write.
    """

    def __init__(
        self,
        source: Source,
        answering: Answering,
        version: str,
        *,
        guard: Guard,
        upstream: Upstream | None = None,
        shared_cache: bool = False,
    ) -> None:
        self._source = source
        self._upstream = upstream
        self._refreshing = None if upstream is None else Refreshing(upstream.refresh)
        self._guard = guard
        self._answering = answering
        self._version = version
        self._seen = Seen()
        self._caching = Caching(shared=shared_cache)
        self._sending = Sending(source, answering, upstream, self._caching)
        self.polls = Polls(source, self._sending)
        self.shown = Shown(source, self._sending, answering, self._seen)

    def replicas(self) -> int:
        """How many have asked for something lately."""
        return self._seen.count()

    def lately(self) -> Mapping[object, Asked]:
        """Who they are, by address."""
        return self._seen.lately()

    @property
    def sent(self) -> int:
        """Bytes of page sets that they were sent."""
        return self._sending.sent

    def _note(self, scope: Scope) -> None:
        self._seen.note(scope.get("client"), self._source.latest, header(scope, EDGE))

    async def status(self, scope: Scope, send: Send) -> None:
        """``GET status?from=``."""
        text, behind = query_of(scope.get("query_string", b"")).get("from"), None
        if text is None:
            state = self._sending.state()
        else:
            start = position_of(text)
            stale = await self._refreshed()
            with refusals():  # for a full disk
                state, behind = await self._sending.thread(lambda: self._source.ahead_of(start))
            if stale is not None:  # there may be more
                behind = None
        status = Status(
            position=state.position,
            hash=state.hash,
            page_size=state.page_size,
            pages=state.pages,
            commit_ms=state.commit_ms,
            replicas=self._seen.count(),
            version=self._version,
            now_ms=self._source.clock(),
            behind=behind,
        )
        head = scope["method"] == "HEAD"
        headers = (leads_to(state.position), NO_STORE, *self._sending.age())
        await self._answering.whole(send, 200, status.encode(), JSON, headers, head=head)

    async def snapshot(self, scope: Scope, send: Send) -> None:
        """``GET snapshot?from=&z=``."""
        self._note(scope)
        query = query_of(scope.get("query_string", b""))
        compress = query.get("z") == "1"
        first = page_of(query.get("from"))
        with refusals():
            answer = await self._sending.thread(
                lambda: self._source.snapshot(compress=compress, first=first)
            )
        await self._sending.stream(send, answer, (leads_to(answer.to), NO_STORE))

    async def changes(self, scope: Scope, send: Send, text: str, leaving: Leaving) -> None:
        """``GET changes/{position}?hash=&wait=&z=&v=&beat=``."""
        replica, wait = self._caching.poll(*poll_of(text, scope.get("query_string", b"")))
        now = wait == 0 and replica.beat is None
        stale = await self._refreshed() if now else None
        self._note(scope)  # by now it is known how far it is brought
        _refuse_another_history(stale)
        found = await self.polls.wait(replica, wait, leaving, scope.get("client"))
        if not isinstance(found, Whole):
            await self._sending.stream(send, found, self._sending.told(replica, found))
            return
        if found.status == 204 and now:
            self._check_reach(replica, stale)
        self._sending.sent += len(found.body)
        await self._answering.whole(
            send, found.status, found.body, found.content_type, found.headers
        )

    def poll(self, target: bytes, client: Client, edge: bytes | None = None) -> bool:
        """The same for a client on a short cut, without a task unless the answer is large.

        Args:
          target: of the request.
          client: to be answered.
          edge: what it says in the header EDGE.

        Returns:
          False when nothing was done: it goes the usual way, and is told there what is wrong with it.
        """
        path, _, query = target.partition(b"?")
        try:
            asked = poll_of(path.decode("ascii").removeprefix(CHANGES), query)
        except (HttpError, UnicodeDecodeError):
            return False
        replica, wait = self._caching.poll(*asked)
        if wait == 0 and replica.beat is None and self._upstream is not None:
            return False  # which has to be asked first
        self._seen.note(client.address, self._source.latest, edge)
        self.polls.enrol(_Connected(client, self), replica, wait)
        return True

    def answer(self, client: Client, whole: Whole) -> None:
        """Send what a poll has brought, in one piece."""
        self._sending.sent += len(whole.body)
        client.send(whole)

    async def take(self, scope: Scope, send: Send, replica: ReplicaOf, answer: PageSet) -> None:
        """Send what a poll has brought."""
        headers = self._sending.told(replica, answer)
        await self._guard(scope, send, self._sending.stream(send, answer, headers))

    async def repair(self, scope: Scope, send: Send, body: bytes) -> None:
        """``POST repair?z=``."""
        compress = query_of(scope.get("query_string", b"")).get("z") == "1"

        def work() -> PageSet | Differences:
            return self._source.repair(RepairRequest.decode(body), compress=compress)

        stale = await self._refreshed()
        self._note(scope)
        _refuse_another_history(stale)
        with refusals():
            try:
                found = await self._sending.thread(work)
            except RequestError as error:
                raise HttpError(400, "BAD_REQUEST", str(error)) from None
        if isinstance(found, Differences):
            headers = (leads_to(found.position), NO_STORE)
            kind = DIFFERENCES_TYPE.encode()
            await self._answering.whole(send, 200, found.encode(), kind, headers)
        else:
            await self._sending.stream(send, found, (leads_to(found.to), NO_STORE))

    # ------------------------------------------------------------------ below an upstream

    async def _refreshed(self) -> errors.Error | None:
        """Find out what the primary has now; what prevented that."""
        return None if self._refreshing is None else await self._refreshing.now()

    def _check_reach(self, replica: ReplicaOf, stale: errors.Error | None) -> None:
        """Whether "nothing newer" is the truth. Raises HttpError."""
        if stale is not None:
            message = f"the upstream could not be asked: {stale}"
            raise HttpError(503, "UPSTREAM_UNREACHABLE", message, RETRY_SOON)
        if self._upstream is not None and replica.start > self._source.latest:
            message = (
                f"the replica is at {replica.start}, its upstream at {self._source.latest} only"
            )
            raise HttpError(503, "UPSTREAM_BEHIND", message, RETRY_SOON)

    def stop(self) -> None:
        """Answer all that wait, and let nobody wait any more."""
        self._caching.stop()
        self.polls.stop()


def _refuse_another_history(stale: errors.Error | None) -> None:
    """What is held here has ended further up, and trying again does not help. Raises HttpError."""
    if isinstance(stale, (errors.LineageError, errors.PrimaryRestoredError)):
        stale.message = (
            f"it serves a copy of a database that is another one by now: {stale.message}"
        )
        with refusals():
            raise stale


class _Connected(Poll):
    """A connection of our own server waits."""

    __slots__ = ("_client", "_feed")

    def __init__(self, client: Client, feed: Feed) -> None:
        self._client = client
        self._feed = feed
        client.wait(self._leave)

    def _leave(self) -> None:
        self._feed.polls.leave(self)

    @property
    def address(self) -> object:
        return self._client.address

    def answer(self, whole: Whole) -> None:
        self._feed.answer(self._client, whole)

    def take(self, answer: PageSet) -> None:
        replica = self.group.replica

        async def rest(scope: Scope, _receive: Receive, send: Send) -> None:
            await self._feed.take(scope, send, replica, answer)

        self._client.proceed(rest)
