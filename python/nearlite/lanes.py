"""The streams of one WebSocket: requests of each in order, those of different ones beside each other.

A request that needs no waiting is answered where it is received. Otherwise its stream is busy, and what follows on
it waits; other streams go on. When too much waits, nothing is read from the client for a while.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from nearlite.access import FULL, Access
from nearlite.execution import Execution
from nearlite.fetching import Cursor
from nearlite.hrana import (
    Plan,
    ProtocolError,
    Refused,
    RunBatch,
    StatementError,
    error_result,
)
from nearlite.hrana.sockets import Codec
from nearlite.last_errors import LastErrors
from nearlite.leaving import Departure, GoneError
from nearlite.statements import Kind
from nearlite.streams import Stream

log = logging.getLogger("nearlite.server")

MAX_WAITING: Final = 1_000
"""Requests of one WebSocket that wait for others of their stream; beyond it nothing is read."""
_WAITING_BYTES: Final = 16 << 20
"""Bytes of such requests."""
CURSOR_SECONDS: Final = 30.0
"""Seconds for which a cursor waits to be asked for more: it keeps old pages from being overwritten."""
LARGE: Final = 256 << 10
"""Bytes; decoding or transcribing more would hold up the event loop."""
_ROW: Final = b'{"type":"row"'


class Peer(Protocol):
    """The other end of a WebSocket."""

    def send(self, data: bytes) -> None:
        """Send a message."""

    def close(self, code: int, reason: str) -> None:
        """Close the WebSocket; nothing is sent any more."""

    def hold(self, holding: bool) -> None:
        """Read nothing from the client for now, or go on."""

    def trust(self) -> None:
        """It has said who it is: its messages may be large."""


class Talk:
    """What the streams of one WebSocket share. Event loop thread only.

    Args:
      executor: runs SQL.
      codec: of the messages.
      peer: the client.
      settled: called when a stream has done what it was doing.
      failed: called when something that nobody expected has happened.
      last: is told of what the client is refused, and of statements that fail; None: nobody wants to know.

    Attributes:
      access: what the client may do.
      leaving: tells when it has left.
      over: the WebSocket is closed.
      blocked: the client does not take its answers.
      draining: nothing is to be read any more.
      behind: messages behind one that takes a while to be decoded.
      lanes: the streams, until they have ended.
    """

    def __init__(
        self,
        executor: Execution,
        codec: Codec,
        peer: Peer,
        settled: Callable[[], None],
        failed: Callable[[], None],
        last: LastErrors | None = None,
    ) -> None:
        self.executor = executor
        self.codec = codec
        self.peer = peer
        self.settled = settled
        self.failed = failed
        self.last = last
        self.loop = asyncio.get_running_loop()
        self.access: Access = FULL
        self.leaving = Departure()
        self.over = False
        self.blocked = False
        self.draining = False
        self.behind: deque[bytes] | None = None
        self.lanes: set[Lane] = set()
        self._holding = False
        self._waiting = 0  # requests
        self._waiting_bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something in a task."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def done(self, number: int, kind: str) -> None:
        """Answer a request that has nothing to tell but that it is done."""
        if not self.over:
            self.peer.send(self.codec.done(number, kind))

    def tell(self, number: int, result: bytes) -> None:
        """Answer a request with its stream result."""
        if not self.over:
            self.note(result)
            self.peer.send(self.codec.answer(number, result))

    def note(self, told: bytes) -> None:
        """The client is told how statements went."""
        if self.last is not None:
            self.last.answered(told)

    def fail(self, number: int, message: str, code: str) -> None:
        """Answer a request that is refused; nothing in `message` is the client's."""
        if self.over:
            return
        if self.last is not None:
            self.last.note(code, message)
        self.peer.send(self.codec.error(number, StatementError(message, code)))

    def waits(self, requests: int, size: int) -> None:
        """So many requests more wait, or fewer."""
        self._waiting += requests
        self._waiting_bytes += size
        if self._waiting >= MAX_WAITING or self._waiting_bytes >= _WAITING_BYTES:
            self.hold()

    def hold(self) -> None:
        """Read nothing for a while."""
        if not self._holding:
            self._holding = True
            self.peer.hold(True)

    def release(self) -> None:
        """Read on, if nothing is in the way."""
        if (
            self._holding
            and not self.blocked
            and not self.draining
            and self.behind is None
            and self._waiting <= MAX_WAITING // 2
            and self._waiting_bytes <= _WAITING_BYTES // 2
        ):
            self._holding = False
            self.peer.hold(False)


