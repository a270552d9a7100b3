"""A cursor of a WebSocket: its batch runs as its entries are fetched, a piece ahead of the client."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator
from typing import Final

from nearlite.execution import Execution
from nearlite.hrana import RunBatch
from nearlite.leaving import Leaving
from nearlite.streams import Stream

FETCHED: Final = 1 << 20
"""Bytes of entries (as JSON) after which an answer takes no further one."""


class Cursor:
    """Entries of a batch. Event loop thread only, one call at a time.

    Args:
      executor: runs the batch.
      stream: on which.
      plan: the batch.

    Attributes:
      expired: it was closed because nobody asked for its entries.
    """

    __slots__ = ("_entries", "_executor", "_pieces", "_plan", "_room", "_stream", "expired")

    def __init__(self, executor: Execution, stream: Stream, plan: RunBatch) -> None:
        self._executor = executor
        self._stream = stream
        self._plan = plan
        self._entries: deque[bytes] = deque()
        self._pieces: AsyncGenerator[bytes, None] | None = None
        self._room = min(FETCHED, executor.limits.max_response_bytes)
        self.expired = False

    def open_at_once(self) -> bool:
        """Run the batch on the event loop, if that takes no time."""
        entries = self._executor.cursor_at_once(self._stream, self._plan)
        if entries is None:
            return False
        self._entries.extend(entries.splitlines())
        return True

    async def open(self, leaving: Leaving) -> None:
        """Run the batch as far as the first piece of its entries. Raises GoneError."""
        self._pieces = self._executor.cursor(self._stream, self._plan, leaving)
        await self._pull()

    async def _pull(self) -> None:
        assert self._pieces is not None
        try:
            piece = await anext(self._pieces)
        except StopAsyncIteration:
            self._pieces = None
        else:
            self._entries.extend(piece.splitlines())

    @property
    def done(self) -> bool:
        """No entry is left."""
        return self._pieces is None and not self._entries

    @property
    def open_ended(self) -> bool:
        """Its batch has not come to its end."""
        return self._pieces is not None

    def fetch_at_once(self, most: int) -> list[bytes] | None:
        """Entries that are there, if an answer needs no others."""
        if self._pieces is not None and len(self._entries) <= most:
            return None
        return self._take([], most)

    async def fetch(self, most: int) -> list[bytes]:
        """The next entries, `most` at most; fewer when they are large or the last. Raises GoneError."""
        found: list[bytes] = []
        size = 0
        while True:
            before = len(found)
            self._take(found, most, size)
            size += sum(map(len, found[before:]))
            if self._pieces is None or len(found) >= most or size >= self._room:
                return found
            await self._pull()

    def _take(self, found: list[bytes], most: int, size: int = 0) -> list[bytes]:
        entries = self._entries
        while entries and len(found) < most and size < self._room:
            entry = entries.popleft()
            found.append(entry)
            size += len(entry)
        return found

    async def close(self) -> None:
        """End the batch where it is."""
        pieces, self._pieces = self._pieces, None
        self._entries.clear()
        if pieces is not None:
            await pieces.aclose()
