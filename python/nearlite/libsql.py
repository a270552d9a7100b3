"""``/info``, ``/export`` and ``/sync``: what libSQL's embedded replicas ask of their primary (sync, version 2).

A client downloads the base of the running generation, then pulls frames from 1 on, 128 at a time, until it is
told that there are no more: 400 with the running generation. It then ends its own generation by a checkpoint
and goes on in the next one. No other failure of a pull may therefore be 400, or 500, which it takes for the
same.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeVar

from nearlite import errors
from nearlite._native._lib import BusyError, FormatError, TooBigError, UnsoundError
from nearlite._native.tail import FRAME_HEADER_SIZE
from nearlite.access import Access
from nearlite.bases import Base
from nearlite.exchange import (
    NO_STORE,
    Answering,
    Deadlines,
    HttpError,
    Receive,
    Scope,
    Send,
    header,
    read_body,
)
from nearlite.pulls import End
from nearlite.pushes import HELD_SECONDS, DatabaseFullError, HeldFullError, Pushed
from nearlite.streams import EndingError

log = logging.getLogger("nearlite.server")

_PAGE_SIZE: Final = 4096
"""The only one that these clients know."""
_BYTES: Final = b"application/octet-stream"
EXPORT: Final = re.compile(r"/export/([0-9]{1,10})", re.ASCII)
SYNC: Final = re.compile(r"/sync/([0-9]{1,10})/([0-9]{1,10})/([0-9]{1,10})(/[^/]*)?", re.ASCII)
LINEAGE: Final = "nearlite-lineage"
"""Header that tells of which history bases and frames are: whoever keeps them has to know."""
_PATIENCE: Final = 20.0
"""Seconds that a base is waited for while a generation is about to end."""
_HELD: Final = 60.0
"""Seconds for which a base that a client was told of stays, though its generation ends."""
_POLL: Final = 0.02
MOST_PUSHED: Final = 4096
"""Frames of one push; clients send 128."""
_SQLITE_BUSY: Final = 5

_T = TypeVar("_T")


class Frames(Protocol):
    """Generations as frames: nearlite.pulls.Pulls."""

    @property
    def lineage(self) -> int:
        """History of what is told."""

    def base(self) -> Base | None:
        """Where the running one began; None: not now."""

    def frames(self, generation: int, first: int, count: int) -> bytes | End:
        """Frames of it, or its end."""


class Taking(Protocol):
    """Takes what is pushed: nearlite.pushes.Pushes."""

    def push(self, generation: int, first: int, frames: bytes, baton: str | None) -> Pushed:
        """While it is this thread's turn to write."""

    @property
    def waiting(self) -> bool:
        """Whether the rest of any transaction is waited for."""

    def expire(self) -> None:
        """Drop what was waited for too long."""

    def stop(self) -> None:
        """The server is about to end."""


class Writing(Protocol):
    """Who writes to the primary: nearlite.pipeline.Executor."""

    async def in_turn(self, work: Callable[[], Pushed]) -> Pushed:
        """Run something that writes, in a thread. Raises TimeoutError, EndingError: nothing was done."""

    def want_roll(self) -> None:
        """End the running generation as soon as it can."""


def is_asked(path: str) -> bool:
    """Whether a path is one of these."""
    return path == "/info" or path.startswith(("/export/", "/sync/"))


