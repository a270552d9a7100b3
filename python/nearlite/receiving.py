"""A page set as it comes out of an answer: header first, then verified chunks, counted on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from nearlite import beats, wire
from nearlite._native.compact import Standing
from nearlite._native.frames import Chunk, SetHeader
from nearlite.errors import AnswerError
from nearlite.http import Response

_SMALL_SET: Final = 1 << 20
"""Bytes of a body that is read in one piece."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a long download is.

    Attributes:
      pages: pages received, those of an earlier download that was broken off among them.
      total_pages: pages the primary announced, known from the first call on.
      bytes: bytes of body received.
      seconds: since it began.
      held: pages that an earlier download had brought.
    """

    pages: int
    total_pages: int
    bytes: int
    seconds: float
    held: int = 0

    @property
    def rate(self) -> float:
        """Bytes a second, on average; 0.0 before anything has come."""
        return self.bytes / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the rate so far; None before there is one."""
        came = self.pages - self.held
        if came <= 0 or self.seconds <= 0:
            return None
        return (self.total_pages - self.pages) * self.seconds / came


ProgressCallback = Callable[[Progress], None]


class Meter:
    """Counts what arrives and tells the user's callback, at most ten times a second.

    Attributes:
      pages: pages received.
      bytes: bytes of body received.
      total: pages announced so far.
      held: pages that had come before.
    """

    def __init__(self, progress: ProgressCallback | None, started: float) -> None:
        self.pages = 0
        self.bytes = 0
        self.total = 0
        self.held = 0
        self._progress = progress
        self._started = started
        self._next = 0.0

    def announced(self, pages: int, *, large: bool) -> None:
        """A set of so many pages begins; a large one is told of before its first page."""
        self.total = max(self.total, self.held + self.pages + pages)
        if large and self._progress is not None:
            self._tell(self._progress, time.monotonic())

    def _tell(self, progress: ProgressCallback, now: float) -> None:
        self._next = now + 0.1
        pages = self.held + self.pages
        progress(Progress(pages, self.total, self.bytes, now - self._started, self.held))

    def chunk(self, pages: int) -> None:
        """So many pages have arrived."""
        self.pages += pages
        if self._progress is None:
            return
        now = time.monotonic()
        if now >= self._next or self.held + self.pages == self.total:
            self._tell(self._progress, now)


def as_of(response: Response) -> float:
    """Monotonic time at which the primary stood where an answer, just received, says.

    A replica that serves replicas tells how long ago that was; one that a cache may have stored is older
    by as much as it may have lain there.
    """
    try:
        age = float(response.header("nearlite-age") or 0.0)
    except ValueError:
        return -math.inf
    age += beats.greatest_age(response.header("cache-control"))
    return time.monotonic() - age if age >= 0 else -math.inf


class SetReader:
    """A page set out of a response: header first, then verified chunks.

    Attributes:
      as_of: monotonic time at which the primary stood at its end.
      whole: a small set, read in one piece together with its header; a large one comes by its chunks,
        each used where it lies.
      compact: a set that is told from what the replica has, likewise.

    Args:
      response: whose body, or the rest of it, is the set.
      meter: counts.
      start: where the replica stood when it asked; None: nothing compact was asked for.
    """

    def __init__(self, response: Response, meter: Meter, start: Standing | None = None) -> None:
        self._response = response
        self.as_of = as_of(response)
        self._meter = meter
        self._before = meter.bytes
        self._start = start
        self._events = self._read()
        self.whole: wire.WholeSet | None = None
        self.compact: wire.CompactSet | None = None

    def _read(self) -> Iterator[wire.Event]:
        reader = wire.PageSetReader()
        needed = 1 if self._start is not None else 0  # a first byte that tells which kind it is
        while not reader.ended:
            buffer = memoryview(bytearray(needed or reader.needed()))
            have = 0
            while have < len(buffer):
                count = self._response.readinto(buffer[have:])
                if count == 0:
                    reader.close()  # raises AnswerError: truncated
                    return
                have += count
                self._meter.bytes += count
            if needed and wire.is_compact(buffer):
                self.compact = self._compact(bytes(buffer))
                return
            needed = 0
            yield from reader.receive(buffer)
        if self._response.readinto(memoryview(bytearray(1))) != 0:
            raise AnswerError("the primary sent more than one page set")

    @property
    def received(self) -> int:
        """Bytes of the set so far, as they came."""
        return self._meter.bytes - self._before

    def _compact(self, data: bytes) -> wire.CompactSet:
        """A compact set whose length nobody tells: what lies between passed it on in pieces."""
        assert self._start is not None
        data += self._response.read(wire.LARGEST_COMPACT)
        self._meter.bytes += len(data) - 1
        return wire.CompactSet(data, self._start)

    def at_end(self) -> bool:
        """Whether there is no page set at all."""
        return self._response.ended()

    def header(self) -> SetHeader:
        """Raises AnswerError when what arrives is not a page set."""
        left = self._response.length
        if left is not None and left <= _SMALL_SET:
            data = exactly(self._response, left)
            self._meter.bytes += left
            if self._start is not None and wire.is_compact(data):
                self.compact = wire.CompactSet(data, self._start)
                header = self.compact.header
            else:
                self.whole = wire.WholeSet(data)
                header = self.whole.header
        else:
            event = next(self._events, None)
            if self.compact is not None:
                header = self.compact.header
            else:
                assert isinstance(event, wire.Header)
                header = event.header
        self._meter.announced(header.count, large=self.whole is None and self.compact is None)
        return header

    def all_came(self) -> None:
        """Count the pages of a set that is taken whole."""
        taken = self.compact or self.whole
        assert taken is not None
        self._meter.chunk(taken.header.count)

    def chunks(self) -> Iterator[Chunk]:
        """The verified chunks; the caller closes each."""
        if self.whole is not None:
            for chunk in self.whole.chunks():
                self._meter.chunk(chunk.count)
                yield chunk
            return
        for event in self._events:
            if isinstance(event, wire.Chunk):
                self._meter.chunk(event.chunk.count)
                yield event.chunk


def exactly(response: Response, size: int) -> bytearray:
    """So many bytes of the body. Raises AnswerError when it ends before."""
    data = bytearray(size)
    view = memoryview(data)
    have = 0
    while have < size:
        count = response.readinto(view[have:])
        if count == 0:
            raise AnswerError("the primary's answer was cut off")
        have += count
    return data


def json_of(response: Response) -> bytes:
    """The rest of the body, JSON: the answer to a request that was carried out.

    Raises:
      AnswerError: it is longer than any that is taken; `state` says that it was carried out.
    """
    try:
        return response.read(wire.MAX_JSON)
    except AnswerError as error:
        error.state = "the request was carried out"
        raise
