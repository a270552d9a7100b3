"""Hrana over one WebSocket: who the client is, which streams and cursors it knows, and how it ends."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from nearlite import hrana
from nearlite.access import Access
from nearlite.exchange import HttpError
from nearlite.execution import Execution
from nearlite.hrana import (
    BatchRequest,
    Plan,
    Planner,
    ProtocolError,
    Refused,
    RunBatch,
    StatementError,
)
from nearlite.hrana.sockets import (
    CloseCursor,
    CloseStream,
    Codec,
    FetchCursor,
    Hello,
    OnStream,
    OnStreamExecute,
    OpenCursor,
    OpenStream,
    Request,
    SocketRequest,
    check_version,
)
from nearlite.lanes import LARGE, Lane, Opened, Peer, Talk
from nearlite.last_errors import LastErrors
from nearlite.streams import Stream

log = logging.getLogger("nearlite.server")

_UNOPENED: Final = 1_000
"""Streams and cursors that could not be opened and are not closed yet."""
HELLO_SECONDS: Final = 30.0
"""Seconds in which a client has to say who it is."""

GOING_AWAY: Final = 1001
WRONG_KIND: Final = 1003
UNDECODABLE: Final = 1007
VIOLATION: Final = 1008
FAILED: Final = 1011


class Conversation:
    """One WebSocket, from its upgrade on. Event loop thread only.

    Args:
      executor: runs SQL.
      codec: of the messages.
      version: of Hrana.
      peer: the client.
      grant: what the holder of a token may do; raises HttpError.
      opened: told of every stream that is opened.
      last: is told of what the client is refused, and of statements that fail; None: nobody wants to know.

    Attributes:
      ended: done when it is over and nothing of it is left.
      binary: messages are binary ones.
    """

    def __init__(
        self,
        executor: Execution,
        codec: Codec,
        version: int,
        peer: Peer,
        grant: Callable[[str | None], Access],
        opened: Callable[[Stream], None],
        last: LastErrors | None = None,
    ) -> None:
        self._executor = executor
        self._opened = opened
        self._codec = codec
        self._version = version
        self._peer = peer
        self._grant = grant
        self.binary = codec.binary
        self._talk = Talk(executor, codec, peer, self._settled, self._failed, last)
        self.ended: asyncio.Future[None] = self._talk.loop.create_future()
        self._until: float | None = None  # Unix time; None: no hello yet
        limits = executor.limits
        self._most_streams = limits.max_streams_per_client
        self._planner = Planner(version, {}, limits.max_statements, hrana.SOCKET_STORE)
        self._streams: dict[int, Lane | None] = {}  # None: could not be opened
        self._cursors: dict[int, Opened] = {}
        self._hello_timer: asyncio.TimerHandle | None = self._talk.loop.call_later(
            HELLO_SECONDS, self.end, VIOLATION, "No hello message has come in time"
        )
        self._others: dict[type, Callable[[int, Any, int], None]] = {
            OpenStream: self._open_stream,
            CloseStream: self._close_stream,
            OpenCursor: self._open_cursor,
            FetchCursor: self._fetch_cursor,
            CloseCursor: self._close_cursor,
        }

    # ------------------------------------------------------------------ from the transport

    def receive(self, data: bytes, *, binary: bool) -> None:
        """A message has come. Of those that come while the server is about to end, no notice is taken."""
        if not self._talk.draining:
            self._take(data, binary=binary)

    def _take(self, data: bytes, *, binary: bool) -> None:
        talk = self._talk
        if talk.over:
            return
        if binary is not self.binary:
            wanted = "binary" if self.binary else "text"
            self.end(WRONG_KIND, f"Messages of this subprotocol are {wanted} messages")
        elif talk.behind is not None:
            talk.behind.append(data)
        elif len(data) > LARGE:
            talk.behind = deque()
            talk.hold()
            talk.spawn(self._decode_large(data))
        else:
            try:
                message = self._codec.decode(data)
            except ProtocolError as broken:
                self.end(UNDECODABLE, broken.message)
            else:
                self._decoded(message, len(data))

    def _decoded(self, message: Hello | Request, size: int) -> None:
        try:
            if type(message) is Request:
                self._request(message.request_id, message.request, size)
            else:
                assert isinstance(message, Hello)
                self._hello(message)
        except ProtocolError as broken:
            if broken.code == "TOO_MANY_STATEMENTS" and isinstance(message, Request):
                self._talk.fail(message.request_id, broken.message, broken.code)
            else:
                self.end(VIOLATION, broken.message)
        except Exception:
            log.exception("a message of a WebSocket could not be worked on")
            self._failed()

    async def _decode_large(self, data: bytes) -> None:
        def decode() -> Hello | Request | ProtocolError:
            try:
                return self._codec.decode(data)
            except ProtocolError as broken:
                return broken

        talk = self._talk
        found = await talk.loop.run_in_executor(None, decode)
        behind, talk.behind = talk.behind, None
        if not talk.over:
            if isinstance(found, ProtocolError):
                self.end(UNDECODABLE, found.message)
            else:
                self._decoded(found, len(data))
        for message in behind or ():
            self._take(message, binary=self.binary)
        talk.release()
        self._settled()

    def pause(self) -> None:
        """The client does not take its answers."""
        self._talk.blocked = True
        self._talk.hold()

    def resume(self) -> None:
        """It does."""
        talk = self._talk
        talk.blocked = False
        for lane in list(talk.lanes):
            lane.advance()
        talk.release()

    def drain(self) -> None:
        """The server is about to end: finish what has been received, and close."""
        self._talk.draining = True
        self._talk.hold()
        self._settled()

    def end(self, code: int, reason: str) -> None:
        """Close the WebSocket from here."""
        if not self._talk.over:
            self._peer.close(code, reason)
            self.left()

    def left(self) -> None:
        """The WebSocket is closed. What is open is rolled back, what is running is interrupted."""
        talk = self._talk
        if talk.over:
            return
        talk.over = True
        self._hello_done()
        talk.leaving.leave()
        for lane in list(talk.lanes):
            lane.leave()
        self._settled()

    def _settled(self) -> None:
        """A stream has done what it was doing, or has ended."""
        talk = self._talk
        if talk.over:
            if not talk.lanes and not self.ended.done():
                self.ended.set_result(None)
        elif talk.draining and talk.behind is None and all(lane.idle for lane in talk.lanes):
            self.end(GOING_AWAY, "The server is about to end")

    def _failed(self) -> None:
        self.end(FAILED, "The server failed; its log says why")

    # ------------------------------------------------------------------ messages

    def _hello_done(self) -> None:
        if self._hello_timer is not None:
            self._hello_timer.cancel()
            self._hello_timer = None

    def _hello(self, message: Hello) -> None:
        if self._until is not None and self._version < 2:
            raise ProtocolError(
                "A repeated hello message is only supported in protocol version hrana2 and higher"
            )
        self._hello_done()
        try:
            access = self._grant(message.jwt)
        except HttpError as error:
            refusal = hello_refusal(error, message.jwt)
            if self._talk.last is not None:
                self._talk.last.note(refusal.code, refusal.message)
            self._peer.send(self._codec.hello_error(refusal))
            self.end(VIOLATION, "The token is not good")
        else:
            self._talk.access = access
            self._until = access.until
            self._peer.trust()
            self._peer.send(self._codec.hello_ok())

    def _request(self, number: int, request: SocketRequest, size: int) -> None:
        until = self._until
        if until is None:
            raise ProtocolError("The first message has to be a hello message")
        if type(request) is not OnStreamExecute:
            check_version(request, self._version)
        if self._executor.displaced or (until != math.inf and time.time() >= until):
            self._refuse(number)
            return
        if type(request) is OnStreamExecute:
            statement = self._planner.statement(request.stmt)
            lane = self._streams.get(request.stream_id)
            if lane is None:
                self._not_open(number, request.stream_id)
            else:
                lane.put(size, lane.execute, number, statement)
            return
        other = self._others.get(type(request))
        if other is not None:
            other(number, request, size)
            return
        plan = self._planner.one(request)  # type: ignore[arg-type]
        if not isinstance(request, OnStream):  # store_sql, close_sql
            self._talk.tell(number, _result(plan))
            return
        lane = self._streams.get(request.stream_id)
        if lane is None:
            self._not_open(number, request.stream_id)
        else:
            lane.put(size, lane.execute, number, plan)

    def _refuse(self, number: int) -> None:
        if self._executor.displaced:
            self._talk.fail(
                number,
                "The database's file was replaced or removed under the running server; nothing was "
                "carried out. Restart the server to serve what is there now",
                "DATABASE_REPLACED",
            )
        else:
            self._talk.fail(
                number, "The token has expired; a hello message can renew it", "AUTH_JWT_EXPIRED"
            )

    def _not_open(self, number: int, stream_id: int) -> None:
        self._talk.fail(number, f"The stream {stream_id} is not open", "STREAM_NOT_OPEN")

    # ------------------------------------------------------------------ streams and cursors

    def _open_stream(self, number: int, request: OpenStream, _size: int) -> None:
        if request.stream_id in self._streams:
            raise ProtocolError(f"Stream {request.stream_id} already exists")
        most = self._most_streams
        if len(self._talk.lanes) >= most:
            if len(self._streams) >= most + _UNOPENED:
                raise ProtocolError("Streams that could not be opened have to be closed, too")
            self._streams[request.stream_id] = None
            self._talk.fail(
                number,
                f"{most} streams are open on this WebSocket, which is the limit; close some of them",
                "TOO_MANY_STREAMS",
            )
            return
        stream = self._executor.streams.open()
        self._executor.streams.untake(stream)
        self._opened(stream)
        self._streams[request.stream_id] = Lane(self._talk, stream)
        self._talk.done(number, "open_stream")

    def _close_stream(self, number: int, request: CloseStream, size: int) -> None:
        lane = self._streams.pop(request.stream_id, None)
        if lane is None:
            self._talk.done(number, "close_stream")
            return
        for cursor_id in [key for key, opened in self._cursors.items() if opened.lane is lane]:
            del self._cursors[cursor_id]
        lane.put(size, lane.close, number)

    def _open_cursor(self, number: int, request: OpenCursor, size: int) -> None:
        if request.cursor_id in self._cursors:
            raise ProtocolError(f"Cursor {request.cursor_id} already exists")
        if len(self._cursors) >= self._most_streams + _UNOPENED:
            raise ProtocolError("Cursors that could not be opened have to be closed, too")
        plan = self._planner.one(BatchRequest(request.batch))
        assert isinstance(plan, (RunBatch, Refused))
        lane = self._streams.get(request.stream_id)
        if lane is None:
            self._not_open(number, request.stream_id)
            return
        opened = self._cursors[request.cursor_id] = Opened(lane)
        lane.put(size, lane.open_cursor, number, opened, plan)

    def _fetch_cursor(self, number: int, request: FetchCursor, size: int) -> None:
        opened = self._cursors.get(request.cursor_id)
        if opened is None:
            self._talk.fail(number, "The cursor is not open", "CURSOR_NOT_OPEN")
        else:
            opened.lane.put(size, opened.lane.fetch, number, opened, request.max_count)

    def _close_cursor(self, number: int, request: CloseCursor, size: int) -> None:
        opened = self._cursors.pop(request.cursor_id, None)
        if opened is None:
            self._talk.done(number, "close_cursor")
        else:
            opened.lane.put(size, opened.lane.close_cursor, number, opened)


def hello_refusal(error: HttpError, jwt: str | None) -> StatementError:
    """What `hello_error` says of a token, None: of none, that was refused."""
    code = error.code
    if code == "UNAUTHORIZED":
        code = "AUTH_JWT_INVALID" if jwt else "AUTH_JWT_MISSING"
    return StatementError(error.message, code)


def _result(plan: Plan) -> bytes:
    """Of a request that needs no stream."""
    if isinstance(plan, hrana.Answered):
        return plan.result
    assert isinstance(plan, Refused)
    return hrana.error_result(plan.error)
