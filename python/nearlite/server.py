"""SQL over HTTP (Hrana 2 and 3, JSON) and the native protocol, as one ASGI application.

The hot paths are dispatched by hand: pipeline, cursor, changes, sql. Routing, middleware and a
request object would cost more than the statement. Everything else is Starlette's.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NamedTuple, Protocol
from urllib.parse import urlsplit

from nearlite import hrana
from nearlite.changes import Feed, Source
from nearlite.cold import cold_paths, program_version
from nearlite.exchange import (
    CORS,
    Answering,
    ClientGoneError,
    Deadlines,
    Headers,
    HttpError,
    Receive,
    Scope,
    Send,
    cut_off,
    expecting,
    header,
    read_body,
)
from nearlite.hrana import Planner, ProtocolError, Refused
from nearlite.leaving import GoneError, Leaving
from nearlite.pipeline import Executor, Upstream
from nearlite.session import MAX_RESPONSE
from nearlite.streams import Limits, Stream, baton_key

log = logging.getLogger("nearlite.server")

_CURSOR_TYPE: Final = b"text/plain"
_LARGE_BODY: Final = 256 << 10  # bytes; decoding more would hold up the event loop
_COUNTERS: Final = b"nearlite-counters"
_THREE_NUMBERS: Final = re.compile(rb"(-?[0-9]{1,19}),(-?[0-9]{1,19}),(-?[0-9]{1,19})")
_SLASHES: Final = re.compile(r"/{2,}")


class Owner(Upstream, Source, Protocol):
    """What is served: a primary."""

    def close(self) -> None:
        """End with a roll."""


class _Ran(NamedTuple):
    """A pipeline that was executed.

    Attributes:
      stream: whose requests they were.
      answer: body, as JSON.
      outside: the stream was left outside a transaction.
      headers: to be sent with it.
    """

    stream: Stream
    answer: bytes
    outside: bool
    headers: Headers


class App:
    """One database behind HTTP. Build it with `nearlite.asgi`.

    Args:
      path: the database file; the server's own things lie in the folder `path`-nearlite.
      open_owner: opens the primary; called in a thread at the first request or at startup.
      auth_token: what clients must send as ``Authorization: Bearer``; None: nothing.
      foreign_keys: enforcement on every connection from the beginning.
      limits: of streams.
    """

    def __init__(
        self,
        path: Path,
        open_owner: Callable[[], Owner],
        *,
        auth_token: str | None = None,
        foreign_keys: bool = False,
        limits: Limits | None = None,
    ) -> None:
        self._path = path
        self._open_owner = open_owner
        self._token = auth_token.encode() if auth_token is not None else None
        self._foreign_keys = foreign_keys
        self._limits = limits or Limits()
        self._deadlines = Deadlines()
        self._answering = Answering(self._deadlines)
        self._owner: Owner | None = None
        self._executor: Executor | None = None
        self._feed: Feed | None = None
        self._starting: asyncio.Lock | None = None
        self._abandoning: set[asyncio.Task[None]] = set()
        self._cold = cold_paths()
        self._hot: dict[str, Callable[[Scope, Receive, Send], Awaitable[None]]] = {
            "/v2/pipeline": self._pipeline_2,
            "/v3/pipeline": self._pipeline_3,
            "/v3/cursor": self._cursor,
            "/nl/v1/sql": self._sql,
        }

    def __repr__(self) -> str:
        return f"<nearlite.App of {str(self._path)!r}>"

    # ------------------------------------------------------------------ life

    async def startup(self) -> None:
        """Open the database; idempotent. Raises what opening raises."""
        if self._starting is None:
            self._starting = asyncio.Lock()
        async with self._starting:
            if self._executor is not None:
                return
            loop = asyncio.get_running_loop()
            owner = await loop.run_in_executor(None, self._open_owner)
            try:
                key = await loop.run_in_executor(None, baton_key, Path(f"{self._path}-nearlite"))
                executor = Executor(
                    owner, key=key, limits=self._limits, foreign_keys=self._foreign_keys
                )
                self._feed = Feed(owner, self._answering, program_version())
            except BaseException:
                await loop.run_in_executor(None, owner.close)
                raise
            self._owner, self._executor = owner, executor

    def stop_waiting(self) -> None:
        """Answer long polls now: the server is about to end."""
        if self._feed is not None:
            self._feed.stop()

    async def shutdown(self) -> None:
        """Finish what is queued, roll back what is open, close the database; idempotent."""
        executor, owner = self._executor, self._owner
        self._executor = self._owner = None
        self.stop_waiting()
        if executor is not None:
            await executor.close()
        if owner is not None:
            await asyncio.get_running_loop().run_in_executor(None, owner.close)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.startup()
        except Exception as error:  # noqa: BLE001 - the server has to be told, whatever it is
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.shutdown()
        await send({"type": "lifespan.shutdown.complete"})

    # ------------------------------------------------------------------ dispatch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application; it may be mounted below a path."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._lifespan(receive, send)
            return
        if kind != "http":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
            return
        try:
            if self._executor is None:
                await self.startup()
            await self._dispatch(scope, receive, send)
        except HttpError as error:
            await self._error(scope, send, error)
        except ProtocolError as broken:
            await self._error(scope, send, HttpError(broken.status, broken.code, broken.message))
        except (ClientGoneError, GoneError):
            pass
        except Exception:
            log.exception("a request failed")
            failed = HttpError(500, "INTERNAL_ERROR", "The server failed; its log says why")
            await self._error(scope, send, failed)

    async def _error(self, scope: Scope, send: Send, error: HttpError) -> None:
        try:
            await self._answering.error(send, error, head=scope["method"] == "HEAD")
        except ClientGoneError:
            pass
        except RuntimeError:  # an answer had been begun: it stays unfinished
            log.debug("an answer could not be finished", exc_info=True)
            cut_off(send)

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        root: str = scope.get("root_path", "")
        if root and path.startswith(root):
            path = path[len(root) :]
        if "//" in path:
            path = _SLASHES.sub("/", path)
        method = scope["method"]
        handler = self._hot.get(path)
        if method == "OPTIONS":
            await self._preflight(scope, send)
        elif handler is not None:
            self._admit(scope)
            if method != "POST":
                raise _not_allowed(b"POST, OPTIONS")
            await handler(scope, receive, send)
        elif path.startswith("/nl/v1/"):
            self._admit(scope)
            if method not in ("GET", "HEAD"):
                raise _not_allowed(b"GET, HEAD, OPTIONS")
            await self._native(path[7:], scope, receive, send)
        else:
            await self._cold({**scope, "path": path, "root_path": ""}, receive, send)

    def _admit(self, scope: Scope) -> None:
        self._authorize(scope)
        executor = self._executor
        if executor is not None and executor.displaced:
            raise HttpError(
                503,
                "DATABASE_REPLACED",
                "The database's file was replaced or removed under the running server; nothing was "
                "carried out. Restart the server to serve what is there now",
            )

    def _authorize(self, scope: Scope) -> None:
        expected = self._token
        if expected is None:
            if _is_foreign(scope):
                raise HttpError(
                    403,
                    "FORBIDDEN",
                    "Without a token only pages of this machine may ask; start the server with one",
                )
            return
        given = header(scope, b"authorization")
        if given is None:
            raise _unauthorized("The header Authorization is missing")
        scheme, _, token = given.partition(b" ")
        if scheme.lower() != b"bearer":
            raise _unauthorized("Only the authorization scheme Bearer is supported")
        if not hmac.compare_digest(token.strip(), expected):
            raise _unauthorized("The token is not the right one")

    async def _preflight(self, scope: Scope, send: Send) -> None:
        wanted = header(scope, b"access-control-request-headers") or b"*"
        headers = [
            CORS,
            (b"access-control-allow-methods", b"GET, HEAD, POST, OPTIONS"),
            (b"access-control-allow-headers", wanted),
            (b"access-control-max-age", b"86400"),
        ]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    # ------------------------------------------------------------------ Hrana

    async def _pipeline_2(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._pipeline(2, scope, receive, send)

    async def _pipeline_3(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._pipeline(3, scope, receive, send)

    async def _pipeline(self, version: int, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(scope, receive, self._deadlines)
        ran = await self._run(version, body, scope, receive)
        sending = self._answering.whole(send, 200, ran.answer, headers=ran.headers)
        await self._deliver(ran.stream, scope, sending)

    async def _deliver(self, stream: Stream, scope: Scope, sending: Awaitable[None]) -> None:
        """Send an answer. If it is known not to arrive, its stream ends: nobody else has the baton."""
        sequence = stream.sequence
        try:
            await sending
        except BaseException:
            await self._abandon(stream, sequence)
            raise
        self._expect(stream, scope)

    def _expect(self, stream: Stream, scope: Scope) -> None:
        """An answer with the stream's baton was sent: end the stream when it turns out not to arrive."""
        if stream.session is None:
            return  # nobody waits for anything that it has
        sequence = stream.sequence
        delivery = expecting(scope)
        if delivery is not None:
            delivery.expect(lambda: self._lost(stream, sequence))

    def _lost(self, stream: Stream, sequence: int) -> None:
        task = asyncio.get_running_loop().create_task(self._abandon(stream, sequence))
        self._abandoning.add(task)
        task.add_done_callback(self._abandoning.discard)

    async def _abandon(self, stream: Stream, sequence: int) -> None:
        """End a stream whose baton of that number was lost, unless a later request has used it."""
        executor = self._executor
        if executor is None or stream.closed or stream.busy or stream.sequence != sequence:
            return
        if stream.in_transaction:
            log.info("a transaction was rolled back: its client left before it had the answer")
        await executor.close_stream(stream)

    async def _run(self, version: int, body: bytes, scope: Scope, receive: Receive) -> _Ran:
        """Execute a pipeline."""
        executor = self._ready()
        counters = _counters(scope)
        if len(body) <= _LARGE_BODY:
            request = hrana.decode_pipeline(body)
        else:
            loop = asyncio.get_running_loop()
            request = await loop.run_in_executor(None, hrana.decode_pipeline, body)
        streams = executor.streams
        stream = streams.open() if request.baton is None else streams.take(request.baton)
        kept = False
        try:
            planner = Planner(version, stream.stored)
            plans = planner.plan(request.requests)
            results: list[bytes] = []
            if counters is not None:
                stream.set_counters(counters)
            if not executor.at_once(stream, plans, results):
                leaving = Leaving(receive)
                try:
                    await executor.finish(stream, plans, results, leaving)
                finally:
                    leaving.close()
            if stream.in_transaction:
                self._check_snapshot(scope)
            if sum(map(len, results)) > MAX_RESPONSE:
                raise HttpError(
                    400, "RESPONSE_TOO_LARGE", f"The answer is larger than {MAX_RESPONSE} bytes"
                )
            stream.stored = planner.stored
            outside = not stream.in_transaction
            kept = not planner.closes
            baton = streams.give(stream) if kept else None
            headers: Headers = ()
            if counters is not None:
                headers = ((_COUNTERS, b"%d,%d,%d" % stream.get_counters()),)
            return _Ran(stream, hrana.pipeline_answer(baton, results), outside, headers)
        finally:
            if kept or stream.sequence or stream.session is not None:
                await self._leave(executor, stream, kept=kept)

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
        assert self._owner is not None
        here = self._owner.state()
        position, _, state_hash = text.decode("latin-1").partition(" ")
        # The hash counts, too: a roll begins a new generation with the same content.
        if position != str(here.position) and state_hash != f"{here.hash:016x}":
            raise HttpError(
                409,
                "SNAPSHOT_STALE",
                "The database has changed since the transaction read it; it was rolled back here",
            )

    @staticmethod
    async def _leave(executor: Executor, stream: Stream, *, kept: bool) -> None:
        """The request of a stream is over."""
        surplus = executor.streams.done(stream)
        if not kept:
            await executor.close_stream(stream)
        if surplus is not None:
            await executor.close_stream(surplus)

    async def _cursor(self, scope: Scope, receive: Receive, send: Send) -> None:
        executor = self._ready()
        body = await read_body(scope, receive, self._deadlines)
        request = hrana.decode_cursor(body)
        streams = executor.streams
        stream = streams.open() if request.baton is None else streams.take(request.baton)
        kept = False
        leaving = Leaving(receive)
        try:
            plan = Planner(3, stream.stored).batch(request.batch)
            if isinstance(plan, Refused):
                entries: bytes | None = hrana.cursor_error(plan.error)
            else:
                entries = executor.cursor_at_once(stream, plan)
            if entries is not None:
                kept = True
                answer = hrana.cursor_head(streams.give(stream)) + entries
                await self._answering.whole(send, 200, answer, _CURSOR_TYPE)
                return
            assert not isinstance(plan, Refused)
            # The baton goes out before the batch has run, which may leave something behind.
            uncertain = executor.may_keep(stream, plan)
            head = hrana.cursor_head(streams.give(stream, uncertain=uncertain))
            await self._answering.start(send, 200, _CURSOR_TYPE)
            pieces = executor.cursor(stream, plan, leaving)
            try:
                async for piece in pieces:
                    await self._answering.piece(send, head + piece)
                    head = b""
                if head:
                    await self._answering.piece(send, head)
            finally:
                await pieces.aclose()
            await self._answering.end(send)
            kept = True
        finally:
            leaving.close()
            await self._leave(executor, stream, kept=kept)
        self._expect(stream, scope)

    # ------------------------------------------------------------------ native protocol

    async def _native(self, name: str, scope: Scope, receive: Receive, send: Send) -> None:
        feed = self._feed
        assert feed is not None
        if name == "status":
            await feed.status(send, head=scope["method"] == "HEAD")
        elif scope["method"] == "HEAD":
            raise _not_allowed(b"GET, OPTIONS")
        elif name.startswith("changes/"):
            leaving = Leaving(receive)
            try:
                await feed.changes(scope, send, name[8:], leaving)
            finally:
                leaving.close()
        elif name == "snapshot":
            await feed.snapshot(scope, send)
        else:
            raise HttpError(404, "NOT_FOUND", "There is nothing at this path")

    async def _sql(self, scope: Scope, receive: Receive, send: Send) -> None:
        feed = self._feed
        assert feed is not None
        replica = feed.replica(scope)
        body = await read_body(scope, receive, self._deadlines)
        ran = await self._run(3, body, scope, receive)
        sending = feed.answer(send, ran.answer, replica if ran.outside else None, ran.headers)
        await self._deliver(ran.stream, scope, sending)

    def _ready(self) -> Executor:
        executor = self._executor
        if executor is None:
            raise HttpError(503, "SHUTTING_DOWN", "The server is about to end")
        return executor


