"""What libSQL's clients in offline mode push: frames of their own WAL, which become ours.

A push is taken where it continues what the primary has: its first frames, if the primary has them already, are
compared, and those behind its last one are committed (csrc/push.c). A transaction that has not ended with the
push is held: its frames wait in a file nobody else sees, under a baton that the client brings with the rest. While
they wait nobody is kept from writing; who does makes the rest a conflict.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from nearlite._native._lib import PositionError, TooBigError
from nearlite._native.push import Pusher
from nearlite._native.sealing import Key
from nearlite._native.tail import FRAME_HEADER_SIZE, Tail
from nearlite.errors import OperationalError
from nearlite.generation import Generations
from nearlite.onward import Line, line_of
from nearlite.pulls import Pulls
from nearlite.spooling import BLOCK, Spool
from nearlite.streams import EndingError

HELD_SECONDS: Final = 300.0
"""For so long the rest of a transaction is waited for."""
HELD: Final = 16
"""Transactions of which the rest is waited for, at a time; the one that waited longest makes room."""
HELD_BYTES: Final = 1 << 30
"""Of all their frames; of a large database HELD_DATABASES times its size."""
HELD_DATABASES: Final = 4
CHECK_SECONDS: Final = 60.0
"""That looking at the result may take; nobody writes meanwhile."""
LOCK_SECONDS: Final = 5.0
"""For which other programs' write lock is waited for."""
_ATTEMPTS: Final = 3
_BEHIND: Final = 8  # bytes of a frame's header that count: page number and commit size


class DatabaseFullError(OperationalError):
    """The database would become larger than it may; nothing was changed."""


