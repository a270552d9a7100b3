"""What an edge asks of an upstream that is not nearlite, whatever protocol that speaks: where it began, and frames."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Protocol

from nearlite.errors import SyncError
from nearlite.gathering import Frame, Seen, Turn, empty_page
from nearlite.http import Deadline
from nearlite.position import Position
from nearlite.sync import Local, refusal


class Base:
    """A database as it was at a position, page by page.

    Attributes:
      at: that position.
      pages: its size.
    """

    def __init__(
        self,
        at: Position,
        pages: int,
        runs: Iterator[tuple[int, memoryview]],
        close: Callable[[], object],
    ) -> None:
        self.at = at
        self.pages = pages
        self._runs = runs
        self._close = close

    def runs(self) -> Iterator[tuple[int, memoryview]]:
        """Its pages, once: the number of a first page, and images of that and those behind it.

        Raises:
          OfflineError: the connection broke.
          AnswerError: it ends before its last page.
        """
        return self._runs

    def close(self) -> None:
        """Let go of the connection; idempotent."""
        self._close()

    @classmethod
    def empty(cls, at: Position) -> Base:
        """That of a database in which nothing was ever written."""
        return cls(at, 1, iter([(1, memoryview(empty_page()))]), lambda: None)


class Feed(Protocol):
    """An upstream. Not thread-safe."""

    name: str

    def base(self, deadline: Deadline) -> Base:
        """Where the frames begin that it has now. The caller closes it.

        Raises:
          SyncError: one of its subclasses.
        """

    def since(self, start: Position, deadline: Deadline) -> Iterator[Frame | Turn | Seen]:
        """What came after a position, up to what it has while this is asked.

        Raises:
          LineageError: it holds another database.
          PrimaryRestoredError: it has less.
          HistoryGoneError: it does not keep the frames since then.
          SyncError: another of its subclasses.
        """

    def forget(self) -> None:
        """What was known of it is doubtful: the connection broke, or it refused."""


def lineage_of(identity: str) -> int:
    """The lineage of a foreign database: 28 bits of the SHA-256 of what tells it from others, and not 0."""
    bits = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4], "big") & 0x0FFFFFFF
    return bits or 1


def another(here: Position, what: str) -> SyncError:
    """The error for an upstream that holds another database."""
    return refusal(409, "LINEAGE_MISMATCH", what, Local(here, 0))


def restored(here: Position, what: str) -> SyncError:
    """The error for one that has less than the replica."""
    return refusal(409, "POSITION_AHEAD", what, Local(here, 0))


def gone(here: Position, what: str) -> SyncError:
    """The error for one that does not keep the frames since there."""
    return refusal(410, "HISTORY_GONE", what, Local(here, 0))
