"""Page sets on their way to a replica: small ones at once, large ones as the replica takes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import Final, TypeVar

from nearlite import errors
from nearlite.asked import ReplicaOf, refusals, refuse_if_full
from nearlite.exchange import Answering, Headers, Send
from nearlite.position import Position
from nearlite.source import PageSet, Source, State
from nearlite.wire import PAGE_SET_TYPE

_NEAR: Final = 64
"""Frames: a page set of at most so many pages is made on the event loop, a larger one in a thread."""
IN_ONE_PIECE: Final = 64 << 10
"""Bytes of an answer that is in memory as a whole."""
_BATCH: Final = 4
"""Pieces of a page set that one visit to a thread brings."""

_T = TypeVar("_T")


class Sending:
    """Gets page sets and sends them. Event loop thread only.

    Args:
      source: the primary.
      answering: sends.
    """

    def __init__(self, source: Source, answering: Answering) -> None:
        self._source = source
        self._answering = answering
        self._loop = asyncio.get_running_loop()

    def state(self) -> State:
        """Where the primary stands. Raises HttpError when its disk is full."""
        try:
            return self._source.state()
        except (OSError, errors.OperationalError) as error:
            refuse_if_full(error)
            raise

    async def newer(self, replica: ReplicaOf) -> PageSet | None:
        """What is newer than a replica, if anything is; a large set is made in a thread.

        Raises:
          HttpError: as it is told to the replica.
        """
        with refusals():
            if self.is_near(replica.start):
                return self.changes(replica)
            return await self.thread(lambda: self.changes(replica))

    def changes(self, replica: ReplicaOf) -> PageSet | None:
        """The same here and now. Raises what the source raises."""
        return self._source.changes(
            replica.start, replica.state_hash, compress=replica.compress, compact=replica.compact
        )

    def is_near(self, start: Position) -> bool:
        """Whether a page set from there is made in no time."""
        here = self._source.latest
        near = here.generation == start.generation and here.frame - start.frame <= _NEAR
        return near and here.lineage == start.lineage

    async def stream(
        self,
        send: Send,
        answer: PageSet,
        headers: Headers,
        prefix: bytes = b"",
        kind: bytes = PAGE_SET_TYPE.encode(),
    ) -> None:
        """Send a page set, reading a large one in a thread as the client takes it."""
        if answer.size is not None and answer.size + len(prefix) <= IN_ONE_PIECE:
            body = prefix + b"".join(answer)
            answer.close()
            await self._answering.whole(send, 200, body, kind, headers)
            return
        ahead: asyncio.Handle | None = None
        try:
            if answer.size is not None:
                length = (b"content-length", b"%d" % (len(prefix) + answer.size))
                headers = (length, *headers)
            await self._answering.start(send, 200, kind, headers)
            if prefix:
                await self._answering.piece(send, prefix)
            if answer.patience is not None:
                ahead = self._loop.call_later(
                    answer.patience, self._loop.run_in_executor, None, answer.read_ahead
                )
            pieces = iter(answer)
            while True:
                batch = await self.thread(lambda: list(islice(pieces, _BATCH)))
                if not batch:
                    break
                for piece in batch:
                    await self._answering.piece(send, piece)
            await self._answering.end(send)
        finally:
            if ahead is not None:
                ahead.cancel()
            await self.thread(answer.close)

    async def thread(self, work: Callable[[], _T]) -> _T:
        """What `work` answers in a thread."""
        return await self._loop.run_in_executor(None, work)
