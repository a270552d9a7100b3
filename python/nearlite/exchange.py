"""Requests and answers at the level of ASGI: bodies with limits, answers with deadlines.

A client that sends its body or takes its answer too slowly holds memory, a stream, perhaps the turn to
write; it gets `Limits.client_seconds` per piece, and `Limits.min_bytes_per_second` for all of them, and is cut off.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import sys
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http import HTTPStatus
from typing import Any, Final, Protocol, TypeVar

from nearlite import hrana
from nearlite.limits import Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

PIECE: Final = 256 << 10
"""Bytes handed to the server at a time."""
_SMALL: Final = 32 << 10
JSON: Final = b"application/json"

NO_STORE: Final = (b"cache-control", b"no-store")
CORS: Final = (b"access-control-allow-origin", b"*")

DELIVERY: Final = "nearlite.delivery"
"""ASGI extension of our own server: the `Expecting` of the connection."""

_T = TypeVar("_T")


class HttpError(Exception):
    """A request that is answered with an error body."""

    def __init__(self, status: int, code: str, message: str, headers: Headers = ()) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.headers = headers
        super().__init__(message)


class StatementFailedError(HttpError):
    """A statement failed, and its request with it: the message may quote what the client has sent."""


def failed() -> HttpError:
    """What a client is told of an exception that nobody expected."""
    return HttpError(500, "INTERNAL_ERROR", "The server failed; its log says why")


class Whole:
    """An answer that is complete. Its bytes are made once, for all who are sent it.

    Attributes:
      status, body, content_type, headers: as `Answering.whole` has them.
      told: all of it in HTTP/1.1, for a connection that stays open.
    """

    __slots__ = ("body", "content_type", "headers", "status", "told")

    def __init__(
        self, status: int, body: bytes, content_type: bytes = JSON, headers: Headers = ()
    ) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = tuple(headers)
        self.told = self._tell(self.headers)

    def last(self) -> bytes:
        """The same for a connection that is closed behind it."""
        return self._tell((*self.headers, (b"connection", b"close")))

    def _tell(self, headers: Headers) -> bytes:
        phrase = HTTPStatus(self.status).phrase.encode()
        lines = [b"HTTP/1.1 %d %b" % (self.status, phrase)]
        for name, value in (
            (b"content-type", self.content_type),
            (b"content-length", b"%d" % len(self.body)),
            CORS,
            *headers,
        ):
            lines.append(b"%b: %b" % (name, value))
        return b"\r\n".join((*lines, b"", self.body))


def refused(error: HttpError) -> Whole:
    """A request that is answered with an error body."""
    body = hrana.error_body(error.message, error.code)
    # Caches may keep some of them (404, 405, 410) as they like if nothing is said (RFC 9110, 15.1).
    return Whole(error.status, body, JSON, (NO_STORE, *error.headers))


async def load_protobuf() -> Any:
    """The module `hrana.protobuf`, imported when somebody speaks it: it takes 0.1 s."""
    name = "nearlite.hrana.protobuf"
    found = sys.modules.get(name)
    if found is None or not hasattr(found, "Protobuf"):  # a thread may be at it
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(None, importlib.import_module, name)
    return found


async def refuse_socket(scope: Scope, send: Send, error: HttpError) -> None:
    """Answer an upgrade with an error body, if the server can, and not with 403 alone."""
    with contextlib.suppress(ClientGoneError, OSError, RuntimeError):  # it is open, or gone
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1008, "reason": error.code})
            return
        told = refused(error)
        fields = [
            (b"content-type", told.content_type),
            (b"content-length", b"%d" % len(told.body)),
            *told.headers,
        ]
        kind = "websocket.http.response"
        await send({"type": f"{kind}.start", "status": told.status, "headers": fields})
        await send({"type": f"{kind}.body", "body": told.body})


class ClientGoneError(Exception):
    """The client has disconnected, or was cut off: there is nobody to answer."""


class Expecting(Protocol):
    """Knows whether answers have arrived at a client."""

    def expect(self, lost: Callable[[], None]) -> None:
        """Call `lost` when what was sent so far is known not to have arrived."""


Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Client(Expecting, Protocol):
    """Whoever sent a request that took a short cut. One of `answer`, `send`, `proceed` is called, once."""

    def answer(self, body: bytes, content_type: bytes = JSON, headers: Headers = ()) -> None:
        """Answer with status 200."""

    def send(self, whole: Whole) -> None:
        """Answer with what others are sent, too."""

    def wait(self, left: Callable[[], None]) -> None:
        """The answer takes a while: call `left` if the client leaves before, or has left."""

    @property
    def address(self) -> object:
        """Who it is."""

    def proceed(self, application: Application) -> None:
        """Let an ASGI application answer after all. It is called soon."""


class Shortcut(Protocol):
    """Answers requests that have the same head, but for our own headers, without ASGI."""

    def __call__(self, target: bytes, varying: Headers, body: bytes, client: Client, /) -> bool:
        """Answer, or see to it; False when nothing was done: the request goes the usual way.

        Args:
          target: path and query as they were sent, of a long poll, where they are others each time;
            otherwise perhaps nothing.
          varying: headers of ours (``Nearlite-*``), names in lowercase.
          body: as a whole.
          client: to be answered.
        """


class Deadlines:
    """Deadlines for awaiting a client, without a timer for each: one look a second at all of them.

    Args:
      limits: of the server.

    Attributes:
      seconds: for one piece of a body, in either direction.
      rate: bytes that a body has to bring a second, beyond those seconds.
      most: bytes of a body.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self.seconds = limits.client_seconds
        self.rate = limits.min_bytes_per_second
        self.most = limits.max_request_bytes
        self._due: dict[asyncio.Task[Any], float] = {}
        self._missed: set[asyncio.Task[Any]] = set()
        self._handle: asyncio.TimerHandle | None = None

    async def wait(self, awaitable: Awaitable[_T]) -> _T:
        """Await; TimeoutError after `seconds` (to the next look)."""
        task = asyncio.current_task()
        assert task is not None
        self._due[task] = time.monotonic() + self.seconds
        if self._handle is None:
            self._wind()
        try:
            return await awaitable
        except asyncio.CancelledError:
            if task not in self._missed:
                raise
            self._missed.discard(task)
            if hasattr(task, "uncancel"):  # Python 3.11
                task.uncancel()
            raise TimeoutError from None
        finally:
            self._due.pop(task, None)

    def _look(self) -> None:
        self._handle = None
        now = time.monotonic()
        for task in [task for task, due in self._due.items() if due <= now]:
            del self._due[task]
            self._missed.add(task)
            task.cancel()
        if self._due:
            self._wind()

    def _wind(self) -> None:
        every = min(1.0, self.seconds)
        self._handle = asyncio.get_running_loop().call_later(every, self._look)

    def is_late(self, began: float, size: int) -> bool:
        """Whether a body that began to come at that clock, and has brought so much, comes too slowly."""
        return (time.monotonic() - began - self.seconds) * self.rate > size


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of that (lowercase) name."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


