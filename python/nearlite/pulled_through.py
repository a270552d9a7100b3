"""libSQL's replicas below a relay: the primary's bases and frames, handed on and kept (rule A9).

A relay has page sets, not the primary's frames 1 to n, so what these clients ask for it asks for above, once for
all of them. What a primary has told of a generation never changes: frames are kept in memory, the base that
clients begin with in an unlinked file for a while. The end of a generation is asked for each time.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from nearlite import errors
from nearlite.access import Access
from nearlite.exchange import (
    JSON,
    NO_STORE,
    Answering,
    Deadlines,
    HttpError,
    Receive,
    Scope,
    Send,
    read_body,
)
from nearlite.frame_cache import BLOCK, FRAME, FrameCache
from nearlite.http import Deadline, Transport
from nearlite.libsql import EXPORT, LINEAGE, SYNC
from nearlite.libsql_client import end_of
from nearlite.spooling import Spool
from nearlite.threads import Threads
from nearlite.wire import decode_error

log = logging.getLogger("nearlite.server")

KEPT: Final = 64 << 20
"""Bytes of frames."""
_AT_A_TIME: Final = 16
"""Requests that are above at once."""
_HELD: Final = 60.0
"""Seconds for which a base stays that nobody reads."""
_SMALL: Final = 64 << 10
_LOOKS: Final = 140
"""Questions for one answer: an upstream may answer a frame at a time."""
_BYTES: Final = b"application/octet-stream"

_T = TypeVar("_T")


@dataclass
class _Reply:
    """A small answer from above."""

    status: int
    body: bytes
    lineage: str


class _Base:
    """A base in a file.

    Attributes:
      readers: how many read it.
      unused: nobody will any more.
    """

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self.readers = 0
        self.unused = False
        self.timer: asyncio.TimerHandle | None = None

    def let_go(self) -> None:
        """One reads it no more."""
        self.readers -= 1
        self.close_if_unused()

    def close_if_unused(self) -> None:
        if self.unused and self.readers == 0:
            self.spool.close()


class PulledThrough:
    """Answers libSQL's replicas with what the server above answers. Event loop thread only.

    Args:
      transport: to the server above.
      spool: makes an unlinked file, sealed where the database is.
      pushed: called when something was pushed through.
      estranged: whether the server above was last seen to hold another history than this one's file.
      answering: sends.
      deadlines: of the server.
    """

    def __init__(
        self,
        transport: Transport,
        spool: Callable[[], Spool],
        pushed: Callable[[], object],
        estranged: Callable[[], bool],
        answering: Answering,
        deadlines: Deadlines,
    ) -> None:
        self._transport = transport
        self._spool = spool
        self._pushed = pushed
        self._estranged = estranged
        self._answering = answering
        self._deadlines = deadlines
        self._loop = asyncio.get_running_loop()
        self._threads = Threads(_AT_A_TIME)
        self._frames = FrameCache(KEPT)
        self._bases: dict[int, _Base] = {}
        self._locks: dict[object, asyncio.Lock] = {}
        self._lineage = ""  # of all that is kept
        self._closed = False

    def close(self) -> None:
        """Let go of what is kept. What is under way ends with the transport."""
        self._closed = True
        for generation in tuple(self._bases):
            self._drop(generation)

    async def answer(
        self, path: str, scope: Scope, receive: Receive, send: Send, access: Access
    ) -> None:
        """A request to one of the paths. Raises HttpError, never of status 400 or 500 (see libsql.py)."""
        if self._estranged():
            self._forget()
        method = scope["method"]
        sync, export = SYNC.fullmatch(path), EXPORT.fullmatch(path)
        if sync is not None and method == "POST":
            await self._push(path, scope, receive, send, access)
            return
        if method != "GET":
            allow = b"GET, POST, OPTIONS" if sync is not None else b"GET, OPTIONS"
            raise HttpError(
                405, "METHOD_NOT_ALLOWED", "The method is not allowed here", ((b"allow", allow),)
            )
        if path == "/info":
            await self._info(send)
        elif export is not None:
            await self._export(int(export[1]), send)
        elif sync is not None and sync[4] is None:
            await self._pull(int(sync[1]), int(sync[2]), int(sync[3]), send)
        else:
            raise HttpError(404, "NOT_FOUND", "There is nothing at this path")

    # ------------------------------------------------------------------ what the primary tells

    async def _info(self, send: Send) -> None:
        try:
            reply = await self._ask("info")
        except HttpError:
            if not self._bases:
                raise
            generation = max(self._bases)  # what a client can begin with, without the primary
            body = json.dumps({"current_generation": generation}).encode()
            await self._answering.whole(send, 200, body, headers=(NO_STORE,))
            return
        await self._hand_on(send, reply)

    async def _pull(self, generation: int, first: int, end: int, send: Send) -> None:
        if generation < 1 or first < 1 or end <= first:
            raise HttpError(404, "NOT_FOUND", "Generations and frames count from 1")
        found = self._frames.find(generation, first, end)
        if not found:
            async with self._lock((generation, (first - 1) // BLOCK)):
                reply = await self._bring(generation, first)
            if reply is not None:
                kind = _BYTES if reply.status == 200 else JSON
                await self._hand_on(send, reply, kind)
                return
            found = self._frames.find(generation, first, end)
        await self._answering.whole(send, 200, found, _BYTES, (NO_STORE,))

    async def _bring(self, generation: int, first: int) -> _Reply | None:
        """Have frame `first` here; otherwise what is to be told instead."""
        for _ in range(_LOOKS):
            if self._frames.find(generation, first, first + 1):
                return None
            begin, behind = self._frames.missing(generation, first)
            reply = await self._ask(f"sync/{generation}/{begin}/{behind}", BLOCK * FRAME)
            if reply.status != 200:
                if begin == first:
                    return reply  # an end is asked for each time: pushes may bring frames behind it
                # A client that has pushed goes on behind an end at which others are sent on (onward.py).
                return await self._ask(f"sync/{generation}/{first}/{behind}", BLOCK * FRAME)
            try:
                if not reply.body:
                    raise ValueError("nothing came")
                self._frames.add(generation, begin, reply.body)
            except ValueError as error:
                raise _unusable(str(error)) from None
        raise _unusable("it answers a frame at a time")

    async def _export(self, generation: int, send: Send) -> None:
        base = self._bases.get(generation)
        if base is None:
            async with self._lock(("export", generation)):
                base = self._bases.get(generation)
                if base is None:
                    found = await self._download(generation)
                    if isinstance(found, _Reply):
                        await self._hand_on(send, found)
                        return
                    base = self._keep(generation, found)
        base.readers += 1
        try:
            self._use(generation, base)
            blocks = base.spool.blocks()
            length = (b"content-length", b"%d" % base.spool.size)
            await self._answering.start(send, 200, _BYTES, (length, NO_STORE))
            while piece := await self._threads.run(lambda: next(blocks, b"")):
                await self._answering.piece(send, piece)
            await self._answering.end(send)
        finally:
            base.let_go()

    async def _download(self, generation: int) -> Spool | _Reply:
        def work() -> Spool | _Reply:
            deadline = Deadline(self._transport.timeout, renewed=True)
            with self._transport.request(
                "GET", f"export/{generation}", deadline=deadline
            ) as response:
                lineage = response.header(LINEAGE)
                if response.status != 200:
                    return _Reply(response.status, response.error_body(), lineage)
                spool = self._spool()
                try:
                    room = memoryview(bytearray(256 << 10))
                    while count := response.readinto(room):
                        spool.write(room[:count])
                    spool.finish()
                except BaseException:
                    spool.close()
                    raise
                self._loop.call_soon_threadsafe(self._is_of, lineage)
                return spool

        return await self._asked(work)

    def _keep(self, generation: int, spool: Spool) -> _Base:
        for other in tuple(self._bases):  # whoever begins now begins with this one
            self._drop(other)
        base = self._bases[generation] = _Base(spool)
        if self._closed:
            self._drop(generation)
        return base

    def _use(self, generation: int, base: _Base) -> None:
        if base.timer is not None:
            base.timer.cancel()
        if not base.unused:
            base.timer = self._loop.call_later(_HELD, self._drop, generation)

    def _drop(self, generation: int) -> None:
        base = self._bases.pop(generation, None)
        if base is not None:
            if base.timer is not None:
                base.timer.cancel()
            base.unused = True
            base.close_if_unused()

    # ------------------------------------------------------------------ what clients push

    async def _push(
        self, path: str, scope: Scope, receive: Receive, send: Send, access: Access
    ) -> None:
        if not access.push:
            raise HttpError(
                403,
                "FORBIDDEN",
                "The token does not allow pages to be pushed; nothing was changed",
            )
        body = await read_body(scope, receive, self._deadlines)

        def work() -> _Reply:
            deadline = Deadline(self._transport.timeout, renewed=True)
            with self._transport.request(
                "POST", path.lstrip("/"), body=body, deadline=deadline, repeatable=False
            ) as response:
                return _Reply(response.status, response.error_body(), "")

        reply = await self._asked(work)
        if reply.status == 200:
            self._pushed()
        await self._hand_on(send, reply)

    # ------------------------------------------------------------------ requests

    async def _ask(self, target: str, most: int = _SMALL) -> _Reply:
        """The whole answer to a GET. Raises HttpError: there is none."""

        def work() -> _Reply:
            deadline = Deadline(self._transport.timeout, renewed=True)
            with self._transport.request("GET", target, deadline=deadline) as response:
                lineage = response.header(LINEAGE)
                if response.status == 200:
                    return _Reply(200, response.read(most), lineage)
                return _Reply(response.status, response.error_body(), lineage)

        reply = await self._asked(work)
        if reply.status == 200 or reply.status in (400, 500):
            self._is_of(reply.lineage)
        if reply.status in (400, 500):
            self._ends_at(reply.body)
        elif reply.status == 409:  # it has less than was asked for
            self._forget()
        return reply

    async def _asked(self, work: Callable[[], _T]) -> _T:
        try:
            return await self._threads.run(work)
        except errors.OfflineError as error:
            raise HttpError(
                503,
                "UPSTREAM_UNREACHABLE",
                f"{error.message}; try again",
                ((b"retry-after", b"1"),),
            ) from None
        except errors.AnswerError as error:
            raise _unusable(error.message) from None
        except OSError as error:
            if not errors.is_disk_full(error):
                raise _failed(error) from None
            raise HttpError(507, "DISK_FULL", "The disk of this replica is full") from None
        except Exception as error:  # noqa: BLE001 - whatever it is, it is logged
            raise _failed(error) from None

    def _is_of(self, lineage: str) -> None:
        """What is kept of another history is worth nothing."""
        if lineage != self._lineage:
            self._lineage = lineage
            self._forget()

    def _ends_at(self, body: bytes) -> None:
        """Where a server that names no lineage stands: behind what it has told, it was put back to a backup."""
        end = end_of(body)
        if end is not None and self._frames.goes_beyond(*end):
            self._forget()

    def _forget(self) -> None:
        self._frames.clear()
        for generation in tuple(self._bases):
            self._drop(generation)

    def _lock(self, key: object) -> asyncio.Lock:
        """Those who want the same wait for one of them."""
        if len(self._locks) > 1000:
            self._locks = {key: lock for key, lock in self._locks.items() if lock.locked()}
        return self._locks.setdefault(key, asyncio.Lock())

    async def _hand_on(self, send: Send, reply: _Reply, kind: bytes = JSON) -> None:
        """What was told above. Raises HttpError: it is told in other words, or is none of theirs."""
        if reply.status == 401:
            raise HttpError(
                502, "UPSTREAM_REFUSED", "The server above did not accept this one's token"
            )
        if reply.status not in (200, 400, 500):
            code, message = decode_error(reply.body)
            status = reply.status if 400 < reply.status < 600 else 502
            raise HttpError(status, code or "UPSTREAM_REFUSED", message or "It was refused above")
        await self._answering.whole(send, reply.status, reply.body, kind, (NO_STORE,))


def _failed(error: Exception) -> HttpError:
    """What nobody expected. Never 500, which these clients take for the end of a generation."""
    log.error("what libSQL's replicas want could not be asked for", exc_info=error)
    again = ((b"retry-after", b"1"),)
    return HttpError(503, "INTERNAL_ERROR", "The server failed; its log says why", again)


def _unusable(why: str) -> HttpError:
    return HttpError(502, "UPSTREAM_UNUSABLE", f"The answer of the server above is no good: {why}")
