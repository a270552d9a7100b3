"""``GET /beta/listen``: who wants to hear of changes to a table, and is told of each commit that made some.

Events are those of libSQL's server: ``event:changes`` with a JSON object of how many rows were inserted,
updated, deleted by one commit of this server, or that nobody knows whose rows they were. Other programs'
commits are not told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Final
from urllib.parse import parse_qsl

from nearlite._native.hrana import Changed
from nearlite.exchange import Answering, HttpError, Receive, Scope, Send
from nearlite.leaving import GoneError, Leaving, either

log = logging.getLogger("nearlite.server")

LISTEN: Final = "/beta/listen"
KEEP_ALIVE: Final = 15.0
"""Seconds without an event after which something is sent all the same."""
_ROOM: Final = 1024
"""Events that wait for one listener; it loses those beyond, and is told so."""
_MOST: Final = 1024
"""Listeners at a time."""
_ACTIONS: Final = ("insert", "update", "delete", "unknown")
_LOST: Final = b"event:error\ndata:some changes were lost\n\n"
_EXPIRED: Final = b"event:error\ndata:the token has expired\n\n"
_ALIVE: Final = b":keep-alive\n\n"
_TYPE: Final = b"text/event-stream"
_HEADERS: Final = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))


class _Listener:
    """One client that listens to one table."""

    def __init__(self, table: str, actions: frozenset[str]) -> None:
        self.table = table
        self.actions = actions
        self.ready: deque[bytes] = deque()
        self.lost = False
        self.wake: asyncio.Future[None] | None = None

    def tell(self, counts: dict[str, int]) -> bool:
        """An event, if it is one that is wanted; False when there is no room for it."""
        if not self.actions.isdisjoint(counts):
            if len(self.ready) >= _ROOM:
                self.lost = True
                return False
            self.ready.append(
                b"event:changes\ndata:%b\n\n" % json.dumps(counts, separators=(",", ":")).encode()
            )
            self.stir()
        return True

    def stir(self) -> None:
        if self.wake is not None and not self.wake.done():
            self.wake.set_result(None)

    def take(self) -> bytes:
        """What is to be sent."""
        events = b"".join(self.ready)
        self.ready.clear()
        if self.lost:
            self.lost = False
            events += _LOST
        return events


class Announcing:
    """Tells listeners of commits. Event loop thread only, but for `committed`.

    Attributes:
      any: somebody listens; nobody else has to be told.
      lost: events that there was no room for.
    """

    def __init__(self) -> None:
        self.any = False
        self.lost = 0
        self._loop = asyncio.get_running_loop()
        self._listeners: set[_Listener] = set()
        self._closed = False

    # ------------------------------------------------------------------ any thread

    def committed(self, changes: Sequence[Changed], others: bool) -> None:
        """A transaction was committed; `others`: there were more tables than are known."""
        if changes or others:
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                self._loop.call_soon_threadsafe(self._tell, changes, others)

    # ------------------------------------------------------------------ the event loop

    def _tell(self, changes: Sequence[Changed], others: bool) -> None:
        found = {change.table.lower(): change.counts for change in changes}
        for listener in self._listeners:
            counts = found.get(listener.table)
            if counts is None and others:
                counts = {"unknown": 1}
            if counts is not None and not listener.tell(counts):
                self.lost += 1

    def close(self) -> None:
        """End all of them."""
        self._closed = True
        for listener in self._listeners:
            listener.stir()

    async def answer(
        self, scope: Scope, receive: Receive, send: Send, answering: Answering, until: float
    ) -> None:
        """Tell one client for as long as it listens, and may: to the Unix time `until`.

        Raises: HttpError, GoneError, ClientGoneError.
        """
        if len(self._listeners) >= _MOST:
            raise HttpError(
                503,
                "TOO_MANY_LISTENERS",
                f"{_MOST} clients listen, which is the limit",
                ((b"retry-after", b"5"),),
            )
        listener = _Listener(*_asked(scope))
        leaving = Leaving(receive)
        self._listeners.add(listener)
        self.any = True
        try:
            await answering.start(send, 200, _TYPE, _HEADERS)
            while not self._closed:
                left = until - time.time()
                if left <= 0:
                    await answering.piece(send, _EXPIRED)
                    break
                if not listener.ready and not listener.lost:
                    listener.wake = self._loop.create_future()
                    if not await either(listener.wake, leaving, min(KEEP_ALIVE, left)):
                        raise GoneError
                    if left < KEEP_ALIVE and not listener.wake.done():
                        continue  # it is the token's time that has come
                    if self._closed:
                        break
                await answering.piece(send, listener.take() or _ALIVE)
            await answering.end(send)
        finally:
            leaving.close()
            self._listeners.discard(listener)
            self.any = bool(self._listeners)


def _asked(scope: Scope) -> tuple[str, frozenset[str]]:
    """The table, and the actions that are wanted. Raises HttpError 400."""
    query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    tables = [value for name, value in query if name == "table"]
    actions = [value.lower() for name, value in query if name == "action"]
    if len(tables) != 1 or not tables[0]:
        raise HttpError(400, "BAD_REQUEST", "`table` names the table to listen to")
    for action in actions:
        if action not in _ACTIONS:
            raise HttpError(400, "BAD_REQUEST", f"`action` is one of {', '.join(_ACTIONS)}")
    return tables[0].lower(), frozenset(actions or _ACTIONS)
