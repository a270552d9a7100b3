"""Connections that streams have of their own, while a transaction or settings are open on them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from nearlite.hrana import StatementError
from nearlite.session import Session
from nearlite.streams import Stream

_SPARE: Final = 8  # connections kept open for the next transaction


class Lending:
    """Lends connections to streams. Event loop thread only.

    Args:
      limit: how many are lent at a time.
      connect: opens one; True: that cannot write.

    Attributes:
      owners: streams that have one, or are about to.
      spare: open connections that nobody has.
      reading: those of them that cannot write, for streams that may not.
    """

    def __init__(self, limit: int, connect: Callable[[bool], Awaitable[Session]]) -> None:
        self._limit = limit
        self._connect = connect
        self.owners: set[Stream] = set()
        self.spare: list[Session] = []
        self.reading: list[Session] = []

    @property
    def at_hand(self) -> bool:
        """Whether one that writes can be lent without opening it."""
        return bool(self.spare) and len(self.owners) < self._limit

    def lend_at_once(self, stream: Stream) -> Session:
        """Lend one that is `at_hand`, to a stream that may write."""
        self.owners.add(stream)
        return self._give(stream, self.spare.pop())

    async def lend(self, stream: Stream) -> StatementError | None:
        """Lend one, opened if need be; the refusal when too many are lent."""
        if len(self.owners) >= self._limit:
            return StatementError(
                f"Server cannot handle additional transactions: {self._limit} connections are in use, "
                "which is the limit",
                "TRANSACTION_BUSY",
            )
        self.owners.add(stream)
        reads = not stream.access.write
        spare = self.reading if reads else self.spare
        try:
            session = spare.pop() if spare else await self._connect(reads)
        except BaseException:
            self.owners.discard(stream)
            raise
        self._give(stream, session)
        return None

    @staticmethod
    def _give(stream: Stream, session: Session) -> Session:
        session.native.set_counters(*stream.counters)
        stream.session = session
        return session

    def give_back(self, stream: Stream) -> None:
        """Take back a connection that carries nothing of its stream: it serves others."""
        session = stream.session
        stream.take_settings()
        if session is None or stream.in_transaction or stream.sticky:
            return
        stream.counters = session.native.counters
        self.take_away(stream)
        spare = self.reading if session.readonly else self.spare
        if len(spare) < _SPARE:
            spare.append(session)
        else:
            session.close()

    def take_away(self, stream: Stream) -> Session | None:
        """What a stream has, whatever it carries: the caller closes it."""
        session, stream.session = stream.session, None
        self.owners.discard(stream)
        return session

    def close_spare(self) -> None:
        """Close those that nobody has."""
        for session in [*self.spare, *self.reading]:
            session.close()
        self.spare.clear()
        self.reading.clear()

    def close(self) -> None:
        """Close all of them, lent or not. Nobody runs anything any more."""
        owned = [stream.session for stream in self.owners if stream.session is not None]
        for session in [*self.spare, *self.reading, *owned]:
            session.close()
