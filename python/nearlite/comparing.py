"""Which pages differ from the primary's: page hashes are compared in ranges, from large ones to single pages.

Two or three requests in all, and bytes that follow the number of pages that differ: 64 pages make a
range, whose hash is 8 bytes; of a range that differs the 64 hashes of its pages are sent.
"""

from __future__ import annotations

from typing import Final, Protocol

from nearlite import wire
from nearlite._native import faults
from nearlite._native.frames import SPAN_WANTED
from nearlite.errors import AnswerError, SyncError
from nearlite.http import Deadline, Response, Transport
from nearlite.position import Position
from nearlite.sync import refusal

_COMPARED = faults.declare("repair.compared")

_AT_ONCE: Final = 8192
"""Pages of a database whose every page hash is sent at once: 64 KiB, and a request less."""
_RANGES: Final = 16384
"""Ranges of the first request, at most: 128 KiB."""
_FEW: Final = 6
"""log2 of the pages in a range whose pages are compared one by one if it differs."""
_HASHES: Final = 4 << 20
"""Page hashes in one request: 32 MiB, half of what a primary takes. Beyond that pages come unasked."""
_RUNS: Final = 32768

Ranges = list[tuple[int, int]]
"""First page and number of pages, ascending."""


class Hashed(Protocol):
    """What knows the hash of every page of a file."""

    def ranges(self, first: int, span: int, count: int) -> bytes:
        """Hashes of `count` ranges of ``2**span`` pages: 8 bytes each, big-endian."""


class Comparison:
    """One comparison of one file.

    Args:
      transport: to the primary.
      page_size, pages: of the file.
      claimed: where it says that it stands: the primary refuses one that may hold what it does not.
        0.0.0: it is to be made what the primary is, whatever it was.

    Attributes:
      sent: bytes of request bodies.
    """

    def __init__(self, transport: Transport, page_size: int, pages: int, claimed: Position) -> None:
        self._transport = transport
        self._page_size = page_size
        self._pages = pages
        self._claimed = claimed
        self.sent = 0

    def answer(self, hashed: Hashed, deadline: Deadline) -> Response:
        """The answer that is the page set of what differs; the caller closes it.

        Raises:
          HistoryGoneError: the primary does not know any more what has changed since its first answer.
          SyncError: another of its subclasses.
        """
        span = _first_span(self._pages)
        asked: Ranges = [(1, self._pages)]
        since = wire.NOWHERE
        while True:
            runs = _runs(hashed, asked, span)
            ask = wire.RepairRequest.of(self._page_size, self._pages, self._claimed, since, runs)
            response = self._post(ask, deadline)
            if ask.ranges == 0:
                return response
            with response:
                body = response.read(64 + (ask.ranges + 7) // 8)
            found = wire.Differences.decode(body, count=ask.ranges)
            faults.hit(_COMPARED)
            if since == wire.NOWHERE:
                since = found.position
            asked = _differing(runs, found, self._pages)
            span = 0 if span <= _FEW + 2 else span // 2

    def _post(self, ask: wire.RepairRequest, deadline: Deadline) -> Response:
        body = ask.encode()
        self.sent += len(body)
        z = "0" if self._transport.loopback else "1"
        headers = {"Content-Type": wire.REQUEST_TYPE}
        response = self._transport.request(
            "POST", f"nl/v1/repair?z={z}", body=body, headers=headers, deadline=deadline
        )
        expected = wire.PAGE_SET_TYPE if ask.ranges == 0 else wire.DIFFERENCES_TYPE
        if response.status == 200 and response.header("content-type") == expected:
            return response
        with response:
            if response.status == 200:
                raise AnswerError("the primary answered a comparison with something else")
            code, message = wire.decode_error(response.error_body())
            raise _refused(response.status, code, message, ask.claimed)


def _refused(status: int, code: str, message: str, claimed: object) -> SyncError:
    if status in (404, 405):
        return SyncError(
            "the primary is of a version that cannot repair replicas",
            state="the file is as it was",
            action="move the file away and connect again, or update the primary",
        )
    return refusal(status, code, message, None, state=f"the file is as it was, at {claimed}")


def _first_span(pages: int) -> int:
    """log2 of the pages in a range of the first request; 0: single pages."""
    if pages <= _AT_ONCE:
        return 0
    return max(_FEW, ((pages - 1) // _RANGES).bit_length())


def _runs(hashed: Hashed, asked: Ranges, span: int) -> list[wire.Run]:
    """Hashes of ranges of ``2**span`` pages that make up what is asked about."""
    runs = []
    budget = _HASHES
    for first, pages in asked:
        count = (pages + (1 << span) - 1) >> span
        if count > budget:
            runs.append(wire.Run(first, pages, SPAN_WANTED))
            continue
        budget -= count
        runs.append(wire.Run(first, count, span, hashed.ranges(first, span, count)))
    return runs


def _differing(runs: list[wire.Run], found: wire.Differences, pages: int) -> Ranges:
    """Ranges of those runs that differ, neighbours put together; pages that are wanted stay so."""
    marks = iter(found.differing())
    mark = next(marks, None)
    at = 0
    ranges: Ranges = []
    for run in runs:
        if run.span == SPAN_WANTED:
            ranges.append((run.first, run.count))
            continue
        while mark is not None and mark < at + run.count:
            first = run.first + ((mark - at) << run.span)
            end = min(first + (1 << run.span), pages + 1)
            if ranges and ranges[-1][0] + ranges[-1][1] == first:
                ranges[-1] = (ranges[-1][0], end - ranges[-1][0])
            else:
                ranges.append((first, end - first))
            mark = next(marks, None)
        at += run.count
    while len(ranges) > _RUNS:  # comparing what lies between them costs less than so many runs
        pairs = zip(ranges[::2], [*ranges[1::2], ranges[-1]], strict=False)
        ranges = [(low[0], high[0] + high[1] - low[0]) for low, high in pairs]
    return ranges
