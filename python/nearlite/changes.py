"""The native protocol's routes (``nl/v1/``) that feed replicas: status, snapshot, changes, repair."""

from __future__ import annotations

from nearlite import errors
from nearlite.asked import (
    PRIVATE,
    RETRY_SOON,
    Caching,
    ReplicaOf,
    Seen,
    leads_to,
    page_of,
    query_of,
    refusals,
)
from nearlite.exchange import JSON, NO_STORE, Answering, Headers, HttpError, Scope, Send
from nearlite.leaving import Leaving
from nearlite.polls import Polls
from nearlite.refreshing import Refreshing
from nearlite.sending import Sending
from nearlite.shown import Shown
from nearlite.source import PageSet, Source, Upstream
from nearlite.wire import DIFFERENCES_TYPE, PAGE_SET_TYPE, Ask, Differences, RequestError, Status


class Feed:
    """Answers replicas. Event loop thread only.

    Args:
      source: the primary, or a replica that serves replicas.
      answering: sends.
      version: of this program, told in status.
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
        upstream: Upstream | None = None,
        *,
        shared_cache: bool = False,
    ) -> None:
        self._source = source
        self._upstream = upstream
        self._refreshing = None if upstream is None else Refreshing(upstream.refresh)
        self._answering = answering
        self._version = version
        self._caching = Caching(shared=shared_cache)
        self._seen = Seen()
        self._sending = Sending(source, answering)
        self.polls = Polls(source, self._sending)
        self.shown = Shown(source, self._sending, answering, self._seen)

    async def status(self, send: Send, *, head: bool) -> None:
        """``GET status``."""
        state = self._sending.state()
        status = Status(
            position=state.position,
            hash=state.hash,
            page_size=state.page_size,
            pages=state.pages,
            commit_ms=state.commit_ms,
            replicas=self._seen.count(),
            version=self._version,
        )
        headers = (leads_to(state.position), NO_STORE, *self._age())
        await self._answering.whole(send, 200, status.encode(), JSON, headers, head=head)

    async def snapshot(self, scope: Scope, send: Send) -> None:
        """``GET snapshot?from=&z=``."""
        self._seen.note(scope)
        query = query_of(scope)
        compress = query.get("z") == "1"
        first = page_of(query.get("from"))
        with refusals():
            answer = await self._sending.thread(
                lambda: self._source.snapshot(compress=compress, first=first)
            )
        await self._sending.stream(send, answer, (leads_to(answer.to), NO_STORE))

    async def changes(self, scope: Scope, send: Send, text: str, leaving: Leaving) -> None:
        """``GET changes/{position}?hash=&wait=&z=&v=&beat=``."""
        self._seen.note(scope)
        replica, wait = self._caching.poll_of(text, query_of(scope))
        now = replica.beat is None and wait == 0
        stale = await self._refreshed() if now else None
        answer = await self._sending.newer(replica)
        if answer is None and wait > 0:
            answer = await self.polls.wait(replica, wait, leaving)
        if answer is None:
            if now:
                self._check_reach(replica, stale)
            caching = self._caching.headers(NO_STORE, replica, over=True)
            headers = (leads_to(replica.start), *caching, *self._age())
            await self._answering.whole(send, 204, b"", PAGE_SET_TYPE.encode(), headers)
            return
        caching = self._caching.headers(PRIVATE, replica)
        await self._sending.stream(send, answer, (leads_to(answer.to), *caching, *self._age()))

    async def repair(self, scope: Scope, send: Send, body: bytes) -> None:
        """``POST repair?z=``."""
        self._seen.note(scope)
        compress = query_of(scope).get("z") == "1"

        def work() -> PageSet | Differences:
            return self._source.repair(Ask.decode(body), compress=compress)

        await self._refreshed()
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

    def _age(self) -> Headers:
        """How long ago what is answered was known to be the primary's state."""
        if self._upstream is None:
            return ()
        age = self._upstream.age
        return ((b"nearlite-age", b"inf" if age is None else b"%.3f" % age),)

    def stop(self) -> None:
        """Answer all that wait, and let nobody wait any more."""
        self._caching.stop()
        self.polls.stop()
