"""One group of writes: requests inside a foreign transaction, each with the effect it has alone.

Requests run one after another on a writing connection, inside the BEGIN IMMEDIATE ... COMMIT that
writer.py, or for small ones atonce.py, puts around them. What rules that asks for is told in writer.py.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final

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
from nearlite.limits import Limits
from nearlite.session import NotSharedError, OverrunError, Session
from nearlite.statements import Kind, Prepared

READ_STEPS: Final = 200_000
"""Virtual machine steps that a read inside a group may take: some 2 ms."""
WRITE_STEPS: Final = 20_000_000
"""Of a write inside a group: a second or two. One that takes more is begun again alone, where it ends when its
client leaves: inside a group it could not be stopped, and all others would wait for it."""
LASTING_SECONDS: Final = 0.05
"""A write that took more processor time than this runs outside of groups from then on."""

_ROOM: Final = Limits().max_response_bytes

Counters = tuple[int, int, int]


class Job:
    """A run of consecutive requests of one stream.

    Attributes:
      plans: requests in order.
      counters: the stream's counters, before and then after.
      results: stream results of the first `finished` requests.
      finished: how many requests are done for good; the rest has to run alone.
      failure: why the whole job failed: nothing of it has been kept.
      room: bytes of rows that its results may take.
      cancelled: its client has gone before it was started.
    """

    __slots__ = (
        "cancelled", "counters", "cursor", "failure", "finished", "limit", "plans", "queued",
        "resolve", "results", "room", "start",
    )  # fmt: skip

    def __init__(
        self,
        plans: Sequence[Plan],
        counters: Counters,
        resolve: Callable[[Job], None],
        *,
        room: int = _ROOM,
        cursor: bool = False,
    ) -> None:
        self.plans = plans
        self.room = room
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


class LostError(Exception):
    """The group's transaction is gone."""


class Group:
    """Runs jobs inside the transaction that is open on a connection.

    Args:
      session: a writing connection.
      hurried: the session has a step budget. A read that takes more leaves the group; a write is stopped
        with OverrunError, and the transaction is to be rolled back. Otherwise a write takes as many
        steps as it needs up to WRITE_STEPS, and a read READ_STEPS.
      lasting: texts that were seen to last on an earlier connection.

    Attributes:
      lasting: texts that have been seen to last.
      patience: seconds of processor time from which a write counts as lasting.
    """

    def __init__(
        self,
        session: Session,
        *,
        hurried: bool = False,
        lasting: OrderedDict[str, None] | None = None,
    ) -> None:
        self._session = session
        self._hurried = hurried
        if not hurried:
            session.native.set_budget(WRITE_STEPS)
        self.lasting: OrderedDict[str, None] = OrderedDict() if lasting is None else lasting
        self.patience = LASTING_SECONDS

    def job(self, job: Job) -> None:
        """Run what of a job can be part of the group; LostError when the transaction is gone."""
        native = self._session.native
        # Each call into C gives the GIL away and has to win it back: there are as few as possible.
        native.set_counters(*job.start)
        job.counters = job.start
        self._session.room = job.room
        results = job.results = []
        try:
            for plan in job.plans[: job.limit]:
                if isinstance(plan, Answered):
                    results.append(plan.result)
                else:
                    results.append(self._request(plan, cursor=job.cursor))
                    job.counters = native.counters
        except LostError:
            job.limit = len(results)
            raise
        except _LeaveError:
            job.limit = len(results)
        finally:
            job.finished = len(results)

    def _request(self, plan: Plan, *, cursor: bool) -> bytes:
        if isinstance(plan, Execute):
            step = plan.step
            try:
                return hrana.execute_result(self.autocommit(self._session.prepare(step.sql), step))
            except StatementError as error:
                return hrana.error_result(error)
            except NotSharedError:
                raise _LeaveError from None
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
        elif failed is not None and hrana.is_excess(failed):
            self._undo("nl_statement")
        else:
            self._control("RELEASE nl_statement")
        if failed is not None:
            raise failed
        return result

    def inside(self, prepared: Prepared, step: Step, shape: int | None, index: int) -> bytes:
        """Run a writing statement of the request's own transaction. Raises StatementError."""
        if not prepared.rows:
            return self.write(prepared, step, shape, index)
        self._control("SAVEPOINT nl_statement")
        try:
            result = self.write(prepared, step, shape, index)
        except StatementError as error:
            if hrana.is_excess(error):
                self._undo("nl_statement")
            else:
                self._control("RELEASE nl_statement")
            raise
        self._control("RELEASE nl_statement")
        return result

    def read(self, prepared: Prepared, step: Step, shape: int | None, index: int) -> bytes:
        """Run a statement that only looks, within its budget."""
        if prepared.kind is not Kind.READ:
            raise _LeaveError
        native = self._session.native
        if not self._hurried:
            native.set_budget(READ_STEPS)
        try:
            return self._session.run(prepared, step, shape=shape, index=index)
        except OverrunError:
            raise _LeaveError from None
        finally:
            if not self._hurried:
                native.set_budget(WRITE_STEPS)

    def write(self, prepared: Prepared, step: Step, shape: int | None, index: int) -> bytes:
        """Run a writing statement, uninterrupted but for a budget; it is noted when it lasts."""
        # Of this thread's own time: a machine that is busy with others makes nothing last.
        began = 0.0 if self._hurried else time.thread_time()
        try:
            return self._session.run(prepared, step, shape=shape, index=index)
        except StatementError:
            if not self._session.native.in_transaction:
                raise LostError from None
            raise
        except OverrunError:
            if self._hurried:
                raise
            self._session.rollback()
            raise LostError from None
        finally:
            if not self._hurried and time.thread_time() - began > self.patience:
                self.lasting[step.sql] = None
                if len(self.lasting) > _LASTING_KEPT:
                    self.lasting.popitem(last=False)

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
                raise LostError from None
            raise


class _Run:
    """Steps of one request inside a group; transaction statements are answered here."""

    def __init__(self, group: Group, cursor: bool) -> None:
        self._group = group
        self._shape = CURSOR if cursor else None
        self._inside = False
        self.outcomes: list[bytes | StatementError | None] = []

    def step(self, step: Step) -> None:
        """Run, or skip, the next step of a batch."""
        if not hrana.holds(step.condition, self.outcomes, not self._inside):
            self.outcomes.append(None)
            return
        try:
            prepared = self._group.prepare(step.sql)
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
                return self._group.autocommit(prepared, step, self._shape, index)
            if kind is Kind.WRITE:
                return self._group.inside(prepared, step, self._shape, index)
            return self._group.read(prepared, step, self._shape, index)
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
            self._group.begin()
            self._inside = True
        elif kind is Kind.COMMIT:
            if not self._inside:
                raise _misplaced("cannot commit - no transaction is active")
            self._group.commit()
            self._inside = False
        else:
            if not self._inside:
                raise _misplaced("cannot rollback - no transaction is active")
            self._group.rollback()
            self._inside = False


_CONTROL: Final = frozenset({Kind.BEGIN, Kind.COMMIT, Kind.ROLLBACK})
_PLAIN: Final = Step("", want_rows=False)
_LASTING_KEPT: Final = 256
_SQLITE_ERROR: Final = 1
_FOREIGN_KEY: Final = 787


def _misplaced(text: str) -> StatementError:
    return hrana.sqlite_error(text, _SQLITE_ERROR)


def _foreign_key() -> StatementError:
    return hrana.sqlite_error("FOREIGN KEY constraint failed", _FOREIGN_KEY)
