"""Small writes on the event loop: one alone, or those that arrived together as one transaction.

Handing a write to the writing thread and back costs more than the write, and both threads want the same
interpreter lock. So, where nothing is synced and nobody else has the turn to write, small writes are
run here, under the step budget of reads and without patience for another program's lock. Whatever
stops them is undone and handed over: the writing thread runs it again, as long as it takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Final

from nearlite import hrana
from nearlite.group import Group, Job, LostError
from nearlite.hrana import Answered, Execute, GetAutocommit, Plan, RunBatch, StatementError, Step
from nearlite.meters import SIZES, size_bucket
from nearlite.routing import FEW_STEPS
from nearlite.session import NotSharedError, OverrunError, Session
from nearlite.statements import Kind
from nearlite.streams import Stream, Turn

log = logging.getLogger("nearlite.server")

_ALONE_SECONDS: Final = 0.0002
"""So long after the last write nobody else seems to be writing."""
_GROUP_SECONDS: Final = 0.002
"""Then a group ends, so that reads get their turn."""


class AtOnce:
    """Runs writes on the event loop.

    Args:
      connect: opens its own connection, when it is first needed.
      turn: shared with the writing thread and the streams' transactions.
      steps: virtual machine steps that a statement may take.
      small: whether a statement carries little, and has not been seen to last.
      committed: called after each commit.
      hand_over: gives a job to the writing thread.
      counted: groups by size, as `Counts` has them.
    """

    def __init__(
        self,
        connect: Callable[[], Session],
        turn: Turn,
        *,
        steps: int,
        small: Callable[[Step], bool],
        committed: Callable[[Session], object],
        hand_over: Callable[[Job], None],
        counted: list[int] | None = None,
    ) -> None:
        self._counted = counted if counted is not None else [0] * SIZES
        self._connect = connect
        self._session: Session | None = None
        self._steps = steps
        self._turn = turn
        self._small = small
        self._committed = committed
        self._hand_over = hand_over
        self._group: Group
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Job] = []
        self._wrote = -math.inf  # clock when the latest write came, or was done

    def open(self) -> Session | None:
        """Its connection; None when there is none to be had: the writing thread tells the client."""
        try:
            session = self._connect()
        except Exception:
            log.exception("a connection could not be opened")
            return None
        session.database.set_busy_timeout(0)
        session.hurry(self._steps)  # BEGIN, COMMIT and ROLLBACK are a few of them
        self._group = Group(session, hurried=True)
        self._session = session
        return session

    def close(self) -> None:
        """Close the connection until it is needed again. Nothing waits."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not self._waiting

    # ------------------------------------------------------------------ one alone

    def alone(self, stream: Stream, plan: Plan) -> bytes | None:
        """Run a small write outside a transaction; None when nothing was done.

        Without a transaction around it, which a group needs; only if it follows no other closely.
        """
        before, self._wrote = self._wrote, time.monotonic()
        if (
            self._wrote - before < _ALONE_SECONDS
            or not isinstance(plan, Execute)
            or not self._small(plan.step)
        ):
            return None
        ticket = self._turn.take()
        if ticket is None:
            return None
        try:
            result = self._run_alone(stream, plan)
            if result is not None:
                self._counted[0] += 1
                assert self._session is not None
                self._committed(self._session)
            return result
        finally:
            self._turn.release(ticket)
            self._wrote = time.monotonic()

    def _run_alone(self, stream: Stream, plan: Execute) -> bytes | None:
        session = self._session or self.open()
        if session is None:
            return None
        native = session.native
        native.set_counters(*stream.counters)
        session.room = session.most  # it answers no rows
        try:
            prepared = session.prepare(plan.step.sql)
            if prepared.kind is not Kind.WRITE or prepared.rows:
                return None  # rows that are too many would have to be undone
            result = hrana.execute_result(session.run(prepared, plan.step))
        except (NotSharedError, OverrunError):
            return None
        except StatementError as error:
            if hrana.is_busy(error):
                return None
            result = hrana.error_result(error)
        stream.counters = native.counters
        return result

    # ------------------------------------------------------------------ together

    def takes(self, plans: Sequence[Plan]) -> bool:
        """Whether all requests are small enough to be tried here."""
        for plan in plans:
            if isinstance(plan, Execute):
                if not self._small(plan.step):
                    return False
            elif isinstance(plan, RunBatch) and len(plan.steps) <= FEW_STEPS:
                if not all(map(self._small, plan.steps)):
                    return False
            elif not isinstance(plan, (Answered, GetAutocommit)):
                return False
        return True

    def submit(self, job: Job) -> None:
        """Run a job together with all that arrive in this turn of the event loop."""
        if not self._waiting:
            self._loop.call_soon(self._run)
        self._waiting.append(job)

    def _run(self) -> None:
        jobs = [job for job in self._waiting if not job.cancelled]
        self._waiting = []
        done = self._commit(jobs) if jobs else 0
        self._wrote = time.monotonic()
        for job in jobs[:done]:
            job.resolve(job)
        if done:
            for job in jobs[done:]:  # its time was over
                self.submit(job)
        else:
            for job in jobs:
                self._hand_over(job)

    def _commit(self, jobs: list[Job]) -> int:
        """Commit the first of `jobs` together; how many, 0 when that is the writing thread's."""
        session = self._session or self.open()
        ticket = self._turn.take() if session is not None else None
        if session is None or ticket is None:
            return 0
        done = 0
        try:
            session.control("BEGIN IMMEDIATE")
            deadline = time.monotonic() + _GROUP_SECONDS
            for job in jobs:
                self._group.job(job)
                done += 1
                if time.monotonic() > deadline:
                    break
            session.control("COMMIT")
        except (LostError, OverrunError, StatementError):
            done = 0
        except Exception:  # whoever waits must hear of it: from the thread
            log.exception("a group of writes was rolled back")
            done = 0
        try:
            if done:
                self._counted[size_bucket(done)] += 1
                self._committed(session)
        finally:
            with contextlib.suppress(StatementError):
                session.rollback()  # of what was not committed
            self._turn.release(ticket)
        return done
