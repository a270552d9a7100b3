"""What feeds replicas, as the server sees it: a primary, or a replica that serves replicas."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from nearlite.position import Position
from nearlite.spooling import Spool
from nearlite.wire import Behind, Differences, RepairRequest


class PageSet(Protocol):
    """An encoded page set: iterating yields its bytes."""

    @property
    def to(self) -> Position:
        """Where it leads."""

    @property
    def size(self) -> int | None:
        """Bytes, when known from the beginning."""

    @property
    def transactions(self) -> int | None:
        """How many of the primary's it brings, when known."""

    def __iter__(self) -> Iterator[bytes]:
        """Its bytes, once."""

    @property
    def patience(self) -> float | None:
        """Seconds after which `read_ahead` is due, if ever."""

    def read_ahead(self) -> None:
        """Let go of what others wait for."""

    def close(self) -> None:
        """Release what it holds."""


class State(Protocol):
    """Where a primary stands."""

    @property
    def position(self) -> Position:
        """Of its newest commit."""

    @property
    def hash(self) -> int:
        """State hash there."""

    @property
    def pages(self) -> int:
        """Size."""

    @property
    def page_size(self) -> int:
        """Bytes."""

    @property
    def commit_ms(self) -> int:
        """When, milliseconds since 1970."""


class Source(Protocol):
    """What is asked of a primary to feed replicas."""

    @property
    def latest(self) -> Position:
        """Where it was last seen to stand; no look at the database."""

    @property
    def behind(self) -> bool:
        """Whether the last look at the database failed: there may be commits that it could not note."""

    @property
    def notices(self) -> bool:
        """Whether it tells subscribers of what other programs commit, without being asked to look."""

    def state(self) -> State:
        """Where it stands."""

    def spool(self) -> Spool:
        """For a page set that is too large for memory."""

    def changes(
        self,
        start: Position,
        state_hash: int | None = None,
        *,
        compress: bool = False,
        compact: bool = False,
    ) -> PageSet | None:
        """From a position to now; None when there is nothing newer."""

    def ahead_of(self, start: Position) -> tuple[State, Behind | None]:
        """Where it stands, and how far that is ahead of a position, where that is known."""

    def clock(self) -> int:
        """Milliseconds since 1970, by the clock that `commit_ms` is of."""

    def snapshot(self, *, compress: bool = False, first: int = 1) -> PageSet:
        """All pages from that one on."""

    def repair(self, ask: RepairRequest, *, compress: bool = False) -> PageSet | Differences:
        """Which of a replica's ranges differ, or the pages that do."""

    def after_commit(self) -> object:
        """Take what was committed, by whatever process, and tell subscribers."""

    def subscribe(self, callback: Callable[[Position], None]) -> Callable[[], None]:
        """Call back after commits, on the committing thread."""


class Upstream(Protocol):
    """What a replica that serves replicas knows of the one above it."""

    @property
    def age(self) -> float | None:
        """Seconds since it was last known to equal the primary; None: not since it was opened."""

    def refresh(self) -> None:
        """Bring it to where the primary stands now."""
