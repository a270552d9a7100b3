"""What only looks: at once on the event loop, under a budget, or in a thread, on a connection of its own.

Handing a point select to a thread would cost more than the select. What overruns its budget of virtual
machine steps, or of bytes, is run again in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from nearlite import hrana
from nearlite._native.hrana import CURSOR, SqlError
from nearlite.hrana import Outcome, Plan, RunBatch, StatementError, Step
from nearlite.leaving import Leaving
from nearlite.limits import Limits
from nearlite.routing import LOOKS, Router
from nearlite.session import OverrunError, Session
from nearlite.statements import Prepared
from nearlite.streams import Stream
from nearlite.threads import Threads

INLINE_STEPS: Final = 50_000
"""Virtual machine steps of a read on the event loop: some 0.5 ms."""
INLINE_BYTES: Final = 1 << 20
"""Bytes of its result."""
SLOW_READERS: Final = 8
"""Reads in threads at a time."""
PIECE: Final = 256 << 10
"""Bytes of a cursor that are read and sent at a time."""


class Reads:
    """Runs requests that only look, outside any transaction. Event loop thread only.

    Args:
      connect: opens a connection that cannot write, for all streams; called in any thread.
      threads: to run in.
      lasts: whether a text has been seen to last.
      limits: of the server; there are as many cursors at a time as there may be transactions.

    Attributes:
      reader: the connection of the event loop.
      router: classifies by it.
    """

    def __init__(
        self,
        connect: Callable[[], Session],
        threads: Threads,
        lasts: Callable[[str], bool],
        limits: Limits,
    ) -> None:
        self._connect = connect
        self._threads = threads
        self._most = limits.max_response_bytes
        self.reader = connect()
        self.reader.hurry(INLINE_STEPS)
        self.router = Router(self.reader, lasts)
        self._seen = (0, 0, 0)  # counters the reader has now
        self._slow = asyncio.Semaphore(SLOW_READERS)
        # Apart: a cursor keeps its connection for as long as its client takes.
        self._cursors = asyncio.Semaphore(limits.max_transactions)
        self._spare: list[Session] = []
        self._lent: set[Session] = set()

    def at_once(self, stream: Stream, plan: Plan, room: int) -> bytes | None:
        """Stream result of a request; None: it takes too long here, nothing was done.

        Args:
          stream: whose counters it sees.
          plan: READ.
          room: bytes of rows that its answer may still take.
        """
        reader = self.reader
        if self._seen is not stream.counters:
            self._seen = stream.counters
            reader.native.set_counters(*self._seen)
        reader.room = min(INLINE_BYTES, room)
        try:
            return reader.read(plan)
        except OverrunError:
            return None

    def entries_at_once(self, stream: Stream, plan: RunBatch) -> list[Outcome] | None:
        """The same of a cursor: entries of each step."""
        reader = self.reader
        self._seen = stream.counters
        reader.native.set_counters(*self._seen)
        reader.room = min(INLINE_BYTES, self._most)
        try:
            return reader.outcomes(plan.steps, shape=CURSOR)
        except OverrunError:
            return None

    async def in_thread(self, stream: Stream, plan: Plan, leaving: Leaving, room: int) -> bytes:
        """Stream result of a request, however long it takes. Raises GoneError: the client has left."""
        async with self._slow, self._borrowed(stream) as session:
            session.room = room
            try:
                return await self._threads.until_left(
                    lambda: _read(session, plan), session.database.interrupt, leaving
                )
            except OverrunError:  # the schema has changed since it was classified
                return hrana.error_result(hrana.sqlite_error("database schema has changed", 17))

    @asynccontextmanager
    async def _borrowed(self, stream: Stream) -> AsyncGenerator[Session, None]:
        """A connection, with the counters of a stream."""
        spare = self._spare
        session = spare.pop() if spare else await self._threads.run(self._connect)
        self._lent.add(session)
        try:
            session.native.set_counters(*stream.counters)
            yield session
        finally:
            self._lent.discard(session)
            if len(spare) < SLOW_READERS:
                spare.append(session)
            else:
                session.close()

    @asynccontextmanager
    async def entries(
        self, stream: Stream, plan: RunBatch, leaving: Leaving
    ) -> AsyncGenerator[AsyncGenerator[bytes, None], None]:
        """Entries of a cursor in pieces, read as they are taken. They raise GoneError."""
        async with self._cursors, self._borrowed(stream) as session:
            work = _entries(session, plan.steps)

            async def pieces() -> AsyncGenerator[bytes, None]:
                while piece := await self._threads.until_left(
                    lambda: next(work, b""), session.database.interrupt, leaving
                ):
                    yield piece

            taking = pieces()
            try:
                yield taking
            finally:
                await taking.aclose()
                await self._threads.finish(work.close)

    def interrupt(self) -> None:
        """End what runs in threads: its clients are told so."""
        for session in self._lent:
            session.database.interrupt()

    def rest(self) -> None:
        """Keep one connection, and little in it. Nothing runs."""
        while self._spare:
            self._spare.pop().close()
        self.reader.shrink()

    def close(self) -> None:
        """Nothing runs, and nothing will."""
        for session in [self.reader, *self._spare]:
            session.close()


def _read(session: Session, plan: Plan) -> bytes:
    """Stream result of a request that only looks; a batch may be a transaction. Raises OverrunError."""
    if not isinstance(plan, RunBatch):
        return session.read(plan)
    outcomes: list[Outcome] = []
    try:
        for step in plan.steps:
            if not hrana.holds(step.condition, outcomes, not session.native.in_transaction):
                outcomes.append(None)
                continue
            try:
                outcomes.append(session.run(_looking(session, step), step))
            except StatementError as error:
                outcomes.append(error)
    finally:
        session.rollback()
    return hrana.batch_result(outcomes)


def _looking(session: Session, step: Step) -> Prepared:
    """The statement of a step. Raises OverrunError: it was another one when it was classified."""
    prepared = session.prepare(step.sql)
    if prepared.kind not in LOOKS:
        raise OverrunError
    return prepared


def _entries(session: Session, steps: Sequence[Step]) -> Generator[bytes, None, None]:
    """Entries of the steps of a batch that only looks, in pieces of some PIECE bytes."""
    try:
        yield from _entries_of(session, steps)
    finally:
        session.rollback()


def _entries_of(session: Session, steps: Sequence[Step]) -> Generator[bytes, None, None]:
    outcomes: list[Outcome] = []
    ready = bytearray()
    for index, step in enumerate(steps):
        if not hrana.holds(step.condition, outcomes, not session.native.in_transaction):
            outcomes.append(None)
            continue
        failed: StatementError | OverrunError | None = None
        try:
            prepared = _looking(session, step)
            ready += session.run(prepared, step, batch=PIECE, shape=CURSOR, index=index)
            while prepared.statement.more:
                if len(ready) >= PIECE:
                    yield bytes(ready)
                    ready.clear()
                ready += prepared.statement.fetch(PIECE)
        except (StatementError, OverrunError) as error:
            failed = error
        except SqlError as failure:
            ready += failure.rows
            failed = session.translate(failure)
        finally:
            if session.latest is not None:
                session.latest.reset()  # an open statement would keep its snapshot
        if isinstance(failed, OverrunError):
            failed = hrana.sqlite_error("database schema has changed", 17)
        if failed is not None:
            ready += hrana.cursor_step_error(index, failed)
        outcomes.append(b"" if failed is None else failed)
    if ready:
        yield bytes(ready)
