"""Frames that a foreign upstream tells become a page set of our own: no I/O but a spool for what is large.

Who speaks libSQL's protocols knows frames, no page sets and no state hashes. So the newest image of every page is
kept up to the last commit, and the state hash that this leads to is computed here: the old hash of each
page that changed or was cut off leaves, the new one enters. Old hashes are of the replica's own pages; nothing that is
remote is trusted with them.

What comes after the last commit is part of no set. A page that a commit cuts off is gone, and one that the
database gains has to come: what no frame says would be read as whatever lies there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from nearlite._native.frames import (
    Chunk,
    ChunkHeader,
    SetHeader,
    chunk_size,
    lock_page,
    page_hash,
    pages_offset,
    seal,
)
from nearlite._native.tail import chunk_pages
from nearlite.arriving import IN_MEMORY, Arrived
from nearlite.errors import AnswerError
from nearlite.position import Position
from nearlite.spooling import BLOCK, Spool
from nearlite.wire import END_OF_SET, NOWHERE, RawChunk, WholeSet, chunk_pieces

PAGE_SIZE: Final = 4096
"""The only one that libSQL's protocols know."""
_MAGIC: Final = b"SQLite format 3\0"
_MOST_PAGES: Final = 0xFFFFFFFE
_AGAIN: Final = 16
"""Times that one transaction may write a page, on average, beyond the first `_FREE` frames."""
_FREE: Final = 65536
_IN_BLOCK: Final = BLOCK // PAGE_SIZE


@dataclass(frozen=True, slots=True)
class Frame:
    """One page as a transaction left it.

    Attributes:
      page: its number, from 1.
      size: of the database in pages, if this frame commits; else 0.
      at: where the database stands then; of other frames it counts for nothing.
      image: `PAGE_SIZE` bytes.
    """

    page: int
    size: int
    at: Position
    image: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Turn:
    """A generation has ended: the same content has another position."""

    at: Position


@dataclass(frozen=True, slots=True)
class Seen:
    """The frame that led to where the reader stands, told again: what it holds has to be there.

    Attributes:
      page, size, image: as of `Frame`. It committed, so the database has as many pages.
    """

    page: int
    size: int
    image: bytes | memoryview


def plain(image: bytes | memoryview) -> bytes:
    """Page 1 as it is hashed and travels: a WAL database without a replica's header.

    Raises:
      AnswerError: it is no page 1 of a database that can be replicated.
    """
    if image[:16] != _MAGIC or int.from_bytes(image[16:18], "big") != PAGE_SIZE:
        raise AnswerError(f"page 1 is not that of a database with pages of {PAGE_SIZE} bytes")
    if image[20]:
        raise AnswerError("the database's pages have a reserved tail, which is not replicated")
    made = bytearray(image)
    made[18] = made[19] = 2
    made[72:92] = bytes(20)
    return bytes(made)


def size_in(page1: bytes | bytearray) -> int | None:
    """Pages of a database, as its page 1 says; None: written by a program that did not keep it."""
    size = int.from_bytes(page1[28:32], "big")
    return size if size and page1[24:28] == page1[92:96] else None


def empty_page() -> bytes:
    """Page 1 of a database in which nothing was ever written."""
    page = bytearray(PAGE_SIZE)
    page[:24] = _MAGIC + PAGE_SIZE.to_bytes(2, "big") + b"\x02\x02\x00\x40\x20\x20"
    page[27] = page[31] = page[95] = 1  # change counter, pages, and the counter that these are of
    page[59] = 1  # UTF-8
    page[100:108] = b"\x0d\x00\x00\x00\x00" + PAGE_SIZE.to_bytes(2, "big") + b"\x00"
    return bytes(page)


def hash_of(page: int, image: bytes | memoryview) -> int:
    """Its page hash, page 1 in the form in which it is hashed."""
    return page_hash(plain(image) if page == 1 else image, page)