def _counters(scope: Scope) -> tuple[int, int, int] | None:
    """What last_insert_rowid(), changes() and total_changes() answer a replica's connection."""
    text = header(scope, _COUNTERS)
    if text is None:
        return None
    match = _THREE_NUMBERS.fullmatch(text)
    if match is not None:
        last_rowid, changes, total = map(int, match.groups())
        if all(-(1 << 63) <= number < 1 << 63 for number in (last_rowid, changes, total)):
            return last_rowid, changes, total
    raise HttpError(400, "BAD_REQUEST", "Nearlite-Counters is three 64-bit numbers")


def _not_allowed(methods: bytes) -> HttpError:
    return HttpError(
        405, "METHOD_NOT_ALLOWED", "The method is not allowed here", ((b"allow", methods),)
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_foreign(scope: Scope) -> bool:
    """Whether a browser asks on behalf of a page that comes neither from here nor from this server.

    A server without a token trusts whoever reaches it. Any web page reaches the loopback address of
    the machine that shows it, with a request that needs no preflight (text/plain).
    """
    origin = header(scope, b"origin")
    if origin is None:
        return False
    there = urlsplit(origin.decode("latin-1"))
    host = header(scope, b"host") or b""
    return there.netloc.encode() != host and not is_loopback(there.hostname or "")


def _unauthorized(why: str) -> HttpError:
    return HttpError(401, "UNAUTHORIZED", why, ((b"www-authenticate", b"Bearer"),))
