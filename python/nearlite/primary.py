"""The primary: owns a database, knows its position and state hash, answers with page sets.

One mutex guards the tail and the log; it is held for microseconds by commits and small answers, and
never while a large answer is read or a client is waited for.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from nearlite import errors
from nearlite._native.database import Database
from nearlite._native.frames import (
    CHUNK_HEADER_SIZE,
    SET_HEADER_SIZE,
    SetHeader,
    chunk_size,
)
from nearlite._native.tail import BusyError, MisuseError, Tail, WalResetError
from nearlite.answers import Answer, Answers, LargeAnswer, run_count, snapshot_runs
from nearlite.datafile import move_schema, prepare_file, refuse_replica
from nearlite.generation import Generations
from nearlite.guard import file_id, guard
from nearlite.log import Log
from nearlite.logstate import RETAIN_SECONDS, Durability, now_ms
from nearlite.position import Position
from nearlite.roll import Roller
from nearlite.startup import StartUp
from nearlite.wire import Ask, Behind, Differences
from nearlite.wire.pageset import END_OF_SET, RawChunk, chunk_pieces

_LOG = logging.getLogger("nearlite")

ROLL_BYTES: Final = 16 << 20
_ATTEMPTS: Final = 5
"""To begin a large set between two commits, before everybody has to wait for it."""
_T = TypeVar("_T")
_RETRY_FIRST: Final = 0.5
_RETRY_LAST: Final = 30.0


@dataclass(frozen=True, slots=True)
class PrimaryState:
    """Where a primary stands.

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