class Gathering:
    """Frames from one position on. Not thread-safe; whoever makes it closes it.

    Args:
      at: where it begins.
      pages: size of the database there.
      spool: makes what keeps images beyond 32 MiB.

    Attributes:
      at: where the last commit or turn led.
      pages: size of the database there.
      transactions: commits so far.
      received: bytes of images that came.
    """

    def __init__(self, at: Position, pages: int, spool: Callable[[], Spool]) -> None:
        self._make_spool = spool
        self._spool: Spool | None = None
        self._lock = lock_page(PAGE_SIZE)
        self.received = 0
        self._begin(at, pages)

    def _begin(self, at: Position, pages: int) -> None:
        self.start = self.at = at
        self.pages = pages
        self._floor = pages  # smallest size since
        self._claimed: int | None = pages  # that its page 1 says
        self._claim: int | None = None  # of the transaction that is open, if that has a page 1
        self._highest = 0  # page that came
        self.transactions = 0
        self._kept: dict[int, tuple[int, bytes | int]] = {}
        self._open: dict[int, tuple[int, bytes | int]] = {}
        self._frames = 0  # of the transaction that is open
        self._in_memory = 0
        spool, self._spool = self._spool, None
        if spool is not None:
            spool.close()

    # ------------------------------------------------------------ what comes

    def base(self, page: int, image: bytes | memoryview) -> None:
        """A page of the database as it is where this begins, unlike that of whoever is brought there.

        Raises:
          AnswerError: as `frame`.
        """
        self._put(self._kept, page, image)
        if page == 1:
            self._claimed = self._claim

    def frame(self, frame: Frame) -> None:
        """The next frame.

        Raises:
          AnswerError: it cannot be one.
          OSError: the disk is full, or fails.
        """
        self._frames += 1
        if self._frames > _FREE and self._frames > _AGAIN * len(self._open):
            raise AnswerError("a transaction writes the same pages again and again, without an end")
        self._put(self._open, frame.page, frame.image)
        if frame.size:
            self._commit(frame)

    def turn(self, turn: Turn) -> None:
        """A generation ended. Raises AnswerError: within a transaction."""
        if self._open:
            raise AnswerError("a generation ended in the middle of a transaction")
        if not self.at.precedes(turn.at) or turn.at == self.at:
            raise AnswerError(f"a generation after {self.at} is said to begin at {turn.at}")
        self.at = turn.at

    def _put(
        self, into: dict[int, tuple[int, bytes | int]], page: int, image: bytes | memoryview
    ) -> None:
        if not 1 <= page <= _MOST_PAGES or page == self._lock:
            raise AnswerError(f"a frame is of page {page}, which no database has")
        if len(image) != PAGE_SIZE:
            raise AnswerError(f"a page of {len(image)} bytes came")
        self.received += PAGE_SIZE
        kept = plain(image) if page == 1 else bytes(image)
        if page == 1:
            self._claim = size_in(kept)
        place: bytes | int = kept
        if self._in_memory >= IN_MEMORY:
            if self._spool is None:
                self._spool = self._make_spool()
            place = self._spool.size // PAGE_SIZE
            self._spool.write(kept)
        else:
            self._in_memory += PAGE_SIZE
        into[page] = page_hash(kept, page), place
        self._highest = max(self._highest, page)

    def _commit(self, frame: Frame) -> None:
        if not 1 <= frame.size <= _MOST_PAGES:
            raise AnswerError(f"a commit leaves a database of {frame.size} pages")
        if not self.at.precedes(frame.at) or frame.at == self.at:
            raise AnswerError(f"a commit after {self.at} is said to lead to {frame.at}")
        if 1 in self._open:
            self._claimed = self._claim
        self._kept.update(self._open)
        self._open = {}
        self._frames = 0
        self._floor = min(self._floor, frame.size)
        if frame.size < self._highest:  # pages beyond the new size are gone
            self._kept = {page: kept for page, kept in self._kept.items() if page <= frame.size}
            self._highest = frame.size
        self.pages, self.at = frame.size, frame.at
        self.transactions += 1

    def _check_size(self) -> None:
        """Pages that the database gains have to be there, all but the lock-byte page, and page 1 has to say so: by
        that SQLite, and whoever hashes the file, knows where it ends.
        """
        gained = self.pages - self._floor
        if self._floor < self._lock <= self.pages:
            gained -= 1
        if gained != sum(page > self._floor for page in self._kept):
            raise AnswerError("the database grows by pages of which nothing came")
        if self._claimed is not None and self._claimed != self.pages:
            raise AnswerError(
                f"the database has {self.pages} pages, and its page 1 says {self._claimed}"
            )

    # ------------------------------------------------------------ what it makes

    @property
    def moved(self) -> bool:
        """Whether there is anything to apply."""
        return self.at != self.start

    @property
    def inside(self) -> bool:
        """Whether a transaction is open."""
        return bool(self._open)

    @property
    def kept_bytes(self) -> int:
        """Of the images that would be applied."""
        return len(self._kept) * PAGE_SIZE

    def runs(self, old_pages: int) -> list[tuple[int, int]]:
        """Pages of a replica whose old hashes `arrived` wants: first and number, ascending."""
        made: list[tuple[int, int]] = []
        first = count = 0
        for page in sorted(page for page in self._kept if page <= old_pages):
            if count and page == first + count:
                count += 1
                continue
            if count:
                made.append((first, count))
            first, count = page, 1
        if count:
            made.append((first, count))
        if old_pages > self.pages:
            made.append((self.pages + 1, old_pages - self.pages))
        return made

    def arrived(
        self,
        old_pages: int,
        old_hash: int,
        tables: Sequence[bytes],
        *,
        commit_ms: int,
        repair: bool = False,
    ) -> Gathered:
        """The set that leads a replica to the last commit. Pages that it has as they are stay out.

        Args:
          old_pages, old_hash: of the replica where this begins (with `repair`: whatever it holds).
          tables: old page hashes of each of `runs(old_pages)`: 8 bytes a page, big-endian.
          commit_ms: when the last commit was made, as far as that is known; milliseconds since 1970.
          repair: a set that leads from whatever the replica holds.
        """
        self._check_size()
        state = old_hash
        old: dict[int, int] = {}
        for (first, count), table in zip(self.runs(old_pages), tables, strict=True):
            for at in range(count):
                value = int.from_bytes(table[8 * at : 8 * at + 8], "big")
                if first + at > self.pages:
                    state ^= value
                else:
                    old[first + at] = value
        numbers = []
        for page in sorted(self._kept):
            new = self._kept[page][0]
            before = old.get(page, 0)
            if page <= old_pages and before == new:
                continue
            state ^= before ^ new
            numbers.append(page)
        header = SetHeader(
            page_size=PAGE_SIZE,
            pages=self.pages,
            count=len(numbers),
            start=NOWHERE if repair else self.start,
            target=self.at,
            hash_start=0 if repair else old_hash,
            hash_target=state,
            commit_ms=commit_ms,
            repair=repair,
        )
        return Gathered(header, lambda: self._chunks(header, numbers))

    def chunks(self, header: SetHeader) -> Iterator[Chunk]:
        """All that is kept, for a file that is being created. The caller closes each."""
        self._check_size()
        return self._chunks(header, sorted(self._kept))

    def applied(self) -> None:
        """What was made was taken: go on from there. Within no transaction."""
        assert not self._open
        self._begin(self.at, self.pages)

    def _chunks(self, header: SetHeader, numbers: Sequence[int]) -> Iterator[Chunk]:
        step, after = chunk_pages(PAGE_SIZE), 0
        block, number = b"", -1
        for at in range(0, len(numbers), step):
            some = numbers[at : at + step]
            body = bytearray(chunk_size(PAGE_SIZE, len(some)))
            place = pages_offset(len(some))
            for page in some:
                kept = self._kept[page][1]
                if isinstance(kept, int):
                    assert self._spool is not None
                    if kept // _IN_BLOCK != number:
                        number = kept // _IN_BLOCK
                        block = self._spool.block(number)
                    offset = kept % _IN_BLOCK * PAGE_SIZE
                    kept = block[offset : offset + PAGE_SIZE]
                body[place : place + PAGE_SIZE] = kept
                place += PAGE_SIZE
            yield chunk_of(header, body, some, after)
            after = some[-1]

    def close(self) -> None:
        """Give memory and disk back; idempotent."""
        self._begin(self.at, self.pages)


