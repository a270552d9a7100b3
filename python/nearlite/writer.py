"""Group commit: many autocommit requests, one transaction, one fsync, each atomic on its own.

One thread owns one writing connection. Whatever requests wait when it becomes free are run inside
one BEGIN IMMEDIATE ... COMMIT; nobody is answered before that COMMIT is durable, and when it fails
everybody in the group is told so. Each request is to have exactly the effect it would have had
alone:

* a single statement needs no savepoint: SQLite undoes a failed statement by itself, and ROLLBACK TO
  would also undo what OR FAIL is meant to keep. With foreign keys on, or when rows are returned
  (the answer may turn out too large), it runs in a savepoint.
* a batch ``BEGIN ... COMMIT`` becomes a savepoint; its transaction statements are answered by us.
* a deferred foreign key that is violated at the end of a request fails that request alone:
  otherwise it would fail the COMMIT of all.
* what cannot be had inside a foreign transaction leaves the group untouched and is run
  alone by the caller (`Job.finished` says from which request on): statements that end the
  transaction (RAISE(ROLLBACK), OR ROLLBACK), pragmas, savepoints, transactions left open, reads
  that last. When the group's transaction is lost to such a statement, the earlier requests, which nobody has
  been told about, are executed again in a new one.
* a write inside a group is never interrupted, because that rolls back everybody; a statement that
  has been seen to last is kept out of groups instead.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from nearlite import hrana
from nearlite._native.hrana import CURSOR
from nearlite.hrana import (
    Answered,
    Execute,
    GetAutocommit,
    Plan,
    RunBatch,
    Script,
    StatementError,
    Step,
)
from nearlite.session import Kind, NotSharedError, OverrunError, Prepared, Session
from nearlite.streams import Turn

log = logging.getLogger("nearlite.writer")

READ_STEPS: Final = 200_000
"""Virtual machine steps that a read inside a group may take: some 2 ms."""
LASTING_SECONDS: Final = 0.05
"""A write that took longer than this runs outside of groups from then on."""
GROUP_REQUESTS: Final = 1024
GROUP_SECONDS: Final = 0.02
"""A group ends when either is reached: latency of the first in it."""

Counters = tuple[int, int, int]


class Host(Protocol):
    """What the writer needs of the primary."""

    def after_commit(self) -> object:
        """Called right after every COMMIT."""

    @property
    def roll_due(self) -> bool:
        """Whether the WAL has grown past its threshold."""

    def roll(self) -> bool:
        """Archive and checkpoint; outside any transaction."""


class Job:
    """A run of consecutive requests of one stream.

    Attributes:
      plans: requests in order.
      counters: the stream's counters, before and then after.
      results: stream results of the first `finished` requests.
      finished: how many requests are done for good; the rest has to run alone.
      failure: why the whole job failed: nothing of it has been kept.
      cancelled: its client has gone before it was started.
    """

    __slots__ = (
        "cancelled", "counters", "cursor", "failure", "finished", "limit", "plans", "queued",
        "resolve", "results", "start",
    )  # fmt: skip

    def __init__(
        self,
        plans: Sequence[Plan],
        counters: Counters,
        resolve: Callable[[Job], None],
        *,
        cursor: bool = False,
    ) -> None:
        self.plans = plans
        self.counters = counters
        self.start = counters
        self.resolve = resolve
        self.cursor = cursor
        self.results: list[bytes] = []
        self.finished = 0
        self.limit = len(plans)
        self.failure: StatementError | None = None
        self.cancelled = False
        self.queued = time.monotonic()


class _LeaveError(Exception):
    """The request cannot be part of a group; nothing of it is left in the transaction."""


class _LostError(Exception):
    """The group's transaction is gone."""


