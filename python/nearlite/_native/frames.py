"""Handles on pageset.c and the hashes of frame.c: headers of page sets, verified chunks.

Nothing here loops over pages: one call takes a whole buffer. Everything may be used from any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from nearlite._native._lib import check, ffi, lib, new_error
from nearlite.position import Position

if TYPE_CHECKING:
    from typing_extensions import Self

SET_HEADER_SIZE: Final[int] = lib.NL_SET_HEADER_SIZE
CHUNK_HEADER_SIZE: Final[int] = lib.NL_CHUNK_HEADER_SIZE
CHUNK_MAX_PAGES: Final[int] = lib.NL_CHUNK_MAX_PAGES
CHUNK_MAX_PAGE_BYTES: Final[int] = lib.NL_CHUNK_MAX_PAGE_BYTES
CHUNK_MAX_BYTES: Final[int] = lib.NL_CHUNK_MAX_BYTES
PAGE_SIZES: Final[frozenset[int]] = frozenset(1 << bits for bits in range(9, 17))

Buffer = bytes | bytearray | memoryview


# Parsed once: small page sets are read many times a second.
_BYTES: Final[Any] = ffi.typeof("uint8_t[]")
_SET_HEADER: Final[Any] = ffi.typeof("nl_set_header *")
_CHUNK_HEADER: Final[Any] = ffi.typeof("nl_chunk_header *")
_CHUNK_SLOT: Final[Any] = ffi.typeof("nl_chunk **")


def lend(data: Buffer) -> Any:
    """Lend a buffer to C; the object must live as long as C uses it."""
    return ffi.from_buffer(_BYTES, data)


# ---------------------------------------------------------------- headers


class SetHeader:
    """What a page set is about. Immutable, and nothing but the C struct: most sets are small, and one
    object with many fields costs more than reading the few that are asked for.

    Attributes:
      page_size: bytes, a power of two in 512..65536.
      pages: database size in pages after the set.
      count: pages that all chunks carry together.
      start: position it must be applied at; all zero for a snapshot.
      target: position it leads to.
      hash_start: state hash at `start`; 0 for a snapshot.
      hash_target: state hash at `target`.
      commit_ms: the primary's clock at `target`, milliseconds since 1970.
      snapshot: it carries every page (but the lock-byte page), each as it was at `target` or later.
      repair: it carries the pages in which a replica differed, whatever it was.
    """

    __slots__ = ("_native",)

    def __init__(
        self,
        page_size: int,
        pages: int,
        count: int,
        start: Position,
        target: Position,
        hash_start: int,
        hash_target: int,
        commit_ms: int,
        snapshot: bool = False,
        repair: bool = False,
    ) -> None:
        self._native: Any = ffi.new(_SET_HEADER)
        h = self._native
        h.flags = (lib.NL_SET_SNAPSHOT if snapshot else 0) | (lib.NL_SET_REPAIR if repair else 0)
        h.page_size, h.pages, h.count = page_size, pages, count
        # "from" is a keyword in Python, hence the call
        for position, slot in ((start, getattr(h, "from")), (target, h.to)):
            slot.lineage, slot.generation = position.lineage, position.generation
            slot.frame = position.frame
        h.hash_from, h.hash_to, h.commit_ms = hash_start, hash_target, commit_ms

    @classmethod
    def decode(cls, data: Buffer) -> SetHeader:
        """Read and check the first 96 bytes of a page set.

        Raises:
          FormatError: they are not the header of a page set this program can apply.
        """
        h, err = ffi.new(_SET_HEADER), new_error()
        check(lib.nl_set_header_decode(lend(data), len(data), h, err), err)
        header = cls.__new__(cls)
        header._native = h  # noqa: SLF001 - a second constructor
        return header

    @classmethod
    def copy_of(cls, native: Any) -> SetHeader:
        """Of an ``nl_set_header *`` that was checked."""
        header = cls.__new__(cls)
        header._native = ffi.new(_SET_HEADER, native[0])  # noqa: SLF001 - a third constructor
        return header

    def native(self) -> Any:
        """An ``nl_set_header *`` to read from, valid as long as this object."""
        return self._native

    def encode(self) -> bytes:
        """The 96 bytes a page set begins with."""
        out = ffi.new("uint8_t[]", SET_HEADER_SIZE)
        lib.nl_set_header_encode(self._native, out)
        return bytes(ffi.buffer(out))

    def replace(self, **changes: Any) -> SetHeader:
        """A copy with other values in some fields."""
        return SetHeader(**{**{name: getattr(self, name) for name in _SET_FIELDS}, **changes})

    @property
    def page_size(self) -> int:
        return int(self._native.page_size)

    @property
    def pages(self) -> int:
        return int(self._native.pages)

    @property
    def count(self) -> int:
        return int(self._native.count)

    @property
    def start(self) -> Position:
        at = getattr(self._native, "from")
        return Position(at.lineage, at.generation, at.frame)

    @property
    def target(self) -> Position:
        at = self._native.to
        return Position(at.lineage, at.generation, at.frame)

    @property
    def hash_start(self) -> int:
        return int(self._native.hash_from)

    @property
    def hash_target(self) -> int:
        return int(self._native.hash_to)

    @property
    def commit_ms(self) -> int:
        return int(self._native.commit_ms)

    @property
    def snapshot(self) -> bool:
        return bool(self._native.flags & lib.NL_SET_SNAPSHOT)

    @property
    def repair(self) -> bool:
        return bool(self._native.flags & lib.NL_SET_REPAIR)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SetHeader) and self.encode() == other.encode()

    def __hash__(self) -> int:
        return hash(self.encode())

    def __repr__(self) -> str:
        return f"SetHeader({', '.join(f'{name}={getattr(self, name)!r}' for name in _SET_FIELDS)})"


_SET_FIELDS: Final = (
    "page_size", "pages", "count", "start", "target", "hash_start", "hash_target", "commit_ms",
    "snapshot", "repair",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ChunkHeader:
    """What precedes the stored bytes of a chunk.

    Attributes:
      count: pages in it; 0 marks the end of the set, then everything else is 0, too.
      raw_size: bytes of the body, decompressed.
      stored_size: bytes that follow.
      digest: XXH3 over page numbers and page hashes.
      zstd: the stored bytes are one zstd frame of `raw_size` bytes.
    """

    count: int = 0
    raw_size: int = 0
    stored_size: int = 0
    digest: int = 0
    zstd: bool = False
    _native: Any = field(default=None, init=False, repr=False, compare=False)

    def native(self) -> Any:
        """An ``nl_chunk_header *`` to read from, valid as long as this object."""
        if self._native is None:
            object.__setattr__(self, "_native", self._make())
        return self._native

    def _make(self) -> Any:
        h = ffi.new(_CHUNK_HEADER)
        h.flags = lib.NL_CHUNK_ZSTD if self.zstd else 0
        h.count, h.raw_size, h.stored_size = self.count, self.raw_size, self.stored_size
        h.digest = self.digest
        return h

    def encode(self) -> bytes:
        """The 32 bytes before a chunk's stored bytes."""
        out = ffi.new("uint8_t[]", CHUNK_HEADER_SIZE)
        lib.nl_chunk_header_encode(self.native(), out)
        return bytes(ffi.buffer(out))

    @classmethod
    def decode(cls, data: Buffer) -> ChunkHeader:
        """Read and check 32 bytes.

        Raises:
          FormatError: they are not a chunk header, or announce sizes out of bounds.
        """
        h, err = ffi.new(_CHUNK_HEADER), new_error()
        check(lib.nl_chunk_header_decode(lend(data), len(data), h, err), err)
        zstd = bool(h.flags & lib.NL_CHUNK_ZSTD)
        header = cls(h.count, h.raw_size, h.stored_size, h.digest, zstd)
        object.__setattr__(header, "_native", h)
        return header


