"""The routes that run SQL: pipelines, those of replicas, and cursors."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from nearlite import compression, hrana
from nearlite.above import POSITION
from nearlite.access import Access
from nearlite.asked import ReplicaOf
from nearlite.delivered import Delivered
from nearlite.exchange import (
    JSON,
    Answering,
    Client,
    Deadlines,
    Expecting,
    Headers,
    HttpError,
    Receive,
    Scope,
    Send,
    StatementFailedError,
    expecting,
    failed,
    header,
    load_protobuf,
    read_body,
)
from nearlite.execution import Execution
from nearlite.hrana import Planner, ProtocolError, Refused
from nearlite.last_errors import LastErrors
from nearlite.leaving import Departure, GoneError, Leaving
from nearlite.running import Ran, Running, begin
from nearlite.shown import Shown
from nearlite.sockets import Sockets
from nearlite.streams import Stream

log = logging.getLogger("nearlite.server")

_T = TypeVar("_T")

_CURSOR_TYPE: Final = b"text/plain"
_PROTOBUF_TYPE: Final = b"application/x-protobuf"
_PROTOBUF_CURSOR_TYPE: Final = b"application/octet-stream"
_LARGE_BODY: Final = 256 << 10  # bytes; decoding more would hold up the event loop
CURSOR: Final = "/v3/cursor"
SQL: Final = "/nl/v1/sql"
REPAIR: Final = "/nl/v1/repair"
VERSIONS: Final = {"/v2/pipeline": 2, "/v3/pipeline": 3, SQL: 3}
"""Paths of pipelines, and the Hrana version that is spoken there."""
PROTOBUF: Final = "/v3-protobuf/pipeline"
PROTOBUF_CURSOR: Final = "/v3-protobuf/cursor"
ALONE: Final = {"/v1/execute": hrana.decode_execute, "/v1/batch": hrana.decode_batch}
"""Paths of Hrana 1 over HTTP: one request on a stream of its own."""
_STATUS: Final = {
    "ARGS_BOTH_POSITIONAL_AND_NAMED": 501,
    "TRANSACTION_TIMEOUT": 503,
    "TRANSACTION_BUSY": 503,
    "SQLITE_READONLY": 403,
    "BLOCKED": 403,
}
"""Of failed statements there, other than SQLite's (500) and malformed ones (400)."""


