"""Page sets of version 2: small ones, for a reader whose state is known (csrc/compact.c).

Everything may be used from any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Protocol

from nearlite._native._lib import check, ffi, lib, new_error
from nearlite._native.delta import lend_all
from nearlite._native.frames import (
    Buffer,
    ChunkHeader,
    SetHeader,
    chunk_size,
    lend,
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from nearlite.position import Position

_SLOT: Final[Any] = ffi.typeof("nl_compact **")
FIRST_BYTE: Final = b"\xd2"
"""What a set of version 2 begins with; one of version 1 begins with ``N``."""


class Standing(Protocol):
    """Where a replica stands: what a request for changes names, and the size of the file."""

    @property
    def position(self) -> Position: ...
    @property
    def hash(self) -> int: ...
    @property
    def pages(self) -> int: ...
    @property
    def page_size(self) -> int: ...


def standing(state: Standing) -> Any:
    """An ``nl_state *`` of a replica's state."""
    s, p = ffi.new("nl_state *"), state.position
    s.position.lineage, s.position.generation = p.lineage, p.generation
    s.position.frame = p.frame
    s.hash, s.pages, s.page_size = state.hash, state.pages, state.page_size
    return s


def header_of(data: Buffer, start: Any) -> SetHeader:
    """What a set is about, as a set of version 1 would tell it.

    Args:
      data: exactly one set.
      start: ``nl_state *`` of :func:`standing`: where this replica stands.

    Raises:
      HashError: damaged, or it leads from another state; nothing else was looked at.
      FormatError: malformed; the text says how.
    """
    err, slot = new_error(), ffi.new(_SLOT)
    check(lib.nl_compact_open(lend(data), len(data), start, slot, err), err)
    header = SetHeader.copy_of(lib.nl_compact_set(slot[0]))
    lib.nl_compact_free(slot[0])
    return header


def bound(page_size: int, count: int) -> int:
    """Bytes that no set of so many pages exceeds."""
    return int(lib.nl_compact_bound(page_size, count))


def encode(
    start: Standing,
    header: SetHeader,
    numbers: Sequence[int],
    bases: Sequence[Buffer | None],
    images: Sequence[Buffer],
    *,
    room: int | None = None,
) -> bytes | None:
    """Write a whole page set.

    Args:
      start: where the reader stands: position, state hash, pages and page size count.
      header: of the set, from there on.
      numbers: of its pages, strictly ascending, page 1 first.
      bases: what each page was at `start`; None: there is none, or it is not at hand.
      images: what each page is at the set's end.
      room: bytes above which it is not wanted.

    Returns:
      The set, or None when it does not fit into `room`.

    Raises:
      MisuseError: only version 1 can say this: a snapshot, more than a chunk.
      ValueError: a page of another size, or lists of different lengths.
    """
    if not header.count == len(numbers) == len(bases) == len(images):
        raise ValueError("each page needs a number, a base or None, and an image")
    room = bound(header.page_size, len(numbers)) if room is None else room
    err, out, written = new_error(), ffi.new("uint8_t[]", room), ffi.new("size_t *")
    before, keep_bases = lend_all(bases, header.page_size)
    now, keep_images = lend_all(images, header.page_size)
    rc = lib.nl_compact_encode(
        standing(start),
        header.native(),
        ffi.new("uint32_t[]", list(numbers)),
        before,
        now,
        out,
        room,
        written,
        err,
    )
    del keep_bases, keep_images
    check(rc, err)
    return bytes(ffi.buffer(out, written[0])) if written[0] else None


class Compact:
    """A set whose bytes are undamaged and meant for the state it was opened with.

    It lends those bytes, which must not be written to before `close`.

    Attributes:
      header: as a set of version 1 would have it.
      numbers: of its pages, ascending; page 1 is the first.
      needs: for each of them whether `unpack` wants its image at the start.
    """

    __slots__ = ("_data", "_handle", "header", "needs", "numbers")

    def __init__(self, data: Buffer, start: Standing) -> None:
        """Check everything that can be checked without the bases.

        Args:
          data: exactly one set.
          start: where this replica stands.

        Raises:
          HashError: damaged, or it leads from another state; nothing else was looked at.
          FormatError: malformed; the text says how.
        """
        self._handle: Any = None
        self._data = lend(data)
        err, slot = new_error(), ffi.new(_SLOT)
        rc = lib.nl_compact_open(self._data, len(data), standing(start), slot, err)
        if rc:
            ffi.release(self._data)  # as a Chunk does
        check(rc, err)
        self._handle = ffi.gc(slot[0], lib.nl_compact_free)
        self.header = SetHeader.copy_of(lib.nl_compact_set(self._handle))
        needs = ffi.new("int *")
        pages = [
            (lib.nl_compact_page(self._handle, i, needs), bool(needs[0]))
            for i in range(self.header.count)
        ]
        self.numbers = [number for number, _ in pages]
        self.needs = [need for _, need in pages]

    def unpack(self, bases: Sequence[Buffer | None]) -> tuple[ChunkHeader, bytearray]:
        """Header and body of a chunk of version 1, to be verified as any other.

        Args:
          bases: the images at the start of those pages that need one; None for the others.

        Raises:
          FormatError: a delta is malformed; the text names the page.
          MisuseError: a base is missing, or one too many.
          ValueError: closed; a base of another size, or their number is not that of the pages.
        """
        if self._handle is None:
            raise ValueError("the page set is closed")
        if len(bases) != self.header.count:
            raise ValueError(f"{len(bases)} bases for {self.header.count} pages")
        body = bytearray(chunk_size(self.header.page_size, self.header.count))
        before, keep = lend_all(bases, self.header.page_size)
        head, err = ffi.new("nl_chunk_header *"), new_error()
        out = ffi.from_buffer("uint8_t[]", body, require_writable=True)
        rc = lib.nl_compact_unpack(self._handle, before, out, len(body), head, err)
        del keep
        check(rc, err)
        return ChunkHeader(head.count, head.raw_size, head.stored_size, head.digest), body

    def close(self) -> None:
        """Give the bytes back; idempotent."""
        if self._handle is not None:
            ffi.release(self._handle)
            self._handle = None
            ffi.release(self._data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._handle is None else f"{self.header.count} pages"
        return f"<Compact page set, {state}>"
