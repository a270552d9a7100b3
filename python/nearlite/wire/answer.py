"""Answers to ``POST sql``: u32 length, JSON, and a page set or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nearlite.wire.items import Buffer, Items, bad
from nearlite.wire.pageset import Event, PageSetReader

# Largest JSON part of an answer: the bound on what one request may make a client allocate.
MAX_JSON = 64 << 20


def answer_prefix(json: bytes) -> bytes:
    """What precedes the page set in an answer: u32 length, JSON."""
    return len(json).to_bytes(4, "big") + json


@dataclass(frozen=True, slots=True)
class Json:
    """The JSON part of an answer, complete."""

    data: bytes


class AnswerReader:
    """Reads an answer: JSON, then a page set or nothing.

    Used as `PageSetReader`. After `Json` either events of a page set come, or the body ends there;
    `close` accepts both.
    """

    def __init__(self) -> None:
        self._items = Items()
        self._size: int | None = None
        self._json_done = False
        self._set = PageSetReader()
        self._begun = False  # bytes of a page set have come
        self._events: Iterator[Event] = iter(())

    @property
    def ended(self) -> bool:
        """A page set came and is complete."""
        return self._set.ended

    @property
    def rest(self) -> memoryview:
        """Bytes that were fed and have not been used."""
        return self._set.rest if self._json_done else self._items.rest

    def needed(self) -> int:
        """How many bytes complete the next event, if there is one."""
        if self._json_done:
            return self._set.needed()
        return max(0, self._items.missing(4 if self._size is None else self._size))

    def receive(self, data: Buffer) -> Iterator[Json | Event]:
        """As `PageSetReader.receive`; the first event is `Json`."""
        if self._json_done:
            self._feed_set(data)
        else:
            self._items.feed(data)
        return iter(self._next, None)

    def _feed_set(self, data: Buffer) -> None:
        self._begun = self._begun or len(data) > 0
        self._events = self._set.receive(data)

    def _next(self) -> Json | Event | None:
        if self._json_done:
            return next(self._events, None)
        if self._size is None:
            length = self._items.take(4)
            if length is None:
                return None
            self._size = int.from_bytes(length, "big")
        if self._size > MAX_JSON:
            raise bad(f"it announces {self._size} bytes of JSON")
        json = self._items.take(self._size)
        if json is None:
            return None
        self._json_done = True
        if self._items.rest:
            self._feed_set(self._items.rest)
        return Json(bytes(json))

    def close(self) -> None:
        """No more bytes will come.

        Raises:
          AnswerError: the JSON or the page set is not complete.
        """
        if not self._json_done:
            raise bad("the answer was cut short")
        if self._begun:
            self._set.close()