# ---------------------------------------------------------------- chunks


def chunk_size(page_size: int, count: int) -> int:
    """Bytes of the raw body of a chunk of `count` pages; 0 when they do not fit into one."""
    return int(lib.nl_chunk_size(page_size, count))


def pages_offset(count: int) -> int:
    """Where the first page lies in such a body: a multiple of 64."""
    return int(lib.nl_chunk_pages_offset(count))


def seal(body: bytearray | memoryview, page_size: int, numbers: Sequence[int]) -> int:
    """Make a chunk body of pages that lie in place already; answers its digest.

    Args:
      body: ``chunk_size(page_size, len(numbers))`` bytes, the pages from ``pages_offset(...)`` on.
        The table is written before them; page 1 is made plain (byte 18, bytes 72..91).
      page_size: bytes.
      numbers: page numbers, strictly ascending, without the lock-byte page.

    Raises:
      MisuseError: too many pages, a short body, or numbers out of order.
    """
    err, written, digest = new_error(), ffi.new("size_t *"), ffi.new("uint64_t *")
    with ffi.from_buffer("uint8_t[]", body, require_writable=True) as out:
        rc = lib.nl_chunk_encode(
            page_size,
            ffi.new("uint32_t[]", list(numbers)),
            ffi.NULL,
            ffi.NULL,
            len(numbers),
            out,
            len(body),
            written,
            digest,
            err,
        )
    check(rc, err)
    return int(digest[0])


