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
* a write inside a group is not interrupted, because that rolls back everybody; a statement that
  has been seen to last is kept out of groups instead, and one that lasts for seconds is begun again alone.

Small groups that nothing syncs are committed on the event loop (atonce.py); what is stopped there comes
here.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from nearlite.group import Group, Job, LostError
from nearlite.hrana import (
    StatementError,
)
from nearlite.meters import SIZES, size_bucket
from nearlite.session import Session
from nearlite.streams import Turn

log = logging.getLogger("nearlite.writer")

GROUP_REQUESTS: Final = 1024
GROUP_SECONDS: Final = 0.02
"""A group ends when either is reached: latency of the first in it."""


class Writer:
    """The writing thread.

    Args:
      connect: opens its connection.
      committed: called right after every COMMIT; raises nothing.
      turn: shared with the streams' transactions.
      deliver: called on the writing thread with the jobs that are done; resolves them elsewhere.
      wait: seconds; a job that has waited longer is refused instead of started.
      counted: groups by the number of their jobs.
      linger: seconds without a job after which the thread ends and its connection is closed, until there is
        one; None: both live from `start` to `stop`.
    """

    def __init__(
        self,
        connect: Callable[[], Session],
        committed: Callable[[Session], object],
        turn: Turn,
        deliver: Callable[[list[Job]], None],
        wait: float,
        counted: list[int] | None = None,
        *,
        linger: float | None = None,
    ) -> None:
        self._connect = connect
        self._wait = wait
        self._counted = counted if counted is not None else [0] * SIZES
        self._linger = linger
        self._committed = committed
        self._turn = turn
        self._deliver = deliver
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._granted = threading.Event()
        self._lasting: OrderedDict[str, None] = OrderedDict()
        # Of the thread, while there is one; whether there is, is decided under the lock.
        self._session: Session
        self._running: Group
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()

    def start(self) -> None:
        """Open the connection and start the thread, unless they come and go. Raises what opening raises."""
        if self._linger is None:
            self._open()
            self._begin()

    def _open(self) -> None:
        self._session = self._connect()
        self._running = Group(self._session, lasting=self._lasting)

    def _begin(self) -> None:
        self._thread = threading.Thread(target=self._run, name="nearlite-writer", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job; `deliver` is called when it is done. Any thread."""
        self._jobs.put(job)
        if self._linger is not None:
            with self._starting:
                if self._thread is None:
                    self._begin()

    def stop(self) -> None:
        """Finish what is queued, then end. Blocks."""
        self._jobs.put(None)
        with self._starting:
            thread = self._thread
        if thread is not None:
            thread.join()

    def lasts(self, sql: str) -> bool:
        """Whether a text has been seen to last: it is kept out of groups."""
        return sql in self._lasting

    # ------------------------------------------------------------------ the thread

    def _run(self) -> None:
        session = None
        try:
            if self._linger is not None:
                self._open()
            session = self._session
            self._serve()
        except Exception:  # the connection could not be opened
            log.exception("the writer could not be started")
            self._give_up()
        finally:
            if session is not None:
                session.close()

    def _give_up(self) -> None:
        """Refuse what is queued, and let the next job try again."""
        with self._starting:
            self._thread = None
            jobs: list[Job] = []
            self._gather(jobs)
        error = StatementError(
            "The database could not be opened for writing; nothing was changed. The server's log says why",
            "INTERNAL_ERROR",
        )
        self._deliver(self._failed(jobs, error))

    def _next(self) -> Job | None:
        """The next job; None: the thread is to end."""
        while True:
            try:
                return self._jobs.get(timeout=self._linger)
            except queue.Empty:
                with self._starting:
                    if self._jobs.empty():
                        self._thread = None
                        return None

    def _serve(self) -> None:
        while True:
            first = self._next()
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
                    self._running.job(jobs[index])
                    index += 1
                    if time.monotonic() > deadline:
                        break
            except LostError:
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
        self._counted[size_bucket(len(group))] += 1
        self._committed(session)
        return group

    def _failed(self, group: list[Job], error: StatementError) -> list[Job]:
        for job in group:
            job.failure = error
            job.results = []
            job.finished = 0
            job.counters = job.start
        return group