def chunk_of(header: SetHeader, body: bytearray, numbers: Sequence[int], after: int) -> Chunk:
    """A chunk of pages that lie in `body` at their places; `after`: the last page of the one before."""
    digest = seal(body, PAGE_SIZE, numbers)
    head = ChunkHeader(len(numbers), len(body), len(body), digest)
    return Chunk(header, head, body, after=after)


class Gathered(Arrived):
    """A page set that was made here, in the form in which one arrives.

    Args:
      header: of the set.
      chunks: makes its chunks.
    """

    def __init__(self, header: SetHeader, chunks: Callable[[], Iterator[Chunk]]) -> None:
        super().__init__(header)
        self._made = chunks
        self.as_of = -math.inf
        if header.count <= chunk_pages(PAGE_SIZE):
            self.whole = WholeSet(b"".join(self._encoded()))
        elif header.count * PAGE_SIZE <= IN_MEMORY:
            self.in_memory = []
            try:
                self.in_memory.extend(chunks())
            except BaseException:
                self.close()
                raise

    def _encoded(self) -> Iterator[bytes | bytearray | memoryview]:
        yield self.header.encode()
        for chunk in self._made():
            with chunk:
                head, body = chunk_pieces(RawChunk(bytes(chunk.body), chunk.count, chunk.digest))
            yield head
            yield body
        yield END_OF_SET

    def chunks(self) -> Iterator[Chunk]:
        """See `Arrived`."""
        return self._made()
