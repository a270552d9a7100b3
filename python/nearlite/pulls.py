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
from nearlite.errors import PrimaryRestoredError
from nearlite.generation import Generations
from nearlite.log import Log
from nearlite.onward import Line, Stretch, gone, line_of
from nearlite.position import Position

AT_ONCE: Final = 1024
"""Frames in one answer, at most."""


@dataclass(frozen=True, slots=True)
class End:
    """There are no more frames in a generation.

    Attributes:
      generation: the running one; the same, if what follows is known to the client already (onward.py).
      frame: the last one of it.
    """

    generation: int
    frame: int


@dataclass(frozen=True, slots=True)
class _Found:
    """Where frames are.

    Attributes:
      generation: whose they are asked for as.
      at: frame of the WAL.
      count: how many.
      archive: the file that has them; None: they were in the running WAL.
      data: then they themselves.
    """

    generation: int
    at: int
    count: int
    archive: str | None
    data: bytes | None


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

    @property
    def lineage(self) -> int:
        """History of all that is told."""
        return self._generations.state.lineage_number

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
            line = line_of(state, self._tail.frame, generation)
            if first > line.told + 1:
                raise _ahead(generation, first - 1, line.told)
            if line.own.closed is not None and first == line.own.count + 1:
                return End(state.generation, self._tail.frame - state.base.frame)
            if line.at(first) is None:
                return End(generation, line.last)
            found = self._find(line, first, min(count, AT_ONCE))
        data = self._read(found)
        last = first + found.count - 1
        if line.own.closed is not None and last > line.own.count:
            with self._mutex:
                self._generations.read_on(generation, last)
        return data

    def stored(self, line: Line, first: int, count: int) -> bytes:
        """Frames that a generation has, read on: at least one, at most `count`. While nothing can be rolled.

        Raises:
          HistoryGoneError: the log does not have them any more.
        """
        with self._mutex:
            found = self._find(line, first, count)
        return self._read(found)

    def _find(self, line: Line, first: int, count: int) -> _Found:
        """Where frames are, read already if they lie in the running WAL. Mutex held."""
        stretch = line.at(first)
        assert stretch is not None
        count = min(count, stretch.first + stretch.count - first)
        at = stretch.begin + first - stretch.first + 1
        archive = self._archive_of(stretch)
        data = self._in_wal(at, count) if archive is None else None
        return _Found(line.generation, at, count, archive, data)

    def _read(self, found: _Found) -> bytes:
        data = found.data
        if found.archive is not None:
            data = self._in_archive(found.archive, found.at, found.count)
        if data is None:
            raise gone(found.generation)
        return self._log.of_pages.frames(found.at, data)

    def _now(self) -> None:
        self._look()
        self._tail.end()

    def _archive_of(self, stretch: Stretch) -> str | None:
        """The archive that has a closed generation's frames; None: the running WAL does."""
        state, found = self._generations.state, stretch.closed
        if found is None:
            return None
        for one in state.archived:
            if one.generation >= found.generation and one.salt == found.salt and one.bytes:
                return f"{Position(state.lineage_number, one.generation, one.frame)}.wal"
        if state.wal is None or state.wal.salt != found.salt or found.salt is None:
            raise gone(found.generation)
        return None

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


def _ahead(generation: int, theirs: int, ours: int) -> PrimaryRestoredError:
    return PrimaryRestoredError(
        f"the replica has {theirs} frames of generation {generation}, the primary {ours}: it was restored to an "
        "older state",
        action="delete the replica's files and sync again",
    )