class Routes:
    """Runs requests on an executor and answers them. Event loop thread only.

    Args:
      executor: runs SQL.
      shown: answers what replicas write.
      answering: sends.
      deadlines: of bodies.
      guard: awaits a handler and answers its exceptions.
      last: is told of statements that fail; None: nobody wants to know.
    """

    def __init__(
        self,
        executor: Execution,
        shown: Shown,
        answering: Answering,
        deadlines: Deadlines,
        guard: Callable[[Scope, Send, Awaitable[None]], Awaitable[None]],
        last: LastErrors | None = None,
    ) -> None:
        self._last = last
        self._executor = executor
        self.shown = shown
        self._answering = answering
        self._deadlines = deadlines
        self.guard = guard
        self._delivered = Delivered()
        self._short_bytes = min(_LARGE_BODY, executor.limits.max_request_bytes)
        self._working: set[asyncio.Task[None]] = set()
        self._sockets = Sockets(executor, deadlines, last)

    @property
    def displaced(self) -> bool:
        """Whether the database's file was replaced or removed under the server."""
        return self._executor.displaced

    @property
    def executor(self) -> Execution:
        """Runs SQL."""
        return self._executor

    async def close(self) -> None:
        """Finish what is queued, roll back what is open."""
        await self._sockets.close()
        await self._executor.close()

    async def socket(
        self, scope: Scope, receive: Receive, send: Send, grant: Callable[[str | None], Access]
    ) -> None:
        """A WebSocket, from its upgrade to its end. Raises HttpError: it is not accepted."""
        await self._sockets.answer(scope, receive, send, grant)

    # ------------------------------------------------------------------ pipelines

    async def pipeline(
        self,
        path: str,
        scope: Scope,
        receive: Receive,
        send: Send,
        access: Access,
        *,
        body: bytes | None = None,
    ) -> None:
        """``POST v2/pipeline``, ``POST v3/pipeline``, ``POST nl/v1/sql``: `path` is one of VERSIONS, or PROTOBUF.

        `body`: it has been read already.
        """
        replica = self.shown.replica(scope) if path == SQL else None
        if body is None:
            body = await read_body(scope, receive, self._deadlines)
        decode = hrana.decode_pipeline
        if path == PROTOBUF:
            decode = (await load_protobuf()).decode_pipeline
        request = await _aside(decode, body)
        number = self._delivered.number(scope)
        running = Running(self._executor, VERSIONS.get(path, 3), request, scope, access)
        self._delivered.note(number)
        await _Run(self, running, path, scope, replica).whole(receive, send)

    async def alone(
        self, path: str, scope: Scope, receive: Receive, send: Send, access: Access
    ) -> None:
        """``POST v1/execute``, ``POST v1/batch``: `path` is one of ALONE."""
        body = await read_body(scope, receive, self._deadlines)
        request = ALONE[path](body)
        number = self._delivered.number(scope)
        running = Running(self._executor, 2, request, scope, access)
        self._delivered.note(number)
        try:
            if not running.now():
                await running.finish(Leaving(receive))
            self.end(running, scope)
        finally:
            await self.leave(running.stream, kept=False)
        try:
            answer = hrana.alone(running.first)
        except hrana.StatementError as error:
            sqlite = 500 if error.code.startswith("SQLITE_") else 400
            status = _STATUS.get(error.code, sqlite)
            raise StatementFailedError(status, error.code, error.message) from None
        told = self._executor.told(running.stream)
        answer, headers = await compression.compressed(scope, answer, told)
        await self._answering.whole(send, 200, answer, headers=headers)

    def short(self, path: str, scope: Scope, body: bytes, client: Client, access: Access) -> bool:
        """Run a pipeline that has come whole, without a task unless it has to wait for a thread.

        Returns:
          False when nothing was done: it goes the usual way, and is told there what is wrong with it.
        """
        if self._executor.displaced or len(body) > self._short_bytes:
            return False
        try:
            replica = self.shown.replica(scope) if path == SQL else None
            request = hrana.decode_pipeline(body)
            number = self._delivered.number(scope)
            running = Running(self._executor, VERSIONS[path], request, scope, access)
        except Exception:  # noqa: BLE001 - whatever it is, it is told the usual way
            return False
        run = _Run(self, running, path, scope, replica)
        try:
            complete = running.now()
        except ProtocolError:
            self._executor.streams.untake(running.stream)  # for the other way
            return False
        except Exception:
            log.exception("a request failed")
            self._delivered.note(number)
            run.refuse(failed(), client)
            return True
        self._delivered.note(number)
        if complete:
            run.end(client)
        elif not running.group(lambda complete: run.grouped(complete, client)):
            self.later(run, client)
        return True

    def later(self, run: _Run, client: Client) -> None:
        """Finish what takes time, in a task of its own, and answer without ASGI."""
        leaving = Departure()
        client.wait(leaving.leave)
        self._soon(run.later(leaving, client))

    def end(self, running: Running, scope: Scope) -> Ran:
        """All requests of a pipeline have been executed. Raises HttpError: it is refused after all."""
        if running.stream.in_transaction:
            self._check_snapshot(scope)
        ran = running.end()
        if self._last is not None:
            self._last.answered(ran.answer)
        return ran

    def _check_snapshot(self, scope: Scope) -> None:
        """Whether a transaction that began with reads on a replica can go on here.

        Asked after its first request: if that has written, the write lock is held and nobody else can
        commit. What is refused is rolled back, because its stream ends.

        Raises:
          HttpError: 409 when what was read is not the present state (SQLite: SQLITE_BUSY_SNAPSHOT).
        """
        text = header(scope, b"nearlite-read")
        if text is None:
            return
        here = self.shown.state()
        position, _, state_hash = text.decode("latin-1").partition(" ")
        # The hash counts, too: a roll begins a new generation with the same content.
        if position != str(here.position) and state_hash != f"{here.hash:016x}":
            raise HttpError(
                409,
                "SNAPSHOT_STALE",
                "The database has changed since the transaction read it; it was rolled back here",
            )

    async def answer(
        self, ran: Ran, path: str, scope: Scope, send: Send, replica: ReplicaOf | None
    ) -> None:
        """Send an answer. If it is known not to arrive, its stream ends: nobody else has the baton."""
        sequence = ran.stream.sequence
        try:
            if path == SQL:
                known = replica if ran.outside else None
                await self.shown.answer(send, ran.answer, known, ran.headers)
            elif path == PROTOBUF:
                told = await _aside((await load_protobuf()).pipeline_answer, ran.answer)
                body, headers = await compression.compressed(scope, told, self.told(ran))
                await self._answering.whole(send, 200, body, _PROTOBUF_TYPE, headers)
            else:
                body, headers = await compression.compressed(scope, ran.answer, self.told(ran))
                await self._answering.whole(send, 200, body, headers=headers)
        except BaseException:
            await self._abandon(ran.stream, sequence)
            raise
        self.expect(ran.stream, expecting(scope))

    def told(self, ran: Ran) -> Headers:
        """Headers of an answer without a page set: to clients of ours also where the database stands."""
        told = self._executor.told(ran.stream)
        if not ran.headers or not ran.outside:
            return (*ran.headers, *told)
        if any(name == POSITION for name, _ in told):  # an edge's, which its primary has told
            return (*ran.headers, *told)
        return (*ran.headers, *told, self.shown.position())

    # ------------------------------------------------------------------ streams

    def expect(self, stream: Stream, client: Expecting | None) -> None:
        """An answer with the stream's baton was sent: end the stream when it turns out not to arrive."""
        if client is None or not stream.carries:
            return  # nobody waits for anything that it has
        sequence = stream.sequence
        client.expect(lambda: self._soon(self._abandon(stream, sequence)))

    async def _abandon(self, stream: Stream, sequence: int) -> None:
        """End a stream whose baton of that number was lost, unless a later request has used it."""
        if stream.closed or stream.busy or stream.sequence != sequence:
            return
        if stream.in_transaction:
            log.info("a transaction was rolled back: its client left before it had the answer")
        await self._executor.close_stream(stream)

    async def leave(self, stream: Stream, *, kept: bool) -> None:
        """The request of a stream is over."""
        surplus = self._executor.streams.done(stream)
        if not kept:
            await self._executor.close_stream(stream)
        if surplus is not None:
            await self._executor.close_stream(surplus)

    def leave_now(self, stream: Stream, *, kept: bool) -> None:
        """The same without waiting: what its end takes from others is theirs before it is answered."""
        surplus = self._executor.streams.done(stream)
        if not kept:
            self._end_stream(stream)
        if surplus is not None:
            self._end_stream(surplus)

    def _end_stream(self, stream: Stream) -> None:
        left = self._executor.end_stream(stream)
        if left is not None:
            self._soon(left)

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    # ------------------------------------------------------------------ cursors

    async def cursor(
        self,
        path: str,
        scope: Scope,
        receive: Receive,
        send: Send,
        access: Access,
        *,
        body: bytes | None = None,
    ) -> None:
        """``POST v3/cursor``: `path` is CURSOR or PROTOBUF_CURSOR; `body`: it has been read already."""
        executor = self._executor
        if body is None:
            body = await read_body(scope, receive, self._deadlines)
        decode, tell_head, tell, content_type = (
            hrana.decode_cursor,
            _as_it_is,
            _as_it_is,
            _CURSOR_TYPE,
        )
        if path == PROTOBUF_CURSOR:
            protobuf = await load_protobuf()
            decode, tell_head = protobuf.decode_cursor, protobuf.cursor_head
            tell, content_type = protobuf.cursor_lines, _PROTOBUF_CURSOR_TYPE
        request = await _aside(decode, body)
        streams = executor.streams
        stream = begin(executor, request.baton, scope, access)
        kept = False
        leaving = Leaving(receive)
        try:
            plan = Planner(3, stream.stored, executor.limits.max_statements).batch(request.batch)
            if isinstance(plan, Refused):
                entries: bytes | None = hrana.cursor_error(plan.error)
            else:
                entries = executor.cursor_at_once(stream, plan)
            if entries is not None:
                kept = True
                if self._last is not None:
                    self._last.answered(entries)
                head = tell_head(hrana.cursor_head(streams.give(stream)))
                answer = head + await _aside(tell, entries)
                told = executor.told(stream)
                answer, headers = await compression.compressed(scope, answer, told)
                await self._answering.whole(send, 200, answer, content_type, headers)
                return
            assert not isinstance(plan, Refused)
            # The baton goes out before the batch has run, which may leave something behind.
            uncertain = executor.may_keep(stream, plan)
            head = tell_head(hrana.cursor_head(streams.give(stream, uncertain=uncertain)))
            encoding = compression.accepted(scope)
            headers = () if encoding is None else compression.told(encoding)
            smaller = compression.stream(encoding)
            pieces = executor.cursor(stream, plan, leaving)
            try:
                piece = await anext(pieces, b"")  # there is something to be told of it now
                headers = (*headers, *executor.told(stream))
                await self._answering.start(send, 200, content_type, headers)
                while piece:
                    if self._last is not None:
                        self._last.answered(piece)
                    sent = smaller.piece(head + await _aside(tell, piece))
                    await self._answering.piece(send, sent)
                    head = b""
                    piece = await anext(pieces, b"")
                await self._answering.piece(send, smaller.piece(head) + smaller.end())
            finally:
                await pieces.aclose()
            await self._answering.end(send)
            kept = True
        finally:
            leaving.close()
            await self.leave(stream, kept=kept)
        self.expect(stream, expecting(scope))