class HeldFullError(OperationalError):
    """A transaction is larger than what may be kept until it ends; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """What became of a push.

    Attributes:
      taken: False: what the primary has is something else.
      frame: the last one that the client and the primary have in common, as far as the primary can tell; if taken
        and not less than the first that was pushed, the last one of the push.
      baton: to be brought with what follows; None: nothing is waited for.
    """

    taken: bool
    frame: int
    baton: str | None = None


class _Held:
    """Frames of a transaction whose end is waited for.

    Attributes:
      generation: as the client counts.
      first: number of the first frame.
      count: frames so far.
      latest: what was pushed last: number of the first frame, digest.
      used: clock.
      broken: it is of no use any more.
    """

    def __init__(self, generation: int, first: int, spool: Spool) -> None:
        self.generation = generation
        self.first = first
        self.count = 0
        self.spool = spool
        self.latest = (0, b"")
        self.used = 0.0
        self.broken = False

    def add(self, frames: memoryview, step: int) -> None:
        """Frames that follow."""
        try:
            self.spool.write(frames)
        except BaseException:
            self.broken = True  # nobody knows how much of them is there
            self.spool.close()
            raise
        self.count += len(frames) // step

    def pieces(self, step: int) -> Iterator[bytes]:
        """The frames, some at a time."""
        rest = b""
        for block in self.spool.blocks():
            rest += block
            whole = len(rest) // step * step
            yield rest[:whole]
            rest = rest[whole:]
        yield rest + self.spool.block(self.spool.size // BLOCK)


class Pushes:
    """Takes pushes into one primary. One thread at a time, but for `stop` and `expire`.

    Args:
      path: the database.
      key: of a sealed one.
      durable: a commit is synced.
      generations: of the primary.
      tail: of it.
      pulls: its frames.
      mutex: guards tail and generations.
      look: takes every frame there is; mutex held, and then a read transaction has to be ended.

    Attributes:
      most_bytes: of the database's file; None: any number. One that is larger already may not grow.
    """

    def __init__(
        self,
        path: str,
        key: Key | None,
        *,
        durable: bool,
        generations: Generations,
        tail: Tail,
        pulls: Pulls,
        mutex: threading.Lock,
        look: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._key = key
        self._durable = durable
        self._generations = generations
        self._tail = tail
        self._pulls = pulls
        self._mutex = mutex
        self._look = look
        self._clock = clock
        self._step = FRAME_HEADER_SIZE + tail.page_size
        self._held: dict[str, _Held] = {}  # by baton, the one that was used last at the end
        self._lock = threading.Lock()  # of those
        self._running: Pusher | None = None
        self._stopped = False
        self.most_bytes: int | None = None

    def push(self, generation: int, first: int, frames: bytes, baton: str | None) -> Pushed:
        """Take a push. While it is this thread's turn to write; what is committed has to be announced.

        Args:
          generation: as the client counts.
          first: number of the first frame, from 1.
          frames: whole ones, at least one.
          baton: what the client was given with the push before.

        Raises:
          FormatError: SQLite writes no such frames.
          UnsoundError: what they lead to is no sound database.
          TooBigError: that took longer to find out than there is time.
          EndingError: the server is about to end.
          HeldFullError: what may be held of transactions is used up.
          DatabaseFullError: the database would become larger than `most_bytes`.
          HistoryGoneError, PrimaryRestoredError: there is no such generation.
          OSError, errors.OperationalError: disk full, or another program holds the write lock.

        Whatever is raised, nothing of the push is there.
        """
        held = self._take(baton)
        if held is not None and held.generation == generation:
            if held.latest == (first, _digest(frames)):  # its answer was lost on the way
                assert baton is not None
                return Pushed(True, first + len(frames) // self._step - 1, self._put(held, baton))
            if first == held.first + held.count:
                return self._taken(generation, first, frames, held, baton)
        if held is not None:
            held.spool.close()
        return self._taken(generation, first, frames, None, None)

    # ------------------------------------------------------------ frames that are there already

    def _taken(
        self, generation: int, first: int, frames: bytes, held: _Held | None, baton: str | None
    ) -> Pushed:
        """Of `push`. With what is held, if anything, which is kept, committed or dropped."""
        try:
            pushed = self._tried(generation, first, frames, held, baton)
        except BaseException as error:
            if held is not None and baton is not None:
                if held.broken or not isinstance(error, (OSError, OperationalError)):
                    held.spool.close()
                else:
                    self._put(held, baton)  # it may be tried once more
            raise
        if held is not None and pushed.baton != baton:
            held.spool.close()
        return pushed

    def _tried(
        self, generation: int, first: int, frames: bytes, held: _Held | None, baton: str | None
    ) -> Pushed:
        for _ in range(_ATTEMPTS):
            with self._mutex:
                self._look()
                self._tail.end()
                line = line_of(self._generations.state, self._tail.frame, generation)
                at, salt = self._tail.frame, self._tail.state().salt
            rest = frames
            if held is None:
                compared = self._compared(line, first, frames)
                if isinstance(compared, Pushed):
                    return compared
                rest = compared
            elif line.last != held.first - 1:
                return Pushed(False, line.told)  # others have written since
            if not _continues(line):
                return Pushed(False, line.told)
            begins = first + (len(frames) - len(rest)) // self._step
            try:
                return self._append(line, begins, rest, held, baton, at, salt)
            except PositionError:  # another program has committed
                continue
        raise OperationalError(
            "other programs commit faster than a push is taken; nothing was changed"
        )

    def _compared(self, line: Line, first: int, frames: bytes) -> Pushed | bytes:
        """The frames that the primary does not have; or the answer, where there is nothing to commit."""
        if first > line.told + 1:
            return Pushed(True, line.told)
        count = len(frames) // self._step
        known = min(count, line.last - first + 1)
        if known > 0 and not self._are(line, first, memoryview(frames)[: known * self._step]):
            return Pushed(False, line.told)
        last = first + count - 1
        if known == count:
            self._read_on(line, last)
            return Pushed(True, last)
        return frames[max(known, 0) * self._step :]

    def _are(self, line: Line, first: int, theirs: memoryview) -> bool:
        """Whether frames are what the primary has under these numbers."""
        at, step = 0, self._step
        while at < len(theirs):
            ours = self._pulls.stored(line, first + at // step, (len(theirs) - at) // step)
            for frame in range(0, len(ours), step):
                mine, other = ours[frame : frame + step], theirs[at : at + step]
                if mine[:_BEHIND] != other[:_BEHIND]:
                    return False
                if mine[FRAME_HEADER_SIZE:] != other[FRAME_HEADER_SIZE:]:
                    return False
                at += step
        return True

    def _read_on(self, line: Line, frame: int) -> None:
        """The client knows the numbers of a generation up to `frame`, which may lie behind its end."""
        if line.own.closed is not None and frame > line.own.count:
            with self._mutex:
                self._generations.read_on(line.generation, frame)

    # ------------------------------------------------------------ frames that are new

    def _append(
        self,
        line: Line,
        first: int,
        frames: bytes,
        held: _Held | None,
        baton: str | None,
        at: int,
        salt: str,
    ) -> Pushed:
        """Commit what ends with a commit frame, hold the rest. Nothing can fail behind the commit."""
        self._check_size(frames)
        end = self._whole(frames)
        rest = memoryview(frames)[end:]
        last = first + len(frames) // self._step - 1
        waits = None if end else held
        if rest:
            self._make_room(len(rest), held)
            if waits is None:
                begins = last - len(rest) // self._step + 1
                waits = _Held(line.generation, begins, self._generations.spool())
                baton = secrets.token_urlsafe(18)
            waits.add(rest, self._step)
        if end:
            try:
                self._read_on(line, last - len(rest) // self._step)
                self._commit(memoryview(frames)[:end], held, at, salt)
            except BaseException:
                if waits is not None:
                    waits.spool.close()
                raise
        if waits is None:
            return Pushed(True, last)
        assert baton is not None
        waits.latest = (first, _digest(frames))
        return Pushed(True, last, self._put(waits, baton))

    def _check_size(self, frames: bytes) -> None:
        """Raises DatabaseFullError: a commit among them makes the database larger than it may be."""
        if self.most_bytes is None:
            return
        most = max(self.most_bytes // self._tail.page_size, self._tail.pages, 1)
        sizes = (frames[at + 4 : at + 8] for at in range(0, len(frames), self._step))
        pages = max(int.from_bytes(size, "big") for size in sizes)
        if pages > most:
            raise DatabaseFullError(
                f"with what was pushed the database has {pages * self._tail.page_size} bytes, and "
                f"{self.most_bytes} is the most it may have; nothing was changed"
            )

    def _whole(self, frames: bytes) -> int:
        """Bytes up to the end of the last commit frame."""
        for end in range(len(frames), 0, -self._step):
            if any(frames[end - self._step + 4 : end - self._step + 8]):
                return end
        return 0

    def _commit(self, frames: memoryview, held: _Held | None, at: int, salt: str) -> None:
        pusher = Pusher(self._path, self._tail.page_size, key=self._key, durable=self._durable)
        with closing(pusher):
            with self._lock:  # `stop` looks at it, and may not meet one that is being closed
                self._running = pusher
                if self._stopped:
                    pusher.stop()
            try:
                pusher.begin(at, salt, wait=LOCK_SECONDS)
                if held is not None:
                    for piece in held.pieces(self._step):
                        pusher.add(piece)
                pusher.commit(frames, check=CHECK_SECONDS)
            except TooBigError:
                if self._stopped:
                    raise EndingError from None
                raise
            finally:
                with self._lock:
                    self._running = None

    # ------------------------------------------------------------ transactions that wait for their end

    def _take(self, baton: str | None) -> _Held | None:
        """What is held under a baton, and not from here on."""
        self.expire()
        with self._lock:
            return None if baton is None else self._held.pop(baton, None)

    def _put(self, held: _Held, baton: str) -> str:
        held.used = self._clock()
        with self._lock:
            self._held[baton] = held
            most = 0 if self._stopped else HELD
            over = list(self._held)[: max(0, len(self._held) - most)]
            dropped = [self._held.pop(one) for one in over]
        for one in dropped:
            one.spool.close()
        return baton

    def _make_room(self, more: int, held: _Held | None) -> None:
        with self._lock:
            total = more + sum(one.spool.size for one in self._held.values())
        database = self._tail.pages * self._tail.page_size
        limit = max(HELD_BYTES, HELD_DATABASES * database)
        if total + (0 if held is None else held.spool.size) > limit:
            raise HeldFullError(
                f"transactions whose end has not come yet need more than {limit} bytes; nothing was changed"
            )

    @property
    def waiting(self) -> bool:
        """Whether the rest of any transaction is waited for."""
        return bool(self._held)

    def expire(self) -> None:
        """Drop what was waited for too long; its client begins at what was committed. Any thread."""
        limit = self._clock() - HELD_SECONDS
        with self._lock:
            late = [baton for baton, held in self._held.items() if held.used <= limit]
            dropped = [self._held.pop(baton) for baton in late]
        for held in dropped:
            held.spool.close()

    def stop(self) -> None:
        """A look under way ends, and what is held is dropped: the server is about to end. Any thread."""
        with self._lock:
            self._stopped = True
            if self._running is not None:
                self._running.stop()
            dropped = list(self._held.values())
            self._held.clear()
        for held in dropped:
            held.spool.close()


def _continues(line: Line) -> bool:
    """Whether what is committed now goes on behind the last frame of a generation.

    Where one has ended, only if a roll ended it: then nobody was shown more frames than it is known to have.
    """
    closed = line.own.closed
    return line.unbroken and (closed is None or closed.bytes > 0 or closed.onward > 0)


def _digest(frames: bytes) -> bytes:
    return blake2b(frames, digest_size=16).digest()
