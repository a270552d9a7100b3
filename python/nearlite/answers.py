"""Page sets, encoded: from the position of a replica to now.

Small ones are one call of C and kept for others who ask the same. Large ones are read through a handle
of their own, beside commits and small answers, and are sent while they are being read. A client's pace
holds that handle's transaction open for `PATIENCE` at most, so that a slow one never holds up a roll:
then the rest is read ahead, into memory or an unlinked file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from typing import Final, Protocol

from nearlite import errors
from nearlite._native.frames import (
    CHUNK_HEADER_SIZE,
    SET_HEADER_SIZE,
    SetHeader,
    chunk_size,
    lock_page,
)
from nearlite._native.tail import Reader, Tail, chunk_pages
from nearlite.logstate import now_ms
from nearlite.position import Position
from nearlite.spooling import Spool
from nearlite.wire import NOWHERE, Behind, Differences, RepairRequest, pack_compact
from nearlite.wire.pageset import END_OF_SET, RawChunk, chunk_pieces

Buffer = bytes | bytearray | memoryview

_AT_ONCE: Final = 1 << 20
"""Bytes of pages that are read while everybody waits: less than a millisecond."""
_CACHED_BYTES: Final = 4 << 20
_CACHED: Final = 8
_IN_MEMORY: Final = 32 << 20
"""Bytes of pages of an answer that is kept in memory while it is sent."""
_PIECE: Final = 256 << 10
PATIENCE: Final = 0.25
"""Seconds in which a client may take a large answer straight from the database."""

_TOLD: Final = 256
"""Pages up to which a set is told as differences: 10 to 60 us for each, while nobody else is answered."""
_TOLD_NEARBY: Final = 8
"""Where bytes cost nothing: on the same machine."""
Key = tuple[Position, Position, bool, bool]


class Answer:
    """An encoded page set.

    Attributes:
      to: the position it leads to.
      size: bytes, or None when it is compressed while it is sent.
      patience: seconds after which `read_ahead` is due; None: it holds nothing that others wait for.
      transactions: how many of the primary's it brings; None: nobody counted them.

    Iterating yields the bytes, once; `close` releases what an answer not read to its end holds.
    """

    patience: float | None = None
    transactions: int | None = None

    def __init__(self, to: Position, size: int | None, chunks: Iterator[bytes]) -> None:
        self.to = to
        self.size = size
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def read(self) -> bytes:
        """All of it at once."""
        return b"".join(self)

    def read_ahead(self) -> None:
        """Let go of what others wait for; the bytes stay the same."""

    def close(self) -> None:
        """Release what it holds; idempotent."""
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()


class LargeAnswer(Answer):
    """A large page set, encoded as it is taken. `read_ahead` and iterating may be on two threads.

    Args:
      reader: on the pages of the set, in a transaction of its own.
      head: its header.
      spool: for what is too large for memory.
      compress: allow zstd chunks.
    """

    patience = PATIENCE

    def __init__(
        self, reader: Reader, head: SetHeader, spool: Callable[[], Spool], *, compress: bool
    ) -> None:
        super().__init__(head.target, None if compress else _size(head), iter(()))
        self._reader = reader
        self._spool = spool
        self._left = head.count * head.page_size
        self._pieces = _pieces(reader, head, compress=compress)
        self._taking = threading.Lock()
        self._first: bytes | None = None
        self._ahead: Iterator[bytes] | None = None

    def start(self) -> None:
        """Encode the beginning: what is wrong with its pages is heard before anything is sent."""
        with self._taking:
            try:
                self._first = b"".join(islice(self._pieces, 3))
            except BaseException:
                self._reader.close()
                raise

    def __iter__(self) -> Iterator[bytes]:
        first, self._first = self._first, None
        if first is not None:
            yield first
        while pieces := self._take():
            yield from pieces

    def _take(self) -> list[bytes]:
        with self._taking:
            if self._ahead is not None:
                return list(islice(self._ahead, 1))
            return self._encode()

    def _encode(self) -> list[bytes]:
        """The next chunk with its header, copied once, in pieces; nothing at the end."""
        header = next(self._pieces, None)
        if header is None:
            self._reader.close()
            return []
        body = memoryview(next(self._pieces, b""))
        self._left -= len(body)
        pieces = [b"".join((header, body[:_PIECE]))]
        pieces += [bytes(body[at : at + _PIECE]) for at in range(_PIECE, len(body), _PIECE)]
        return pieces

    def read_ahead(self) -> None:
        """End the transaction: what is still to be taken goes to memory, or to a file if it is much.

        What fails here is told to whoever takes the next bytes.
        """
        with self._taking:
            if self._ahead is not None:
                return
            try:
                if self._left > _IN_MEMORY:
                    self._ahead = _read_out(_spooled(self._pieces, self._spool()))
                else:
                    self._ahead = iter(
                        [piece for pieces in iter(self._encode, []) for piece in pieces]
                    )
            except Exception as error:  # noqa: BLE001 - all of them
                self._ahead = _failing(error)
            finally:
                self._reader.close()

    def close(self) -> None:
        """Release transaction, memory and file; idempotent."""
        with self._taking:
            self._reader.close()
            ahead, self._ahead = self._ahead, iter(())
        close = getattr(ahead, "close", None)
        if close is not None:
            close()


def _failing(error: Exception) -> Iterator[bytes]:
    raise error
    yield b""


class History(Protocol):
    """How the frames of a database and the positions of its lineage belong together."""

    tail: Tail

    def spool(self) -> Spool:
        """For a page set that is too large for memory."""

    @property
    def position(self) -> Position:
        """Of the last frame taken."""

    def history(self, start: Position) -> int | None:
        """State hash at a position of this lineage, or None when it is not (or no longer) known."""

    def select(self, start: Position) -> bool:
        """Gather the pages changed since `start`; False when that is no longer known."""

    def transactions(self, start: Position) -> int | None:
        """How many of the primary's transactions came after `start`; None: nobody counted them."""

    def frame_of(self, start: Position) -> int | None:
        """The frame of this WAL at which the database is as it was at `start`, if there is one."""

    def ahead(self, start: Position) -> errors.SyncError:
        """What it means that a replica stands at `start`, which is later than `position`."""


