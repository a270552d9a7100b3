"""One WebSocket of our server: the protocol is the library `websockets`', with limits, and a short cut.

The short cut. A message that has come as one frame is unmasked and handed on, and a message is sent as one frame,
without the library's objects for it (measured: they take longer than a point select). Handshakes, control
frames, fragments and whatever is wrong are the library's. There is no compression: it would cost more than the
statement, and 64 kB for each connection.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections import deque
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

from uvicorn.protocols.utils import get_local_addr, get_remote_addr, is_ssl
from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from nearlite.conversation import FAILED, GOING_AWAY, UNDECODABLE, Conversation
from nearlite.exchange import JSON, HttpError, Message, Scope, refused
from nearlite.limits import Limits
from nearlite.sockets import SOCKET, shorten

try:
    from websockets.speedups import apply_mask
except ImportError:  # no wheel for this platform
    from websockets.utils import apply_mask

log = logging.getLogger("nearlite.server")
_quiet = logging.getLogger("nearlite.server.websocket")
_quiet.setLevel(logging.WARNING)  # the library notes every connection

PING_SECONDS: Final = 30.0
"""A client from which nothing has come for so long (and less than twice that) is asked, and dropped when it stays
silent as long again."""
_CLOSE_SECONDS: Final = 2.0  # for the client to close in its turn
_TURN_SECONDS: Final = 0.002  # of messages of one client in a row
_GATHERED: Final = 32 << 10  # bytes: copying more costs as much as a system call
_WHOLE_TEXT: Final = 0x81
_WHOLE_BINARY: Final = 0x82
_NORMAL: Final = 1000
_QUEUED: Final = 16  # messages for an application that takes them one by one
_OPEN: Final = State.OPEN
_MASKED_MEDIUM: Final = 0x80 | 126
_MEDIUM: Final = struct.Struct(">BBH")
_LONG: Final = struct.Struct(">BBQ")
_STRANGER_BYTES: Final = 64 << 10  # of a message before hello; a token has at most 16 KiB


class Outbox:
    """Messages to clients that are handed to the system together, once what has arrived is worked on.

    Each would otherwise wake its client by itself, which costs the server more than the message (measured with
    16 clients in one process: 13 us of system time a request).
    """

    def __init__(self) -> None:
        self._senders: list[WebSocket] = []

    def add(self, sender: WebSocket, loop: asyncio.AbstractEventLoop) -> None:
        """It has something to send."""
        if not self._senders:
            loop.call_soon(self._send)
        self._senders.append(sender)

    def _send(self) -> None:
        senders, self._senders = self._senders, []
        for sender in senders:
            sender.send_now()


class WebSocket(asyncio.Protocol):
    """What uvicorn makes of a connection that is upgraded.

    Args:
      limits: of the server.
      outbox: of the server.
    """

    transport: Any

    def __init__(
        self,
        config: Any,
        server_state: Any,
        app_state: dict[str, Any],
        *,
        limits: Limits,
        outbox: Outbox,
    ) -> None:
        self._config = config
        self._state = server_state
        self._app_state = app_state
        self._loop = asyncio.get_running_loop()
        self._outbox = outbox
        self._unsent: list[bytes] = []
        self._most = min(_STRANGER_BYTES, limits.max_request_bytes)
        self._most_known = limits.max_request_bytes
        self._missing = 0  # bytes of what is held and comes, until its first frame is whole
        self._patience = limits.client_seconds
        # Bytes of answers that have to arrive within that time, if there is more.
        self._least = max(1, int(limits.min_bytes_per_second * limits.client_seconds))
        self._library = ServerProtocol(max_size=self._most, logger=_quiet)
        self._request: Request | None = None
        self._accepted = False
        self._ended = False
        self._refusal: tuple[int, list[tuple[str, str]]] | None = None
        self._task: asyncio.Task[None] | None = None
        self._taken: Conversation | None = None
        self._arrived: deque[Message] = deque()  # for ASGI
        self._came = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._held = bytearray()  # received, and no frame yet; or not to be looked at yet
        self._holding = False
        self._fragments: bytearray | None = None
        self._fragments_binary = False
        self._later: asyncio.Handle | None = None
        self._open = False
        self._heard = True
        self._asked = False
        self._ticks: asyncio.TimerHandle | None = None
        self._closing: asyncio.TimerHandle | None = None
        self._stuck = 0  # bytes that the client had not taken at the last look
        self._looking: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------ life

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        self.transport = transport
        self._state.connections.add(self)
        self._ticks = self._loop.call_later(PING_SECONDS, self._tick)

    def connection_lost(self, _exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._state.connections.discard(self)
        for timer in (self._ticks, self._closing, self._looking, self._later):
            if timer is not None:
                timer.cancel()
        self._held.clear()
        self._unsent.clear()
        self._writable.set()
        self._over()

    def eof_received(self) -> None:
        """The client sends nothing any more: nobody could answer its pings, or close in order."""

    def shutdown(self) -> None:
        """The server is about to end."""
        if self._taken is not None:
            self._taken.drain()
        elif self._accepted:
            self._arrive({"type": "websocket.disconnect", "code": GOING_AWAY})
            self.close(GOING_AWAY, "The server is about to end")
        else:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, [], b"")

    def _over(self) -> None:
        """Nobody listens any more."""
        if self._ended:
            return
        self._ended = True
        taken = self._taken
        if taken is not None:
            taken.left()
        self._arrive({"type": "websocket.disconnect", "code": 1005 if self._accepted else 1006})

    # ------------------------------------------------------------------ from the client

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self._request is None:
            self._library.receive_data(data)
            self._handshake()
            return
        self._heard = True
        taken = self._taken
        if taken is not None and self._ready():
            # Most often it is one whole message.
            first, size = data[0], len(data)
            coded = data[1] if size > 7 else 0
            if coded == _MASKED_MEDIUM:
                head, size = 8, size - 8
                whole = size == data[2] << 8 | data[3] and size <= self._most
            else:
                head, size = 6, size - 6
                whole = size | 0x80 == coded and size < 126
            if whole and first in (_WHOLE_TEXT, _WHOLE_BINARY):
                content = apply_mask(data[head:], data[head - 4 : head])
                taken.receive(content, binary=first == _WHOLE_BINARY)
                return
        if self._held:
            self._held += data
            # Each look at what is held copies it.
            if self._holding or self._later is not None or len(self._held) < self._missing:
                return
            data, self._held = bytes(self._held), bytearray()
        elif self._holding or self._later is not None:
            self._held += data
            return
        self._frames(data)

    def _ready(self) -> bool:
        """Nothing is in the way of the next frame."""
        return (
            not self._held
            and self._open
            and not self._holding
            and self._later is None
            and self._fragments is None
        )

    def _frames(self, data: bytes) -> None:
        """Hand on the frames that are complete."""
        at, end = 0, len(data)
        began = 0.0
        self._missing = 0
        while at < end:
            if self._holding:
                break
            if not self._open:
                self._feed(data[at:])
                return
            if at and not began:
                began = time.perf_counter()
            elif at and time.perf_counter() - began > _TURN_SECONDS:
                self._later = self._loop.call_soon(self._go_on)
                break
            head = at + 2
            if head > end:
                break
            first, size = data[at], data[at + 1]
            masked = size & 0x80
            size &= 0x7F
            if size == 126:
                head += 2
                size = int.from_bytes(data[at + 2 : head], "big")
            elif size == 127:
                head += 8
                size = int.from_bytes(data[at + 2 : head], "big")
            body = head + 4
            last = body + size
            known = (
                first in (_WHOLE_TEXT, _WHOLE_BINARY)
                and masked
                and size <= self._most
                and self._fragments is None
            )
            if last > end:
                if masked and size <= self._most:
                    self._missing = last - at
                    break
                last = end  # the library says what is wrong with it
            elif known and self._taken is not None:
                content = apply_mask(data[body:last], data[head:body])
                at = last
                self._taken.receive(content, binary=first == _WHOLE_BINARY)
                continue
            self._feed(data[at:last])
            at = last
        if at < end:
            self._held[:0] = data[at:]

    def _go_on(self) -> None:
        self._later = None
        if not self._holding and self._held:
            data, self._held = bytes(self._held), bytearray()
            self._frames(data)

    def _feed(self, data: bytes) -> None:
        """Let the library have it."""
        library = self._library
        library.receive_data(data)
        for event in library.events_received():
            if isinstance(event, Frame) and library.parser_exc is None:
                self._frame(event)
        self._flush()
        if library.state is not _OPEN:
            self._over()

    def _frame(self, frame: Frame) -> None:
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._fragments = bytearray()
            self._fragments_binary = frame.opcode == Opcode.BINARY
        elif frame.opcode != Opcode.CONT:
            return
        assert self._fragments is not None
        self._fragments += frame.data
        if frame.fin:
            content, self._fragments = bytes(self._fragments), None
            self._message(content, binary=self._fragments_binary)

    def _message(self, content: bytes, *, binary: bool) -> None:
        if self._taken is not None:
            self._taken.receive(content, binary=binary)
            return
        if binary:
            self._arrive({"type": "websocket.receive", "bytes": content})
            return
        try:
            self._arrive({"type": "websocket.receive", "text": content.decode()})
        except UnicodeDecodeError:
            self.close(UNDECODABLE, "The message is not UTF-8")
            self._over()

    # ------------------------------------------------------------------ to the client: `sockets.Direct`

    def take(self, conversation: Conversation, first: bytes | None) -> None:
        """Let messages go there, without events."""
        self._taken = conversation
        self._came.set()
        if self._holding:  # more came than an application takes at a time
            self.hold(False)
        if first is not None:
            conversation.receive(first, binary=conversation.binary)
        while self._arrived:
            message = self._arrived.popleft()
            text, content = message.get("text"), message.get("bytes")
            if message["type"] == "websocket.disconnect":
                conversation.left()
            elif text is not None:
                conversation.receive(text.encode(), binary=False)
            elif content is not None:
                conversation.receive(content, binary=True)
        if self.transport.is_closing():
            conversation.left()

    def send(self, data: bytes) -> None:
        """A message, of the kind that the conversation speaks."""
        if self._open:
            assert self._taken is not None
            self._send(_WHOLE_BINARY if self._taken.binary else _WHOLE_TEXT, data)

    def _send(self, first: int, data: bytes) -> None:
        size = len(data)
        if size < 126:
            head = bytes((first, size))
        elif size < 1 << 16:
            head = _MEDIUM.pack(first, 126, size)
        else:
            head = _LONG.pack(first, 127, size)
        if size <= _GATHERED:
            if not self._unsent:
                self._outbox.add(self, self._loop)
            self._unsent.append(head)
            self._unsent.append(data)
        else:
            self.send_now()
            if not self.transport.is_closing():
                self.transport.write(head)
                self.transport.write(data)

    def send_now(self) -> None:
        """Hand to the system what waits for others."""
        unsent = self._unsent
        if unsent:
            self._unsent = []
            if not self.transport.is_closing():
                self.transport.write(b"".join(unsent))

    def close(self, code: int, reason: str) -> None:
        """Close it; the client has a moment to do so, too."""
        if self._library.state is _OPEN:
            self._library.send_close(code, shorten(reason))
        self._flush()
        self._hold_reading(False)

    def hold(self, holding: bool) -> None:
        """Read nothing more for now, or go on."""
        self._hold_reading(holding)
        if not holding and self._held and self._later is None:
            self._later = self._loop.call_soon(self._go_on)

    def _hold_reading(self, holding: bool) -> None:
        self._holding = holding
        if self.transport.is_closing():
            return
        if holding:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()

    def _flush(self) -> None:
        """Send what the library has to say."""
        self._open = self._library.state is _OPEN
        self.send_now()
        transport = self.transport
        for data in self._library.data_to_send():
            if transport.is_closing():
                return
            if data:
                transport.write(data)
            elif transport.can_write_eof():
                # Not close(): what the client is still sending would be answered by a RST, which
                # may overtake the close frame.
                transport.write_eof()
            else:
                transport.close()
        if self._closing is None and self._library.close_expected():
            self._closing = self._loop.call_later(_CLOSE_SECONDS, transport.abort)

    # ------------------------------------------------------------------ clients that are silent or slow

    def _tick(self) -> None:
        self._ticks = self._loop.call_later(PING_SECONDS, self._tick)
        if self._holding or self._heard:
            self._heard = self._asked = False
            return
        if self._asked or not self._accepted:
            self.transport.abort()
        elif self._library.state is _OPEN:
            self._asked = True
            self._library.send_ping(b"")
            self._flush()

    def trust(self) -> None:
        """The client has said who it is: its messages may be large."""
        self._most = self._most_known
        for name in ("max_size", "max_message_size"):  # by version
            if hasattr(self._library, name):
                setattr(self._library, name, self._most)

    def pause_writing(self) -> None:
        """The client has not taken what was sent to it."""
        self._writable.clear()
        if self._taken is not None:
            self._taken.pause()
        self._stuck = self.transport.get_write_buffer_size()
        self._looking = self._loop.call_later(self._patience, self._look)

    def resume_writing(self) -> None:
        """It has."""
        self._writable.set()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        if self._taken is not None:
            self._taken.resume()

    def _look(self) -> None:
        before, self._stuck = self._stuck, self.transport.get_write_buffer_size()
        if self._stuck > before - self._least:
            self.transport.abort()
        else:
            self._looking = self._loop.call_later(self._patience, self._look)

    # ------------------------------------------------------------------ ASGI

    def _handshake(self) -> None:
        if (
            self._library.handshake_exc is not None
        ):  # it could not read the request, and has said so as text
            self._library.data_to_send()
            why = "What was sent is no handshake: its head has too many lines, or too long ones"
            self.transport.write(refused(HttpError(431, "HEAD_TOO_LARGE", why)).last())
            self.transport.close()
            return
        for event in self._library.events_received():
            if not isinstance(event, Request):
                continue
            self._request = event
            response = self._library.accept(event)
            if response.status_code != HTTPStatus.SWITCHING_PROTOCOLS:
                why = bytes(response.body or b"").partition(b"\n")[0].decode()
                told = refused(HttpError(response.status_code, "BAD_HANDSHAKE", why))
                response.body = told.body
                fields = {"Content-Type": JSON.decode(), "Content-Length": str(len(told.body))}
                for name, value in fields.items():
                    del response.headers[name]
                    response.headers[name] = value
                self._library.send_response(response)
                break
            self._response = response
            self._arrive({"type": "websocket.connect"})
            self._task = self._loop.create_task(self._run(self._scope(event)))
            self._state.tasks.add(self._task)
            self._task.add_done_callback(self._state.tasks.discard)
        self._flush()

    def _scope(self, request: Request) -> Scope:
        path, _, query = request.path.partition("?")
        offered: list[str] = []
        for line in request.headers.get_all("Sec-WebSocket-Protocol"):
            offered.extend(token.strip() for token in line.split(","))
        return {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "scheme": "wss" if is_ssl(self.transport) else "ws",
            "server": get_local_addr(self.transport),
            "client": get_remote_addr(self.transport),
            "root_path": self._config.root_path,
            "path": self._config.root_path + unquote(path),
            "raw_path": path.encode("latin-1"),
            "query_string": query.encode("latin-1"),
            "headers": [
                (name.lower().encode("latin-1"), value.encode("latin-1", "surrogateescape"))
                for name, value in request.headers.raw_items()
            ],
            "subprotocols": offered,
            "state": self._app_state.copy(),
            "extensions": {"websocket.http.response": {}, SOCKET: self},
        }

    async def _run(self, scope: Scope) -> None:
        try:
            await self._config.loaded_app(scope, self._receive, self._tell)
        except Exception:
            log.exception("a WebSocket failed")
            if self._accepted:
                self.close(FAILED, "The server failed; its log says why")
        finally:
            if not self._accepted:
                self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, [], b"")
            self.close(_NORMAL, "")

    def _arrive(self, message: Message) -> None:
        self._arrived.append(message)
        self._came.set()
        if len(self._arrived) > _QUEUED and not self._holding:
            self.hold(True)

    async def _receive(self) -> Message:
        while not self._arrived:
            self._came.clear()
            await self._came.wait()
        message = self._arrived.popleft()
        if self._taken is None and self._holding and len(self._arrived) <= _QUEUED:
            self.hold(False)
        return message

    async def _tell(self, message: Message) -> None:
        await self._writable.wait()
        kind: str = message["type"]
        if not self._accepted:
            self._tell_before(kind, message)
        elif self._library.state is not _OPEN or self.transport.is_closing():
            raise OSError("The WebSocket is closed")
        elif kind == "websocket.send":
            content = message.get("bytes")
            if content is not None:
                self._send(_WHOLE_BINARY, content)
            else:
                self._send(_WHOLE_TEXT, message["text"].encode())
        elif kind == "websocket.close":
            self.close(message.get("code", 1000), message.get("reason") or "")

    def _tell_before(self, kind: str, message: Message) -> None:
        """What an application says before the WebSocket is open."""
        if kind == "websocket.accept":
            headers = self._response.headers
            for name, value in message.get("headers", ()):
                headers[name.decode("latin-1")] = value.decode("latin-1")
            if message.get("subprotocol"):
                headers["Sec-WebSocket-Protocol"] = message["subprotocol"]
            self._accepted = True
            self._library.send_response(self._response)
            self._flush()
        elif kind == "websocket.close":
            self._answer(HTTPStatus.FORBIDDEN, [], b"")
        elif kind == "websocket.http.response.start":
            headers = message.get("headers", ())
            told = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
            self._refusal = message["status"], told
        elif self._refusal is not None:
            self._answer(*self._refusal, message.get("body", b""))

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """Refuse the upgrade."""
        if self._library.state is not State.CONNECTING or self._library.eof_sent:
            return
        fields = Headers([*headers, ("Connection", "close")])
        if "Content-Length" not in fields:
            fields["Content-Length"] = str(len(body))
        response = Response(int(status), HTTPStatus(status).phrase, fields, body)
        self._library.send_response(response)
        self._flush()
