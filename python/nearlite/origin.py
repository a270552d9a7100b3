"""What replicas are fed from: one database file, its tail, and who waits for its commits.

A primary (primary.py) and a replica that serves replicas (relay.py) differ in how frames become
positions and in who writes; what is answered, and under which locks, is the same.

One mutex guards the tail and the history; it is held for microseconds by commits and small answers, and
never while a large answer is read or a client is waited for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeVar

from nearlite._native._lib import HashError, SealBrokenError
from nearlite._native.frames import CHUNK_HEADER_SIZE, SET_HEADER_SIZE, SetHeader, chunk_size
from nearlite._native.tail import BusyError, Tail
from nearlite.answers import Answer, Answers, History, LargeAnswer, run_count, snapshot_runs
from nearlite.position import Position
from nearlite.spooling import Spool
from nearlite.wire import Behind, Differences, RepairRequest
from nearlite.wire.pageset import END_OF_SET, RawChunk, chunk_pieces

_ATTEMPTS: Final = 5
"""To begin a large set between two commits, before everybody has to wait for it."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class OriginState:
    """Where a database stands.

    Attributes:
      position: of its last commit.
      hash: state hash there.
      pages: database size.
      page_size: bytes.
      commit_ms: when it was first seen, milliseconds since 1970.
    """

    position: Position
    hash: int
    pages: int
    page_size: int
    commit_ms: int