class Answers:
    """Builds page sets inside a read transaction of the tail.

    Not thread-safe: the owner holds its mutex around every call.

    Attributes:
      commit_ms: when the newest commit was first seen.
    """

    def __init__(self, history: History) -> None:
        self._h = history
        self._tail = history.tail
        self._cache: dict[Key, tuple[bytes, int | None]] = {}
        self.commit_ms = now_ms()

    def changes(
        self,
        start: Position,
        state_hash: int | None,
        *,
        compress: bool,
        compact: bool,
        wait: bool,
    ) -> Answer | None:
        """What `Origin.changes` answers; inside begin/end.

        Args:
          start, state_hash, compress, compact: as there.
          wait: encode a large set here and now, not through a reader of its own.

        Raises:
          BusyError: a commit came in between: begin again.
        """
        to = self._h.position
        known = self._known(start, to)
        if state_hash is not None and state_hash != known:
            raise errors.StateMismatchError(
                f"at {start} the primary's state hash is {known:016x}, the replica's is "
                f"{state_hash:016x}",
                action="the replica must be repaired or bootstrapped again",
                data_at_risk=True,
            )
        if start == to:
            return None
        key = (start, to, compress, compact)
        kept = self._cache.get(key)
        if kept is not None:
            return _whole(to, *kept)
        if not self._h.select(start):
            raise self._gone(start)
        transactions = self._h.transactions(start)
        head = self.header(start, known)
        told: bytes | None = None
        if compact:
            told = self._compact(start, head, _TOLD if compress else _TOLD_NEARBY)
            if told is not None and compress:
                told = pack_compact(told)
        made = told or self._of_selection(head, compress=compress, wait=wait)
        if isinstance(made, Answer):
            made.transactions = transactions
            return made
        self._remember(key, made, transactions)
        return _whole(to, made, transactions)

    def ahead_of(self, start: Position) -> Behind | None:
        """What `Origin.ahead_of` answers; inside begin/end."""
        to = self._h.position
        if start.lineage != to.lineage or start > to or self._h.history(start) is None:
            return None
        if not self._h.select(start):
            return None
        transactions = self._h.transactions(start)
        # A roll alone moves the position, and changes nothing that anybody would miss.
        pages = 0 if transactions == 0 or start == to else self._tail.selected()
        return Behind(0 if start == to else transactions, pages * self._tail.page_size)

    def _of_selection(self, head: SetHeader, *, compress: bool, wait: bool) -> Answer | bytes:
        """The set of the pages that were gathered; a small one as its bytes.

        Raises:
          BusyError: as in `changes`.
        """
        count, data = self._tail.answer(head)
        if data is not None and not compress:
            return data
        head = head.replace(count=count)
        if count * self._tail.page_size > _AT_ONCE and not wait:
            reader = self._tail.detach()
            return LargeAnswer(reader, head, self._h.spool, compress=compress)
        pieces = _pieces(self._tail, head, compress=compress)
        if count * self._tail.page_size > _IN_MEMORY:
            spool = _spooled(pieces, self._h.spool())
            return Answer(head.target, spool.size, _read_out(spool))
        return b"".join(bytes(piece) for piece in pieces)

    def repair(self, ask: RepairRequest, *, compress: bool, wait: bool) -> Answer | Differences:
        """What `Origin.repair` answers; inside begin/end.

        Raises:
          BusyError: as in `changes`.
        """
        to = self._h.position
        if ask.page_size != self._tail.page_size:
            raise errors.LineageError(
                f"the replica has pages of {ask.page_size} bytes, this primary of "
                f"{self._tail.page_size}",
                action="bootstrap a new replica",
            )
        if ask.claimed != NOWHERE:
            self._check_history(ask.claimed, to)
        if ask.since == NOWHERE:
            self._tail.select()
        elif ask.since.lineage != to.lineage or ask.since > to or not self._h.select(ask.since):
            raise self._gone(ask.since)
        bits = self._tail.compare(ask.runs, ask.ranges)
        if ask.ranges:
            return Differences(to, ask.ranges, bits)
        self._tail.select_more(ask.pages + 1, self._tail.pages)
        head = self.header(None, 0).replace(snapshot=False, repair=True)
        made = self._of_selection(head, compress=compress, wait=wait)
        return made if isinstance(made, Answer) else Answer(to, len(made), iter((made,)))

    def _compact(self, start: Position, head: SetHeader, most: int) -> bytes | None:
        """The selection told from what the reader has, if it is at most so many pages."""
        frame = self._h.frame_of(start)
        if frame is None or self._tail.selected() > most:
            return None
        return self._tail.compact(head, frame)

    def _known(self, start: Position, to: Position) -> int:
        """State hash at `start`, or why it cannot be served."""
        self._check_history(start, to)
        known = self._h.history(start)
        if known is None:
            raise self._gone(start)
        return known

    def _check_history(self, start: Position, to: Position) -> None:
        """Refuse a replica that may hold what this primary does not."""
        if start.lineage != to.lineage:
            raise errors.LineageError(
                f"the replica belongs to lineage {start.lineage:08x}, this primary is "
                f"{to.lineage:08x}",
                action="bootstrap a new replica",
            )
        if start > to:
            raise self._h.ahead(start)

    @staticmethod
    def _gone(start: Position) -> errors.HistoryGoneError:
        return errors.HistoryGoneError(
            f"the log does not tell what changed since {start}",
            action="bootstrap the replica again",
        )

    def header(self, start: Position | None, hash_start: int) -> SetHeader:
        """Inside begin/end: all of it but the count; ``start=None`` makes it a snapshot's."""
        return SetHeader(
            page_size=self._tail.page_size,
            pages=self._tail.pages,
            count=0,
            start=start or Position(0, 0, 0),
            target=self._h.position,
            hash_start=hash_start,
            hash_target=self._tail.hash,
            commit_ms=self.commit_ms,
            snapshot=start is None,
        )

    def _remember(self, key: Key, data: bytes, transactions: int | None) -> None:
        if len(data) > _CACHED_BYTES:
            return
        while len(self._cache) >= _CACHED:
            self._cache.pop(next(iter(self._cache)))
        self._cache[key] = data, transactions