def expecting(scope: Scope) -> Expecting | None:
    """Who knows whether the answer has arrived; None under another server than ours."""
    found: Expecting | None = (scope.get("extensions") or {}).get(DELIVERY)
    return found


async def read_body(scope: Scope, receive: Receive, deadlines: Deadlines) -> bytes:
    """The whole body.

    Raises:
      HttpError: 413 too large, 408 too slow.
      ClientGoneError: disconnected before its end.
    """
    announced = header(scope, b"content-length")
    most = deadlines.most
    if announced is not None and int(announced) > most:
        raise _too_large(most)
    try:
        message = await deadlines.wait(receive())
        if message["type"] != "http.request":
            raise ClientGoneError
        if not message.get("more_body"):
            body: bytes = message.get("body", b"")
            if len(body) > most:
                raise _too_large(most)
            return body
        began = time.monotonic()
        pieces = [message.get("body", b"")]
        size = len(pieces[0])
        while message.get("more_body"):
            message = await deadlines.wait(receive())
            if message["type"] != "http.request":
                raise ClientGoneError
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > most:
                raise _too_large(most)
            if deadlines.is_late(began, size):
                raise TimeoutError
    except TimeoutError:
        raise HttpError(
            408,
            "REQUEST_TIMEOUT",
            "The request's body did not arrive in time; nothing was carried out",
            ((b"connection", b"close"),),
        ) from None
    return b"".join(pieces)


def _too_large(most: int) -> HttpError:
    return HttpError(
        413,
        "REQUEST_TOO_LARGE",
        f"The request is larger than {most} bytes, which is the limit; nothing was carried out",
    )


class Answering:
    """Sends answers of one server.

    Args:
      deadlines: of the server.
    """

    def __init__(self, deadlines: Deadlines) -> None:
        self._deadlines = deadlines

    async def whole(
        self,
        send: Send,
        status: int,
        body: bytes,
        content_type: bytes = JSON,
        headers: Headers = (),
        *,
        head: bool = False,
    ) -> None:
        """Send an answer that is complete. `head`: only its headers (a HEAD request)."""
        fields = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            CORS,
            *headers,
        ]
        try:
            await send({"type": "http.response.start", "status": status, "headers": fields})
            if head or len(body) <= _SMALL:
                # Fits into the transport's buffer: there is nothing to wait for.
                await send({"type": "http.response.body", "body": b"" if head else body})
                return
        except OSError:
            raise ClientGoneError from None
        view = memoryview(body)
        for at in range(0, len(body), PIECE):
            piece = bytes(view[at : at + PIECE])
            await self._piece(send, piece, more=at + PIECE < len(body))

    async def start(
        self, send: Send, status: int, content_type: bytes, headers: Headers = ()
    ) -> None:
        """Begin an answer whose body comes in pieces."""
        fields = [(b"content-type", content_type), CORS, *headers]
        await send({"type": "http.response.start", "status": status, "headers": fields})

    async def piece(self, send: Send, body: bytes) -> None:
        """Send a piece of it."""
        for at in range(0, len(body), PIECE):
            await self._piece(send, body[at : at + PIECE], more=True)

    async def end(self, send: Send) -> None:
        """End it."""
        await self._piece(send, b"", more=False)

    async def error(self, send: Send, error: HttpError, *, head: bool = False) -> None:
        """Send an error body."""
        told = refused(error)
        await self.whole(send, told.status, told.body, JSON, told.headers, head=head)

    async def _piece(self, send: Send, body: bytes, *, more: bool) -> None:
        try:
            await self._deadlines.wait(
                send({"type": "http.response.body", "body": body, "more_body": more})
            )
        except (TimeoutError, OSError):
            cut_off(send)
            raise ClientGoneError from None


def cut_off(send: Send) -> bool:
    """Drop the connection; False under another server than uvicorn.

    ASGI has no word for it: an application can only leave an answer unfinished, and what waits in the
    transport's buffer then stays there for as long as the client likes.
    """
    cycle = getattr(send, "__self__", None)
    abort = getattr(getattr(cycle, "transport", None), "abort", None)
    if abort is None:
        return False
    with contextlib.suppress(Exception):
        abort()
        cycle.disconnected = True  # type: ignore[union-attr]  # nobody is to be told that it is unfinished
    return True
