"""One HTTP connection of our server: uvicorn's protocol with the limits it lacks, and a short cut.

The short cut. A pipeline that arrives whole and needs no waiting is answered where it is received, without a task,
events and messages for it, which cost more than its statement. `server.App` says what answers a request so
(`Shortcut`); whatever it does not take goes the usual way. And a head that was parsed before is not parsed
again if it differs in nothing but the values of a few headers: clients repeat themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from time import perf_counter_ns
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from nearlite.delivery import Delivery
from nearlite.exchange import (
    CORS,
    DELIVERY,
    JSON,
    Application,
    ClientGoneError,
    Headers,
    HttpError,
    Message,
    Receive,
    Scope,
    Send,
    Shortcut,
    Whole,
    refused,
)
from nearlite.hooks import Hooks
from nearlite.limits import Limits
from nearlite.meters import Meter, Meters, request_of

_BEYOND: Final = 16  # connections that are heard to be told so; more are closed at once
_HEAD_BYTES: Final = 64 << 10
_HEAD_BEGINS: Final = b"HTTP/1.1 "
_GATHERED: Final = 32 << 10  # bytes: copying more costs as much as a system call
_KNOWN: Final = 4096  # heads that are remembered: of many databases each has some
_KNOWN_BYTES: Final = 2048  # of one of them
_LENGTH: Final = b"content-length"
_OURS: Final = b"nearlite-"
# A value cannot be mistaken: whoever uses it takes nothing but digits and the like.
_VARYING: Final = re.compile(
    rb"\r\n(content-length|nearlite-(?:position|hash|counters|read|request)): *([^\r\n]*)(?=\r\n)",
    re.IGNORECASE,
)
# Long polls differ in what they ask about: where the replica stands.
_GET: Final = b"GET /"
_POLL: Final = b"/nl/v1/changes/"
_BEFORE_POLL: Final = 128  # bytes in which that begins, perhaps below the path of a database
_HELD: Final = 64 << 10  # bytes of further requests that wait in memory for an answer
_SIMPLE: Final = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\naccess-control-allow-origin: *\r\n"


class _Transport:
    """A transport that sends the head of an answer together with the first bytes of its body.

    uvicorn writes one after the other, and uvloop hands each to the kernel at once: two system calls
    and two packets, each of which wakes the client (measured: 1.2 times the reads a second without). The
    head waits for the body, but not longer than this turn of the event loop; the whole answer does not:
    the next group of writes begins when the first client of the last one has heard.
    """

    __slots__ = ("_head", "_loop", "_transport", "delivery", "status")

    def __init__(self, transport: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self.delivery = Delivery(transport)
        self._head: bytes | None = None
        self.status = b""  # of the latest answer that began here

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    @property
    def plain(self) -> Any:
        """The transport itself."""
        return self._transport

    def write(self, data: bytes) -> None:
        head = self._head
        if head is None:
            if data.startswith(_HEAD_BEGINS):  # or a body that looks so: it is a little late
                self._head = data
                self.status = data[9:12]
                self._loop.call_soon(self._flush)
                return
        else:
            self._head = None
            if len(data) <= _GATHERED:
                data = head + data
            else:
                self.whole(head)
        self.whole(data)

    def whole(self, data: bytes) -> None:
        """Send what is not to be gathered with anything."""
        self.delivery.wrote(len(data))
        self._transport.write(data)

    def _flush(self) -> None:
        head, self._head = self._head, None
        if head is not None and not self._transport.is_closing():
            self.whole(head)

    def close(self) -> None:
        self._flush()
        self.delivery.closing()
        self._transport.close()

    def is_closing(self) -> bool:
        closing: bool = self._transport.is_closing()
        return closing


class _Known:
    """Heads of requests that were parsed before, but for the values of the headers that vary."""

    def __init__(self) -> None:
        self._heads: dict[tuple[bytes, ...], Shortcut] = {}
        self.meters: dict[Shortcut, Meter] = {}

    def find(self, data: bytes) -> tuple[Shortcut, bytes, Headers, bytes] | None:
        """What answers a request that is complete, its target, its varying headers, and its body.

        None if its head is not known.
        """
        end = data.find(b"\r\n\r\n") + 2
        if (begins := _poll(data)) >= 0:
            at = data.find(b" ", begins)
            shortcut = self._heads.get((data[:begins], data[at:]))
            return None if shortcut is None else (shortcut, data[4:at], (), b"")
        parts = _VARYING.split(data[:end])
        shortcut = self._heads.get(_key(parts))
        if shortcut is None:
            return None
        size = 0
        varying = []
        for index in range(1, len(parts), 3):
            name, value = parts[index].lower(), parts[index + 1]
            if name != _LENGTH:
                varying.append((name, value))
            elif value.isdigit() and len(value) < 10:
                size = int(value)
            else:
                return None
        body = data[end + 2 :]
        return None if len(body) != size else (shortcut, b"", varying, body)

    def note(self, head: bytes, shortcut: Shortcut) -> None:
        """Remember one; `head` ends with an empty line."""
        if len(head) > _KNOWN_BYTES:
            return
        if len(self._heads) >= _KNOWN:
            self._heads.clear()
            self.meters.clear()
        if (begins := _poll(head)) >= 0:
            key: tuple[bytes, ...] = head[:begins], head[head.find(b" ", begins) :]
        else:
            key = _key(_VARYING.split(head[:-2]))
        self._heads[key] = shortcut


def _poll(head: bytes) -> int:
    """Where a long poll tells where its replica stands; -1: it is none."""
    if not head.startswith(_GET):
        return -1
    begins = head.find(_POLL, 4, _BEFORE_POLL)
    return -1 if begins < 0 or b" " in head[4:begins] else begins + len(_POLL)


def _key(parts: list[bytes]) -> tuple[bytes, ...]:
    """A head without the values that vary."""
    return (*parts[::3], *parts[1::3])


def protocol(
    shortcut_of: Callable[[Scope], Shortcut | None],
    *,
    most: int,
    limits: Limits,
    meters: Meters | None = None,
) -> Any:
    """What uvicorn makes of each connection of a server.

    Args:
      shortcut_of: the short cut of requests with a head, if there is one.
      most: connections that there are descriptors for.
      limits: of the server.
      meters: count its requests.
    """
    return partial(
        _Connection,
        known=_Known(),
        shortcut_of=shortcut_of,
        most=min(most, limits.max_connections),
        limits=limits,
        meters=meters,
    )


class _Connection(HttpToolsProtocol):
    """uvicorn's protocol with limits on requests that never end, answers that nobody takes, and connections.

    Where its short cut is taken, `answer` or `proceed` is called, perhaps later; what else the client has
    sent by then waits.

    Args:
      known: of the server.
      shortcut_of: the short cut of requests with a head, if there is one.
      most: connections of the server at a time.
      limits: of the server.
      meters: count its requests; None: nobody does.
    """

    app: Any
    transport: Any

    def __init__(
        self,
        *args: Any,
        known: _Known,
        shortcut_of: Callable[[Scope], Shortcut | None],
        most: int,
        limits: Limits,
        meters: Meters | None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._known = known
        self._shortcut_of = shortcut_of
        self._most = most
        self._meters = meters
        self._meter: Meter | None = None  # of the request that is being answered
        self._came = 0  # clock, nanoseconds, when that was begun
        self._sent = 0  # bytes that have been counted
        self._asked: Scope | None = None  # what it asks, where its head was parsed
        self._patience = limits.client_seconds
        # Bytes of an answer that have to arrive within that time, if there is more.
        self._least = max(1, int(limits.min_bytes_per_second * limits.client_seconds))
        self._beyond = False  # there are too many connections: this one is told so
        self._due: asyncio.TimerHandle | None = (
            None  # the end of what is not answered yet, or any more
        )
        self._in_head = True
        self._ended = False  # a message ended within the data that is being parsed
        self._begun = False  # the parser is inside a message
        self._head_size = 0
        self._deferred: tuple[Any, Any] | None = None  # a cycle that may take the short cut
        self._feeding = False
        self._instead: Application | None = None  # answers the request that is parsed next
        self._cycle: Any = None  # of the request that was parsed and is being answered
        self._taken: bytes | None = None  # a request of a known head that is being answered
        self._held = bytearray()  # what came behind it
        self._ends = False  # the connection is to be closed behind its answer
        self._left: Callable[[], None] | None = None  # to be called if the client leaves
        self._used = 0.0  # clock of the latest answer
        self._watched = False  # whether the client takes its answers

    # ------------------------------------------------------------------ life

    def connection_made(self, transport: Any) -> None:
        gathering = _Transport(transport, self.loop)
        self.delivery = gathering.delivery
        self._extensions = {DELIVERY: self.delivery}
        super().connection_made(gathering)  # type: ignore[arg-type]
        if self._meters is not None:
            self._meters.connections += 1
            self._meters.accepted += 1
        beyond = len(self.connections) - self._most
        self._beyond = beyond > 0
        if beyond > _BEYOND:
            transport.abort()
        self._soon_due()

    def connection_lost(self, exc: Exception | None) -> None:
        self._done()
        if self._meters is not None:
            self._meters.connections -= 1
            if self._meter is not None:
                self._meter.left += 1
                if self._meters.hooks is not None:
                    took = perf_counter_ns() - self._came
                    self._tell(self._meters.hooks, self._meter, 0, took)
        self.delivery.end(exc is not None)
        if self._left is not None:
            left, self._left = self._left, None
            left()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def eof_received(self) -> None:
        self.delivery.eof()

    def shutdown(self) -> None:
        if self._taken is None:
            super().shutdown()
        else:
            self._ends = True

    # ------------------------------------------------------------------ requests

    def data_received(self, data: bytes) -> None:
        if self._meters is not None:
            self._meters.received += len(data)
        if self._taken is not None:
            self._held += data
            if len(self._held) > _HELD:
                self.flow.pause_reading()
            return
        if not self._begun and (self.cycle is None or self.cycle.response_complete):
            found = self._known.find(data)
            if found is not None and self._may_shorten():
                shortcut, target, varying, body = found
                if self._due is not None:
                    self._done()
                    self._in_head = True
                self._taken = data
                if self._meters is not None:
                    self._meter = self._known.meters.get(shortcut)
                    self._came = perf_counter_ns()
                    self._asked = None
                if shortcut(target, varying, body, self):
                    return
                self._taken = None
        self._parse(data)

    def handle_websocket_upgrade(self) -> None:
        if not self._beyond:
            self._done()
            self.delivery.end(failed=False)
            self.transport = self.transport.plain
            if self._meters is not None:  # from here on it is another protocol's
                self._meters.connections -= 1
                self._meters.sockets += 1
            super().handle_websocket_upgrade()
        else:
            self.transport.whole(_NO_ROOM.told)
            self.transport.close()

    def _may_shorten(self) -> bool:
        return not self._beyond and not self.flow.write_paused and not self.transport.is_closing()

    def _parse(self, data: bytes) -> None:
        """The usual way, but for a request that is complete by the end of this data."""
        begun_in_head, between = self._in_head, not self._begun
        self._feeding = True
        super().data_received(data)
        self._feeding = False
        # Data that ended one message and began the next tells little of the latter's head.
        if begun_in_head and self._in_head and not self._ended:
            self._head_size += len(data)
            if self._head_size > _HEAD_BYTES:
                self.transport.abort()
        self._ended = False
        if self._due is None and (self.cycle is None or self.cycle.response_complete):
            # A head of which there is more to come, or the body of a request that was answered before its end.
            self._soon_due()
        if self._deferred is not None:
            (cycle, app), self._deferred = self._deferred, None
            if not self._shorten(cycle, data if between else b""):
                super()._start_asgi_task(cycle, app)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if self._meters is not None:
            self._asked = cycle.scope
            if self._instead is None:
                self._meter = self._meters.meter(cycle.scope["path"])
                self._came = perf_counter_ns()
        if self._beyond:
            super()._start_asgi_task(cycle, _full)  # type: ignore[arg-type]
        elif self._instead is not None:
            app, self._instead = self._instead, None
            super()._start_asgi_task(cycle, app)
        elif self._feeding and cycle.keep_alive and not cycle.waiting_for_100_continue:
            self._deferred = cycle, app
        else:
            super()._start_asgi_task(cycle, app)

    def _shorten(self, cycle: Any, data: bytes) -> bool:
        """Take the short cut with a request that was parsed, if it can be; `data` began with it."""
        if cycle.more_body or cycle is not self.cycle or not self._may_shorten():
            return False
        scope: Any = cycle.scope
        shortcut = self._shortcut_of(scope)
        if shortcut is None:
            return False
        body = bytes(cycle.body)
        end = data.find(b"\r\n\r\n") + 4
        if data and data[end:] == body:
            self._known.note(data[:end], shortcut)
            if self._meter is not None:
                self._known.meters[shortcut] = self._meter
        varying = [field for field in scope["headers"] if field[0].startswith(_OURS)]
        self._cycle = cycle  # behind it there may be others by the time of its answer
        return shortcut(self.url, varying, body, self)

    # ------------------------------------------------------------------ answers

    def answer(self, body: bytes, content_type: bytes = JSON, headers: Headers = ()) -> None:
        """Answer the request that was taken, with status 200."""
        self._left = None
        transport = self.transport
        if transport.is_closing():
            self.delivery.wrote(0)
        else:
            head = _SIMPLE % (content_type, len(body))
            for name, value in headers:
                head += b"%b: %b\r\n" % (name, value)
            ends = self._is_last()
            if ends:
                head += b"connection: close\r\n"
            if len(body) <= _GATHERED:
                transport.whole(b"%b\r\n%b" % (head, body))
            else:
                transport.whole(head + b"\r\n")
                transport.whole(body)
                self._watch()
            if ends:
                transport.close()
        self._answered(200)

    def send(self, whole: Whole) -> None:
        """Answer the request that was taken with what others are sent, too."""
        self._left = None
        transport = self.transport
        if transport.is_closing():
            self.delivery.wrote(0)
        elif self._is_last():
            transport.whole(whole.last())
            transport.close()
        else:
            transport.whole(whole.told)
            if len(whole.told) > _GATHERED:
                self._watch()
        self._answered(whole.status)

    def wait(self, left: Callable[[], None]) -> None:
        """The answer of the request that was taken takes a while; call `left` if its client leaves, or has left."""
        if self.transport.is_closing():
            self.loop.call_soon(left)
        else:
            self._left = left

    def _is_last(self) -> bool:
        """Whether the connection is to be closed behind the answer of the request that was taken."""
        return self._ends or (self._taken is None and not self._cycle.keep_alive)

    def _answered(self, status: int) -> None:
        if self._meters is not None:
            self._count(status)
        if self._taken is not None:
            self._taken = None
            self._used = self.loop.time()
            if self.timeout_keep_alive_task is None and not self.transport.is_closing():
                self._keep(self.timeout_keep_alive)
            self._go_on()
        else:
            self._cycle.response_started = self._cycle.response_complete = True
            self.on_response_complete()

    def on_response_complete(self) -> None:
        if self._meter is not None:  # else it was counted when it was answered here
            status = self.transport.status
            self._count(int(status) if status.isdigit() else 0)
        super().on_response_complete()

    def _count(self, status: int) -> None:
        """A request has been answered."""
        if self._meter is not None and self._meters is not None:
            took = perf_counter_ns() - self._came
            self._meter.done(status, took)
            if self._meters.hooks is not None:
                self._tell(self._meters.hooks, self._meter, status, took)
            self._meter = None
            written = self.delivery.written
            self._meters.sent += written - self._sent
            self._sent = written

    def _tell(self, hooks: Hooks, meter: Meter, status: int, took: int) -> None:
        request = request_of(self._asked, self._taken, meter.route, status, took)
        if self._asked is None and self.client:
            request = replace(request, client=f"{self.client[0]}:{self.client[1]}")
        hooks.request(request)

    def proceed(self, application: Application) -> None:
        """An ASGI application answers it, in a task."""
        self._left = None
        if self._taken is None:
            super()._start_asgi_task(self._cycle, application)  # type: ignore[arg-type]
            return
        data, self._taken = self._taken, None
        if self.transport.is_closing():  # nobody is there to be answered, but it is to be finished
            task = self.loop.create_task(_without_client(application))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)
            return
        self._instead = application
        self._parse(data)
        if self._ends:
            super().shutdown()  # the head was not parsed yet when the server was told to end
        self._go_on()

    @property
    def address(self) -> object:
        """See `exchange.Client`."""
        return self.client

    def expect(self, lost: Callable[[], None]) -> None:
        """See `exchange.Expecting`."""
        self.delivery.expect(lost)

    def _go_on(self) -> None:
        """What came behind a request of a known head is due."""
        if self._held and not self.transport.is_closing():
            data, self._held = bytes(self._held), bytearray()
            self.flow.resume_reading()
            self.data_received(data)

    def _keep(self, seconds: float) -> None:
        handler = self.timeout_keep_alive_handler
        self.timeout_keep_alive_task = self.loop.call_later(seconds, handler)

    def timeout_keep_alive_handler(self) -> None:
        # Requests of known heads do not move the timer, which would cost more than to look here.
        left = self._used + self.timeout_keep_alive - self.loop.time()
        if self._taken is not None or left > 0:
            self._keep(left if left > 0 else self.timeout_keep_alive)
        else:
            super().timeout_keep_alive_handler()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def _watch(self) -> None:
        """Drop a client that does not take its answer, or hardly."""
        if not self._watched and self.transport.get_write_buffer_size():
            self._watched = True
            self.loop.call_later(self._patience, self._look, self.delivery.taken())

    def _look(self, before: int) -> None:
        self._watched = False
        size = self.transport.get_write_buffer_size()
        if not size:
            return
        # A transport that is closing goes on for as long as the client takes what is left.
        if self.delivery.taken() - before < self._least:
            self.transport.abort()
        else:
            self._watch()

    # ------------------------------------------------------------------ parser

    def on_message_begin(self) -> None:
        self._begun = True
        super().on_message_begin()
        self.scope["extensions"] = self._extensions  # type: ignore[typeddict-item]

    def on_headers_complete(self) -> None:
        self._done()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._done()
        self._begun = False
        self._in_head = self._ended = True

    def send_400_response(self, _msg: str) -> None:
        if not self.transport.is_closing():
            error = HttpError(400, "BAD_REQUEST", "What was sent is not a request of HTTP/1.1")
            self.transport.whole(refused(error).last())
            self.transport.close()

    def _soon_due(self) -> None:
        self._due = self.loop.call_later(self._patience, self.transport.abort)

    def _done(self) -> None:
        """A head has come, or the rest of a body that nobody wanted."""
        self._in_head = False
        self._head_size = 0
        if self._due is not None:
            self._due.cancel()
            self._due = None


_NO_ROOM: Final = refused(
    HttpError(
        503,
        "TOO_MANY_CONNECTIONS",
        "The server has as many connections as it may; nothing was carried out",
        ((b"retry-after", b"1"), (b"connection", b"close")),
    )
)


async def _full(_scope: Scope, _receive: Receive, send: Send) -> None:
    """Answers on a connection that there is no room for."""
    told = _NO_ROOM
    fields = [(b"content-type", told.content_type), (b"content-length", b"%d" % len(told.body))]
    fields += [CORS, *told.headers]
    await send({"type": "http.response.start", "status": told.status, "headers": fields})
    await send({"type": "http.response.body", "body": told.body})


async def _without_client(application: Application) -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_message: Message) -> None:
        raise ClientGoneError

    with contextlib.suppress(ClientGoneError):
        await application({"type": "http", "method": "POST"}, receive, send)