def _whole(to: Position, data: bytes, transactions: int | None) -> Answer:
    answer = Answer(to, len(data), iter((data,)))
    answer.transactions = transactions
    return answer


def snapshot_runs(pages: int, page_size: int, start: int = 1) -> list[tuple[int, int]]:
    """Chunks of a snapshot from page `start` on: first and last page. None is the lock-byte page alone."""
    step = chunk_pages(page_size)
    runs = [(first, min(first + step - 1, pages)) for first in range(start, pages + 1, step)]
    return [run for run in runs if run_count(run, page_size)]


def run_count(run: tuple[int, int], page_size: int) -> int:
    """Pages of a run, the lock-byte page not counted."""
    first, last = run
    return last - first + 1 - (1 if first <= lock_page(page_size) <= last else 0)


def _pieces(reader: Reader, head: SetHeader, *, compress: bool) -> Iterator[Buffer]:
    """Of a finished selection. A piece is overwritten when the next but one is asked for."""
    yield head.encode()
    step = chunk_pages(head.page_size)
    for at in range(0, head.count, step):
        n = min(step, head.count - at)
        body, digest = reader.chunk(at, n)
        yield from chunk_pieces(RawChunk(body, n, digest), compress=compress)
    yield END_OF_SET


def _size(head: SetHeader) -> int:
    """Bytes of a page set whose chunks are not compressed."""
    step = chunk_pages(head.page_size)
    whole, rest = divmod(head.count, step)
    bodies = whole * chunk_size(head.page_size, step)
    if rest:
        bodies += chunk_size(head.page_size, rest)
    return SET_HEADER_SIZE + (whole + bool(rest) + 1) * CHUNK_HEADER_SIZE + bodies


def _spooled(pieces: Iterator[Buffer], spool: Spool) -> Spool:
    """Write them to an unlinked file, so that memory stays bounded."""
    try:
        for piece in pieces:
            spool.write(piece)
        spool.finish()
    except BaseException:
        spool.close()
        raise
    return spool


def _read_out(spool: Spool) -> Iterator[bytes]:
    with closing(spool):
        yield from spool.blocks()
