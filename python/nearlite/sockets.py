"""WebSockets of one database: all that are open, and messages as ASGI has them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from nearlite.access import Access
from nearlite.conversation import GOING_AWAY, Conversation
from nearlite.exchange import (
    Deadlines,
    Message,
    Receive,
    Scope,
    Send,
)
from nearlite.execution import Execution
from nearlite.greeting import GREETING, Greeting, accept
from nearlite.lanes import Peer
from nearlite.last_errors import LastErrors

SOCKET: Final = "nearlite.socket"
"""ASGI extension of our own server: a `Direct` to the client."""
_ENDS: Final = "The server is about to end"
_RESTART: Final = 1012
CHANGES: Final = "The database is being changed or deleted; connect again"
"""What the task of `answer` is cancelled with, where it is only this database that ends."""
_END_SECONDS: Final = 5.0
"""Seconds that what is under way may take to end, when the database is closed."""


class Direct(Peer, Protocol):
    """A client whose messages come without events."""

    def take(self, conversation: Conversation, first: bytes | None) -> None:
        """From now on messages go there; `first`: one that was taken before as an event."""


class Sockets:
    """Runs the requests of WebSockets on an executor. Event loop thread only.

    Args:
      executor: runs SQL.
      deadlines: of answers.
      last: is told of what clients are refused, and of statements that fail; None: nobody wants to know.
    """

    def __init__(
        self, executor: Execution, deadlines: Deadlines, last: LastErrors | None = None
    ) -> None:
        self._last = last
        self._executor = executor
        self._deadlines = deadlines
        self._open: set[Conversation] = set()

    async def answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        grant: Callable[[str | None], Access],
    ) -> None:
        """Accept a WebSocket and talk until it is closed.

        Args:
          scope: of its upgrade, whose first message has been received; what is in GREETING has been done.
          receive, send: ASGI's.
          grant: what the holder of a token may do; raises HttpError.

        Raises:
          HttpError: it is not accepted.
        """
        greeting: Greeting = scope.get(GREETING) or await accept(scope, send)
        direct: Direct | None = (scope.get("extensions") or {}).get(SOCKET)
        peer: Peer = _Outgoing() if direct is None else direct
        conversation = Conversation(
            self._executor,
            greeting.codec,
            greeting.version,
            peer,
            grant,
            partial(self._executor.heed, scope=scope),
            self._last,
        )
        self._open.add(conversation)
        conversation.ended.add_done_callback(lambda _: self._open.discard(conversation))
        try:
            if direct is None:
                assert isinstance(peer, _Outgoing)
                peer.begin(conversation)
                if greeting.hello is not None:
                    conversation.receive(greeting.hello, binary=conversation.binary)
                await peer.run(conversation, receive, send, self._deadlines)
            else:
                direct.take(conversation, greeting.hello)
            await conversation.ended
        except asyncio.CancelledError as cancelled:
            if cancelled.args == (CHANGES,):
                conversation.end(_RESTART, CHANGES)
            raise
        finally:
            conversation.end(GOING_AWAY, _ENDS)

    async def close(self) -> None:
        """Close all of them: what is under way has a moment to end."""
        for conversation in list(self._open):
            conversation.drain()
        await self._wait()
        for conversation in list(self._open):
            conversation.end(GOING_AWAY, _ENDS)
        await self._wait()

    async def _wait(self) -> None:
        ended = [conversation.ended for conversation in self._open]
        if ended:
            await asyncio.wait(ended, timeout=_END_SECONDS)


class _Outgoing:
    """A client under another server than ours: messages to it wait here until ASGI takes them."""

    def __init__(self) -> None:
        self._messages: deque[Message] = deque()
        self._size = 0
        self._ready = asyncio.Event()
        self._reading = asyncio.Event()
        self._reading.set()
        self._binary = False
        self._conversation: Conversation | None = None

    def send(self, data: bytes) -> None:
        """See `Peer`."""
        kind, content = ("bytes", data) if self._binary else ("text", data.decode())
        self._put({"type": "websocket.send", kind: content}, len(data))

    def close(self, code: int, reason: str) -> None:
        """See `Peer`."""
        self._put({"type": "websocket.close", "code": code, "reason": shorten(reason)}, 0)

    def hold(self, holding: bool) -> None:
        """See `Peer`."""
        if holding:
            self._reading.clear()
        else:
            self._reading.set()

    def trust(self) -> None:
        """See `Peer`. How large messages may be is the other server's to say."""

    def _put(self, message: Message, size: int) -> None:
        self._messages.append(message)
        self._size += size
        self._ready.set()
        if self._size > _UNSENT and self._conversation is not None:
            self._conversation.pause()

    def begin(self, conversation: Conversation) -> None:
        """It will be sent to."""
        self._binary = conversation.binary
        self._conversation = conversation

    async def run(
        self, conversation: Conversation, receive: Receive, send: Send, deadlines: Deadlines
    ) -> None:
        """Talk until the WebSocket is closed."""
        tasks = [
            asyncio.ensure_future(self._receive(conversation, receive)),
            asyncio.ensure_future(self._send(conversation, send, deadlines)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            conversation.left()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _receive(self, conversation: Conversation, receive: Receive) -> None:
        while True:
            await self._reading.wait()
            message = await receive()
            if message["type"] != "websocket.receive":
                return
            text = message.get("text")
            if text is not None:
                conversation.receive(text.encode(), binary=False)
            else:
                conversation.receive(message["bytes"], binary=True)

    async def _send(self, conversation: Conversation, send: Send, deadlines: Deadlines) -> None:
        while True:
            await self._ready.wait()
            while self._messages:
                message = self._messages.popleft()
                await deadlines.wait(send(message))
                if message["type"] == "websocket.close":
                    return
            self._ready.clear()
            if self._size > _UNSENT:
                self._size = 0
                conversation.resume()
            self._size = 0


_UNSENT: Final = 64 << 10  # bytes; more of them are not asked for


def shorten(reason: str) -> str:
    """A reason as far as a close frame can take it: 123 bytes of UTF-8."""
    return reason.encode(errors="replace")[:123].decode(errors="ignore")
