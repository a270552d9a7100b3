"""Requests of a stream that has a connection of its own: real transactions, settings, temporary tables.

Everything here runs in a thread, one call at a time per stream, but for the beginning and the end of a
small transaction, which take no time and run on the event loop (pipeline.py says when). Requests are
generators that are advanced by the event loop: they yield None when the stream must have its turn to
write before it goes on (so that no thread is ever blocked by another stream's transaction), and bytes
that are ready to be sent.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from typing import Final

from nearlite import hrana
from nearlite._native.hrana import CURSOR, SqlError
from nearlite.hrana import (
    Describe,
    Execute,
    GetAutocommit,
    Outcome,
    Plan,
    RunBatch,
    Script,
    StatementError,
    Step,
)
from nearlite.reads import PIECE
from nearlite.session import OverrunError, Session
from nearlite.statements import Kind, Prepared
from nearlite.streams import Stream, Turn

LIGHT_SECONDS: Final = 0.001
"""Of processor time: a transaction that took less so far has written little."""
_QUIET: Final = Step("", want_rows=False)
_READONLY: Final = 8

Work = Generator["bytes | None", None, None]


class Owned:
    """Runs requests on a stream's own connection.

    Args:
      turn: to write.
      committed: called after each commit of a write, where it ran, before the turn is given on.
    """

    def __init__(self, turn: Turn, committed: Callable[[Session], object]) -> None:
        self._turn = turn
        self._committed = committed

    def requests(self, stream: Stream, plans: Sequence[Plan], results: list[bytes]) -> Work:
        """Run requests in order; a result for each is appended."""
        session = _session(stream)
        session.room = session.most - sum(map(len, results))
        for plan in plans:
            if isinstance(plan, Execute):
                outcome = yield from self._guarded(stream, plan.step, None, 0)
                if isinstance(outcome, StatementError):
                    results.append(hrana.error_result(outcome))
                else:
                    results.append(hrana.execute_result(outcome))
            elif isinstance(plan, RunBatch):
                outcomes: list[Outcome] = []
                yield from self._batch(stream, plan.steps, outcomes)
                results.append(hrana.batch_result(outcomes))
            elif isinstance(plan, Script):
                results.append((yield from self._script(stream, plan.sql)))
            elif isinstance(plan, GetAutocommit):
                results.append(hrana.autocommit_result(not stream.in_transaction))
            elif isinstance(plan, Describe):
                results.append(self._describe(stream, plan.sql))
            else:
                results.append(_session(stream).read(plan))

    def begin_at_once(self, stream: Stream, steps: Sequence[Step]) -> list[Outcome] | None:
        """Begin a transaction with a few quick statements, on the event loop.

        The session has a step budget and no patience with locks; the steps contain no COMMIT, so that
        everything can be undone. Answers None when it was: the turn is not free, the budget is used
        up, the database is locked by another program, the statements are no quick ones, or they did
        not stay inside a transaction.
        """
        session = _session(stream)
        session.room = session.most
        outcomes: list[Outcome] = []
        started = time.thread_time()
        try:
            begun = all(self._stays(stream, step, outcomes) for step in steps)
            failed = [outcome for outcome in outcomes if isinstance(outcome, StatementError)]
            if begun and not any(map(hrana.is_busy, failed)):
                stream.light = time.thread_time() - started < LIGHT_SECONDS
                return outcomes
        except OverrunError:
            pass
        session.rollback()
        self._settle(stream)
        return None

    def _stays(self, stream: Stream, step: Step, outcomes: list[Outcome]) -> bool:
        """Run a step that needs no turn of somebody else's; whether it leaves a transaction open.

        Without one (BEGIN was skipped or failed, OR ROLLBACK ended it) the next step would be kept
        at once, and could not be undone.
        """
        for _ in self._batch(stream, [step], outcomes):
            return False
        return stream.in_transaction

    def cursor(self, stream: Stream, plan: RunBatch) -> Work:
        """Run a cursor's batch, yielding its entries in pieces."""
        outcomes: list[Outcome] = []
        ready: list[bytes] = []
        size = 0
        for index, step in enumerate(plan.steps):
            if not hrana.holds(step.condition, outcomes, not stream.in_transaction):
                outcomes.append(None)
                continue
            outcome = yield from self._guarded(stream, step, CURSOR, index)
            failed = None
            if isinstance(outcome, StatementError):
                failed = outcome
            else:
                ready.append(outcome)
                size += len(outcome)
                pieces = self._pieces(stream)
                try:
                    while True:
                        if size >= PIECE:
                            yield b"".join(ready)
                            ready, size = [], 0
                        try:
                            piece = next(pieces)
                        except StopIteration:
                            break
                        except StatementError as error:
                            failed = error
                            break
                        ready.append(piece)
                        size += len(piece)
                finally:
                    self._end_statement(stream)
            if failed is not None:
                ready.append(hrana.cursor_step_error(index, failed))
            outcomes.append(b"" if failed is None else failed)
        if ready:
            yield b"".join(ready)

    def _pieces(self, stream: Stream) -> Generator[bytes, None, None]:
        """The rest of a statement that is still open.

        Raises:
          StatementError: it failed, or the server has ended it while nobody fetched.
        """
        session = _session(stream)
        statement = session.latest
        alone = stream.alone
        while statement is not None and statement.more:
            try:
                piece = statement.fetch(PIECE)
            except SqlError as failure:
                if failure.rows:
                    yield failure.rows
                raise self._interrupted(stream, session.translate(failure)) from None
            if alone and not statement.more:
                try:
                    session.control("RELEASE nl_statement")
                except (
                    StatementError
                ):  # as a COMMIT fails: the last entry, which tells the end, is not true
                    yield piece[: piece.rfind(b"\n", 0, -1) + 1]
                    raise
                stream.alone = False
            yield piece
        if stream.ending is not None:
            raise self._interrupted(stream, StatementError(*stream.ending))

    def _end_statement(self, stream: Stream) -> None:
        """However a cursor's step ends: an open statement would keep its snapshot, and its interrupt."""
        session = _session(stream)
        if session.latest is not None:
            session.latest.reset()
        if stream.alone or (session.native.in_transaction and not stream.in_transaction):
            stream.alone = False
            session.rollback()  # its rows did not all go out: nothing of it is kept
        self._settle(stream)

    # ------------------------------------------------------------------ statements

    def _batch(self, stream: Stream, steps: Sequence[Step], outcomes: list[Outcome]) -> Work:
        for step in steps:
            if not hrana.holds(step.condition, outcomes, not stream.in_transaction):
                outcomes.append(None)
                continue
            outcomes.append((yield from self._guarded(stream, step, None, len(outcomes))))

    def _script(self, stream: Stream, sql: str) -> Generator[None, None, bytes]:
        session = _session(stream)
        at = 0
        try:
            text = sql.encode()
            while (found := session.split(text, at)) is not None:
                prepared, at = found
                yield from self._run(stream, prepared, _QUIET, None, 0)
        except UnicodeEncodeError:
            error = StatementError("SQL string is not Unicode text", "SQL_PARSE_ERROR")
            return hrana.error_result(error)
        except StatementError as failed:
            return hrana.error_result(failed)
        return hrana.sequence_result()

    @staticmethod
    def _describe(stream: Stream, sql: str) -> bytes:
        try:
            return _session(stream).describe(sql)
        except StatementError as error:
            return hrana.error_result(error)

    def _guarded(
        self, stream: Stream, step: Step, shape: int | None, index: int
    ) -> Generator[None, None, bytes | StatementError]:
        """Run one step; answers its result or its failure."""
        try:
            if stream.ending is not None:
                self.end_transaction(stream)
                raise StatementError(*stream.ending)
            prepared = _session(stream).prepare(step.sql)
            return (yield from self._run(stream, prepared, step, shape, index))
        except StatementError as error:
            return error

    def _run(
        self, stream: Stream, prepared: Prepared, step: Step, shape: int | None, index: int
    ) -> Generator[None, None, bytes]:
        session = _session(stream)
        if not stream.access.write and not prepared.readonly:
            if stream.access.refusal is not None:
                raise StatementError(*stream.access.refusal)
            raise hrana.sqlite_error(
                "attempt to write a readonly database: the token allows reading only; nothing was changed",
                _READONLY,
            )
        if stream.readonly and not prepared.readonly:
            raise hrana.sqlite_error("attempt to write a readonly database", _READONLY)
        if not prepared.readonly and stream.turn is None:
            stream.turn = self._turn.take()
        if not prepared.readonly and stream.turn is None:
            yield None
            if stream.turn is None:
                raise StatementError(
                    "Server cannot handle additional transactions: another one writes. Nothing was "
                    "changed",
                    "TRANSACTION_BUSY",
                )
        if stream.ending is not None:
            self.end_transaction(stream)
            raise StatementError(*stream.ending)
        if prepared.kind is Kind.STICKY and not prepared.setting:  # temporary objects
            stream.sticky = True
            stream.settings = None
        try:
            if shape == CURSOR:
                result = self._open_cursor(stream, prepared, step, index)
            elif prepared.kind is Kind.WRITE and prepared.rows:
                result = _all_or_nothing(session, prepared, step)
            else:
                result = session.run(prepared, step)
        except StatementError as error:
            raise self._interrupted(stream, error) from None
        finally:
            if not prepared.statement.more:
                self._settle(stream)
            elif not stream.opened:
                stream.opened = (
                    time.monotonic()
                )  # it holds a snapshot, perhaps the turn: not for ever
        if prepared.begins_readonly:
            stream.readonly = True
        return result

    def _open_cursor(self, stream: Stream, prepared: Prepared, step: Step, index: int) -> bytes:
        """The first piece of a cursor's step.

        A write whose rows do not fit into it stays open with the turn, in a savepoint, without which nothing
        could undo it when its rows are not fetched: SQLite has written all of it before the first row comes.
        """
        session = _session(stream)
        alone = prepared.kind is Kind.WRITE and prepared.rows and not session.native.in_transaction
        if not alone:
            return session.run(prepared, step, batch=PIECE, shape=CURSOR, index=index)
        session.control("SAVEPOINT nl_statement")
        try:
            result = session.run(prepared, step, batch=PIECE, shape=CURSOR, index=index)
            if prepared.statement.more:
                stream.alone = True
            else:
                session.control("RELEASE nl_statement")
        except StatementError:
            session.rollback()
            raise
        return result

    def _interrupted(self, stream: Stream, error: Exception) -> StatementError:
        """The failure to report: if the server stopped the statement, why it did."""
        if stream.ending is not None:
            self.end_transaction(stream)
            return StatementError(*stream.ending)
        if isinstance(error, StatementError):
            return error
        return StatementError("The statement was stopped", "SQLITE_INTERRUPT")

    # ------------------------------------------------------------------ transactions

    def end_transaction(self, stream: Stream) -> None:
        """Roll back what is open and give the turn on. No statement of the stream is running; a cursor ends."""
        session = stream.session
        if session is not None:
            if session.latest is not None:
                session.latest.reset()
            stream.alone = False
            session.rollback()
            self._settle(stream)

    def _settle(self, stream: Stream) -> None:
        """Take notice of what a statement did to the transaction."""
        native = _session(stream).native
        inside = native.in_transaction
        if inside and not stream.in_transaction:
            stream.opened = time.monotonic()
        elif not inside:
            stream.opened = 0.0
            stream.readonly = False
        stream.in_transaction = inside
        if stream.turn is not None and not (inside and native.writing):
            ticket, stream.turn = stream.turn, None
            try:
                self._committed(_session(stream))
            finally:
                self._turn.release(ticket)


def _all_or_nothing(session: Session, prepared: Prepared, step: Step) -> bytes:
    """Run a write that answers rows: when they are too many, nothing of it is kept.

    SQLite has written everything before the first row comes.
    """
    alone = not session.native.in_transaction
    session.control("SAVEPOINT nl_statement")
    try:
        result = session.run(prepared, step)
    except StatementError as error:
        if session.native.in_transaction:  # else it was rolled back as a whole
            if hrana.is_excess(error):
                session.control("ROLLBACK TO nl_statement")
            session.control("RELEASE nl_statement")
        raise
    try:
        session.control("RELEASE nl_statement")
    except StatementError:  # what fails a COMMIT: a deferred foreign key, a full disk
        if alone:
            session.rollback()
        raise
    return result


def _session(stream: Stream) -> Session:
    assert stream.session is not None
    return stream.session
