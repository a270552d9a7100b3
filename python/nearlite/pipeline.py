"""Executes the requests of streams: decides where each runs, waits for it, keeps the order.

Four places, from the cheapest on:

* at once, on the event loop: reads, under a budget of virtual machine steps and of bytes. Handing a
  point select to a thread would cost more than the select. What overruns is run again in a thread.
  Likewise BEGIN with a small first write, which can be undone, and, where nothing is synced, small
  writes (atonce.py) and the COMMIT of a small transaction;
* in a thread, on one of a few reading connections;
* in a group of writes (writer.py);
* on a connection of the stream's own (owned.py), in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal, Protocol, TypeVar

from nearlite import hrana
from nearlite._native.database import Database
from nearlite.announcing import Announcing
from nearlite.atonce import AtOnce
from nearlite.exchange import Headers, Scope
from nearlite.group import Job
from nearlite.hooks import Hooks
from nearlite.hrana import Answered, Execute, GetAutocommit, Plan, RunBatch, StatementError
from nearlite.leaving import GoneError, Leaving, either
from nearlite.lending import Lending
from nearlite.limits import Limits
from nearlite.meters import Counts
from nearlite.owned import Owned, Work
from nearlite.position import Position
from nearlite.reads import INLINE_STEPS, SLOW_READERS, Reads
from nearlite.rolling import Host, Rolls
from nearlite.session import Session
from nearlite.statements import Kind
from nearlite.streams import EndingError, Holders, Stream, Streams, Turn
from nearlite.threads import Threads
from nearlite.usage import Usage
from nearlite.writer import Writer

log = logging.getLogger("nearlite.server")

_IN_A_ROW: Final = 64
"""Requests of one pipeline that are run on the event loop before others have their turn."""
_INTERRUPT_EVERY: Final = 0.05
"""Seconds until what a client that has left is still running is interrupted again."""
BUSY_MS: Final = 5000
"""Milliseconds that a statement in a thread waits for other programs' locks."""
TICK: Final = 0.25
"""Seconds between looks at what is overdue."""
_LINGER: Final = 1.0  # seconds; then an idle thread of one database among many ends
_FEW_TEXTS: Final = 64  # statements that its reader keeps

_T = TypeVar("_T")


class Upstream(Host, Protocol):
    """What the server needs of a primary to run SQL on it."""

    durability: Literal["full", "normal"]
    """Whether a COMMIT waits for the disk."""

    def connect(
        self, *, readonly: bool = False, busy_ms: int = BUSY_MS, frugal: bool = False
    ) -> Database:
        """A connection that never checkpoints and syncs as the durability says."""

    @property
    def latest(self) -> Position:
        """Where it was last seen to stand."""

    def displaced(self) -> bool:
        """Whether the path names another file than the one that is open."""

    def overgrown(self) -> bool:
        """Whether commits of other programs have made a roll due that nobody knows of."""