class Writer:
    """The writing thread.

    Args:
      session: its connection.
      host: the primary.
      turn: shared with the streams' transactions.
      deliver: called on the writing thread with the jobs that are done; resolves them elsewhere.
      wait: seconds; a job that has waited longer is refused instead of started.
    """

    def __init__(
        self,
        session: Session,
        host: Host,
        turn: Turn,
        deliver: Callable[[list[Job]], None],
        wait: float,
    ) -> None:
        self._wait = wait
        self._session = session
        self._host = host
        self._turn = turn
        self._deliver = deliver
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._granted = threading.Event()
        self._lasting: OrderedDict[str, None] = OrderedDict()
        self._thread = threading.Thread(target=self._run, name="nearlite-writer", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job; `deliver` is called when it is done. Any thread."""
        self._jobs.put(job)

    def nudge(self) -> None:
        """Look whether a roll is due, when nothing is queued. Any thread."""
        self._jobs.put(Job([], (0, 0, 0), _nobody))

    def stop(self) -> None:
        """Finish what is queued, then end. Blocks."""
        self._jobs.put(None)
        self._thread.join()
        self._session.close()

    def lasts(self, sql: str) -> bool:
        """Whether a text has been seen to last: it is kept out of groups."""
        return sql in self._lasting

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        while True:
            first = self._jobs.get()
            if first is None:
                return
            jobs = [first]
            stop = self._gather(jobs)
            ticket = self._turn.request(self._granted.set)
            self._granted.wait()
            self._granted.clear()
            try:
                # Others arrived while this thread waited for its turn.
                stop = stop or self._gather(jobs)
                self._work(jobs)
            except Exception:  # a thread that ends would hang everybody
                log.exception("the writer failed")
            finally:
                self._turn.release(ticket)
            if stop:
                return

    def _gather(self, jobs: list[Job]) -> bool:
        """Take what is queued, without waiting. True: the thread is to end."""
        while len(jobs) < GROUP_REQUESTS:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                return False
            if job is None:
                return True
            jobs.append(job)
        return False

    def _work(self, jobs: list[Job]) -> None:
        """Run jobs in one group or several, deliver each as soon as its group is durable."""
        waiting = [job for job in jobs if self._startable(job)]
        while waiting:
            try:
                group = self._group(waiting)
            except Exception:  # whoever waits must hear of it
                log.exception("the writer failed; the group was rolled back")
                self._abandon(waiting)
                return
            waiting = waiting[len(group) :]
            self._deliver(group)
        if self._host.roll_due:
            try:
                self._host.roll()
            except Exception:  # the log grows on; the next group tries again
                log.exception("the log could not be rolled")

    def _startable(self, job: Job) -> bool:
        if not job.cancelled and time.monotonic() - job.queued <= self._wait:
            return True
        job.failure = StatementError(
            "The request waited too long for its turn to write; nothing was changed",
            "TRANSACTION_BUSY",
        )
        self._deliver([job])
        return False

    def _abandon(self, jobs: list[Job]) -> None:
        try:
            self._session.rollback()
        except StatementError:
            log.exception("rollback failed")
        self._deliver(
            self._failed(
                jobs, StatementError("Internal error; nothing was changed", "INTERNAL_ERROR")
            )
        )

    def _group(self, jobs: list[Job]) -> list[Job]:
        """Commit the first of `jobs` together; answers those that are done."""
        upto = len(jobs)
        while True:
            try:
                self._session.control("BEGIN IMMEDIATE")
            except StatementError as error:
                return self._failed(jobs[:upto], error)
            index = 0
            try:
                deadline = time.monotonic() + GROUP_SECONDS
                while index < upto:
                    self._job(jobs[index])
                    index += 1
                    if time.monotonic() > deadline:
                        break
            except _LostError:
                # jobs[index].limit is now what can be part of a group; those before it are
                # executed again, those behind it are somebody else's group.
                upto = index + 1
                continue
            return self._commit(jobs[:index])

    def _commit(self, group: list[Job]) -> list[Job]:
        session = self._session
        try:
            session.control("COMMIT")
        except StatementError as error:
            try:
                session.rollback()
            except StatementError:
                log.exception("rollback failed")
            return self._failed(group, error)
        try:
            self._host.after_commit()
        except Exception:  # the commit is durable whatever becomes of its announcement
            log.exception("a commit could not be announced to replicas")
        return group

    def _failed(self, group: list[Job], error: StatementError) -> list[Job]:
        for job in group:
            job.failure = error
            job.results = []
            job.finished = 0
            job.counters = job.start
        return group

    # ------------------------------------------------------------------ one job in the group

    def _job(self, job: Job) -> None:
        native = self._session.native
        native.set_counters(*job.start)
        native.set_budget(READ_STEPS)
        job.counters = job.start
        job.results = []
        job.finished = 0
        for index in range(job.limit):
            try:
                job.results.append(self._request(job.plans[index], cursor=job.cursor))
            except _LeaveError:
                job.limit = index
                return
            except _LostError:
                job.limit = index
                raise
            job.finished = index + 1
            if not isinstance(job.plans[index], (Answered, GetAutocommit)):
                job.counters = native.counters

    def _request(self, plan: Plan, *, cursor: bool) -> bytes:
        if isinstance(plan, Execute):
            try:
                return hrana.execute_result(self._autocommit(plan.step))
            except StatementError as error:
                return hrana.error_result(error)
            except NotSharedError:
                raise _LeaveError from None
        if isinstance(plan, Answered):
            return plan.result
        if isinstance(plan, GetAutocommit):
            return hrana.autocommit_result(True)
        if not isinstance(plan, (RunBatch, Script)):
            raise _LeaveError
        # A savepoint around the whole request, so that it can still leave the group half-way.
        self._control("SAVEPOINT nl_request")
        try:
            result = (
                self._batch(plan.steps, cursor)
                if isinstance(plan, RunBatch)
                else self._script(plan.sql)
            )
        except (_LeaveError, NotSharedError):
            self._undo("nl_request")
            raise _LeaveError from None
        self._control("RELEASE nl_request")
        return result

    def _batch(self, steps: Sequence[Step], cursor: bool) -> bytes:
        run = _Run(self, cursor)
        for step in steps:
            run.step(step)
        run.end()
        return hrana.cursor_body(run.outcomes) if cursor else hrana.batch_result(run.outcomes)

    def _script(self, sql: str) -> bytes:
        run = _Run(self, False)
        text = sql.encode()
        at = 0
        while True:
            try:
                found = self._session.split(text, at)
            except StatementError as error:
                failed: StatementError | None = error
                break
            if found is None:
                failed = None
                break
            prepared, at = found
            outcome = run.prepared(prepared, _PLAIN)
            if isinstance(outcome, StatementError):
                failed = outcome
                break
        run.end()
        return hrana.sequence_result() if failed is None else hrana.error_result(failed)

    def _autocommit(self, step: Step) -> bytes:
        return self.autocommit(self._session.prepare(step.sql), step)

    def autocommit(
        self, prepared: Prepared, step: Step, shape: int | None = None, index: int = 0
    ) -> bytes:
        """Run one statement as if it were alone and outside a transaction.

        Raises:
          StatementError: it failed; its effects are what SQLite's autocommit would have left.
        """
        if prepared.kind is not Kind.WRITE:
            return self.read(prepared, step, shape, index)
        guarded = self._session.foreign_keys or prepared.rows
        if not guarded:
            return self.write(prepared, step, shape, index)
        self._control("SAVEPOINT nl_statement")
        failed = None
        result = b""
        try:
            result = self.write(prepared, step, shape, index)
        except StatementError as error:
            failed = error
        if self._session.native.deferred:
            failed = _foreign_key()
            self._undo("nl_statement")
        elif failed is not None and failed.code == "RESPONSE_TOO_LARGE":
            self._undo("nl_statement")
        else:
            self._control("RELEASE nl_statement")
        if failed is not None:
            raise failed
        return result

    def read(self, prepared: Prepared, step: Step, shape: int | None, index: int) -> bytes:
        """Run a statement that only looks, within its budget."""
        if prepared.kind is not Kind.READ:
            raise _LeaveError
        try:
            return self._session.run(prepared, step, shape=shape, index=index)
        except OverrunError:
            raise _LeaveError from None

    def write(self, prepared: Prepared, step: Step, shape: int | None, index: int) -> bytes:
        """Run a writing statement, uninterrupted; notes it when it lasts."""
        session = self._session
        session.native.set_budget(-1)
        began = time.monotonic()
        try:
            return session.run(prepared, step, shape=shape, index=index)
        except StatementError:
            if not session.native.in_transaction:
                raise _LostError from None
            raise
        finally:
            session.native.set_budget(READ_STEPS)
            if time.monotonic() - began > LASTING_SECONDS:
                self._lasting[step.sql] = None
                if len(self._lasting) > _LASTING_KEPT:
                    self._lasting.popitem(last=False)

    def begin(self) -> None:
        """A transaction of the request begins: a savepoint in ours."""
        self._control("SAVEPOINT nl_transaction")

    def commit(self) -> None:
        """The transaction of the request ends; StatementError when SQLite would refuse."""
        if self._session.native.deferred:
            raise _foreign_key()
        self._control("RELEASE nl_transaction")

    def rollback(self) -> None:
        """The transaction of the request is undone."""
        self._undo("nl_transaction")

    def prepare(self, sql: str) -> Prepared:
        """Compile on the writing connection, which sees what the group has done so far."""
        return self._session.prepare(sql)

    def _undo(self, savepoint: str) -> None:
        self._control(f"ROLLBACK TO {savepoint}")
        self._control(f"RELEASE {savepoint}")

    def _control(self, sql: str) -> None:
        try:
            self._session.control(sql)
        except StatementError:
            if not self._session.native.in_transaction:
                raise _LostError from None
            raise


class _Run:
    """Steps of one request inside a group; transaction statements are answered here."""

    def __init__(self, writer: Writer, cursor: bool) -> None:
        self._writer = writer
        self._shape = CURSOR if cursor else None
        self._inside = False
        self.outcomes: list[bytes | StatementError | None] = []

    def step(self, step: Step) -> None:
        """Run, or skip, the next step of a batch."""
        if not hrana.holds(step.condition, self.outcomes, not self._inside):
            self.outcomes.append(None)
            return
        try:
            prepared = self._writer.prepare(step.sql)
        except StatementError as error:
            self.outcomes.append(error)
            return
        self.outcomes.append(self.prepared(prepared, step))

    def prepared(self, prepared: Prepared, step: Step) -> bytes | StatementError:
        """Run a statement; answers its result or its failure."""
        kind = prepared.kind
        try:
            if kind in _CONTROL:
                self._control(kind)
                if self._shape is None:
                    return hrana.NOTHING
                return hrana.cursor_nothing(len(self.outcomes))
            index = len(self.outcomes)
            if not self._inside:
                return self._writer.autocommit(prepared, step, self._shape, index)
            if kind is Kind.WRITE:
                return self._writer.write(prepared, step, self._shape, index)
            return self._writer.read(prepared, step, self._shape, index)
        except StatementError as error:
            return error

    def end(self) -> None:
        """A transaction left open cannot stay in a group."""
        if self._inside:
            raise _LeaveError

    def _control(self, kind: Kind) -> None:
        if kind is Kind.BEGIN:
            if self._inside:
                raise _misplaced("cannot start a transaction within a transaction")
            self._writer.begin()
            self._inside = True
        elif kind is Kind.COMMIT:
            if not self._inside:
                raise _misplaced("cannot commit - no transaction is active")
            self._writer.commit()
            self._inside = False
        else:
            if not self._inside:
                raise _misplaced("cannot rollback - no transaction is active")
            self._writer.rollback()
            self._inside = False


_CONTROL: Final = frozenset({Kind.BEGIN, Kind.COMMIT, Kind.ROLLBACK})
_PLAIN: Final = Step("", want_rows=False)
_LASTING_KEPT: Final = 256
_SQLITE_ERROR: Final = 1
_FOREIGN_KEY: Final = 787


def _nobody(_job: Job) -> None:
    """Nobody waits for this job."""


def _misplaced(text: str) -> StatementError:
    return hrana.sqlite_error(text, _SQLITE_ERROR)


def _foreign_key() -> StatementError:
    return hrana.sqlite_error("FOREIGN KEY constraint failed", _FOREIGN_KEY)