class Chunk:
    """Pages that were checked: the only thing that can be applied.

    It lends the body it was made from, which must not be written to before `close`.

    Attributes:
      count: pages in it, at least one.
      last: highest page number in it.
      digest: of its header.
    """

    __slots__ = ("_body", "_handle", "count", "digest", "last")

    def __init__(
        self, header: SetHeader, chunk_header: ChunkHeader, body: Buffer, *, after: int = 0
    ) -> None:
        """Verify a chunk.

        Args:
          header: of the set it belongs to.
          chunk_header: of this chunk; only its digest and sizes matter.
          body: raw (decompressed) body.
          after: highest page number of the set's chunks before this one, or 0.

        Raises:
          FormatError: malformed; the text names the page.
          HashError: the digest differs.
        """
        self._handle: Any = None
        self._body = lend(body)
        err, slot = new_error(), ffi.new(_CHUNK_SLOT)
        rc = lib.nl_chunk_verify(
            header.native(), chunk_header.native(), self._body, len(body), after, slot, err
        )
        if rc:
            # Who keeps the exception keeps this object, in a cycle maybe, and Python before 3.12.6 crashes
            # when it collects a memoryview that is still lent (CPython issue 77894).
            ffi.release(self._body)
        check(rc, err)
        self._handle = ffi.gc(slot[0], lib.nl_chunk_free)
        self.count: int = lib.nl_chunk_count(self._handle)
        self.last: int = lib.nl_chunk_last(self._handle)
        self.digest = chunk_header.digest

    @property
    def body(self) -> memoryview:
        """The raw body it was made from, until `close`."""
        return memoryview(ffi.buffer(self._body))

    @property
    def handle(self) -> Any:
        """The ``nl_chunk *``.

        Raises:
          ValueError: the chunk is closed.
        """
        if self._handle is None:
            raise ValueError("the chunk is closed")
        return self._handle

    def page(self, index: int) -> tuple[int, int, bytes]:
        """Number, hash and a copy of the bytes of one page, for tools and tests.

        Raises:
          IndexError: there are only `count` pages.
        """
        number, hash_ = ffi.new("uint32_t *"), ffi.new("uint64_t *")
        data = ffi.new("const uint8_t **")
        if index < 0 or lib.nl_chunk_page(self.handle, index, number, hash_, data):
            raise IndexError(f"a chunk of {self.count} pages has no page {index}")
        size = (len(self._body) - pages_offset(self.count)) // self.count
        return number[0], hash_[0], bytes(ffi.buffer(data[0], size))

    def close(self) -> None:
        """Give the body back; idempotent."""
        if self._handle is not None:
            ffi.release(self._handle)
            self._handle = None
            ffi.release(self._body)

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
        state = "closed" if self._handle is None else f"up to page {self.last}"
        return f"<Chunk of {self.count} pages, {state}>"


# ---------------------------------------------------------------- ranges

RUN_SIZE: Final[int] = lib.NL_RUN_SIZE
SPAN_MAX: Final[int] = lib.NL_SPAN_MAX
SPAN_WANTED: Final[int] = lib.NL_SPAN_WANTED


def check_runs(runs: Buffer) -> tuple[int, int]:
    """Whether bytes are runs of page-hash ranges (docs/formats.md).

    Returns:
      How many ranges of more than one page, and how many single pages there are.

    Raises:
      FormatError: they are not; the text says why.
    """
    err, counts = new_error(), ffi.new("uint32_t[2]")
    check(lib.nl_ranges_check(lend(runs), len(runs), counts, counts + 1, err), err)
    return counts[0], counts[1]


# ---------------------------------------------------------------- hashes


def page_hash(page: Buffer, number: int) -> int:
    """XXH3-64 of a page as replication sees it (page 1 without the replica's own bytes)."""
    if len(page) not in PAGE_SIZES:
        raise ValueError(f"no SQLite page has {len(page)} bytes")
    return int(lib.nl_page_hash(lend(page), len(page), number))


def xxh3(data: Buffer, seed: int = 0) -> int:
    """XXH3-64."""
    return int(lib.nl_xxh3(lend(data), len(data), seed))


def state_hash(pages: Buffer, page_size: int, first: int = 1) -> int:
    """XOR of the page hashes of consecutive pages, the lock-byte page left out."""
    return int(lib.nl_state_hash(lend(pages), page_size, first, len(pages) // page_size))


def page_hashes(pages: Buffer, page_size: int, first: int = 1) -> tuple[int, bytes]:
    """`state_hash` and a table of the hashes: 8 bytes a page, in the machine's byte order."""
    count = len(pages) // page_size
    table = ffi.new("uint64_t[]", count)
    state = lib.nl_page_hashes(lend(pages), page_size, first, count, table)
    return int(state), bytes(ffi.buffer(table))


def lock_page(page_size: int) -> int:
    """The page that holds SQLite's lock bytes and never any data."""
    return int(lib.nl_lock_page(page_size))


def use_lock_byte(offset: int) -> None:
    """For tests that move SQLite's pending byte; process-wide, 0x40000000 from the start."""
    lib.nl_lock_byte_use(offset)


# ---------------------------------------------------------------- choice of instructions


def simd_best() -> int:
    """Highest level this CPU offers: 0 plain C, 1 SSE2 or NEON, 2 AVX2, 3 AVX-512."""
    return int(lib.nl_simd_best())


def simd_use(level: int) -> int:
    """Switch the whole process, for tests and benchmarks; answers the level now in use."""
    return int(lib.nl_simd_use(level))