class Libsql:
    """Answers libSQL's replicas. Event loop thread only.

    Args:
      frames: of the primary.
      taking: what is pushed.
      page_size: of its database.
      writing: who writes to it.
      answering: sends.
      deadlines: of the server.
    """

    def __init__(
        self,
        frames: Frames,
        taking: Taking,
        page_size: int,
        writing: Writing,
        answering: Answering,
        deadlines: Deadlines,
    ) -> None:
        self._frames = frames
        self._taking = taking
        self._page_size = page_size
        self._writing = writing
        self._answering = answering
        self._deadlines = deadlines
        self._expiry: asyncio.TimerHandle | None = None
        self._closed = False
        self._held: dict[int, Base] = {}
        self._ends: dict[int, asyncio.TimerHandle] = {}
        self._loop = asyncio.get_running_loop()

    @property
    def holds(self) -> bool:
        """Whether a client was told of a base that it has not asked for yet, or is in the middle of a push."""
        return bool(self._held) or self._expiry is not None

    def close(self) -> None:
        """Let go of what is kept for clients, end what is under way for them."""
        self._closed = True
        self._taking.stop()
        if self._expiry is not None:
            self._expiry.cancel()
        for generation in tuple(self._held):
            self._release(generation)

    async def answer(
        self, path: str, scope: Scope, receive: Receive, send: Send, access: Access
    ) -> None:
        """A request to one of the paths. Raises HttpError."""
        method = scope["method"]
        if self._page_size != _PAGE_SIZE:
            raise HttpError(
                501,
                "PAGE_SIZE",
                f"libSQL's replicas have pages of {_PAGE_SIZE} bytes, this database of {self._page_size}",
            )
        sync = SYNC.fullmatch(path)
        if sync is not None and method == "POST":
            if not access.push:
                raise HttpError(
                    403,
                    "FORBIDDEN",
                    "The token does not allow pages to be pushed; nothing was changed",
                )
            await self._push(sync, scope, receive, send)
            return
        if method != "GET":
            allow = b"GET, POST, OPTIONS" if sync is not None else b"GET, OPTIONS"
            raise HttpError(
                405, "METHOD_NOT_ALLOWED", "The method is not allowed here", ((b"allow", allow),)
            )
        export = EXPORT.fullmatch(path)
        if path == "/info":
            base = await self._base()
            await self._json(send, 200, {"current_generation": base.generation})
        elif export is not None:
            await self._export(int(export[1]), send)
        elif sync is not None and sync[4] is None:
            await self._pull(int(sync[1]), int(sync[2]), int(sync[3]), send)
        else:
            raise HttpError(404, "NOT_FOUND", "There is nothing at this path")

    # ------------------------------------------------------------------ bases

    async def _base(self) -> Base:
        """Of the running generation, held for a client that will ask for it next."""
        until = time.monotonic() + _PATIENCE
        while True:
            base = await self._thread(self._frames.base)
            if base is not None:
                return self._hold(base)
            self._writing.want_roll()
            if time.monotonic() > until:
                raise HttpError(
                    503,
                    "BASE_UNAVAILABLE",
                    "A generation is about to end, and something needs its WAL; try again",
                    ((b"retry-after", b"1"),),
                )
            await asyncio.sleep(_POLL)

    def _hold(self, base: Base) -> Base:
        held = self._held.get(base.generation)
        if held is None:
            held = self._held[base.generation] = base
        else:
            base.release()
            self._ends[base.generation].cancel()
        self._ends[base.generation] = self._loop.call_later(_HELD, self._release, base.generation)
        return held

    def _release(self, generation: int) -> None:
        self._ends.pop(generation).cancel()
        self._held.pop(generation).release()

    async def _export(self, generation: int, send: Send) -> None:
        base = self._held.get(generation)
        if base is None:
            base = await self._base()
            if base.generation != generation:
                raise HttpError(
                    410,
                    "GENERATION_GONE",
                    f"Generation {generation} is not the running one, {base.generation}; ask for /info again",
                )
        length = (b"content-length", b"%d" % base.size)
        pieces = iter(base)
        # What it begins with is read before the answer begins: a broken page is told, not cut off.
        piece = await self._thread(lambda: next(pieces, b""))
        await self._answering.start(send, 200, _BYTES, (length, NO_STORE, self._history))
        while piece:
            await self._answering.piece(send, piece)
            piece = await self._thread(lambda: next(pieces, b""))
        await self._answering.end(send)

    # ------------------------------------------------------------------ frames

    async def _pull(self, generation: int, first: int, end: int, send: Send) -> None:
        if generation < 1 or first < 1 or end <= first:
            raise HttpError(404, "NOT_FOUND", "Generations and frames count from 1")
        found = await self._thread(lambda: self._frames.frames(generation, first, end - first))
        if isinstance(found, End):
            told = {
                "baton": None,
                "status": "checkpoint_needed",
                "generation": found.generation,
                "max_frame_no": found.frame,
            }
            await self._json(send, 400, told)
        else:
            await self._answering.whole(send, 200, found, _BYTES, (NO_STORE, self._history))

    # ------------------------------------------------------------------ pushes

    async def _push(self, sync: re.Match[str], scope: Scope, receive: Receive, send: Send) -> None:
        generation, first, end = int(sync[1]), int(sync[2]), int(sync[3])
        if generation < 1 or first < 1 or end <= first:
            raise HttpError(404, "NOT_FOUND", "Generations and frames count from 1")
        size = (FRAME_HEADER_SIZE + _PAGE_SIZE) * (end - first)
        if end - first > MOST_PUSHED:
            raise HttpError(
                413,
                "REQUEST_TOO_LARGE",
                f"A push has at most {MOST_PUSHED} frames; nothing was changed",
            )
        announced = header(scope, b"content-length")
        if announced is not None and announced.isdigit() and int(announced) != size:
            raise _other_length(end - first, size, int(announced))
        frames = await read_body(scope, receive, self._deadlines)
        if len(frames) != size:
            raise _other_length(end - first, size, len(frames))
        baton = sync[4][1:] if sync[4] else None
        try:
            pushed = await self._writing.in_turn(
                lambda: self._taking.push(generation, first, frames, baton)
            )
        except (errors.Error, OSError, EndingError, MemoryError) as error:
            raise _refused(error) from None
        if pushed.baton is not None and self._expiry is None:
            self._expiry = self._loop.call_later(HELD_SECONDS + 1, self._expire)
        told = {
            "status": "ok" if pushed.taken else "conflict",
            "generation": generation,  # the client takes it for its own
            "max_frame_no": pushed.frame,
            "baton": pushed.baton,
        }
        await self._json(send, 200, told)

    def _expire(self) -> None:
        self._loop.run_in_executor(None, self._taking.expire).add_done_callback(self._expired)

    def _expired(self, _done: object) -> None:
        """Whatever is still waited for is looked at again."""
        self._expiry = None
        if self._taking.waiting and not self._closed:
            self._expiry = self._loop.call_later(HELD_SECONDS + 1, self._expire)

    async def _json(self, send: Send, status: int, told: Mapping[str, object]) -> None:
        body = json.dumps(told).encode()
        await self._answering.whole(send, status, body, headers=(NO_STORE, self._history))

    @property
    def _history(self) -> tuple[bytes, bytes]:
        return (LINEAGE.encode(), b"%08x" % self._frames.lineage)

    async def _thread(self, work: Callable[[], _T]) -> _T:
        """What `work` answers in a thread. Raises HttpError, never of status 400 or 500."""
        try:
            return await self._loop.run_in_executor(None, work)
        except errors.HistoryGoneError as error:
            raise HttpError(410, "GENERATION_GONE", _told(error)) from None
        except errors.PrimaryRestoredError as error:
            raise HttpError(409, "POSITION_AHEAD", _told(error)) from None
        except Exception as error:
            if isinstance(error, (OSError, errors.OperationalError)) and errors.is_disk_full(error):
                raise HttpError(507, "DISK_FULL", "The primary's disk is full") from None
            log.exception("a pull failed")
            raise HttpError(
                503,
                "INTERNAL_ERROR",
                "The server failed; its log says why",
                ((b"retry-after", b"1"),),
            ) from None


