"""A primary as one connection sees it: a Hrana stream with its transaction, over HTTP.

Statements travel as Hrana version 3 pipelines (JSON). Between two requests a stream is named by its
baton; it is kept only while a transaction may be open on it. What belongs to the connection is sent
again with each new stream: settings (pragmas) as its first statements, the counters in a header of
every request. How a pipeline reaches the server is the caller's: a purely remote connection posts it,
a replica sends it with its position and gets the pages that were written in the same answer.

Source: the Hrana 3 specification published with libSQL.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import msgspec

from nearlite._native._lib import sqlite_exception
from nearlite.asking import (
    AUTOCOMMIT,
    CLOSE,
    NOTHING,
    UNLESS_ENDED,
    Answer,
    Description,
    Failed,
    Outcome,
    Request,
    Result,
    Steps,
    Values,
    decode_answer,
    decode_description,
    decode_rows,
    decode_steps,
    encode,
    failure,
    if_ok,
    statement_of,
)
from nearlite.errors import (
    AnswerError,
    Error,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    SyncError,
)
from nearlite.http import Sent
from nearlite.position import Position
from nearlite.sync import REQUEST_SENT

SEND_BYTES: Final = 8 << 20
"""Bytes sent in one request: of parameters of `executemany` (as JSON), of the text of a script."""
_STORED_BYTES: Final = 5000  # longest SQL text that a server stores under a number
_BUSY_SNAPSHOT: Final = 517
_LOST: Final = (
    "the transaction on the primary was lost with the connection to it; unless its COMMIT was what had "
    "been sent, the primary rolls it back. Call rollback() and start again"
)

_Coded = TypeVar("_Coded")
_Read = TypeVar("_Read")
Counters = tuple[int, int, int]
"""What last_insert_rowid(), changes() and total_changes() answer."""


class Notes:
    """What travels beside a pipeline in headers.

    SQLite keeps three counters per connection, and a statement may use them: INSERT ... VALUES
    (last_insert_rowid()). Ours go along with every request, because streams come and go.

    Attributes:
      counters: of the connection; before the request, and if the server told, after it.
      told: the server told the counters.
      read: position and state hash of the snapshot that the transaction has read, or "".
      position: of the primary after the request, if the server told and no transaction is open.
      reads_only: what would write is refused there.
      sent: called with the request when it is under way, for whoever wants to end it.
      answer: the pipeline's answer, from when it has come: whatever fails then, it was carried out.
    """

    __slots__ = ("answer", "counters", "position", "read", "reads_only", "sent", "told")

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self.told = False
        self.read = ""
        self.position: Position | None = None
        self.reads_only = False
        self.sent: Callable[[Sent], object] | None = None
        self.answer: bytes | None = None

    def headers(self) -> dict[str, str]:
        """Of the request."""
        headers = {
            "Nearlite-Counters": ",".join(map(str, self.counters)),
            "Nearlite-Request": os.urandom(8).hex(),
        }
        if self.read:
            headers["Nearlite-Read"] = self.read
        if self.reads_only:
            headers["Nearlite-Access"] = "read"
        return headers

    def answered(self, header: Callable[[str], str]) -> None:
        """Take the answer's headers; `header` gives one by its lower-case name, "" when there is none."""
        position = header("nearlite-position")
        if position and header("nearlite-autocommit") != "0":
            with contextlib.suppress(ValueError):  # "unknown": the primary could not look
                self.position = Position.parse(position)
        counters = header("nearlite-counters")
        if not counters:
            return  # not our server
        try:
            last_rowid, changes, total = map(int, counters.split(","))
        except ValueError:
            raise _unreadable("it has a malformed header") from None
        if not all(-(1 << 63) <= number < 1 << 63 for number in (last_rowid, changes, total)):
            raise _unreadable("it has a malformed header")
        self.counters = last_rowid, changes, total
        self.told = True


Send = Callable[[bytes, bool, Notes], bytes]
"""Sends a pipeline, the second argument says whether its effects shall be visible here; its answer."""


def _unreadable(why: str) -> AnswerError:
    return AnswerError(f"the primary's answer is no pipeline result: {why}", state=REQUEST_SENT)


def _read(decode: Callable[[_Coded], _Read], data: _Coded) -> _Read:
    """Decode a part of an answer. Raises AnswerError when it is malformed."""
    try:
        return decode(data)
    except (
        msgspec.MsgspecError,
        ValueError,
        RecursionError,
    ) as error:  # of UTF-8, of numbers and base64 as well
        raise _unreadable(str(error)) from None


def _outcome(result: Result) -> Outcome:
    assert result.response is not None
    return Outcome(decode_rows(result.response.result))


def _baton_is_void(error: SyncError) -> bool:
    """Whether a server refused a request only because it has forgotten the stream."""
    return error.code.startswith(("BATON_", "STREAM_")) or "baton" in error.message


# ---------------------------------------------------------------- the stream


