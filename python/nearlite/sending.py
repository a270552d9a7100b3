"""Page sets on their way to a replica: small ones at once, large ones as the replica takes them."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, TypeVar

from nearlite import errors
from nearlite.asked import Caching, ReplicaOf, brings, leads_to, refusals, refuse_if_full
from nearlite.exchange import PIECE, Answering, Headers, Send, Whole
from nearlite.position import Position
from nearlite.source import PageSet, Source, State, Upstream
from nearlite.spooling import Spool
from nearlite.wire import PAGE_SET_TYPE

SET: Final = PAGE_SET_TYPE.encode()
_NEAR: Final = 64
"""Frames: a page set of at most so many pages is made on the event loop, a larger one in a thread."""
IN_ONE_PIECE: Final = 64 << 10
"""Bytes of an answer that is in memory as a whole."""
_BATCH: Final = 4
"""Pieces of a page set that one visit to a thread brings."""
_IN_MEMORY: Final = 32 << 20
"""Bytes of a shared page set that are kept in memory."""

_T = TypeVar("_T")


class Sending:
    """Gets page sets and sends them. Event loop thread only.

    Args:
      source: the primary.
      answering: sends.
      upstream: of a replica that serves replicas.
      caching: who may store what polls are answered.

    Attributes:
      sent: bytes of page sets, to all replicas together.
    """

    def __init__(
        self,
        source: Source,
        answering: Answering,
        upstream: Upstream | None,
        caching: Caching,
    ) -> None:
        self._source = source
        self._upstream = upstream
        self._caching = caching
        self._answering = answering
        self._loop = asyncio.get_running_loop()
        self.sent = 0

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

    def told(self, replica: ReplicaOf, answer: PageSet) -> Headers:
        """Headers of changes that a replica is sent."""
        caching = self._caching.of_changes(replica)
        return (leads_to(answer.to), *brings(answer), self._clock(), *caching, *self.age())

    def nothing(self, replica: ReplicaOf) -> Whole:
        """The answer to a replica where there is nothing newer."""
        caching = self._caching.of_nothing(replica)
        headers = (leads_to(replica.start), self._clock(), *caching, *self.age())
        return Whole(204, b"", SET, headers)

    def _clock(self) -> tuple[bytes, bytes]:
        """What time it is, by the clock that commits were made by."""
        return (b"nearlite-clock", b"%d" % self._source.clock())

    def age(self) -> Headers:
        """How long ago what is answered was known to be the primary's state."""
        if self._upstream is None:
            return ()
        age = self._upstream.age
        return ((b"nearlite-age", b"inf" if age is None else b"%.3f" % age),)

    async def stream(
        self,
        send: Send,
        answer: PageSet,
        headers: Headers,
        prefix: bytes = b"",
        kind: bytes = SET,
    ) -> None:
        """Send a page set, reading a large one in a thread as the client takes it."""
        if answer.size is not None and answer.size + len(prefix) <= IN_ONE_PIECE:
            body = prefix + b"".join(answer)
            answer.close()
            self.sent += len(body)
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
            while batch := await self.thread(lambda: list(islice(pieces, _BATCH))):
                for piece in batch:
                    self.sent += len(piece)
                    await self._answering.piece(send, piece)
            await self._answering.end(send)
        finally:
            if ahead is not None:
                ahead.cancel()
            await self.thread(answer.close)

    async def share(self, answer: PageSet) -> Shared:
        """Encode all of a page set that several are waiting for, in a thread."""
        return await self.thread(lambda: Shared(answer, self._source.spool))

    async def discard(self, answer: PageSet) -> None:
        """Nobody waits for it any more."""
        await self.thread(answer.close)

    async def thread(self, work: Callable[[], _T]) -> _T:
        """What `work` answers in a thread."""
        return await self._loop.run_in_executor(None, work)


class Shared:
    """A page set that several take, each at its own pace; encoded once.

    It stays for as long as it or one of its readers does, in memory, or in an unlinked file if it is much.

    Args:
      answer: read to its end, and closed.
      spool: for that file.

    Raises:
      what reading the set raises, OSError.
    """

    def __init__(self, answer: PageSet, spool: Callable[[], Spool]) -> None:
        self.to = answer.to
        self.transactions = answer.transactions
        self.size = 0
        self._pieces: list[bytes] = []
        self._file: Spool | None = None
        try:
            for piece in answer:
                self.size += len(piece)
                if self._file is None and self.size > _IN_MEMORY:
                    self._spill(spool())
                if self._file is not None:
                    self._file.write(piece)
                else:
                    self._pieces += [piece[at : at + PIECE] for at in range(0, len(piece), PIECE)]
        finally:
            answer.close()
        if self._file is not None:
            self._file.finish()

    def _spill(self, file: Spool) -> None:
        self._file = file
        weakref.finalize(self, file.close)  # with the last reader
        for piece in self._pieces:
            file.write(piece)
        self._pieces.clear()

    def reader(self) -> PageSet:
        """All of it."""
        return _Reader(self)

    def __iter__(self) -> Iterator[bytes]:
        if self._file is None:
            yield from self._pieces
            return
        yield from self._file.blocks()


class _Reader:
    """One that takes a shared page set."""

    patience: float | None = None

    def __init__(self, shared: Shared) -> None:
        self.to = shared.to
        self.transactions = shared.transactions
        self.size: int | None = shared.size
        self._pieces = iter(shared)

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces

    def read_ahead(self) -> None:
        """It holds nothing that others wait for."""

    def close(self) -> None:
        """Let go of the set."""
        self._pieces = iter(())
