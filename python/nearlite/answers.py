"""Page sets of the primary, encoded: from the position of a replica to now.

Small ones are one call of C and kept for others who ask the same. Large ones are read through a handle
of their own, beside commits and small answers; very large ones go through an unlinked file. In no case
does a client's pace hold a transaction open, so that a slow one never holds up a roll.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Final

from nearlite import errors
from nearlite._native.frames import SetHeader, lock_page
from nearlite._native.tail import Reader, chunk_pages
from nearlite.generation import Generations
from nearlite.logstate import now_ms
from nearlite.position import Position
from nearlite.wire.pageset import END_OF_SET, RawChunk, chunk_pieces

Buffer = bytes | bytearray | memoryview

_AT_ONCE: Final = 1 << 20
"""Bytes of pages that are read while everybody waits: less than a millisecond."""
_CACHED_BYTES: Final = 4 << 20
_CACHED: Final = 8
_IN_MEMORY: Final = 32 << 20
"""Bytes of pages of an answer that is kept in memory while it is sent."""
_READ: Final = 1 << 20

Key = tuple[Position, Position, bool]


class Answer:
    """An encoded page set.

    Attributes:
      to: the position it leads to.
      size: bytes, or None for a compressed snapshot, which is encoded while it is sent.

    Iterating yields the bytes, once; `close` releases what an answer not read to its end holds.
    """

    def __init__(self, to: Position, size: int | None, chunks: Iterator[bytes]) -> None:
        self.to = to
        self.size = size
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return self._chunks

    def read(self) -> bytes:
        """All of it at once."""
        return b"".join(self._chunks)

    def close(self) -> None:
        """Release what it holds; idempotent."""
        close = getattr(self._chunks, "close", None)
        if close is not None:
            close()


class Pending:
    """A large page set that is still to be encoded, outside the owner's mutex.

    Args:
      reader: on the pages of the set.
      head: its header.
      compress: allow zstd chunks.
      folder: for the unlinked file.
    """

    def __init__(self, reader: Reader, head: SetHeader, folder: Path, *, compress: bool) -> None:
        self._reader = reader
        self._head = head
        self._folder = folder
        self._compress = compress

    def encode(self) -> Answer:
        """Encode it and let go of the transaction."""
        pieces = _pieces(self._reader, self._head, compress=self._compress)
        try:
            if self._head.count * self._head.page_size > _IN_MEMORY:
                return _spooled(self._head.target, pieces, self._folder)
            kept = [bytes(piece) for piece in pieces]
            return Answer(self._head.target, sum(map(len, kept)), iter(kept))
        finally:
            self._reader.close()


class Answers:
    """Builds page sets inside a read transaction of the tail.

    Not thread-safe: the owner holds its mutex around every call.

    Attributes:
      commit_ms: when the newest commit was first seen.
    """

    def __init__(self, generations: Generations) -> None:
        self._g = generations
        self._tail = generations.tail
        self._cache: dict[Key, bytes] = {}
        self.commit_ms = now_ms()

    def changes(
        self, start: Position, state_hash: int | None, *, compress: bool, wait: bool
    ) -> Answer | Pending | None:
        """What `Primary.changes` answers; inside begin/end.

        Args:
          start, state_hash, compress: as there.
          wait: encode a large set here and now instead of answering Pending.

        Raises:
          BusyError: a commit came in between: begin again.
        """
        to = self._g.position
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
        data = self._cache.get((start, to, compress))
        if data is None:
            if not self._g.select(start):
                raise self._gone(start)
            head = self.header(start, known)
            count, data = self._tail.answer(head)
            if data is None or compress:
                head = replace(head, count=count)
                if count * self._tail.page_size > _AT_ONCE and not wait:
                    reader = self._tail.detach()
                    return Pending(reader, head, self._g.log.folder, compress=compress)
                pieces = _pieces(self._tail, head, compress=compress)
                if count * self._tail.page_size > _IN_MEMORY:
                    return _spooled(to, pieces, self._g.log.folder)
                data = b"".join(bytes(piece) for piece in pieces)
            self._remember((start, to, compress), data)
        return Answer(to, len(data), iter((data,)))

    def _known(self, start: Position, to: Position) -> int:
        """State hash at `start`, or why it cannot be served."""
        if start.lineage != to.lineage:
            raise errors.LineageError(
                f"the replica belongs to lineage {start.lineage:08x}, this primary is "
                f"{to.lineage:08x}",
                action="bootstrap a new replica",
            )
        if start > to:
            raise errors.PrimaryRestoredError(
                f"the replica is at {start}, the primary at {to}: it was restored to an older state",
                action="bootstrap the replica again, or restore the newer primary",
            )
        known = self._g.history(start)
        if known is None:
            raise self._gone(start)
        return known

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
            target=self._g.position,
            hash_start=hash_start,
            hash_target=self._tail.hash,
            commit_ms=self.commit_ms,
            snapshot=start is None,
        )

    def _remember(self, key: Key, data: bytes) -> None:
        if len(data) > _CACHED_BYTES:
            return
        while len(self._cache) >= _CACHED:
            self._cache.pop(next(iter(self._cache)))
        self._cache[key] = data


def snapshot_runs(pages: int, page_size: int) -> list[tuple[int, int]]:
    """Chunks of a snapshot: first and last page. None is the lock-byte page alone."""
    step = chunk_pages(page_size)
    runs = [(first, min(first + step - 1, pages)) for first in range(1, pages + 1, step)]
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


def _spooled(to: Position, pieces: Iterator[Buffer], folder: Path) -> Answer:
    """Encode into an unlinked file: memory stays bounded."""
    spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by its reader
    try:
        for piece in pieces:
            spool.write(piece)
        size = spool.tell()
        spool.seek(0)
    except BaseException:
        spool.close()
        raise
    return Answer(to, size, _read_out(spool))


def _read_out(spool: IO[bytes]) -> Iterator[bytes]:
    with spool:
        while data := spool.read(_READ):
            yield data