def _other_length(count: int, size: int, found: int) -> HttpError:
    return HttpError(
        400,
        "BAD_REQUEST",
        f"{count} frames of a database with pages of {_PAGE_SIZE} bytes are {size} bytes, not {found}; nothing was "
        "changed",
    )


def _refused(error: Exception) -> HttpError:
    """What a push failed with. The client repeats it after 5xx, and shows its user everything else."""
    again = ((b"retry-after", b"1"),)
    if isinstance(error, FormatError):
        return HttpError(400, "PUSH_MALFORMED", f"{error}; nothing was changed")
    if isinstance(error, UnsoundError):
        return HttpError(422, "PUSH_UNSOUND", f"{error}; nothing was changed")
    if isinstance(error, TooBigError):
        return HttpError(422, "PUSH_UNCHECKED", f"{error}; nothing was changed")
    if isinstance(error, DatabaseFullError):
        return HttpError(413, "DATABASE_TOO_LARGE", str(error))
    if isinstance(error, HeldFullError):
        return HttpError(413, "PUSH_TOO_LARGE", str(error))
    if isinstance(error, errors.HistoryGoneError):
        return HttpError(410, "GENERATION_GONE", _told(error))
    if isinstance(error, errors.PrimaryRestoredError):
        return HttpError(409, "POSITION_AHEAD", _told(error))
    if errors.is_disk_full(error):
        return HttpError(507, "DISK_FULL", "The primary's disk is full; nothing was changed")
    if isinstance(error, TimeoutError) or _is_busy(error):
        return HttpError(
            503, "TRANSACTION_BUSY", "Somebody else writes all the time; nothing was changed", again
        )
    if isinstance(error, EndingError):
        return HttpError(503, "SHUTTING_DOWN", "The server is about to end", again)
    log.error("a push failed", exc_info=error)
    return HttpError(503, "INTERNAL_ERROR", "The server failed; its log says why", again)


def _is_busy(error: Exception) -> bool:
    return (
        isinstance(error, BusyError) or getattr(error, "sqlite_errorcode", 0) & 0xFF == _SQLITE_BUSY
    )


def _told(error: errors.SyncError) -> str:
    """The client shows it to its user as it is."""
    return f"{error.message}; {error.action}" if error.action else error.message