class Opened:
    """What a client knows as a cursor, from when it has asked for it.

    Attributes:
      lane: of its stream.
      cursor: None: it is not open yet, or could not be opened.
    """

    __slots__ = ("cursor", "lane")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.cursor: Cursor | None = None


class Lane:
    """A stream, and what is to be done on it, one after the other.

    Args:
      talk: of its WebSocket.
      stream: not busy.

    Attributes:
      idle: nothing is being done, and nothing waits.
    """

    __slots__ = ("_cursor", "_queue", "_running", "_stream", "_talk", "_timer", "_until")

    def __init__(self, talk: Talk, stream: Stream) -> None:
        self._talk = talk
        self._stream = stream
        self._queue: deque[tuple[int, Callable[..., None], tuple[Any, ...]]] = deque()
        self._running = False
        self._cursor: Cursor | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._until = (
            0.0  # clock of the event loop: a cursor lasts no longer, as no transaction does
        )
        talk.lanes.add(self)

    @property
    def idle(self) -> bool:
        """Nothing is being done, and nothing waits."""
        return not self._running and not self._queue

    def put(self, size: int, work: Callable[..., None], *what: Any) -> None:
        """Do some work of this stream, when what was asked for before it is done.

        Args:
          size: bytes of its message.
          work: a method of this lane.
          what: arguments of it.
        """
        talk = self._talk
        if not self._running and not self._queue and not talk.blocked:
            work(*what)
            return
        self._queue.append((size, work, what))
        talk.waits(1, size)

    def advance(self) -> None:
        """Go on with what waits."""
        talk = self._talk
        while self._queue and not self._running and not talk.blocked and not talk.over:
            size, work, what = self._queue.popleft()
            talk.waits(-1, -size)
            try:
                work(*what)
            except Exception:
                log.exception("a request of a WebSocket failed")
                talk.failed()
        talk.release()
        talk.settled()

    def leave(self) -> None:
        """The WebSocket is closed: roll back, as soon as nothing is being done."""
        self._queue.clear()
        if not self._running:
            self._running = True
            self._talk.spawn(self._end())

    async def _end(self) -> None:
        cursor, self._cursor = self._cursor, None
        self._untime()
        try:
            if cursor is not None:
                await cursor.close()
        except GoneError:
            pass
        finally:
            self._stream.busy = False
            try:
                await self._talk.executor.close_stream(self._stream)
            finally:
                self._talk.lanes.discard(self)
                self._talk.settled()

    # ------------------------------------------------------------------ what takes time

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._running = self._stream.busy = True
        self._talk.spawn(self._doing(work))

    async def _doing(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except GoneError:
            pass
        except Exception:
            log.exception("a request of a WebSocket failed")
            self._talk.failed()
        self._finished()
        self.advance()

    def _finished(self) -> None:
        self._running = self._stream.busy = False
        if self._talk.over and self in self._talk.lanes:
            self.leave()

    # ------------------------------------------------------------------ requests

    def execute(self, number: int, plan: Plan) -> None:
        """A request that a pipeline could carry, too."""
        talk, stream = self._talk, self._stream
        if self._cursor is not None:
            talk.fail(
                number, "A cursor is open on this stream: it has to be closed first", "CURSOR_OPEN"
            )
            return
        if stream.access is not talk.access and not self._admit(number):
            return
        plans = (plan,)
        results: list[bytes] = []
        stream.busy = True
        left = talk.executor.now(stream, plans, results)
        if left is None:
            stream.busy = False
            self._answer(number, results[0])
            return
        self._running = True

        def grouped(complete: bool) -> None:
            if complete:
                self._finished()
                self._answer(number, results[0])
                self.advance()
            else:
                self._begin(self._finish(number, plans, results, alone=True))

        if left is not Kind.WRITE or not talk.executor.group(stream, plans, results, grouped):
            self._begin(self._finish(number, plans, results, alone=False))

    def _admit(self, number: int) -> bool:
        """Whether the rights that the client has now go with what is open."""
        try:
            self._stream.admit(self._talk.access)
        except ProtocolError as refusal:
            self._talk.fail(number, refusal.message, refusal.code)
            return False
        return True

    async def _finish(
        self, number: int, plans: tuple[Plan], results: list[bytes], *, alone: bool
    ) -> None:
        """What the executor could not do at once."""
        talk = self._talk
        await talk.executor.finish(self._stream, plans, results, talk.leaving, alone=alone)
        if talk.codec.binary and len(results[0]) > LARGE:
            await self._answer_large(number, results[0])
        else:
            talk.tell(number, results[0])

    def _answer(self, number: int, result: bytes) -> None:
        talk = self._talk
        if talk.codec.binary and len(result) > LARGE:
            self._begin(self._answer_large(number, result))
        else:
            talk.tell(number, result)

    async def _answer_large(self, number: int, result: bytes) -> None:
        talk = self._talk
        data = await talk.loop.run_in_executor(None, talk.codec.answer, number, result)
        if not talk.over:
            talk.note(result)
            talk.peer.send(data)

    def close(self, number: int) -> None:
        """Close the stream, with its cursor."""
        cursor = self._cursor
        if self._stream.carries or (cursor is not None and cursor.open_ended):
            self._begin(self._close(number))
            return
        self._untime()
        self._talk.executor.streams.forget(self._stream)
        self._talk.lanes.discard(self)
        self._talk.done(number, "close_stream")

    async def _close(self, number: int) -> None:
        await self._close_cursor()
        self._stream.busy = False
        await self._talk.executor.close_stream(self._stream)
        self._talk.lanes.discard(self)
        self._talk.done(number, "close_stream")

    # ------------------------------------------------------------------ cursors

    def open_cursor(self, number: int, opened: Opened, plan: RunBatch | Refused) -> None:
        """Run a batch whose entries will be fetched."""
        talk = self._talk
        if isinstance(plan, Refused):
            talk.tell(number, error_result(plan.error))
        elif self._cursor is not None:
            talk.fail(number, "Another cursor is open on this stream", "CURSOR_OPEN")
        else:
            if not self._admit(number):
                return
            cursor = Cursor(talk.executor, self._stream, plan)
            self._cursor = opened.cursor = cursor
            if cursor.open_at_once():
                talk.done(number, "open_cursor")
            else:
                self._begin(self._open(number, cursor))

    async def _open(self, number: int, cursor: Cursor) -> None:
        await cursor.open(self._talk.leaving)
        self._talk.done(number, "open_cursor")
        self._until = self._talk.loop.time() + self._talk.executor.limits.transaction_seconds
        self._time()

    def fetch(self, number: int, opened: Opened, count: int) -> None:
        """Send the next entries of a cursor."""
        cursor = opened.cursor
        if cursor is None or cursor is not self._cursor:
            self._talk.fail(number, "The cursor is not open", "CURSOR_NOT_OPEN")
            return
        if cursor.expired:
            self._talk.fail(
                number,
                f"The cursor was not asked for more for {CURSOR_SECONDS:.0f} seconds, or was open for longer than a "
                "transaction may be, and was closed",
                "CURSOR_EXPIRED",
            )
            return
        self._untime()
        found = cursor.fetch_at_once(count)
        if found is None:
            self._begin(self._fetch(number, cursor, count))
        else:
            self._fetched(number, found, done=cursor.done)

    async def _fetch(self, number: int, cursor: Cursor, count: int) -> None:
        found = await cursor.fetch(count)
        self._fetched(number, found, done=cursor.done)

    def _fetched(self, number: int, found: list[bytes], *, done: bool) -> None:
        talk = self._talk
        if not talk.over:
            for entry in found:
                if not entry.startswith(_ROW):
                    talk.note(entry)
            talk.peer.send(talk.codec.entries(number, found, done=done))
        self._time()

    def close_cursor(self, number: int, opened: Opened) -> None:
        """Close a cursor, wherever its batch is."""
        cursor = opened.cursor
        if cursor is None or cursor is not self._cursor:
            self._talk.done(number, "close_cursor")
        elif cursor.open_ended:
            self._begin(self._close_and_tell(number))
        else:
            self._cursor = None
            self._talk.done(number, "close_cursor")

    async def _close_and_tell(self, number: int) -> None:
        await self._close_cursor()
        self._talk.done(number, "close_cursor")

    async def _close_cursor(self) -> None:
        cursor, self._cursor = self._cursor, None
        self._untime()
        if cursor is not None:
            await cursor.close()

    def _time(self) -> None:
        """A batch that has not come to its end does not wait for ever."""
        if self._cursor is not None and self._cursor.open_ended:
            left = max(0.0, self._until - self._talk.loop.time())
            self._timer = self._talk.loop.call_later(min(CURSOR_SECONDS, left), self._expire)

    def _untime(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        self._timer = None
        cursor = self._cursor
        if cursor is not None and not self._running and not self._talk.over:
            cursor.expired = True
            self._begin(cursor.close())