class Stream:
    """Statements of one connection on a primary.

    Not thread-safe. A request that the server refuses because it has forgotten an idle stream was not
    carried out and is sent again on a new one.

    Attributes:
      in_transaction: a transaction is open on the primary.
      counters: of the connection; whoever runs statements elsewhere, too, keeps them up to date.
      compiled: the last statement failed, if it did, after it had been compiled.
      settings: pragmas that every statement must run under; sent first on a new stream.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self._baton: str | None = None
        self._lost = False
        self._told = False
        self._pid = os.getpid()
        self.in_transaction = False
        self.compiled = True
        self.counters: Counters = (0, 0, 0)
        self.settings: dict[str, str] = {}

    # ------------------------------------------------------------ statements

    def execute(
        self,
        sql: str,
        values: Values = (),
        *,
        opening: Sequence[str] = (),
        visible: bool = True,
        may_open: bool = True,
    ) -> Outcome:
        """Run one statement.

        Args:
          sql: exactly one statement.
          values: its parameters in order.
          opening: statements to run before it in the same request (BEGIN, SAVEPOINT): if one fails,
            the statement is not run.
          visible: what it writes shall be visible in the local replica when this returns.
          may_open: False: it is known to begin no transaction; the stream need not be kept.

        Raises:
          Error: as SQLite says on the primary.
          SyncError: no answer, or a refusal.
        """
        if not opening:
            request: Request = {"type": "execute", "stmt": statement_of(sql, values)}
            keep = may_open or self.in_transaction
            results = self._pipeline([request], visible=visible, keep=keep)
            self._raise(results[0])
            return self._count(_read(_outcome, results[0]))
        steps = [{"stmt": statement_of(text)} for text in opening]
        steps.append({"stmt": statement_of(sql, values)})
        for number in range(1, len(steps)):
            steps[number]["condition"] = if_ok(number - 1)
        found = self._batch(steps, visible=visible)
        self._raise_steps(found)
        last = found.step_results[-1]
        return self._count(NOTHING if last is None else _read(Outcome, last))

    def many(
        self,
        sql: str,
        sets: Sequence[msgspec.Raw],
        *,
        opening: Sequence[str],
        commit: bool,
        visible: bool,
    ) -> int:
        """Run one statement for each of `sets`, stopping at the first failure; rows changed.

        Args:
          sql: exactly one statement.
          sets: values of its parameters, each made by `encode_values`.
          opening: as `execute`.
          commit: end the transaction afterwards, keeping what succeeded.
          visible: as `execute`.

        Raises: as `execute`; the sets before the failing one have been executed.
        """
        stored = len(sql.encode()) <= _STORED_BYTES
        sql = str.__str__(sql)  # of a subclass, too
        name: Request = {"sql_id": 1} if stored else {"sql": sql}
        steps: list[Request] = [{"stmt": statement_of(text)} for text in opening]
        first = len(steps)
        steps += [{"stmt": {**name, "args": values, "want_rows": False}} for values in sets]
        for number in range(1, len(steps)):
            steps[number]["condition"] = if_ok(number - 1)
        if commit:
            steps.append({"stmt": statement_of("COMMIT"), "condition": UNLESS_ENDED})
        before = [{"type": "store_sql", "sql_id": 1, "sql": sql}] if stored else []
        after = [{"type": "close_sql", "sql_id": 1}] if stored else []
        found = self._batch(steps, visible=visible, before=before, after=after, keep=not commit)
        done = found.step_results[first : first + len(sets)]
        count = sum(step.affected_row_count for step in done if step is not None)
        if done and done[-1] is not None:
            self._count(_read(Outcome, done[-1]), count)
        try:
            self._raise_steps(found)
        except Error:
            self.compiled = self.compiled or (bool(done) and done[0] is not None)
            raise
        return count

    def parameters(self, sql: str) -> tuple[str | None, ...]:
        """Names of a statement's parameters without their prefix, None for a nameless one."""
        return tuple(param.name[1:] if param.name else None for param in self.describe(sql).params)

    def describe(self, sql: str) -> Description:
        """Compile one statement there, without running it."""
        request = {"type": "describe", "sql": str.__str__(sql)}
        result = self._pipeline([request], visible=False, keep=self.in_transaction)[0]
        self._raise(result)
        assert result.response is not None
        return _read(decode_description, result.response.result)

    def script(self, sql: str, *, visible: bool) -> None:
        """Run the statements of a script; rows are thrown away. Stops at the first failure."""
        results = self._pipeline([{"type": "sequence", "sql": sql}], visible=visible, keep=True)
        self._raise(results[0])

    def end(self, word: str, *, visible: bool) -> None:
        """COMMIT or ROLLBACK the open transaction."""
        if self._lost and word == "ROLLBACK":
            self._forget()
            return
        if word == "ROLLBACK":
            # Closing a stream rolls back; nothing else hangs on it but settings, which are sent again.
            try:
                results = self._pipeline([_rollback()], visible=False, keep=False)
            except SyncError as error:
                if not _baton_is_void(error):
                    raise
                # The server has rolled back, or will: the answer to the last request was not taken.
                self._forget()
                return
            self._raise(results[0])
            return
        request: Request = {"type": "execute", "stmt": statement_of(word)}
        self._raise(self._pipeline([request], visible=visible, keep=True)[0])

    def close(self) -> None:
        """Give the stream up; an open transaction is rolled back. Never raises for the network."""
        # In the child of a fork the stream is the parent's, with the transaction it may have open.
        if self._baton is not None and not self._lost and self._pid == os.getpid():
            try:
                self._pipeline([], visible=False, keep=False)
            except Error:
                pass  # the server gives an idle stream up by itself
        self._forget()

    # ------------------------------------------------------------ requests

    def _batch(
        self,
        steps: list[Request],
        *,
        visible: bool,
        before: Sequence[Request] = (),
        after: Sequence[Request] = (),
        keep: bool = True,
    ) -> Steps:
        requests = [*before, {"type": "batch", "batch": {"steps": steps}}, *after]
        results = self._pipeline(requests, visible=visible, keep=keep)
        for result in results:
            self._raise(result)
        response = results[len(before)].response
        assert response is not None
        return _read(decode_steps, response.result)

    def _pipeline(self, requests: list[Request], *, visible: bool, keep: bool) -> list[Result]:
        """Send requests on the stream; answers their results.

        Args:
          requests: Hrana stream requests.
          visible: as `execute`.
          keep: a transaction may be open afterwards. Otherwise the stream is closed.
        """
        if self._pid != os.getpid():
            raise ProgrammingError(
                "the connection was opened before a fork, by the parent process, and works only "
                "there; nothing was done. Open a new connection in the child"
            )
        if self._lost:
            raise OperationalError(_LOST)
        while True:
            opened = self._baton is None
            first = self._settings() if opened else []
            last = [AUTOCOMMIT] if keep else [CLOSE]
            body = {"baton": self._baton, "requests": [*first, *requests, *last]}
            try:
                answer = self._exchange(encode(body), visible)
            except SyncError as error:
                if error.code == "SNAPSHOT_STALE":
                    self._baton = None
                    raise sqlite_exception(_BUSY_SNAPSHOT, "database is locked") from error
                if self.in_transaction:
                    self._lost = True
                elif not opened and _baton_is_void(error):
                    self._forget()
                    continue
                self._baton = None
                raise
            break
        results = answer.results
        if len(results) != len(first) + len(requests) + 1:
            self._lost, self._baton = self.in_transaction, None
            raise _unreadable("another number of requests than were sent is answered")
        self._after(answer, keep=keep)
        for result in results[: len(first)]:
            self._raise(result)
        return results[len(first) : -1]

    def _exchange(self, body: bytes, visible: bool) -> Answer:
        notes = Notes(self.counters)
        data = self._send(body, visible, notes)
        self._told = notes.told
        self.counters = notes.counters
        answer = _read(decode_answer, data)
        if answer.base_url:
            raise NotSupportedError(
                f"the server asks to continue at {answer.base_url}; connect to that URL"
            )
        return answer

    def _after(self, answer: Answer, *, keep: bool) -> None:
        """What the stream is after an answer."""
        self._baton = answer.baton
        last = answer.results[-1]
        if not keep or last.response is None:
            self.in_transaction = False
            self._baton = None
            return
        self.in_transaction = not last.response.is_autocommit
        self._lost = self.in_transaction and self._baton is None

    def _settings(self) -> list[Request]:
        return [
            {"type": "execute", "stmt": statement_of(sql, rows=False)}
            for sql in self.settings.values()
        ]

    def _forget(self) -> None:
        self._baton = None
        self._lost = False
        self.in_transaction = False

    # ------------------------------------------------------------ results

    def _count(self, outcome: Outcome, changes: int | None = None) -> Outcome:
        """Keep the counters where the server does not tell them."""
        if not self._told:
            last_rowid, last, total = self.counters
            if outcome.last_rowid is not None:
                last_rowid = outcome.last_rowid
            last = outcome.changes or last
            total += outcome.changes if changes is None else changes
            self.counters = last_rowid, last, total
        return outcome

    def _raise(self, result: Result) -> None:
        if result.error is not None:
            raise self._failure(result.error)
        if result.response is None:
            raise _unreadable("it holds neither a result nor an error")

    def _raise_steps(self, found: Steps) -> None:
        for error in found.step_errors:
            if error is not None:
                raise self._failure(error)

    def _failure(self, error: Failed) -> Exception:
        # What does not compile is SQLITE_ERROR; few failures of a running statement are.
        self.compiled = (error.code or "").startswith("SQLITE_") and error.code != "SQLITE_ERROR"
        return failure(error)


def _rollback() -> Request:
    return {"type": "execute", "stmt": statement_of("ROLLBACK")}
