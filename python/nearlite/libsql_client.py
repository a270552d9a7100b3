"""libSQL's sync, version 2, as a client: ``/info``, ``/export``, ``/sync`` of Turso Cloud, and of any like it.

A generation is a base and frames, numbered from 1. They are pulled 128 at a time, until 400 or 500 tells the
running generation; then one goes on in the next one. Source: the client in libSQL (sync.rs), which is
what such servers obey.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

import msgspec

from nearlite import wire
from nearlite.errors import AnswerError, OfflineError, SyncError
from nearlite.feeds import Base, another, gone, lineage_of, restored
from nearlite.gathering import PAGE_SIZE, Frame, Seen, Turn, size_in
from nearlite.http import Deadline, Response, Transport
from nearlite.position import Position
from nearlite.receiving import exactly
from nearlite.sync import Local, refusal

_HEADER: Final = 24
_FRAME: Final = _HEADER + PAGE_SIZE
_BATCH: Final = 128
"""Frames that are asked for at once."""
_SHORT: Final = 16
"""Answers in a row with fewer, each up to a commit: somebody commits all the time, and is not followed to his end.
Nothing says that a server tells all it has, but one that never does would be unlike any that is known."""
_TOLD: Final = 64 * 1024  # bytes of JSON
_RUN: Final = 64
"""Pages of a base that are read at once."""
_TURNS: Final = 4096
"""Generations in a row without a frame that are gone through: then it is quicker to begin where it is now."""
_ENDED: Final = 8
"""Generations that may end while their base is asked for."""
_LARGEST: Final = 0xFFFFFFFF
_DIGITS: Final = 15


class _Info(msgspec.Struct):
    current_generation: int


class _End(msgspec.Struct):
    generation: int
    max_frame_no: int | None = None


_end_decoder = msgspec.json.Decoder(_End)


class LibsqlFeed:
    """One such upstream.

    Args:
      transport: to it.
    """

    name = "libsql"

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._begins_behind = False  # or with the frame that led to where the reader stands

    def forget(self) -> None:
        """See `Feed`."""
        self._begins_behind = False

    def expect(self) -> None:
        """See `Feed`: that frame comes with those that are expected, by one request."""
        self._begins_behind = False

    # ------------------------------------------------------------ bases

    def base(self, deadline: Deadline) -> Base:
        """See `Feed`."""
        for _ in range(_ENDED):
            with self._get("info", deadline) as response:
                if not 200 <= response.status < 300:
                    raise _refused(response, None)
                lineage = self._lineage(response)
                generation = _decoded(_Info, response.read(_TOLD)).current_generation
            if not 1 <= generation <= _LARGEST:
                raise AnswerError(f"the upstream names the generation {generation}")
            response = self._get(f"export/{generation}", deadline)
            if response.status in (404, 410):  # it has ended meanwhile
                response.close()
                continue
            with contextlib.ExitStack() as failing:
                failing.callback(response.close)
                if not 200 <= response.status < 300:
                    raise _refused(response, None)
                if self._lineage(response) != lineage:
                    continue
                base = _base(response, Position(lineage, generation, 0))
                failing.pop_all()
                return base
        raise OfflineError(
            "the upstream's generations end before their bases can be had",
            state="nothing was changed",
            action="try again",
        )

    # ------------------------------------------------------------ frames

    def since(self, start: Position, deadline: Deadline) -> Iterator[Frame | Turn | Seen]:
        """See `Feed`. Before anything else is told, and the first time in any case, comes the frame that led there.

        A server may be put back to a backup, and written to again, between any two requests: nothing but that frame
        tells that what follows does not go on from there.
        """
        generation, seen = start.generation, start.frame
        first = seen + 1
        if seen and not self._begins_behind:
            first = seen
        looked = not seen
        short = turns = 0
        while short < _SHORT:
            path = f"sync/{generation}/{first}/{first + _BATCH}"
            with self._get(path, deadline) as response:
                self._check(response, start)
                deadline.restart()  # small answers, many of them, are progress too
                if response.status in (400, 500):
                    end = self._end(response, start)
                    self._compare(end, generation, max(first - 1, seen), start)
                    if first <= seen:
                        raise _led_astray(start)
                    self._begins_behind = True
                    if end.generation == generation:
                        return
                    turns += 1
                    if turns > _TURNS:
                        raise gone(start, f"{_TURNS} generations without a frame")
                    if not looked:
                        looked = True
                        yield self._led_to(start, deadline)
                    generation, first, seen = generation + 1, 1, 0
                    yield Turn(Position(start.lineage, generation, 0))
                    continue
                if not 200 <= response.status < 300:
                    raise _refused(response, start)
                data = _frames(response)
            if first > seen and not looked:
                looked = True
                yield self._led_to(start, deadline)
            for at in range(0, len(data), _FRAME):
                page, size, image = _parts(data[at : at + _FRAME])
                if first <= seen:
                    looked = True
                    yield Seen(page, size, image)
                else:
                    yield Frame(page, size, Position(start.lineage, generation, first), image)
                first += 1
            self._begins_behind = True
            if first > _LARGEST - _BATCH:
                raise AnswerError("the upstream's generation has too many frames")
            turns = 0
            whole = any(data[-_FRAME + 4 : -_FRAME + 8])
            short = short + 1 if whole and len(data) < _BATCH * _FRAME else 0

    def _led_to(self, start: Position, deadline: Deadline) -> Seen:
        """The frame that led there, by a request of its own. Raises as `since`."""
        path = f"sync/{start.generation}/{start.frame}/{start.frame + 1}"
        with self._get(path, deadline) as response:
            self._check(response, start)
            if response.status in (400, 500):
                self._end(response, start)
                raise _led_astray(start)
            if not 200 <= response.status < 300:
                raise _refused(response, start)
            return Seen(*_parts(_frames(response)[:_FRAME]))

    def _end(self, response: Response, start: Position) -> _End:
        body = response.error_body()
        try:
            end = _end_decoder.decode(body)
            if end.generation > _LARGEST:
                raise AnswerError(f"the upstream names the generation {end.generation}")
            return end
        except (msgspec.MsgspecError, RecursionError):
            if response.status == 400:
                raise AnswerError("the upstream says 400, and not where it stands") from None
            code, message = wire.decode_error(body)
            raise refusal(500, code, message, Local(start, 0)) from None

    @staticmethod
    def _compare(end: _End, generation: int, frame: int, start: Position) -> None:
        """Raises PrimaryRestoredError: it has less than the replica."""
        most = frame if end.max_frame_no is None else end.max_frame_no
        if end.generation < generation or (end.generation == generation and most < frame):
            raise restored(
                start,
                f"it stands at frame {most} of generation {end.generation}, the replica at frame {frame} of "
                f"generation {generation}",
            )

    # ------------------------------------------------------------ requests

    def _get(self, path: str, deadline: Deadline) -> Response:
        try:
            return self._transport.request("GET", path, deadline=deadline)
        except OfflineError:
            self.forget()
            raise

    def _lineage(self, response: Response) -> int:
        """Of the database that an answer is about: by the history that it names, or else by the URL."""
        named = response.header("nearlite-lineage")
        return lineage_of(f"libsql\n{named or self._transport.url}")

    def _check(self, response: Response, start: Position) -> None:
        """Whether an answer is about the replica's database; a refusal by something in between is about none."""
        if response.status in (400, 500) or 200 <= response.status < 300:
            lineage = self._lineage(response)
            if lineage != start.lineage:
                raise another(
                    start,
                    f"the replica belongs to lineage {start.lineage:08x}, the upstream's is {lineage:08x}",
                )


