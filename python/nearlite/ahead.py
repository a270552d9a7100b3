"""How far the primary is ahead of a replica, as far as its answers tell.

An answer that brings a page set says how many transactions are in it, and the set itself how many pages
and when the newest of them was committed. So a replica knows how far it is behind from the moment at
which it begins to receive what it lacks; what it has not heard of, nobody here can know: `ask_status` asks.

Times of commits are of the primary's clock, which may differ from the one here by any amount. The
primary tells its clock with its answers, and what has passed since a commit is counted by that.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import Final

from nearlite import wire
from nearlite._native.frames import SetHeader
from nearlite.http import Deadline, Response, Transport
from nearlite.position import Position
from nearlite.sync import Local, refusal

_STATUS_LIMIT: Final = 64 * 1024  # bytes of a status answer
_TELLINGS: Final = 16
_COUNTED: Final = 10_000
"""Positions whose transactions are known at most."""
_DIGITS: Final = 15  # milliseconds of thirty thousand years


class Clock:
    """The primary's clock, by this machine's monotonic one.

    What it tells has been under way: the smallest difference of the last few tellings is the nearest to
    the truth, and one that a cache kept for a while counts for nothing.
    """

    def __init__(self) -> None:
        self._differences: deque[float] = deque(maxlen=_TELLINGS)

    def told(self, ms: int, at: float) -> None:
        """An answer whose head came at the monotonic time `at` says that it is `ms` there."""
        self._differences.append(at - ms / 1000)

    def now_ms(self) -> int:
        """What it is there; by this machine's own clock where the primary never told."""
        differences = tuple(self._differences)  # other threads add to it
        now = time.monotonic() - min(differences) if differences else time.time()
        return int(now * 1000)

    def seconds_since(self, ms: int) -> float:
        """What has passed since then."""
        return max(0.0, (self.now_ms() - ms) / 1000)


@dataclass(frozen=True, slots=True)
class Lag:
    """What a replica lacks of what its primary was heard to have; None: that cannot be told.

    Attributes:
      transactions: that are not here.
      bytes: of the pages that they changed.
      seconds: since the newest of them was committed; 0 when none is missing.
    """

    transactions: int | None = None
    bytes: int | None = None
    seconds: float | None = None


NONE_MISSING: Final = Lag(0, 0, 0.0)


@dataclass(frozen=True, slots=True)
class _Told:
    """How far one position of the primary is ahead of another."""

    start: Position
    to: Position
    transactions: int | None
    bytes: int | None
    commit_ms: int


class Ahead:
    """What the primary said last. Any thread: each telling replaces the one before as a whole.

    Attributes:
      counts: transactions at the last positions that were brought, from some beginning on: what one that
        serves replicas tells them. None: nobody wants to know.
    """

    def __init__(self) -> None:
        self._clock = Clock()
        self._told: _Told | None = None
        self.counts: dict[Position, int] | None = None

    def clock(self, response: Response, at: float) -> None:
        """The head of an answer came at that monotonic time."""
        ms = _number(response.header("nearlite-clock"))
        if ms is not None:
            self._clock.told(ms, at)

    def comes(self, response: Response, header: SetHeader) -> int | None:
        """A page set begins; how many transactions it brings, if the primary counted them."""
        transactions = _number(response.header("nearlite-transactions"))
        self.brings(header, transactions)
        return transactions

    def brings(self, header: SetHeader, transactions: int | None) -> None:
        """A page set comes with so many transactions; None: nobody counted them."""
        self._told = _Told(
            header.start,
            header.target,
            transactions,
            header.count * header.page_size,
            header.commit_ms,
        )
        if self.counts is not None:
            self._count(self.counts, header, transactions)

    def _count(
        self, counts: dict[Position, int], header: SetHeader, transactions: int | None
    ) -> None:
        before = counts.get(header.start)
        if before is not None and transactions is not None:
            counts[header.target] = before + transactions
            if len(counts) > _COUNTED:
                self.counts = dict(islice(counts.items(), _COUNTED // 2, None))
        elif transactions is not None:  # it does not go on from what came before
            self.counts = {header.start: 0, header.target: transactions}
        else:
            self.counts = {}

    def between(self, start: Position, to: Position) -> int | None:
        """How many transactions lie between two positions that were brought here; None: not known."""
        counts = self.counts or {}
        before, after = counts.get(start), counts.get(to)
        return None if before is None or after is None else after - before

    def now_ms(self) -> int:
        """The primary's clock, milliseconds since 1970."""
        return self._clock.now_ms()

    def status(self, start: Position, status: wire.Status, at: float) -> None:
        """It was asked how far it is ahead of `start`."""
        if status.now_ms is not None:
            self._clock.told(status.now_ms, at)
        behind = status.behind
        self._told = _Told(
            start,
            status.position,
            None if behind is None else behind.transactions,
            None if behind is None else behind.bytes,
            status.commit_ms,
        )

    def lag(self, here: Position, there: Position | None) -> Lag:
        """Of a replica at `here` whose primary was last heard to be at `there`."""
        if there is None or there.lineage != here.lineage:
            return Lag()
        if there <= here:
            return NONE_MISSING
        told = self._told
        if told is None or told.to != there:
            return Lag()
        seconds = self._clock.seconds_since(told.commit_ms)
        if told.start != here:  # another process has brought a part of it
            return Lag(seconds=seconds)
        if told.transactions == 0:  # a roll, which moves the position alone
            return NONE_MISSING
        return Lag(told.transactions, told.bytes, seconds)


def ask_status(
    transport: Transport, deadline: Deadline, since: Position | None = None
) -> tuple[wire.Status, bytes]:
    """What the primary answers to `GET nl/v1/status`, decoded and as it came.

    Args:
      since: how far is it ahead of there?

    Raises:
      SyncError: it cannot be reached, refuses the token, or is not a nearlite primary.
    """
    path = "nl/v1/status" if since is None else f"nl/v1/status?from={since}"
    with transport.request("GET", path, deadline=deadline) as response:
        if response.status != 200:
            code, message = wire.decode_error(response.error_body())
            local = None if since is None else Local(since, 0)
            raise refusal(response.status, code, message, local)
        body = response.read(_STATUS_LIMIT)
    return wire.Status.decode(body), body


def _number(text: str) -> int | None:
    if text.isascii() and text.isdecimal() and len(text) <= _DIGITS:
        return int(text)
    return None
