"""Page sets as they travel (docs/formats.md).

A page set arrives as::

    set header (96)  { chunk header (32)  stored bytes }*  chunk header with count 0
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nearlite import zstd
from nearlite._native import frames
from nearlite._native._lib import NativeError
from nearlite._native.frames import ChunkHeader, SetHeader
from nearlite.errors import AnswerError
from nearlite.wire.items import Buffer, Items, bad

# What ends every page set: the one chunk header with a count of 0 that decodes.
END_OF_SET = ChunkHeader().encode()

# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Header:
    """The first event of a page set."""

    header: SetHeader


@dataclass(frozen=True, slots=True)
class Chunk:
    """A verified chunk; whoever takes the event closes it."""

    chunk: frames.Chunk


@dataclass(frozen=True, slots=True)
class End:
    """The page set is complete: as many pages arrived as its header announced."""


Event = Header | Chunk | End


# ---------------------------------------------------------------- reading


class PageSetReader:
    """Reads one page set, however its bytes are cut.

    Feed `receive` and take the events it answers, all of them, before feeding more. For speed ask
    `needed` and feed that many bytes in one buffer: its pages are then used in place, and the
    buffer must not be written to until the chunks are closed.

    Attributes:
      ended: the end was reached; what followed it in the last piece is in `rest`.
    """

    def __init__(self) -> None:
        self.ended = False
        self._items = Items()
        self._set: SetHeader | None = None
        self._chunk: ChunkHeader | None = None
        self._left = 0  # pages that the header announced and that have not come
        self._after = 0  # highest page number so far
        self._broken: AnswerError | None = None

    @property
    def rest(self) -> memoryview:
        """Bytes that were fed and have not been used."""
        return self._items.rest

    def _size(self) -> int:
        """Bytes of the item that comes next."""
        if self._set is None:
            return frames.SET_HEADER_SIZE
        return frames.CHUNK_HEADER_SIZE if self._chunk is None else self._chunk.stored_size

    def needed(self) -> int:
        """How many bytes can be read without reading beyond the page set; 0 at its end.

        They complete the next event. Behind a header or a chunk a chunk header always follows,
        therefore its bytes are counted in, and steady reading is one buffer for each chunk.
        """
        if self.ended:
            return 0
        header = self._set is not None and self._chunk is None
        more = 0 if header else frames.CHUNK_HEADER_SIZE
        return max(0, self._items.missing(self._size()) + more)

    def receive(self, data: Buffer) -> Iterator[Event]:
        """Take in some bytes and answer what they complete, lazily.

        Raises:
          AnswerError: while iterating: malformed, damaged, or more than was announced.
          ValueError: the events of the previous call were not all taken, or the set has ended.
        """
        if self.ended:
            raise ValueError("the page set has ended")
        self._items.feed(data)
        return iter(self._next, None)

    def _next(self) -> Event | None:
        if self._broken is not None:
            raise self._broken
        try:
            while not self.ended:
                item = self._items.take(self._size())
                if item is None:
                    return None
                event = self._step(item)
                if event is not None:
                    return event
        except (NativeError, zstd.ZstdError) as error:
            self._broken = bad(str(error))
            raise self._broken from error
        except AnswerError as error:
            self._broken = error
            raise
        return None

    def _step(self, item: memoryview) -> Event | None:
        if self._set is None:
            self._set = SetHeader.decode(item)
            self._left = self._set.count
            return Header(self._set)
        if self._chunk is None:
            if item == END_OF_SET:  # worth a shortcut: most sets are small
                return self._end()
            self._chunk_header(self._set, ChunkHeader.decode(item))
            return None
        return self._body(self._set, self._chunk, item)

    def _end(self) -> Event:
        if self._left:
            raise bad(f"it ends {self._left} pages early")
        self.ended = True
        return End()

    def _chunk_header(self, header: SetHeader, chunk: ChunkHeader) -> None:
        if chunk.count > self._left:
            raise bad("it carries more pages than it announced")
        # Checked before anything of that size is received, held or decompressed.
        if chunk.raw_size != frames.chunk_size(header.page_size, chunk.count):
            raise bad(f"{chunk.count} pages cannot make a chunk of {chunk.raw_size} bytes")
        self._chunk = chunk

    def _body(self, header: SetHeader, chunk: ChunkHeader, stored: memoryview) -> Event:
        body: Buffer = zstd.decompress(stored, chunk.raw_size) if chunk.zstd else stored
        verified = frames.Chunk(header, chunk, body, after=self._after)
        self._chunk = None
        self._left -= verified.count
        self._after = verified.last
        return Chunk(verified)

    def close(self) -> None:
        """No more bytes will come.

        Raises:
          AnswerError: the page set is not complete.
        """
        if self._broken is not None:
            raise self._broken
        if not self.ended:
            self._broken = bad("it was cut short")
            raise self._broken


class WholeSet:
    """A page set whose every byte is there: small ones are, and they are what a replica waits for.

    Args:
      data: the set and nothing else, lent to the chunks.

    Attributes:
      header: of the set.
      data: all of it, for an applier that verifies and applies in one call.

    Raises:
      AnswerError: it does not begin with the header of a page set.
    """

    __slots__ = ("data", "header")

    def __init__(self, data: Buffer) -> None:
        self.data = data
        try:
            self.header = SetHeader.decode(data)
        except NativeError as error:
            raise bad(str(error)) from error

    def chunks(self) -> Iterator[frames.Chunk]:
        """All chunks, verified; whoever takes one closes it.

        Raises:
          AnswerError: malformed, damaged, cut short, or more than was announced.
        """
        reader = PageSetReader()
        for event in reader.receive(self.data):
            if isinstance(event, Chunk):
                yield event.chunk
        reader.close()
        if reader.rest:
            raise bad(f"{len(reader.rest)} bytes follow its end")


# ---------------------------------------------------------------- writing


@dataclass(frozen=True, slots=True)
class RawChunk:
    """A chunk as `frames.seal` or the tail made it: raw body, pages in it, digest."""

    body: Buffer
    count: int
    digest: int


def chunk_pieces(
    chunk: RawChunk, *, compress: bool = False, level: int = 1
) -> tuple[bytes, Buffer]:
    """Header and stored bytes of one chunk.

    With `compress` it becomes a zstd frame (levels 1 to 3 are worth their time), unless that saves
    less than a tenth: then decompressing would cost more than the bytes.
    """
    stored = chunk.body
    if compress:
        packed = zstd.compress(chunk.body, level)
        if len(packed) * 10 <= len(chunk.body) * 9:
            stored = packed
    header = ChunkHeader(
        count=chunk.count,
        raw_size=len(chunk.body),
        stored_size=len(stored),
        digest=chunk.digest,
        zstd=stored is not chunk.body,
    )
    return header.encode(), stored


def page_set(
    header: SetHeader, chunks: Iterable[RawChunk], *, compress: bool = False, level: int = 1
) -> Iterator[Buffer]:
    """The pieces of a page set, in order; bodies are lent, and used up when the next is asked for.

    Raises:
      ValueError: the chunks do not carry the number of pages the header announces. The pieces so
        far are then a truncated set, which every reader refuses.
    """
    yield header.encode()
    left = header.count
    for chunk in chunks:
        yield from chunk_pieces(chunk, compress=compress, level=level)
        left -= chunk.count
    if left:
        raise ValueError(f"the page set announced {header.count} pages, {left} are missing")
    yield END_OF_SET