def end_of(body: bytes) -> tuple[int, int | None] | None:
    """What such a server says of its end: its running generation, and the last frame of that if it tells; None:
    nothing.
    """
    try:
        end = _end_decoder.decode(body)
    except (ValueError, RecursionError):
        return None
    return end.generation, end.max_frame_no


def _frames(response: Response) -> memoryview:
    """The frames in an answer. Raises AnswerError: they are none."""
    data = memoryview(response.read(_BATCH * _FRAME))
    if not data or len(data) % _FRAME:
        raise AnswerError(f"the upstream's answer of {len(data)} bytes is no frames")
    return data


def _parts(frame: memoryview) -> tuple[int, int, memoryview]:
    """Page, size of the database if it commits, and image of a frame."""
    page, size = int.from_bytes(frame[:4], "big"), int.from_bytes(frame[4:8], "big")
    return page, size, frame[_HEADER:]


def _led_astray(start: Position) -> SyncError:
    return restored(
        start,
        f"frame {start.frame} of generation {start.generation}, which led there, is gone",
    )


def _decoded(kind: type[_Info], body: bytes) -> _Info:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise AnswerError(f"the upstream's answer cannot be read: {error}") from None


def _refused(response: Response, start: Position | None) -> SyncError:
    code, message = wire.decode_error(response.error_body())
    status = response.status
    if start is not None and status in (404, 410):
        return gone(start, message or f"HTTP {status}")
    return refusal(status, code, message, None if start is None else Local(start, 0))


def _base(response: Response, at: Position) -> Base:
    """The database in an answer's body. Raises AnswerError: it is none."""
    if response.length == 0 or response.ended():
        response.close()
        return Base.empty(at)
    page1 = exactly(response, PAGE_SIZE)
    pages = size_in(page1)
    if pages is None:
        whole = response.header("content-length")
        if not (whole.isascii() and whole.isdecimal()) or len(whole) > _DIGITS:
            raise AnswerError("the upstream's database does not say how large it is")
        pages = int(whole) // PAGE_SIZE
    return Base(at, pages, _runs(response, page1, pages), response.close)


def _runs(response: Response, page1: bytearray, pages: int) -> Iterator[tuple[int, memoryview]]:
    yield 1, memoryview(page1)
    page = 2
    while page <= pages:
        count = min(_RUN, pages - page + 1)
        yield page, memoryview(exactly(response, count * PAGE_SIZE))
        page += count
