"""What a replica has received, and how long it took: counters, and latencies in buckets.

A bucket is a twentieth wider than the one before it, so that a percentile is right to 5 % from ten
microseconds to a day, in a few hundred numbers, however many are counted.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any, Final

from nearlite.position import Position

_SHORTEST: Final = 1e-5
_RATIO: Final = 1.05
_STEP: Final = math.log(_RATIO)
_BUCKETS: Final = 470  # up to a day
# What people are shown: 10 us, 20 us, 50 us ... 50 s, and what took longer.
_BOUNDS: Final = tuple(float(f"{step}e{power}") for power in range(-5, 2) for step in (1, 2, 5))


@dataclass(frozen=True, slots=True)
class Latency:
    """How long something took, over all times that it was done.

    Attributes:
      count: how often.
      p50: seconds that half of them took at most; 0 where there were none.
      p99: seconds that 99 of 100 took at most.
      longest: seconds of the longest one.
      histogram: pairs of seconds and how many took at most that long and longer than the pair before
        it says: steps of 1, 2, 5, 10 ..., without the empty ones at either end. None instead of
        seconds: longer than 50.
    """

    count: int
    p50: float
    p99: float
    longest: float
    histogram: tuple[tuple[float | None, int], ...] = ()


class Histogram:
    """Latencies. The caller sees to it that only one thread is here at a time."""

    def __init__(self) -> None:
        self._buckets = [0] * _BUCKETS
        self._coarse = [0] * (len(_BOUNDS) + 1)
        self._count = 0
        self._longest = 0.0

    def note(self, seconds: float) -> None:
        """One more."""
        bucket = int(math.log(seconds / _SHORTEST) / _STEP) + 1 if seconds > _SHORTEST else 0
        self._buckets[min(bucket, _BUCKETS - 1)] += 1
        self._coarse[bisect_left(_BOUNDS, seconds)] += 1
        self._count += 1
        self._longest = max(self._longest, seconds)

    def _percentile(self, share: float) -> float:
        wanted = math.ceil(share * self._count)
        seen = 0
        for bucket, count in enumerate(self._buckets):
            seen += count
            if count and seen >= wanted:
                return min(_SHORTEST * _RATIO**bucket, self._longest)
        return 0.0

    def summary(self) -> Latency:
        """All of it in a few numbers."""
        return Latency(
            self._count,
            self._percentile(0.5),
            self._percentile(0.99),
            self._longest,
            self._histogram(),
        )

    def _histogram(self) -> tuple[tuple[float | None, int], ...]:
        used = [at for at, count in enumerate(self._coarse) if count]
        if not used:
            return ()
        span = range(used[0], used[-1] + 1)
        return tuple((_BOUNDS[at] if at < len(_BOUNDS) else None, self._coarse[at]) for at in span)


@dataclass(frozen=True, slots=True)
class Stats:
    """How a replica stands, as far as this process knows without asking anybody.

    Attributes:
      position: of the local file.
      primary_position: the newest one of the primary that was heard of; None before the first answer.
      frames_behind: WAL frames of the primary between the two; None where that cannot be told.
      transactions_behind: transactions of the primary between the two; None where it has not told.
      bytes_behind: of the pages that those changed, each counted once; None: likewise.
      seconds_behind: since the newest of those was committed, by the primary's clock; 0 when there is
        none; None: likewise.
      lag: seconds since the file was last known to equal its primary, in any process; None: not known.
      follows: a request for the next change is open, from this process.
      answers: page sets and "nothing new" received by this process since it opened the replica.
      page_sets, pages: of those, what was received.
      transactions: of the primary, that were in those page sets, as far as it told.
      page_bytes: bytes of those pages.
      wire_bytes: bytes of answers' bodies that they came in.
      wal_bytes: of the replica's own WAL.
      sync: how long each `sync()` took, also those in the background.
      visible: how long it took from the beginning of an answer to a live request until every reader
        could see the change.
      last_error: what the last attempt failed with; None when it succeeded.
    """

    position: Position
    primary_position: Position | None
    frames_behind: int | None
    transactions_behind: int | None
    bytes_behind: int | None
    seconds_behind: float | None
    lag: float | None
    follows: bool
    answers: int
    page_sets: int
    transactions: int
    pages: int
    page_bytes: int
    wire_bytes: int
    wal_bytes: int
    sync: Latency
    visible: Latency
    last_error: str | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values under flat names, as `nearlite status --json` prints them."""
        plain: dict[str, Any] = {}
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, Latency):
                for part in value.__slots__:
                    plain[f"{name}_{part}"] = getattr(value, part)
            else:
                plain[name] = str(value) if isinstance(value, Position) else value
        return plain


class Tally:
    """Counts what one process receives for a replica. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.answers = self.page_sets = self.pages = self.page_bytes = self.wire_bytes = 0
        self.transactions = 0
        self._sync = Histogram()
        self._visible = Histogram()

    def received(self, pages: int, page_size: int, wire_bytes: int) -> None:
        """A page set has been applied."""
        with self._lock:
            self.page_sets += 1
            self.pages += pages
            self.page_bytes += pages * page_size
            self.wire_bytes += wire_bytes

    def brought(self, transactions: int) -> None:
        """A page set has so many transactions in it."""
        with self._lock:
            self.transactions += transactions

    def answered(self) -> None:
        """The primary has answered, with or without something."""
        with self._lock:
            self.answers += 1

    def synced(self, seconds: float) -> None:
        """A sync took so long."""
        with self._lock:
            self._sync.note(seconds)

    def visible(self, seconds: float) -> None:
        """A change was visible so long after its answer began."""
        with self._lock:
            self._visible.note(seconds)

    def latencies(self) -> tuple[Latency, Latency]:
        """Of syncs, and of live changes."""
        with self._lock:
            return self._sync.summary(), self._visible.summary()


def frames_between(here: Position, there: Position | None) -> int | None:
    """Frames from one position to a later one, where their numbers tell."""
    if there is None or there.lineage != here.lineage:
        return None
    if there <= here:
        return 0
    return there.frame - here.frame if there.generation == here.generation else None
