"""The native protocol's routes (``nl/v1/``) that feed replicas: status, snapshot, changes, repair."""

from __future__ import annotations

from nearlite import errors
from nearlite.asked import (
    NO_STORE,
    PRIVATE,
    Seen,
    leads_to,
    page_of,
    position_of,
    query_of,
    refusals,
    refuse_if_full,
    replica_of,
    seconds_of,
)
from nearlite.exchange import JSON, Answering, HttpError, Scope, Send
from nearlite.leaving import Leaving
from nearlite.polls import Polls
from nearlite.sending import Sending
from nearlite.shown import Shown
from nearlite.source import PageSet, Source
from nearlite.wire import DIFFERENCES_TYPE, PAGE_SET_TYPE, Ask, Differences, RequestError, Status


class Feed:
    """Answers replicas. Event loop thread only.

    Args:
      source: the primary.
      answering: sends.
      version: of this program, told in status.

    Attributes:
      polls: who waits.
      shown: answers what replicas write.
    """

    def __init__(self, source: Source, answering: Answering, version: str) -> None:
        self._source = source
        self._answering = answering
        self._version = version
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
        headers = (leads_to(state.position), NO_STORE)
        await self._answering.whole(send, 200, status.encode(), JSON, headers, head=head)

    async def snapshot(self, scope: Scope, send: Send) -> None:
        """``GET snapshot?from=&z=``."""
        self._seen.note(scope)
        query = query_of(scope)
        compress = query.get("z") == "1"
        first = page_of(query.get("from"))
        try:
            answer = await self._sending.thread(
                lambda: self._source.snapshot(compress=compress, first=first)
            )
        except (OSError, errors.OperationalError) as error:
            refuse_if_full(error)
            raise
        await self._sending.stream(send, answer, (leads_to(answer.to), NO_STORE))

    async def changes(self, scope: Scope, send: Send, text: str, leaving: Leaving) -> None:
        """``GET changes/{position}?hash=&wait=&z=&v=``."""
        self._seen.note(scope)
        query = query_of(scope)
        replica = replica_of(position_of(text), query.get("hash"), query)
        wait = seconds_of(query.get("wait"))
        answer = await self._sending.newer(replica)
        if answer is None and wait > 0:
            answer = await self.polls.wait(replica, wait, leaving)
        if answer is None:
            await self._answering.whole(
                send, 204, b"", PAGE_SET_TYPE.encode(), (leads_to(replica.start), NO_STORE)
            )
            return
        await self._sending.stream(send, answer, (leads_to(answer.to), PRIVATE))

    async def repair(self, scope: Scope, send: Send, body: bytes) -> None:
        """``POST repair?z=``."""
        self._seen.note(scope)
        compress = query_of(scope).get("z") == "1"

        def work() -> PageSet | Differences:
            return self._source.repair(Ask.decode(body), compress=compress)

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

    def stop(self) -> None:
        """Answer all that wait, and let nobody wait any more."""
        self.polls.stop()