class Primary:
    """The owner of one database. Every method may be called from any thread.

    Use `open`. The connections that write are made by `connect` and belong to the caller.

    Attributes:
      behind: the last look at the database failed, or one is under way: there may be commits that could
        not be noted.
    """

    def __init__(
        self,
        path: str,
        log: Log,
        tail: Tail,
        startup: StartUp,
        *,
        durability: Durability,
        roll_bytes: int,
        retain_bytes: int | None,
        retain_seconds: float,
    ) -> None:
        self.path = path
        self.page_size = tail.page_size
        self.durability = durability
        self._log = log
        self._tail = tail
        self._startup = startup
        self._generations = generations = startup.generations
        self._roll_bytes = roll_bytes
        self._mutex = threading.Lock()
        self._rolling = threading.Lock()
        self._roller = Roller(
            generations,
            self._mutex,
            retain_bytes=retain_bytes,
            retain_seconds=retain_seconds,
            state=self._state,
        )
        self._frame_size = 24 + self.page_size
        self._retry_at = 0.0
        self._retry_after = _RETRY_FIRST
        self._file = file_id(path)
        self._overgrown = 0  # size that `overgrown` told last
        self._answers = Answers(generations)
        self._announced = generations.position
        self._subscribers: list[Callable[[Position], None]] = []
        self._snapshots: dict[object, int] = {}
        self._closed = False
        self.behind = False
        self._unwatch = guard.watch(self, path)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        durability: Durability = "full",
        roll_bytes: int = ROLL_BYTES,
        retain_bytes: int | None = None,
        retain_seconds: float = RETAIN_SECONDS,
    ) -> Primary:
        """Own a database: create it when missing, make it a WAL database, find its position.

        Args:
          path: the database file.
          durability: "full" syncs every commit; "normal" leaves that to the operating system, so a
            loss of power may undo the newest commits (never tear one).
          roll_bytes: size of the WAL from which it is archived and emptied.
          retain_bytes: of closed generations; None means 4 times the database or 256 MiB,
            whichever is more.
          retain_seconds: age up to which closed generations stay in any case.

        Raises:
          errors.OperationalError: another process owns it, or it cannot be opened.
          errors.NotSupportedError: it is a replica, or its pages have a reserved tail.
        """
        if durability not in ("full", "normal"):
            raise errors.ProgrammingError(f"durability is 'full' or 'normal', not {durability!r}")
        log = Log(str(path))
        tail = None
        try:
            created = prepare_file(log.database)
            try:
                tail = Tail(str(log.database))
            except MisuseError as error:
                raise errors.NotSupportedError(f"{path}: {error}. Nothing was changed") from None
            refuse_replica(tail, log.database)
            startup = StartUp(
                Generations(log, tail),
                durability=durability,
                move_schema=lambda: move_schema(log.database),
            )
            startup.attach(created=created)
            primary = cls(
                str(log.database),
                log,
                tail,
                startup,
                durability=durability,
                roll_bytes=roll_bytes,
                retain_bytes=retain_bytes,
                retain_seconds=retain_seconds,
            )
            primary.after_commit()
        except BaseException:
            if tail is not None:
                tail.close()
            log.close()
            raise
        return primary

    def connect(self, *, readonly: bool = False, busy_ms: int = 5000) -> Database:
        """A connection for SQL: it never checkpoints, and syncs as the durability says."""
        database = Database(
            self.path,
            readonly=readonly,
            create=False,
            busy_ms=busy_ms,
            checkpoint=False,
            defensive=True,  # SQL comes from clients
        )
        database.exec(f"PRAGMA synchronous={self.durability.upper()}")
        return database

    # ------------------------------------------------------------ position

    @property
    def latest(self) -> Position:
        """Where it was last seen to stand: an estimate, without a lock and a look at the file."""
        return self._generations.position

    def state(self) -> PrimaryState:
        """Position, hash and size as of now, with commits of whatever process."""
        if not self._mutex.acquire(blocking=False):
            # In the locked part of a roll nobody can commit, so what was true stays true.
            frozen = self._roller.frozen
            if frozen is not None:
                return frozen
            self._mutex.acquire()
        try:
            self._begin()
            self._tail.end()
            return self._state()
        finally:
            self._mutex.release()

    def _state(self) -> PrimaryState:
        return PrimaryState(
            self._generations.position,
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
            now, before = self._generations.position, self._announced
            self._announced = now
        if now != before:
            for callback in tuple(self._subscribers):
                callback(now)
        return now

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

    def _begin(self) -> None:
        """Mutex held: read transaction at the head, every frame taken, bound and journaled."""
        if self._closed:
            raise errors.ProgrammingError("the primary is closed")
        self.behind = True
        if self._startup.lost:
            self._startup.recover()
        self._generations.settle()
        try:
            frame = self._tail.begin()
        except WalResetError as error:
            _LOG.warning("%s; a new generation begins, no committed data is affected", error)
            self._startup.recover()
            self._answers.commit_ms = now_ms()
            frame = self._tail.begin()
        if frame != self._generations.journaled:
            self._answers.commit_ms = now_ms()
            try:
                self._generations.moved()
            except BaseException:
                self._tail.end()
                raise
        self.behind = False

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
          PrimaryRestoredError: it is ahead of this primary.
          HistoryGoneError: its position is not (or no longer) in the log.
          StateMismatchError: it is at that position with other content.
          HashError: a page of this database is damaged on disk.
        """
        frozen = self._roller.frozen
        if frozen is not None and (start, state_hash) == (frozen.position, frozen.hash):
            return None
        return self._answered(
            lambda wait: self._answers.changes(
                start, state_hash, compress=compress, compact=compact, wait=wait
            )
        )

    def ahead_of(self, start: Position) -> tuple[PrimaryState, Behind | None]:
        """Where it stands, and how far that is ahead of a position; None where the log does not tell.

        That is another history, or one that is not kept any more: nothing is refused.
        """
        return self._answered(lambda _: (self._state(), self._answers.ahead_of(start)))

    def clock(self) -> int:
        """Milliseconds since 1970, by the clock that the times of commits are of."""
        return now_ms()

    def repair(self, ask: Ask, *, compress: bool = False) -> Answer | Differences:
        """What differs between a replica's pages and those of now.

        Args:
          ask: hashes of ranges of its pages.
          compress: allow zstd chunks.

        Returns:
          Which ranges differ; or, when only single pages were asked about, the page set that makes the
          replica equal to now: of those that differ, of what has changed since the first answer of
          this repair, and of what lies beyond the replica's last page.

        Raises:
          LineageError, PrimaryRestoredError: as `changes`, unless the replica claims no position.
          HistoryGoneError: the log does not tell what changed since the first answer: start over.
          HashError: a page of this database is damaged on disk.
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
                finally:
                    self._tail.end()
            if isinstance(found, LargeAnswer):
                found.start()
            return found
        raise AssertionError("the last attempt needs no reader of its own")

    def snapshot(self, *, compress: bool = False, first: int = 1) -> Answer:
        """All pages, as a stream of chunks; ``.to`` is the state it began at (p0).

        With `first` only those from that page on, for a download that was broken off: what its reader
        has of the pages before is of an older state, and is compared by `repair` at the end.

        The stream is fuzzy (rule A8): every chunk is read in a short transaction of its own, so pages
        may be newer than p0 and a roll is never held up. The reader completes it with
        `changes(p0)`; from its first byte on the log keeps p0 until the answer is read or closed.
        """
        with self._mutex:
            self._begin()
            try:
                tail, to = self._tail, self._generations.position
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
        self._snapshots[token] = to.generation
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
                    finally:
                        self._tail.end()
                header, stored = chunk_pieces(chunk, compress=compress)  # nobody waits for it
                yield header
                yield bytes(stored)
            yield END_OF_SET
        finally:
            # Without the mutex: a reader may be finalised by the garbage collector, anywhere.
            del self._snapshots[token]

    # ------------------------------------------------------------ rolls

    @property
    def roll_due(self) -> bool:
        """Whether the WAL has passed its threshold and the last attempt was not a moment ago."""
        size = (self._tail.frame - self._generations.state.base.frame) * self._frame_size
        return size >= self._roll_bytes and time.monotonic() >= self._retry_at

    def displaced(self) -> bool:
        """Whether the path names another file than the one that is open, or none: what is committed
        from here on, nobody would find again.
        """
        return file_id(self.path) != self._file

    def overgrown(self) -> bool:
        """Whether the WAL has passed its threshold by commits of other programs, which nobody took.

        A look at the file's size; True once for each size.
        """
        try:
            size = os.stat(f"{self.path}-wal").st_size
        except OSError:
            return False
        begun = self._generations.state.base.frame * self._frame_size
        if size - begun < self._roll_bytes or size == self._overgrown:
            return False
        if self.roll_due or time.monotonic() < self._retry_at:
            return False  # the writer knows
        self._overgrown = size
        return True

    def roll(self, *, wait: float = 1.0) -> bool:
        """Archive the generation and empty the WAL. By the writer's thread, outside a transaction.

        Args:
          wait: seconds to wait for writers, of this process or others.

        Returns:
          False when somebody needs the WAL: nothing is lost, it is tried again later.

        Raises:
          OSError, errors.OperationalError: the disk is full or failed; the generation goes on.
        """
        with self._rolling:
            try:
                self.state()  # recovers first if anything has to be
                done = self._roller.roll(wait=wait, held=self._held())
            except (OSError, errors.Error):
                self._postpone()
                raise
            if done:
                self._retry_at, self._retry_after = 0.0, _RETRY_FIRST
            else:
                self._postpone()
            return done

    def _postpone(self) -> None:
        self._retry_at = time.monotonic() + self._retry_after
        self._retry_after = min(self._retry_after * 2, _RETRY_LAST)

    def _held(self) -> int | None:
        return min(list(self._snapshots.values()), default=None)

    # ------------------------------------------------------------ verification and end

    def verify(self) -> tuple[int, int]:
        """Hash every page of the database again.

        Returns:
          The state hash found, and the first page that is not what was committed, or 0.
        """
        with self._mutex:
            self._begin()
            try:
                return self._tail.verify()
            finally:
                self._tail.end()

    def close(self) -> None:
        """End with a roll, so that the WAL holds nothing that is not in the log; idempotent."""
        with self._rolling:
            if self._closed:
                return
            try:
                self._roller.roll(wait=1.0, held=None)
                with self._mutex:
                    self._generations.stop()
            except (OSError, errors.Error) as error:
                _LOG.warning(
                    "the last roll failed (%s); the next start goes on from the WAL", error
                )
            with self._mutex:
                self._closed = True
                self._roller.close()
                self._tail.close()
                self._log.close()
                self._unwatch()

    def __enter__(self) -> Primary:
        return self

    def __exit__(self, *args: object) -> None:
        self.close()
