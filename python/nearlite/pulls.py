"""The log as frames, for replicas that keep a WAL equal to the primary's (libSQL's sync, version 2).

A generation is a base and the frames of its WAL from 1 on. A generation that began in the middle of a WAL
(generation.py: it had to be closed without a roll) counts its frames from there; its base is nowhere as a
file, so it is ended by a roll before anybody is given one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from nearlite._native.tail import WAL_HEADER_SIZE, Tail
from nearlite.bases import Base, Bases
from nearlite.errors import HistoryGoneError, PrimaryRestoredError
from nearlite.generation import Generations
from nearlite.log import Log
from nearlite.logstate import Archived
from nearlite.position import Position

AT_ONCE: Final = 1024
"""Frames in one answer, at most."""


@dataclass(frozen=True, slots=True)
class End:
    """There are no more frames in a generation.

    Attributes:
      generation: the running one.
      frame: the last one of it.
    """

    generation: int
    frame: int


class Pulls:
    """Frames and bases of a primary's generations. Any thread.

    Args:
      log: of the primary.
      generations: of it.
      tail: of it.
      bases: where its generations began.
      mutex: guards tail and generations.
      look: takes every frame there is; mutex held, and then a read transaction has to be ended.
    """

    def __init__(
        self,
        log: Log,
        generations: Generations,
        tail: Tail,
        bases: Bases,
        *,
        mutex: threading.Lock,
        look: Callable[[], None],
    ) -> None:
        self._log = log
        self._generations = generations
        self._tail = tail
        self._bases = bases
        self._mutex = mutex
        self._look = look

    def base(self) -> Base | None:
        """Where the running generation began.

        Returns:
          None: the database file is not it any more, or never was; a roll makes it that of the next.
        """
        with self._mutex:
            self._now()
            state = self._generations.state
            if self._bases.running != state.generation:
                return None
            return self._bases.open(
                self._log.of_pages, state.base.pages, state.page_size, self._log.spool
            )

    def frames(self, generation: int, first: int, count: int) -> bytes | End:
        """Frames of a generation, as they are in its WAL: a header of 24 bytes and a page each.

        Args:
          generation: whose.
          first: number, from 1.
          count: at most so many.

        Raises:
          HistoryGoneError: the log does not have them any more.
          PrimaryRestoredError: there was never so much in it.
        """
        with self._mutex:
            self._now()
            state = self._generations.state
            end = End(state.generation, self._tail.frame - state.base.frame)
            if generation == state.generation:
                begin, last, archive = state.base.frame, end.frame, None
            else:
                old, archive = self._old(generation)
                begin, last = old.start, old.frame - old.start
            count = _count(generation, first, last - first + 1, count)
            if count == 0:
                return end
            first += begin
            data = self._in_wal(first, count) if archive is None else None
        if archive is not None:
            data = self._in_archive(archive, first, count)
        if data is None:
            raise _gone(generation)
        return self._log.of_pages.frames(first, data)

    def _now(self) -> None:
        self._look()
        self._tail.end()

    def _old(self, generation: int) -> tuple[Archived, str | None]:
        """A closed generation, and the archive that has its frames; None: the running WAL does."""
        state = self._generations.state
        if generation > state.generation:
            raise PrimaryRestoredError(
                f"the replica is in generation {generation}, the primary in {state.generation}: it was "
                "restored to an older state",
                action="delete the replica's files and sync again",
            )
        found = next((a for a in state.archived if a.generation == generation), None)
        if found is None or found.foreign:
            raise _gone(generation)
        for one in state.archived:
            if one.generation >= generation and one.salt == found.salt and one.bytes:
                end = Position(state.lineage_number, one.generation, one.frame)
                return found, f"{end}.wal"
        if state.wal is not None and state.wal.salt == found.salt and found.salt is not None:
            return found, None
        if found.frame == found.start:
            return found, None  # it has no frames
        raise _gone(generation)

    def _in_wal(self, first: int, count: int) -> bytes:
        step = self._tail.wal_step
        return self._tail.read_wal(WAL_HEADER_SIZE + (first - 1) * step, count * step)

    def _in_archive(self, name: str, first: int, count: int) -> bytes | None:
        """None: the archive is not there any more, or is shorter than it was."""
        step = self._tail.wal_step
        try:
            file = os.open(self._log.folder / name, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            data = os.pread(file, count * step, WAL_HEADER_SIZE + (first - 1) * step)
        finally:
            os.close(file)
        return data if len(data) == count * step else None


def _count(generation: int, first: int, left: int, count: int) -> int:
    """How many frames are answered. Raises PrimaryRestoredError: the first lies beyond the end."""
    if left < 0:
        raise PrimaryRestoredError(
            f"the replica has {first - 1} frames of generation {generation}, the primary {first - 1 + left}: it "
            "was restored to an older state",
            action="delete the replica's files and sync again",
        )
    return min(left, count, AT_ONCE)


def _gone(generation: int) -> HistoryGoneError:
    return HistoryGoneError(
        f"the log does not have the frames of generation {generation} any more",
        action="delete the replica's files and sync again",
    )
