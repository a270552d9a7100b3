"""What an edge asks of an upstream that is not nearlite, whatever protocol that speaks: where it began, and frames."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Protocol

from nearlite.errors import HistoryGoneError, LineageError, PrimaryRestoredError
from nearlite.gathering import Frame, Seen, Turn, empty_page
from nearlite.http import Deadline
from nearlite.position import Position


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

    def expect(self) -> None:
        """It has more than was told: somebody has just written there. Any thread."""


def lineage_of(identity: str) -> int:
    """The lineage of a foreign database: 28 bits of the SHA-256 of what tells it from others, and not 0."""
    bits = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:4], "big") & 0x0FFFFFFF
    return bits or 1


def another(here: Position, what: str) -> LineageError:
    """The error for an upstream that holds another database."""
    error = LineageError(
        what,
        state=f"the replica stays at {here}",
        action="check the URL; or stop whoever serves the local file, move it away and start again",
    )
    error.code = "LINEAGE_MISMATCH"
    return error


def restored(here: Position, what: str) -> PrimaryRestoredError:
    """The error for one that has less than the replica."""
    error = PrimaryRestoredError(
        f"the upstream has less than the replica: {what}",
        state=f"the replica stays at {here}",
        action="it was restored from an older backup; save what you need from the local file, move it away and "
        "start again",
        data_at_risk=True,
    )
    error.code = "POSITION_AHEAD"
    return error


def gone(here: Position, what: str) -> HistoryGoneError:
    """The error for one that does not keep the frames since there."""
    error = HistoryGoneError(
        f"the upstream does not keep what came after {here}: {what}",
        state=f"the replica stays at {here}",
    )
    error.code = "HISTORY_GONE"
    return error