class Executor:
    """Everything one server has to run SQL with: an `Execution`. Event loop thread only, except `_deliver` and `_committed`.

    Args:
      upstream: the primary.
      key: secret of the batons.
      limits: of the server.
      foreign_keys: enforcement on every connection from the beginning.
      hooks: are told of commits and rolls.
      threads: those of a server of many databases. Whoever gives them calls `look` and `rest`, and idle the
        database then has one connection and no thread.
      prepare: called with each connection, before it runs anything.
      holders: of streams of all databases of the server.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        key: bytes,
        limits: Limits,
        foreign_keys: bool = False,
        hooks: Hooks | None = None,
        threads: ThreadPoolExecutor | None = None,
        prepare: Callable[[Database], None] | None = None,
        holders: Holders | None = None,
    ) -> None:
        self._upstream = upstream
        self._told = upstream.latest  # of what was told that it was committed
        self.limits = limits
        self._foreign_keys = foreign_keys
        self._prepare = prepare
        self._frugal = threads is not None
        self._sessions: list[Session] = []
        self._opening = threading.Lock()  # they are opened in any thread
        self._closed_usage = Usage()
        self._loop = asyncio.get_running_loop()
        self.streams = Streams(key, limits, holders=holders)
        self.turn = Turn()
        self.counts = Counts(hooks)
        linger = None if threads is None else _LINGER
        self._rolls = Rolls(upstream, self.turn, self.counts, linger=linger)
        self.announcing = Announcing()
        # As many threads as there can be connections in use, so that nobody waits for a thread
        # that another's transaction keeps.
        self._threads = Threads(limits.max_transactions + SLOW_READERS, threads)
        self._reads = Reads(
            lambda: self._open(readonly=True, shared=True),
            self._threads,
            lambda sql: self._writer.lasts(sql),  # noqa: PLW0108 - there is none yet
            limits,
        )
        if threads is not None:
            self._reads.reader.kept = _FEW_TEXTS
        self._router = self._reads.router
        self._writer = Writer(
            self._open_shared,
            self._committed,
            self.turn,
            self._deliver,
            limits.wait_seconds,
            self.counts.grouped,
            linger=linger,
        )
        self._owned = Owned(self.turn, self._committed)
        self._lending = Lending(limits.max_transactions, self._open_in_thread)
        #: the path names another file than the one that is open: whoever serves refuses
        self.displaced = False
        self._unsynced = upstream.durability == "normal"
        self._at_once = AtOnce(
            self._open_shared,
            self.turn,
            steps=INLINE_STEPS,
            small=self._router.is_small,
            committed=self._committed,
            hand_over=self._writer.submit,
            counted=self.counts.at_once,
        )
        if threads is None and self._unsynced:
            self._at_once.open()
        self._writer.start()
        self._rolls.start()
        self._tick = None if threads is not None else self._loop.call_later(TICK, self._look)
        self._closed = False

    def _open(self, *, readonly: bool = False, shared: bool = False) -> Session:
        database = self._upstream.connect(readonly=readonly, frugal=self._frugal)
        if self._prepare is not None:
            self._prepare(database)
        session = Session(
            database,
            foreign_keys=self._foreign_keys,
            shared=shared,
            readonly=readonly,
            limits=self.limits,
            failed=self.counts.failed,
        )
        if not readonly:
            session.native.watch()
        session.usage = self._closed_usage
        with self._opening:
            self._sessions = [one for one in self._sessions if one.usage is not None]
            self._sessions.append(session)
        return session

    def _open_shared(self) -> Session:
        return self._open(shared=True)

    async def _open_in_thread(self, readonly: bool) -> Session:
        return await self._threads.run(lambda: self._open(readonly=readonly))

    def heed(self, stream: Stream, scope: Scope) -> None:
        """See `Execution`."""

    def told(self, _stream: Stream) -> Headers:
        """See `Execution`."""
        return ()

    # ------------------------------------------------------------------ on the event loop

    def now(self, stream: Stream, plans: Sequence[Plan], results: list[bytes]) -> Kind | None:
        """Run as many requests as need neither a thread nor to wait.

        Returns:
          None when that was all, otherwise where the next one is to run.
        """
        reads = self._reads
        last = len(results) + _IN_A_ROW
        room = self._room(results)
        while len(results) < len(plans):
            if stream.session is not None or stream.ending is not None:
                return None if self._own_now(stream, plans, results) else Kind.ALONE
            plan = plans[len(results)]
            if isinstance(plan, Answered):
                results.append(plan.result)
                continue
            kind = self._router.route(plan, after_write=False)
            if isinstance(kind, StatementError):
                results.append(hrana.error_result(kind))
            elif kind is Kind.READ:
                if len(results) >= last:
                    return Kind.SLOW
                result = reads.at_once(stream, plan, room)
                if result is None:
                    return Kind.SLOW
                room -= len(result)
                results.append(result)
            elif not stream.access.write:
                return kind if kind is Kind.SLOW else Kind.ALONE
            elif kind is Kind.WRITE:
                alone = self._at_once.alone(stream, plan) if self._unsynced else None
                if alone is None:
                    return kind
                results.append(alone)
            elif kind is not Kind.ALONE or not self._begin_at_once(stream, plan, results):
                return kind
        return None

    async def finish(
        self,
        stream: Stream,
        plans: Sequence[Plan],
        results: list[bytes],
        leaving: Leaving,
        *,
        alone: bool = False,
    ) -> None:
        """Run the requests that `now` has left; `alone`: the next one has left a group.

        Raises:
          GoneError: the client has disconnected.
        """
        if alone:
            await self._alone(stream, plans, results, leaving)
            if self.now(stream, plans, results) is None:
                return
        while True:
            plan = plans[len(results)]
            if stream.session is not None or stream.ending is not None:
                await self._own(stream, plans, results, leaving)
                return
            kind = self._router.route(plan, after_write=False)
            if isinstance(kind, StatementError):
                results.append(hrana.error_result(kind))
            elif kind <= Kind.SLOW:
                room = self._room(results)
                results.append(await self._reads.in_thread(stream, plan, leaving, room))
            elif kind is Kind.WRITE and stream.access.write:
                await self._grouped(stream, plans, results, leaving)
            else:
                await self._alone(stream, plans, results, leaving)
            if self.now(stream, plans, results) is None:
                return

    def _room(self, results: list[bytes]) -> int:
        """Bytes of rows that the rest of an answer may take."""
        return self.limits.max_response_bytes - sum(map(len, results))

    def group(
        self,
        stream: Stream,
        plans: Sequence[Plan],
        results: list[bytes],
        done: Callable[[bool], None],
    ) -> bool:
        """Have what `now` has left, a write first, run in a group; False when not all of it can be in one.

        Args:
          stream, plans, results: as of `now`.
          done: called later, on the event loop: True when that was all, False when the next request
            cannot be part of a group.
        """
        first = len(results)
        for plan in plans[first + 1 :]:
            if not isinstance(plan, Answered) and not self._joins(plan):
                return False

        def resolve(job: Job) -> None:
            done(self._take(stream, job, results))

        self._submit(Job(plans[first:], stream.counters, resolve, room=self._room(results)))
        return True

    # ------------------------------------------------------------------ small transactions

    def _begin_at_once(self, stream: Stream, plan: Plan, results: list[bytes]) -> bool:
        """Run a batch that begins a transaction on the event loop, if that takes no time.

        A replica's first write in a transaction and its COMMIT are the two requests that its user waits
        for; handing each to a thread and back would cost more than the statement.
        """
        if (
            not self._lending.at_hand
            or not isinstance(plan, RunBatch)
            or not self._router.begins(plan)
        ):
            return False
        session = self._lending.lend_at_once(stream)
        native = session.native
        native.set_budget(INLINE_STEPS)
        session.database.set_busy_timeout(0)
        try:
            outcomes = self._owned.begin_at_once(stream, plan.steps)
        finally:
            session.database.set_busy_timeout(BUSY_MS)
            native.set_budget(-1)
        if outcomes is None:
            native.set_counters(*stream.counters)
        else:
            results.append(hrana.batch_result(outcomes))
        self._lending.give_back(stream)
        return outcomes is not None

    def _ends_at_once(self, stream: Stream, plans: Sequence[Plan]) -> bool:
        """Whether requests take no thread: a setting, or the COMMIT of a small transaction, not synced."""
        first, session = plans[0], stream.session
        if isinstance(first, Execute) and session is not None:
            quick = stream.light and self._unsynced
            commits = quick and session.commits(first.step.sql)
            if not commits and not session.sets(first.step.sql):
                return False
            plans = plans[1:]
        return not any(map(self._runs, plans))

    # ------------------------------------------------------------------ writes

    async def _grouped(
        self, stream: Stream, plans: Sequence[Plan], results: list[bytes], leaving: Leaving
    ) -> None:
        """Run the requests from here on that can be part of a group; then what had to leave it."""
        first = len(results)
        last = first + 1
        while last < len(plans) and self._joins(plans[last]):
            last += 1
        job = await self._job(stream, plans[first:last], room=self._room(results))
        if not self._take(stream, job, results):
            await self._alone(stream, plans, results, leaving)

    def _take(self, stream: Stream, job: Job, results: list[bytes]) -> bool:
        """Take over what became of a job; False when the rest of it has to run alone."""
        stream.counters = job.counters
        if job.failure is not None:
            error = hrana.error_result(job.failure)
            results.extend(error if self._runs(plan) else _known(plan) for plan in job.plans)
            return True
        results.extend(job.results)
        return job.finished == len(job.plans)

    def _joins(self, plan: Plan) -> bool:
        if isinstance(plan, (Answered, GetAutocommit)):
            return True
        kind = self._router.route(plan, after_write=True)
        return not isinstance(kind, StatementError) and kind in (Kind.READ, Kind.WRITE)

    @staticmethod
    def _runs(plan: Plan) -> bool:
        return not isinstance(plan, (Answered, GetAutocommit))

    async def _job(
        self, stream: Stream, plans: Sequence[Plan], *, room: int, cursor: bool = False
    ) -> Job:
        future: asyncio.Future[None] = self._loop.create_future()

        def resolve(_job: Job) -> None:
            if not future.done():
                future.set_result(None)

        job = Job(plans, stream.counters, resolve, room=room, cursor=cursor)
        self._submit(job)
        try:
            await future
        except asyncio.CancelledError:
            job.cancelled = True
            raise
        return job

    def _submit(self, job: Job) -> None:
        if self._unsynced and not job.cursor and self._at_once.takes(job.plans):
            self._at_once.submit(job)
        else:
            self._writer.submit(job)

    def _deliver(self, jobs: list[Job]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has been closed
            self._loop.call_soon_threadsafe(_resolve, jobs)

    def _committed(self, session: Session) -> None:
        """After the end of a transaction of `session` that wrote. In its thread."""
        if self.announcing.any:
            self.announcing.committed(*session.native.changed())
        self._announce()

    def _announce(self, *, unknown: bool = False) -> None:
        """After what may have committed, in the turn; `unknown`: nobody knows which tables that changed."""
        try:
            self._upstream.after_commit()
            if self._advanced():
                if unknown and self.announcing.any:
                    self.announcing.committed((), True)
                if self.counts.hooks is not None:
                    self.counts.hooks.commit(str(self._upstream.latest))
            if self._upstream.roll_due:
                self._rolls.look()
        except Exception:  # the commit is durable whatever becomes of its announcement
            log.exception("a commit could not be announced to replicas")

    def _advanced(self) -> bool:
        """Whether there are frames of which was not told yet: a rollback, or a roll, writes none."""
        latest = self._upstream.latest
        told, self._told = self._told, latest
        if (latest.lineage, latest.generation) != (told.lineage, told.generation):
            return latest.frame > 0
        return latest.frame > told.frame

    async def in_turn(self, work: Callable[[], _T]) -> _T:
        """Run something else that writes, in a thread, when nobody of this process does; it is announced.

        Raises:
          TimeoutError: others have written all the time that a request waits; nothing was done.
          EndingError: the server is about to end; nothing was done.
        """
        future: asyncio.Future[None] = self._loop.create_future()

        def granted() -> None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_set, future)

        def run() -> _T:
            try:
                return work()
            finally:
                self._announce(unknown=True)
                self.turn.release(ticket)

        ticket = self.turn.request(granted)
        try:
            await asyncio.wait_for(future, self.limits.wait_seconds)
            running = self._threads.run(run)
        except BaseException as error:
            self.turn.release(ticket)
            if isinstance(error, asyncio.TimeoutError):  # another class before Python 3.11
                raise TimeoutError from None
            if isinstance(error, RuntimeError):  # the pool takes no more
                raise EndingError from None
            raise
        # Whoever awaits it may be cancelled; the work has the turn to its end.
        return await asyncio.shield(running)

    # ------------------------------------------------------------------ own connections

    async def _alone(
        self, stream: Stream, plans: Sequence[Plan], results: list[bytes], leaving: Leaving
    ) -> None:
        """Run one request on a connection of the stream's own, and if it stays so, the others."""
        refusal = await self._lending.lend(stream)
        if refusal is not None:
            results.append(hrana.error_result(refusal))
            return
        await self._own(stream, plans[: len(results) + 1], results, leaving)

    async def _own(
        self, stream: Stream, plans: Sequence[Plan], results: list[bytes], leaving: Leaving
    ) -> None:
        if stream.session is None:  # its transaction was ended, and its connection with it
            refusal = await self._lending.lend(stream)
            if refusal is not None:
                error = hrana.error_result(refusal)
                results.extend([error] * (len(plans) - len(results)))
                return
        if self._own_now(stream, plans, results):
            return
        work = self._owned.requests(stream, plans[len(results) :], results)
        stream.light = False
        async for _ in self._advance(stream, work, leaving):
            pass
        stream.ending = None
        self._lending.give_back(stream)

    def _own_now(self, stream: Stream, plans: Sequence[Plan], results: list[bytes]) -> bool:
        """Run requests on a connection of the stream's own, if they take no thread."""
        left = plans[len(results) :]
        if stream.session is None or stream.ending is not None:
            return False
        if not self._ends_at_once(stream, left):
            return False
        for _ in self._owned.requests(stream, left, results):
            raise AssertionError("a COMMIT needs no turn")
        self._lending.give_back(stream)
        return True

    async def _advance(
        self, stream: Stream, work: Work, leaving: Leaving
    ) -> AsyncGenerator[bytes, None]:
        """Drive a generator of owned.py in the pool; yields the bytes it yields."""
        session = stream.session
        assert session is not None
        try:
            while True:
                ready = await self._threads.until_left(
                    lambda: next(work, _END), session.database.interrupt, leaving
                )
                if isinstance(ready, _End):
                    return
                if ready is None:
                    await self._take_turn(stream, leaving)
                else:
                    stream.paused = True
                    try:
                        yield ready
                    finally:
                        stream.paused = False
        except (GoneError, asyncio.CancelledError):
            await self._threads.finish(work.close)
            self._owned.end_transaction(stream)
            raise

    async def _take_turn(self, stream: Stream, leaving: Leaving) -> None:
        """Wait for the turn to write; without it afterwards: it took too long."""
        future: asyncio.Future[None] = self._loop.create_future()

        def granted() -> None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(_set, future)

        ticket = self.turn.request(granted)
        if not ticket.since:
            try:
                stays = await either(future, leaving, self.limits.wait_seconds)
            except BaseException:
                self.turn.release(ticket)
                raise
            if not ticket.since or not stays:
                self.turn.release(ticket)
                if not stays:
                    raise GoneError
                return
        stream.turn = ticket

    # ------------------------------------------------------------------ cursors

    def cursor_at_once(self, stream: Stream, plan: RunBatch) -> bytes | None:
        """Entries of a cursor that can be run on the event loop, or None."""
        if stream.session is not None or stream.ending is not None:
            return None
        kind = self._router.route(plan, after_write=False)
        if isinstance(kind, StatementError):
            return hrana.cursor_error(kind)
        if kind is not Kind.READ:
            return None
        outcomes = self._reads.entries_at_once(stream, plan)
        return None if outcomes is None else hrana.cursor_body(outcomes)

    def may_keep(self, stream: Stream, plan: RunBatch) -> bool:
        """Whether a batch may leave a transaction or settings on its stream."""
        if stream.session is not None:
            return True
        kind = self._router.route(plan, after_write=False)
        # Of a stream that may not write only some of the steps of a transaction may be carried out.
        return kind is Kind.ALONE or (kind is Kind.WRITE and not stream.access.write)

    async def cursor(
        self, stream: Stream, plan: RunBatch, leaving: Leaving
    ) -> AsyncGenerator[bytes, None]:
        """Entries of a cursor in pieces. Raises GoneError."""
        if stream.session is None and stream.ending is None:
            kind = self._router.route(plan, after_write=False)
            if kind is Kind.WRITE and stream.access.write:
                job = await self._job(stream, [plan], room=self._room([]), cursor=True)
                stream.counters = job.counters
                if job.failure is not None:
                    yield hrana.cursor_error(job.failure)
                    return
                if job.finished:
                    yield job.results[0]
                    return
        if stream.session is None:
            refusal = await self._lending.lend(stream)
            if refusal is not None:
                yield hrana.cursor_error(refusal)
                return
        work = self._owned.cursor(stream, plan)
        pieces = self._advance(stream, work, leaving)
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()
            await self._threads.finish(work.close)
            stream.ending = None
            self._lending.give_back(stream)

    # ------------------------------------------------------------------ ends

    async def close_stream(self, stream: Stream) -> None:
        """See `Execution`."""
        left = self.end_stream(stream)
        if left is not None:
            await left

    def end_stream(self, stream: Stream) -> Coroutine[Any, Any, None] | None:
        """See `Execution`: roll back, share its connection or leave it to be closed."""
        self.streams.forget(stream)
        session = stream.session
        if session is None:
            return None
        self._owned.end_transaction(stream)
        stream.take_settings()
        if stream.sticky and stream.settings is not None and session.restore(stream.settings):
            stream.sticky = False
        self._lending.give_back(stream)
        if self._lending.take_away(stream) is None:
            return None
        return self._threads.finish(session.close)

    def _look(self) -> None:
        self._tick = self._loop.call_later(TICK, self._look)
        self.look()

    def look(self) -> None:
        """End what is overdue."""
        if self._upstream.overgrown():
            self._rolls.look()
        displaced = self._upstream.displaced()
        if displaced != self.displaced:
            self.displaced = displaced
            log.critical(
                "the database's path names another file, or none: requests are refused; restart the "
                "server to serve what is there now"
                if displaced
                else "the database's path names the file that is served again"
            )
        wanted = self.turn.wanted
        for stream in list(self._lending.owners):
            if stream.ending is None and self.streams.overdue(stream, wanted=wanted):
                self._end(stream)
        for stream in self.streams.idle():
            self._loop.create_task(self.close_stream(stream))

    def _end(self, stream: Stream) -> None:
        session = stream.session
        if session is None:
            return
        self.counts.timeouts += 1
        if stream.in_transaction or stream.turn is not None:
            log.warning("a transaction was rolled back: it was open too long")
            why = "Transaction timed out: it was open too long and has been rolled back"
        else:
            log.warning("a cursor was ended: it was open too long")
            why = "Transaction timed out: the cursor was open too long, its rows were not fetched"
        stream.ending = (why, "TRANSACTION_TIMEOUT")
        if stream.busy and not stream.paused:
            session.database.interrupt()  # its thread rolls back
        else:
            self._owned.end_transaction(stream)

    @property
    def transactions(self) -> int:
        """Streams that are in a transaction now."""
        return sum(stream.in_transaction for stream in self._lending.owners)

    @property
    def usage(self) -> Usage:
        """What was asked so far."""
        usage = Usage()
        usage.add(self._closed_usage)
        for session in self._sessions:
            if session.usage is not None:
                session.count(usage)
        return usage

    def forget_notable(self, what: Literal["top", "slowest"]) -> None:
        """Statements that took long are no longer known."""
        self._closed_usage.forget(what)

    @property
    def lent(self) -> bool:
        """Whether a stream has a connection of its own: a transaction, or settings."""
        return bool(self._lending.owners)

    @property
    def running(self) -> bool:
        """Whether anything is being carried out."""
        return bool(self.streams.busy) or not self._threads.idle

    def rest(self) -> None:
        """Nobody has asked for a while, nothing is `running` or `lent`: keep one connection, and little in it."""
        self._lending.close_spare()
        if self._at_once.idle:
            self._at_once.close()
        self._reads.rest()

    def want_roll(self) -> None:
        """End the running generation as soon as nobody is in the way."""
        self._rolls.want()

    async def roll(self) -> bool:
        """End the running generation as soon as nobody of this process writes. False: somebody needs its WAL."""
        host = self._upstream
        if not await self._loop.run_in_executor(None, host.prepare_roll):
            return True
        try:
            return await self.in_turn(host.roll)
        except TimeoutError:
            return False

    async def close(self) -> None:
        """Finish what is queued, roll back what is open, close all connections."""
        if self._closed:
            return
        self._closed = True
        if self._tick is not None:
            self._tick.cancel()
        for stream in list(self._lending.owners):
            if stream.session is not None and not stream.busy:
                self._owned.end_transaction(stream)
        for end in (self._writer.stop, self._rolls.stop, None):
            ended: asyncio.Future[None] = (
                self._loop.create_task(self._threads.close())
                if end is None
                else self._loop.run_in_executor(None, end)
            )
            while not ended.done():
                for stream in list(self._lending.owners):
                    if stream.session is not None and stream.busy:
                        stream.session.database.interrupt()
                self._reads.interrupt()
                await asyncio.wait({ended}, timeout=_INTERRUPT_EVERY)
            ended.result()
        self.streams.close()
        self._at_once.close()
        self._reads.close()
        self._lending.close()


class _End:
    """What `next` answers when a generator has ended."""


_END: Final = _End()


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _resolve(jobs: list[Job]) -> None:
    for job in jobs:
        job.resolve(job)


def _known(plan: Plan) -> bytes:
    return plan.result if isinstance(plan, Answered) else hrana.autocommit_result(True)
