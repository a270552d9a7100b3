"""Where a replica has been: which of its own frames led to which position of its primary.

A replica that serves replicas answers in the primary's positions, and its WAL has frames of its own: one
transaction for each page set that was applied, which ends with page 1, where the position stands. So the
WAL itself says how the two belong together, whichever process has applied. A *stretch* is what is kept of
one life of the replica's WAL: the positions it led to and, for every page, the last frame that
changed it. It is some 100 KB for 16 MiB of WAL; page images are not needed, as in the primary's log.

What the trail does not know is no loss: a replica whose position is not in it is repaired, for which it
sends 33 KB for each gigabyte that it has.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from nearlite import errors
from nearlite._native._lib import NotReplicaError
from nearlite._native.frames import xxh3
from nearlite._native.tail import Tail
from nearlite.log import Log
from nearlite.logformat import DamagedError, HashTable
from nearlite.position import Position
from nearlite.spooling import Spool

KEPT_BYTES: Final = 32 << 20
"""Of closed stretches, in memory and on the disk."""
SUFFIX: Final = ".trail"

_HEAD = struct.Struct(">8sIIIIQ")  # 32 bytes
_MAGIC: Final = b"NLTRAIL1"
_STOP = struct.Struct(
    ">IIIQ"
)  # frame of this WAL; generation, frame and hash of the primary: 20 bytes
_LOOKS: Final = 100
"""Other processes apply, too: attempts to look between two of their transactions."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """One life of a replica's WAL. docs/formats.md has the byte table of its file.

    Attributes:
      lineage: of all positions in it.
      page_size: bytes.
      stops: frame of this WAL, generation and frame of the primary, state hash; ascending, the first one is
        where it began.
      pairs: 8 bytes each: page, last frame of this WAL, by ascending page.
    """

    lineage: int
    page_size: int
    stops: tuple[tuple[int, int, int, int], ...]
    pairs: bytes
    _known: dict[Position, tuple[int, int]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # A position that was reached twice (a repair) counts as of the second time.
        known = {
            Position(self.lineage, generation, at): (frame, state_hash)
            for frame, generation, at, state_hash in self.stops
        }
        object.__setattr__(self, "_known", known)

    @property
    def begin(self) -> Position:
        """Where it began."""
        return Position(self.lineage, *self.stops[0][1:3])

    @property
    def end(self) -> Position:
        """Where it led."""
        return Position(self.lineage, *self.stops[-1][1:3])

    @property
    def size(self) -> int:
        """Bytes of its file."""
        return _HEAD.size + _STOP.size * len(self.stops) + len(self.pairs)

    def find(self, position: Position) -> tuple[int, int] | None:
        """Frame and state hash at a position; None when it has not been there."""
        return self._known.get(position)

    def encode(self) -> bytes:
        """The file."""
        body = b"".join(_STOP.pack(*stop) for stop in self.stops) + self.pairs
        counts = len(self.stops), len(self.pairs) // 8
        return _HEAD.pack(_MAGIC, self.lineage, self.page_size, *counts, xxh3(body)) + body

    @classmethod
    def decode(cls, data: bytes) -> Stretch:
        """Read a file back.

        Raises:
          DamagedError: truncated, of another version, or its digest is wrong.
        """
        if len(data) < _HEAD.size:
            raise DamagedError("the stretch is truncated")
        magic, lineage, page_size, n, m, digest = _HEAD.unpack_from(data)
        body = data[_HEAD.size :]
        split = _STOP.size * n
        if magic != _MAGIC or n == 0 or len(body) != split + 8 * m or xxh3(body) != digest:
            raise DamagedError("the stretch is damaged")
        return cls(lineage, page_size, tuple(_STOP.iter_unpack(body[:split])), body[split:])


class Trail:
    """What is known of the positions a replica has been at: a `History` of its tail.

    Not thread-safe: the owner holds its mutex around every call.

    Args:
      tail: of the replica, with its pin.
      log: ``<db>-nearlite/``.

    Attributes:
      stretches: closed ones, the oldest first.
      position: where the replica stands.
      kept: whether a later start finds where the running stretch began.
      count: the primary's transactions between two positions; None: they were not counted.
    """

    def __init__(self, tail: Tail, log: Log) -> None:
        self.tail = tail
        self._log = log
        self.stretches: list[Stretch] = []
        self.kept = False
        self.count: Callable[[Position, Position], int | None] = lambda _, __: None
        self._stops: list[tuple[int, int, int, int]] = []
        self._known: dict[Position, tuple[int, int]] = {}
        self.position = Position(0, 0, 0)

    def spool(self) -> Spool:
        """For a page set that is too large for memory."""
        return self._log.spool()

    # ------------------------------------------------------------ where it begins

    def open(self) -> None:
        """Begin where the replica stands, or where the last owner ended and the WAL goes on from.

        Raises:
          DamagedError: the file is not what its header says.
          NotReplicaError: it is no replica.
        """
        kept = _load(self._log, self.tail.page_size)
        last = kept[-1] if kept else None
        table = None if last is None else _load_table(self._log, last)
        if last is not None and table is not None and self._goes_on(last, table):
            self.stretches, self.kept = kept, True
            return
        self.begin()

    def _goes_on(self, last: Stretch, table: bytes) -> bool:
        """Whether all that the WAL holds came after the end of that stretch: every state hash says so."""
        with contextlib.suppress(errors.Error):
            self.tail.load(table, frame=0, salt=None, checksum="0" * 16)
            self._set_base(last.end, self.tail.state().hash)
            if self.tail.state().hash != last.stops[-1][3]:
                return False
            self.tail.begin()
            try:
                self.take()
            finally:
                self.tail.end()
            _, position, state_hash = self._look()
            return (position, state_hash) == (self.position, self.tail.hash)
        return False

    def begin(self) -> None:
        """Begin where the replica stands, knowing nothing of before; every page is hashed.

        Raises:
          DamagedError, NotReplicaError: as `open`.
        """
        self.stretches, self.kept = [], False
        for _ in range(_LOOKS):
            self.tail.scan()
            now = self.tail.state()
            live, position, state_hash = self._look()
            if live == now.frame:
                break
        else:
            raise errors.OperationalError(
                f"another process applies changes to {self._log.database} all the time; nothing is served from it. "
                "Stop that one: it syncs the file by itself"
            )
        if state_hash != now.hash:
            raise errors.DamagedError(
                f"the replica's pages do not hash to what its header says at {position}",
                state="nothing is served from it",
                action="it repairs itself at its next sync, if its primary can be reached",
            )
        self._set_base(position, state_hash)

    def _look(self) -> tuple[int, Position, int]:
        """Last frame of the WAL, and what page 1 says as of then."""
        state, page1 = self.tail.look(0)
        if page1[18] != 3:
            raise NotReplicaError("the file is no replica")
        lineage, generation, frame, state_hash = struct.unpack_from(">IIIQ", page1, 72)
        return state.live, Position(lineage, generation, frame), state_hash

    def _set_base(self, position: Position, state_hash: int) -> None:
        frame = self.tail.state().frame
        self._stops = [(frame, position.generation, position.frame, state_hash)]
        self._known = {position: (frame, state_hash)}
        self.position = position

    # ------------------------------------------------------------ while it runs

    def take(self) -> None:
        """Take the positions of the frames that the tail has taken.

        Raises:
          DamagedError: a transaction did not lead to the state that it says.
          NotReplicaError: somebody else than an applier has written.
        """
        tail = self.tail
        data = tail.commits(self._stops[-1][0])
        for at in range(0, len(data), 16):
            frame = int.from_bytes(data[at : at + 4], "big")
            position, state_hash = tail.stands(frame)
            if state_hash != int.from_bytes(data[at + 8 : at + 16], "big"):
                raise errors.DamagedError(
                    f"the transaction that leads to {position} does not lead to the state it names",
                    state="nothing is served from it",
                    action="it is compared with its pages",
                )
            if not self.position.precedes(position):  # another lineage was taken over, by a repair
                self.stretches, self._stops, self._known = [], [], {}
            self._stops.append((frame, position.generation, position.frame, state_hash))
            self._known[position] = (frame, state_hash)
            self.position = position

    def stretch(self) -> Stretch:
        """The running stretch, as far as it has been taken."""
        return Stretch(
            self.position.lineage, self.tail.page_size, tuple(self._stops), self.tail.index()
        )

    def turn(self, ended: Stretch, held: Position | None) -> set[str]:
        """The WAL is empty: a new stretch begins where the last one ended.

        Args:
          ended: the last one; that alone where it began when there were no frames in it.
          held: the oldest position that must stay known, if any.

        Returns:
          Names of the files of those that are kept.
        """
        self._set_base(self.position, ended.stops[-1][3])
        self.stretches.append(ended)
        size = sum(stretch.size for stretch in self.stretches)
        while size > KEPT_BYTES and (held is None or self.stretches[0].end <= held):
            size -= self.stretches.pop(0).size
        return {f"{stretch.end}{SUFFIX}" for stretch in self.stretches}

    # ------------------------------------------------------------ History

    def history(self, start: Position) -> int | None:
        """State hash at a position; None when it is not known to have been there."""
        for known in self._places(start):
            return known[1]
        return None

    def _places(self, start: Position) -> Iterator[tuple[int, int]]:
        found = self._known.get(start)
        if found is not None:
            yield found
        for stretch in reversed(self.stretches):
            found = stretch.find(start)
            if found is not None:
                yield found

    def select(self, start: Position) -> bool:
        """Gather the pages changed since `start`; False when it is not known to have been there."""
        self.tail.select()
        found = self._known.get(start)
        if found is not None:
            self.tail.select_frames(found[0])
            return True
        later: list[Stretch] = []
        for stretch in reversed(self.stretches):
            found = stretch.find(start)
            if found is not None:
                self.tail.select_pairs(stretch.pairs, found[0])
                for whole in later:
                    self.tail.select_pairs(whole.pairs, 0)
                self.tail.select_frames(self._stops[0][0])
                return True
            later.append(stretch)
        return False

    def transactions(self, start: Position) -> int | None:
        """How many of the primary's came after `start`, as far as this process has brought them."""
        return self.count(start, self.position)

    def frame_of(self, start: Position) -> int | None:
        """The frame of this WAL at which the database is as it was at `start`, if there is one."""
        found = self._known.get(start)
        return None if found is None else found[0]

    def ahead(self, start: Position) -> errors.UpstreamBehindError:
        """A replica at `start` has had more than this one (rule A9): it was written through it."""
        return errors.UpstreamBehindError(
            f"the replica is at {start}, the one that serves it has come to {self.position} only",
            action="ask again in a moment",
        )


# ------------------------------------------------------------------ its files


def _load(log: Log, page_size: int) -> list[Stretch]:
    """Kept stretches that follow one another up to the newest, oldest first."""
    found: dict[Position, Stretch] = {}
    for path in log.folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(OSError, DamagedError):
            stretch = Stretch.decode(log.read(path.name))
            if stretch.page_size == page_size:
                found[stretch.end] = stretch
    chain: list[Stretch] = []
    at = max(found, default=None)
    while at is not None and at in found:
        chain.insert(0, found.pop(at))
        at = chain[0].begin
    return chain


def _load_table(log: Log, last: Stretch) -> bytes | None:
    """Page hashes where that stretch ended; None when they are missing or damaged."""
    try:
        found = HashTable.decode(log.read(f"{last.end}.hashes"))
    except (OSError, DamagedError):
        return None
    at = Position(found.lineage, found.generation, found.frame)
    return found.table if (at, found.page_size) == (last.end, last.page_size) else None
