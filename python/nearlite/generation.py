"""The life of generations: begin, bind to a WAL, move with its commits, close, be remembered."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import msgspec

from nearlite import errors
from nearlite._native import faults
from nearlite._native.tail import Tail, TailState
from nearlite.log import Log
from nearlite.logformat import Commit, HashTable, Index, encode_commit, journal_record
from nearlite.logstate import Archived, Base, Seen, State, Wal, now_ms
from nearlite.position import Position
from nearlite.spooling import Spool

_BIND = faults.declare("generation.bind")
_CLOSED = faults.declare("generation.closed")

NO_CHECKSUM: Final = "0" * 16
_AHEAD: Final = 4096  # frames


class Generations:
    """The running generation and what is kept of the closed ones.

    Not thread-safe: the owner holds its mutex around every call.

    Args:
      log: the folder.
      tail: a pinned tail without a base.
    """

    def __init__(self, log: Log, tail: Tail) -> None:
        self.log = log
        self.tail = tail
        self.state: State
        self.journaled = 0
        self._begun: tuple[State, int] | None = None
        self._file = self._names()
        # By position: another lineage counts its generations from 1, too.
        self._indexes: dict[Position, Index] = {}

    def spool(self) -> Spool:
        """For a page set that is too large for memory."""
        return self.log.spool()

    def base_table(self) -> bytes | None:
        """Page hashes where the generation begins; None when that file is missing or damaged."""
        state = self.state
        return self.log.load_table(state.position(state.base.frame), state.page_size)

    def base_commit(self) -> Commit:
        """Where the generation begins, as a commit."""
        base = self.state.base
        return Commit(base.frame, base.pages, int(base.hash, 16))

    # ------------------------------------------------------------ closing without a roll

    def close_here(self) -> None:
        """Close the generation at the tail's last frame; the next begins there, in the same WAL."""
        self.close(self.index(), foreign=False, rebase=True)

    def close(self, index: Index, *, foreign: bool, rebase: bool = False) -> None:
        """Archive the index; begin the next generation where the tail stands."""
        state = self.state
        self.log.save_index(index)
        if rebase:
            self.tail.rebase()
        faults.hit(_CLOSED)
        archived = self.archive_entry(index, foreign=foreign, size=0)
        self._begin(state.generation + 1, (*state.archived, archived))

    def archive_entry(self, index: Index, *, foreign: bool, size: int) -> Archived:
        """What state.json keeps of a generation that ended as `index` says."""
        wal = self.state.wal
        return Archived(
            generation=index.generation,
            start=index.start,
            frame=index.frame,
            pages=index.pages,
            hash=f"{index.hash:016x}",
            salt=wal.salt if wal else None,
            foreign=foreign,
            bytes=size,
            closed_ms=now_ms(),
        )

    def _begin(self, generation: int, archived: tuple[Archived, ...]) -> None:
        """Generation `generation` begins where the tail stands."""
        now = self.tail.state()
        at = Position(self.state.lineage_number, generation, now.frame)
        table = self.tail.table(1, now.pages)
        self.log.save_table(
            HashTable(at.lineage, generation, now.frame, self.tail.page_size, table)
        )
        self.save_begun(generation, archived, now)

    def save_begun(self, generation: int, archived: tuple[Archived, ...], now: TailState) -> None:
        """state.json says that `generation`, whose table is durable, runs.

        Should that fail (the disk is full), nothing may be shown before it has succeeded: `settle`
        tries again.
        """
        begun = msgspec.structs.replace(
            self.state,
            generation=generation,
            base=base_of(now),
            wal=Wal(now.salt, now.frame, now.checksum) if now.bound else None,
            seen=None,  # asks for a comparison at the next start
            archived=archived,
        )
        self._begun = (begun, now.frame)  # first: what follows reads files, and may fail
        _, page1 = self.tail.look(0)
        seen = self.look_at_file(page1)
        self._begun = (msgspec.structs.replace(begun, seen=seen), now.frame)
        self.settle()

    def again(self) -> None:
        """Another file has the database's name: where that stands is to be found out as at a start."""
        self._begun = None
        self._file = self._names()
        self.log.journal_close()

    @property
    def unsettled(self) -> bool:
        """Whether a generation has begun that state.json does not know yet."""
        return self._begun is not None

    def settle(self) -> None:
        """Finish what a failed write of state.json left undone; before anything else is done."""
        if self._begun is None:
            return
        state, frame = self._begun
        self.save(state)
        self.log.journal_close()
        self.journaled = frame
        if state.wal is not None:
            self.log.journal_open(state, b"")
        self._begun = None
        self.log.tidy(state)

    # ------------------------------------------------------------ while it runs

    @property
    def position(self) -> Position:
        """Position of the last frame taken."""
        return self.state.position(self.tail.frame)

    def moved(self) -> None:
        """New frames were taken: bind and journal them, before anybody is shown one."""
        if self.state.wal is None:
            self.bind()
            return
        if not self.log.journaling:  # the disk was full when it was to begin
            self.journal_again()
            return
        try:
            self.log.journal_append(self._record(self.journaled))
            self.journaled = self.tail.frame
        except OSError:
            raise  # it is as it was
        except BaseException:
            # A signal: the record may be there, and nobody counted it. Written twice, or torn, it would
            # hide all that follow: the next look begins the journal anew.
            self.log.journal_close()
            raise

    def bind(self) -> None:
        """The generation has had its first frames: make its salts durable (rule A3)."""
        now = self.tail.state()
        faults.hit(_BIND)
        self.save(msgspec.structs.replace(self.state, wal=Wal(now.salt, now.frame, now.checksum)))
        self.journal_again()

    def journal_again(self) -> None:
        """Begin the journal anew with all that the tail knows."""
        base = self.state.base.frame
        records = self._record(base) if self.tail.frame > base else b""
        try:
            self.log.journal_open(self.state, records)
            self.journaled = self.tail.frame
        except BaseException:
            self.log.journal_close()  # or records would be added to it that it has already
            raise

    def _record(self, after: int) -> bytes:
        tail = self.tail
        return journal_record(after, tail.frames(after), tail.commits(after), tail.state().checksum)

    def stop(self) -> None:
        """A clean stop: say so, and how the file looks now."""
        _, page1 = self.tail.look(0)
        clean = self.state.wal is None
        self.save(msgspec.structs.replace(self.state, clean=clean, seen=self.look_at_file(page1)))

    # ------------------------------------------------------------ history

    def history(self, start: Position) -> int | None:
        """State hash at a position of this lineage, or None when it is not (or no longer) known."""
        if start.generation == self.state.generation:
            return self.tail.lookup(start.frame)
        old = self._archived(start.generation)
        if old is None:
            return None
        if start.frame == old.frame:
            return int(old.hash, 16)
        index = self._index_of(old)
        return index.lookup(start.frame) if index else None

    def select(self, start: Position) -> bool:
        """Gather the pages changed since `start`; False when the log no longer tells."""
        self.tail.select()
        for index in self._since(start):
            if index is None:
                return False
            first = index.generation == start.generation
            self.tail.select_pairs(index.pairs, start.frame if first else 0)
        self.tail.select_frames(self._after(start))
        return True

    def transactions(self, start: Position) -> int | None:
        """How many came after `start`; None when the log no longer tells.

        What other programs did while nobody looked counts as one.
        """
        found = self.tail.transactions(self._after(start))
        for index in self._since(start):
            if index is None:
                return None
            # The first entry of an index is where its generation began.
            first = index.generation == start.generation
            found += index.transactions(start.frame if first else index.start)
        return found + sum(
            old.foreign for old in self.state.archived if old.generation >= start.generation
        )

    def _since(self, start: Position) -> Iterator[Index | None]:
        """Indexes of closed generations that changed something after `start`; None for a missing one."""
        for old in self.state.archived:
            unchanged = not old.foreign and (old.generation, old.frame) == (
                start.generation,
                start.frame,
            )
            if old.generation >= start.generation and not unchanged:
                yield self._index_of(old)

    def _after(self, start: Position) -> int:
        """The frame of the running generation after which all is newer than `start`."""
        running = start.generation == self.state.generation
        return start.frame if running else self.state.base.frame

    def frame_of(self, start: Position) -> int | None:
        """The frame of the running generation at which the database is as it was at `start`.

        None for what lies further back: its page images are gone.
        """
        if start.generation == self.state.generation:
            return start.frame
        old = self._archived(start.generation)
        if old is None or old.generation != self.state.generation - 1:
            return None
        return None if old.foreign or old.frame != start.frame else self.state.base.frame

    def ahead(self, start: Position) -> errors.PrimaryRestoredError:
        """A replica at `start` holds what this primary does not."""
        return errors.PrimaryRestoredError(
            f"the replica is at {start}, the primary at {self.position}: it was restored to an older "
            "state",
            action="bootstrap the replica again, or restore the newer primary",
        )

    def _archived(self, generation: int) -> Archived | None:
        for old in reversed(self.state.archived):
            if old.generation == generation:
                return old
        return None

    def _index_of(self, old: Archived) -> Index | None:
        at = Position(self.state.lineage_number, old.generation, old.frame)
        found = self._indexes.get(at)
        if found is None:
            found = self.log.load_index(at)
            if found is not None:
                while len(self._indexes) >= 4:  # the newest few are what followers ask for
                    self._indexes.pop(next(iter(self._indexes)))
                self._indexes[at] = found
        return found

    def archived_indexes(self) -> Iterator[Index]:
        """Those of closed generations, the newest first, as far as they are there."""
        for old in reversed(self.state.archived):
            found = self._index_of(old)
            if found is not None:
                yield found

    def index(self) -> Index:
        """The running generation's, as far as the tail has taken it."""
        state, now = self.state, self.tail.state()
        return Index(
            state.lineage_number,
            state.generation,
            now.start,
            now.frame,
            state.page_size,
            now.pages,
            now.hash,
            encode_commit(self.base_commit()) + self.tail.commits(now.start),
            self.tail.index(),
        )

    # ------------------------------------------------------------ helpers

    def save(self, state: State) -> None:
        """Make a state durable, then take it as ours."""
        self.log.save(state)
        self.state = state

    def read_on(self, generation: int, frame: int) -> None:
        """Clients of a closed generation are given numbers up to `frame`, behind its end (onward.py).

        Durable before any client is told. Written ahead, so that it is seldom written.
        """
        self.settle()
        archived = tuple(
            msgspec.structs.replace(old, onward=frame + _AHEAD)
            if old.generation == generation and old.onward < frame
            else old
            for old in self.state.archived
        )
        if archived != self.state.archived:
            self.save(msgspec.structs.replace(self.state, archived=archived))

    def _names(self) -> tuple[int, int]:
        """Device and inode that the database's path names."""
        stat = os.stat(self.log.database)
        return stat.st_dev, stat.st_ino

    def look_at_file(self, page1: bytes) -> Seen:
        """What would change if anybody wrote to the database file.

        Of the file that is open. Should the path name another one by now, the next start shall know that: what was
        noted of it would be taken for what was left there.
        """
        stat = os.stat(self.log.database)
        same = (stat.st_dev, stat.st_ino) == self._file
        device, inode = self._file
        return Seen(
            device=device,
            inode=inode,
            size=stat.st_size if same else 0,
            mtime_ns=stat.st_mtime_ns if same else 0,
            ctime_ns=stat.st_ctime_ns if same else 0,
            change=int.from_bytes(page1[24:28], "big"),
            schema=cookie_of(page1),
        )


def cookie_of(page1: bytes) -> int:
    """SQLite's schema cookie."""
    return int.from_bytes(page1[40:44], "big")


def base_of(now: TailState) -> Base:
    """A generation that begins where the tail stands."""
    checksum = now.checksum if now.bound else NO_CHECKSUM
    return Base(frame=now.frame, checksum=checksum, pages=now.pages, hash=f"{now.hash:016x}")