def _as_it_is(data: bytes) -> bytes:
    return data


async def _aside(work: Callable[[bytes], _T], data: bytes) -> _T:
    """Decode or transcribe something, in a thread if that takes a while."""
    if len(data) <= _LARGE_BODY:
        return work(data)
    return await asyncio.get_running_loop().run_in_executor(None, work, data)


def _smaller(
    encoding: str | None, body: bytes, content_type: bytes, headers: Headers
) -> tuple[bytes, bytes, Headers] | None:
    """An answer on the short cut, compressed; None: that would take too long there."""
    if encoding is None:
        return body, content_type, headers
    if len(body) > compression.AT_ONCE:
        return None
    made = compression.compress(encoding, body)
    if len(made) >= len(body):
        return body, content_type, headers
    return made, content_type, (*headers, *compression.told(encoding))


class _Run:
    """One pipeline on its way to an answer, from when it is being executed.

    Args:
      routes: whose it is.
      running: the pipeline.
      path: where it was sent.
      scope: of its request.
      replica: that asks for what changed, too.
    """

    __slots__ = ("_alone", "_path", "_ran", "_refusal", "_replica", "_routes", "_running", "_scope")

    def __init__(
        self,
        routes: Routes,
        running: Running,
        path: str,
        scope: Scope,
        replica: ReplicaOf | None,
    ) -> None:
        self._routes = routes
        self._running = running
        self._path = path
        self._scope = scope
        self._replica = replica
        self._alone = False  # its next request cannot be part of a group
        self._ran: Ran | None = None
        self._refusal: HttpError | GoneError | None = None

    async def whole(self, receive: Receive, send: Send) -> None:
        """Execute and answer it."""
        try:
            if self._running.now():
                self._ran = self._routes.end(self._running, self._scope)
            else:
                await self._finish(receive)
        finally:
            kept = self._ran is not None and self._ran.kept
            await self._routes.leave(self._running.stream, kept=kept)
        assert self._ran is not None
        await self._routes.answer(self._ran, self._path, self._scope, send, self._replica)

    # ------------------------------------------------------------------ on the short cut

    def grouped(self, complete: bool, client: Client) -> None:
        """A group of writes has run its requests, all that were left or some."""
        self._alone = not complete
        if complete:
            self.end(client)
        else:
            self._routes.later(self, client)

    async def later(self, leaving: Departure, client: Client) -> None:
        """Execute what is left and answer. Never raises."""
        try:
            await self._running.finish(leaving, alone=self._alone)
        except HttpError as error:
            self.refuse(error, client)
        except ProtocolError as broken:
            self.refuse(HttpError(broken.status, broken.code, broken.message), client)
        except GoneError as gone:
            self.refuse(gone, client)
        except Exception:
            log.exception("a request failed")
            self.refuse(failed(), client)
        else:
            self.end(client)

    def end(self, client: Client) -> None:
        """All requests have been executed. Never raises: it may be called for many in a row."""
        routes, stream = self._routes, self._running.stream
        try:
            ran = self._ran = routes.end(self._running, self._scope)
            routes.leave_now(stream, kept=ran.kept)
            if self._path == SQL:
                known = self._replica if ran.outside else None
                whole = routes.shown.answer_now(ran.answer, known, ran.headers)
            else:
                whole = ran.answer, JSON, routes.told(ran)
                if len(ran.answer) >= compression.LEAST:
                    whole = _smaller(compression.accepted(self._scope), *whole)
            if whole is not None:
                client.answer(*whole)
                routes.expect(stream, client)
                return
        except HttpError as error:
            self._refusal = error
        except Exception:
            log.exception("a request failed")
            self._refusal = failed()
        client.proceed(self.rest)

    def refuse(self, refusal: HttpError | GoneError, client: Client) -> None:
        """Answer an error, or nobody who has left; its stream ends."""
        self._refusal = refusal
        client.proceed(self.rest)

    async def rest(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What takes time after all, in a task of its own: an ASGI application."""
        await self._routes.guard(scope, send, self._rest(scope, receive, send))

    async def _rest(self, scope: Scope, receive: Receive, send: Send) -> None:
        routes, stream = self._routes, self._running.stream
        if self._refusal is not None:
            await routes.leave(stream, kept=False)
            raise self._refusal
        if self._ran is None:
            try:
                await self._finish(receive)
            finally:
                kept = self._ran is not None and self._ran.kept
                await routes.leave(stream, kept=kept)
        assert self._ran is not None
        await routes.answer(self._ran, self._path, scope, send, self._replica)

    async def _finish(self, receive: Receive) -> None:
        await self._running.finish(Leaving(receive), alone=self._alone)
        self._ran = self._routes.end(self._running, self._scope)