class Origin:
    """Answers replicas. Every method may be called from any thread.

    Args:
      tail: of the database.
      history: how its frames and the positions belong together.
    """

    notices = False
    """Whether what other programs commit is noticed without a call of `after_commit`."""

    def __init__(self, tail: Tail, history: History) -> None:
        self.page_size = tail.page_size
        self._tail = tail
        self._history = history
        self._mutex = threading.Lock()
        self._answers = Answers(history)
        self._announced = history.position
        self._subscribers: list[Callable[[Position], None]] = []
        self._snapshots: dict[object, Position] = {}  # those under way, and where they began

    def spool(self) -> Spool:
        """For a page set that is too large for memory."""
        return self._history.spool()

    # ------------------------------------------------------------ what differs

    def _begin(self) -> None:
        """Mutex held: a read transaction at the head, and every frame up to it taken.

        What it raises leaves no transaction open.
        """
        raise NotImplementedError

    def _damaged(self, error: HashError | SealBrokenError) -> Exception:
        """A page on the disk is not what was committed: what whoever wanted it is told."""
        return error

    @property
    def _frozen(self) -> OriginState | None:
        """The state while nobody can commit and the mutex is held for long; else None."""
        return None

    # ------------------------------------------------------------ position

    @property
    def latest(self) -> Position:
        """Where it was last seen to stand: an estimate, without a lock and a look at the file."""
        return self._history.position

    def state(self) -> OriginState:
        """Position, hash and size as of now, with commits of whatever process."""
        if not self._mutex.acquire(blocking=False):
            # In the locked part of a roll nobody can commit, so what was true stays true.
            frozen = self._frozen
            if frozen is not None:
                return frozen
            self._mutex.acquire()
        try:
            self._begin()
            self._tail.end()
            return self._state()
        finally:
            self._mutex.release()

    def _state(self) -> OriginState:
        return OriginState(
            self._history.position,
            self._tail.hash,
            self._tail.pages,
            self.page_size,
            self._answers.commit_ms,
        )

    def after_commit(self) -> Position:
        """Take what was committed and tell subscribers. By whoever committed, on any thread.

        Returns:
          A position at or after that commit.
        """
        with self._mutex:
            self._begin()
            self._tail.end()
            now, before = self._history.position, self._announced
            self._announced = now
        if now != before:
            for callback in tuple(self._subscribers):
                callback(now)
        return now

    def ahead_of(self, start: Position) -> tuple[OriginState, Behind | None]:
        """Where it stands, and how far that is ahead of a position; None where that is not known.

        That is another history, or one that is not kept any more: nothing is refused.
        """
        return self._answered(lambda _: (self._state(), self._answers.ahead_of(start)))

    def clock(self) -> int:
        """Milliseconds since 1970, by the clock that the times of commits are of."""
        raise NotImplementedError

    def subscribe(self, callback: Callable[[Position], None]) -> Callable[[], None]:
        """Call back after commits, on the committing thread; it must not block or raise.

        Returns:
          A function that ends the subscription; idempotent.
        """
        self._subscribers.append(callback)

        def cancel() -> None:
            if callback in self._subscribers:
                self._subscribers.remove(callback)

        return cancel

    # ------------------------------------------------------------ answers

    def changes(
        self,
        start: Position,
        state_hash: int | None = None,
        *,
        compress: bool = False,
        compact: bool = False,
    ) -> Answer | None:
        """What changed since a position.

        Args:
          start: where the replica stands.
          state_hash: of the replica; None only where the position is known to be ours.
          compress: allow zstd chunks.
          compact: allow a compact set (version 2), which only a reader at `start` can understand.

        Returns:
          One page set from `start` to now, or None when there is nothing newer.

        Raises:
          LineageError: the replica belongs to another database.
          PrimaryRestoredError: it is ahead of the primary.
          UpstreamBehindError: it is ahead of a replica that serves it.
          HistoryGoneError: its position is not (or no longer) known.
          StateMismatchError: it is at that position with other content.
          HashError, SealBrokenError: a page of this database is damaged on disk.
        """
        frozen = self._frozen
        if frozen is not None and (start, state_hash) == (frozen.position, frozen.hash):
            return None
        return self._answered(
            lambda wait: self._answers.changes(
                start, state_hash, compress=compress, compact=compact, wait=wait
            )
        )

    def repair(self, ask: RepairRequest, *, compress: bool = False) -> Answer | Differences:
        """What differs between a replica's pages and those of now.

        Args:
          ask: hashes of ranges of its pages.
          compress: allow zstd chunks.

        Returns:
          Which ranges differ; or, when only single pages were asked about, the page set that makes the
          replica equal to now: of those that differ, of what has changed since the first answer of
          this repair, and of what lies beyond the replica's last page.

        Raises:
          LineageError, PrimaryRestoredError, UpstreamBehindError: as `changes`, unless the replica claims
            no position.
          HistoryGoneError: it is not known what changed since the first answer: start over.
          HashError, SealBrokenError: a page of this database is damaged on disk.
        """
        return self._answered(lambda wait: self._answers.repair(ask, compress=compress, wait=wait))

    def _answered(self, make: Callable[[bool], _T]) -> _T:
        """What `make` answers inside a read transaction; its argument: encode all of it here and now."""
        for attempt in range(_ATTEMPTS):
            with self._mutex:
                self._begin()
                try:
                    found = make(attempt == _ATTEMPTS - 1)
                except BusyError:  # a commit in the middle of a large set's beginning
                    continue
                except (HashError, SealBrokenError) as error:
                    raise self._damaged(error) from error
                finally:
                    self._tail.end()
            if isinstance(found, LargeAnswer):
                try:
                    found.start()
                except (HashError, SealBrokenError) as error:
                    raise self._damaged(error) from error
            return found
        raise AssertionError("the last attempt needs no reader of its own")

    def snapshot(self, *, compress: bool = False, first: int = 1) -> Answer:
        """All pages, as a stream of chunks; ``.to`` is the state it began at (p0).

        With `first` only those from that page on, for a download that was broken off: what its reader
        has of the pages before is of an older state, and is compared by `repair` at the end.

        The stream is fuzzy (rule A8): every chunk is read in a short transaction of its own, so pages
        may be newer than p0 and a roll is never held up. The reader completes it with
        `changes(p0)`; from its first byte on the history keeps p0 until the answer is read or closed.
        """
        with self._mutex:
            self._begin()
            try:
                tail, to = self._tail, self._history.position
                pages = tail.pages
                runs = snapshot_runs(pages, self.page_size, first)
                count = sum(run_count(run, self.page_size) for run in runs)
                head = self._answers.header(None, 0).replace(count=count, repair=first > 1)
            finally:
                tail.end()
        size = None
        if not compress:
            bodies = sum(chunk_size(self.page_size, run_count(run, self.page_size)) for run in runs)
            size = SET_HEADER_SIZE + (len(runs) + 1) * CHUNK_HEADER_SIZE + bodies
        return Answer(to, size, self._snapshot_chunks(head, to, runs, compress=compress))

    def _snapshot_chunks(
        self, head: SetHeader, to: Position, runs: list[tuple[int, int]], *, compress: bool
    ) -> Iterator[bytes]:
        token = object()
        self._snapshots[token] = to
        try:
            yield head.encode()
            for first, last in runs:
                with self._mutex:
                    self._begin()
                    try:
                        self._tail.select_range(first, last)
                        n = self._tail.selected()
                        body, digest = self._tail.chunk(0, n)
                        chunk = RawChunk(bytes(body), n, digest)
                    except (HashError, SealBrokenError) as error:
                        raise self._damaged(error) from error
                    finally:
                        self._tail.end()
                header, stored = chunk_pieces(chunk, compress=compress)  # nobody waits for it
                yield header
                yield bytes(stored)
            yield END_OF_SET
        finally:
            # Without the mutex: a reader may be finalised by the garbage collector, anywhere.
            del self._snapshots[token]

    def _held(self) -> Position | None:
        """The oldest position that a snapshot under way will go on from."""
        return min(list(self._snapshots.values()), default=None)
