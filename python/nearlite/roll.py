"""One roll: a generation ends, its WAL is archived and emptied, the next begins.

The order of steps is binding (rule A5; the fault points carry the numbers of its table):

    1  copy the frames so far to the archive, sync; checkpoint what can be had (no lock held); again
       while much comes meanwhile
    2  CKPT and WRITE; take and copy the rest; archive and index durable under their names
    3  page-hash table of generation g + 1 durable
    4  release the pin, checkpoint TRUNCATE
    5  new pin, release WRITE and CKPT
    6  state.json says g + 1
    7  the first frame's salts are bound before it is shown (generation.py)

A kill before 4 leaves the WAL, and the generation goes on; a kill after it leaves an empty WAL and the
base table of g + 1, which the database equals. Would state.json say g + 1 before 4, the frames of g
would appear again as frames of g + 1.

A reader that needs the WAL postpones the roll: what was archived goes back to being a part, and the
next attempt copies only what is new.

Step 1 takes nine tenths of the time. `prepare` does it beside those who commit (rolling.py): they wait
only for what it has left over.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Final, Generic, TypeVar

from nearlite._native import faults
from nearlite._native.tail import READS, WAL_HEADER_SIZE, BusyError
from nearlite.bases import Bases
from nearlite.generation import Generations
from nearlite.log import write_all
from nearlite.logformat import HashTable
from nearlite.logstate import now_ms, retained
from nearlite.position import Position

_LOG = logging.getLogger("nearlite")

_PREPARED = faults.declare("roll.1-prepared")
_LOCKED = faults.declare("roll.2-locked")
_ARCHIVED = faults.declare("roll.2-archived")
_TABLE = faults.declare("roll.3-table")
_EMPTIED = faults.declare("roll.5-emptied")
_DONE = faults.declare("roll.6-done")

_SLICE_MS: Final = 5
"""Waiting for a lock is done in slices, so that others get the mutex in between."""
_COPY: Final = 256 << 10
"""Bytes of the WAL copied at a time, so that others get the mutex in between."""
_LEFT: Final = 1 << 20
"""Bytes of the WAL that may be left to the section in which nobody commits."""
_LEFT_YIELDING: Final = 128 << 10
_READERS: Final = 0.005
"""Seconds of a section for readers of other programs to end."""


StateT = TypeVar("StateT")


class Roller(Generic[StateT]):
    """Rolls the generations of one primary.

    Args:
      generations: of the primary.
      mutex: guards tail and generations.
      retain_bytes: None means 4 times the database or 256 MiB, whichever is more.
      retain_seconds: age up to which closed generations stay in any case.
      state: what the primary tells of itself.
      bases: who reads what the database file was, before frames are copied into it.
      yielding: other programs write, and read for as long as they like: a section in which they cannot
        write is not spent on a roll that a reader of theirs forbids, and less is left to it. No frames
        are archived: they would be written twice, beside those who wait for the disk; what changed is in
        the index, and page images are read as they are now.

    Attributes:
      frozen: while nobody can commit: what `state` said when that began; else None.
      reader: the last attempt ended because another process reads out of the WAL.
      longest: seconds of the longest section so far.
      keep: the WAL keeps its size, to be written over.
    """

    def __init__(
        self,
        generations: Generations,
        mutex: threading.Lock,
        *,
        retain_bytes: int | None,
        retain_seconds: float,
        state: Callable[[], StateT],
        bases: Bases,
        yielding: bool = False,
    ) -> None:
        self._generations = generations
        self._tail = generations.tail
        self._log = generations.log
        self._mutex = mutex
        self._retain_bytes = retain_bytes
        self._retain_seconds = retain_seconds
        self._state = state
        self._bases = bases
        self._yielding = yielding
        self._left = _LEFT_YIELDING if yielding else _LEFT
        self.frozen: StateT | None = None
        self.reader = False
        self.longest = 0.0
        self.keep = False
        self._step = generations.tail.wal_step
        self._part = -1
        self._part_of = ""  # its name, which says the generation
        self._part_frames = 0

    def prepare(self) -> bool:
        """Step 1, beside those who commit. Not on two threads, nor beside `roll`.

        Returns:
          False when the generation has no frames: there is nothing to roll.

        Raises:
          WalResetError: the WAL was reset by somebody else.
          OSError, errors.OperationalError: the disk is full or failed; the generation goes on.
        """
        before = None
        while True:
            name, frame = self._newest()
            if frame == 0:
                return False
            copied = self._copied(name)
            left = (frame - copied) * self._step
            # Each round has to leave half at most: who writes as fast as this copies is stopped by a section.
            if copied and (left <= self._left or (before is not None and 2 * left > before)):
                return True
            before = left
            self._prepare(name, frame)

    def roll(self, *, wait: float, held: int | None) -> bool:
        """End the running generation if it has frames; prepares what is not prepared yet.

        Args:
          wait: seconds to wait for writers and checkpointers, of this process or others.
          held: oldest generation that a running snapshot needs, or None.

        Returns:
          Whether the WAL is empty now; False: somebody needs it, try again later.

        Raises:
          WalResetError: the WAL was reset by somebody else.
          OSError, errors.OperationalError: the disk is full or failed; the generation goes on.
        """
        if not self.prepare():
            return True
        deadline = time.monotonic() + wait
        while True:
            with self._mutex:
                try:
                    self._tail.roll_begin(_SLICE_MS)
                except BusyError as error:
                    reason = error
                else:
                    began = time.monotonic()
                    try:
                        return self._section(held)
                    finally:
                        self.frozen = None
                        self._tail.roll_abort()
                        self.longest = max(self.longest, time.monotonic() - began)
            if time.monotonic() >= deadline:
                _LOG.info("roll postponed: %s", reason)
                return False
            time.sleep(_SLICE_MS / 1000)

    def close(self) -> None:
        """Forget a part under way; idempotent."""
        self._part_frames = 0
        if self._part >= 0:
            os.close(self._part)
            self._part = -1

    def _newest(self) -> tuple[str, int]:
        """The name of the generation's part and its newest frame; 0 when it has none."""
        with self._mutex:
            self._generations.settle()
            self._take()
            bound = self._generations.state.wal is not None
            return self._part_name(), self._tail.frame if bound else 0

    def _take(self) -> None:
        """Every frame there is. Mutex held."""
        self._tail.begin()
        self._tail.end()
        if self._tail.frame != self._generations.journaled:
            self._generations.moved()

    def _prepare(self, name: str, frame: int) -> None:
        """One round of step 1: what the WAL holds up to a frame."""
        with self._mutex:
            self._tail.repin()
            self._bases.ending()  # under the mutex: who opens one now would have nothing put aside
            are_read = self._bases.are_read
            if are_read:
                self._take()  # the pin may stand behind more frames than have been taken
                pairs, pages = self._tail.index(), self._tail.pages
        if are_read:
            self._bases.overwrite(pairs, pages)
        self._tail.passive()
        self._copy(name, frame, in_section=False)
        faults.hit(_PREPARED)

    def _section(self, held: int | None) -> bool:
        """Steps 2 to 6, nobody commits."""
        tail, generations, log = self._tail, self._generations, self._log
        faults.hit(_LOCKED)
        if tail.frame != generations.journaled:
            generations.moved()
        self.frozen = self._state()
        if self._yielding and not self._copied_for_readers():
            _LOG.info("roll postponed: another program reads out of the WAL")
            return False
        now = tail.state()
        state = generations.state
        end = state.position(now.frame)
        name = self._part_name()
        size = self._copy(name, now.frame, in_section=True)
        part, archive = log.folder / name, log.folder / f"{end}.wal"
        try:
            if size:
                log.publish(part, archive.name, durable=False)
            index = generations.index()
            log.save_index(index, durable=False)
            self._bases.ending()
            self._bases.overwrite(index.pairs, index.pages)
            faults.hit(_ARCHIVED)
            table = tail.table(1, now.pages)
            log.save_table(
                HashTable(end.lineage, end.generation + 1, 0, tail.page_size, table), durable=False
            )
            log.sync_folder()
            faults.hit(_TABLE)
            # Before the WAL is emptied: after that, positions of the old generation must not be given
            # out again, so nothing that can fail stands between there and `save_begun`.
            entry = generations.archive_entry(index, foreign=False, size=size)
            archived = tuple(
                retained(
                    (*state.archived, entry),
                    database_bytes=now.pages * tail.page_size,
                    index_bytes=self._index_bytes(),
                    now=now_ms(),
                    retain_bytes=self._retain_bytes,
                    retain_seconds=self._retain_seconds,
                    held=held,
                )
            )
            tail.roll_finish(keep=self.keep)
            if self._yielding:
                self.frozen = None  # others commit again, and none of ours waits for its turn
        except BusyError as error:
            if archive.exists():
                archive.rename(part)
            _LOG.info("roll postponed: %s", error)
            return False
        except BaseException:
            if archive.exists():
                archive.rename(part)
            raise
        faults.hit(_EMPTIED)
        generations.save_begun(state.generation + 1, archived, tail.state())
        self.close()
        faults.hit(_DONE)
        return True

    def _copied_for_readers(self) -> bool:
        """Copy all frames, so that who begins to read needs none; then wait for those who do, for a moment."""
        index = self._generations.index()
        self._bases.ending()
        self._bases.overwrite(index.pairs, index.pages)
        self._tail.roll_copy()
        deadline = time.monotonic() + _READERS
        while True:
            self.reader = bool(self._tail.others() & READS)
            if not self.reader or time.monotonic() >= deadline:
                return not self.reader
            time.sleep(_READERS / 20)

    # ------------------------------------------------------------ archive

    def _part_name(self) -> str:
        state = self._generations.state
        return f"{state.lineage}.{state.generation:08x}.wal.part"

    def _copied(self, name: str) -> int:
        """Frames that the part of that name has, and the disk too."""
        begun = self._part >= 0 or self._yielding
        return self._part_frames if begun and self._part_of == name else 0

    def _copy(self, name: str, frame: int, *, in_section: bool) -> int:
        """Bring the part of that name up to a frame, and to the disk; answers its size.

        The name is that of the generation that the frame was counted in: should the WAL be reset meanwhile,
        another one begins, whose frames have no place in this part.
        """
        if self._yielding:
            self._part_of, self._part_frames = name, frame
            return 0
        copied = self._copied(name)
        if copied == 0:
            self.close()
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            self._part = os.open(self._log.folder / name, flags, 0o644)
            self._part_of, self._part_frames = name, 0
        begin = WAL_HEADER_SIZE + copied * self._step if copied else 0
        end = WAL_HEADER_SIZE + frame * self._step
        for offset in range(begin, end, _COPY):
            n = min(_COPY, end - offset)
            if in_section:
                data = self._tail.read_wal(offset, n)
            else:
                with self._mutex:
                    data = self._tail.read_wal(offset, n)
            write_all(self._part, data, offset)
        os.fsync(self._part)
        self._part_frames = (
            frame  # after a sync that failed the next would not tell what is missing: copied again
        )
        return end

    def _index_bytes(self) -> dict[int, int]:
        sizes = {}
        for path in self._log.folder.glob("*.index"):
            with contextlib.suppress(ValueError, OSError):  # somebody else's, or no file
                sizes[Position.parse(path.stem).generation] = path.stat().st_size
        return sizes
