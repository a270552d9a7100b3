"""The primary's reader of its own WAL (csrc/tail.c, changes.c, roll.c).

One handle, one thread at a time: the owner (`nearlite.primary`) holds a mutex around every call but
`passive`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from nearlite._native._lib import (
    BusyError,
    MisuseError,
    WalResetError,
    check,
    ffi,
    lib,
    new_error,
)
from nearlite._native.frames import (
    CHUNK_MAX_BYTES,
    CHUNK_MAX_PAGES,
    SetHeader,
)
from nearlite._native.sealing import Key, key_handle, tell_reports
from nearlite.position import Position

WAL_HEADER_SIZE: Final[int] = lib.NL_WAL_HEADER_SIZE
WRITES: Final[int] = lib.NL_OTHERS_WRITE
CHECKPOINTS: Final[int] = lib.NL_OTHERS_CHECKPOINT
READS: Final[int] = lib.NL_OTHERS_READ
FRAME_HEADER_SIZE: Final[int] = lib.NL_FRAME_HEADER_SIZE

# Clearing 8 MiB that are written over at once costs as much as hashing them.
_allocate: Any = ffi.new_allocator(should_clear_after_alloc=False)

_SMALL: Final = 1 << 18
"""Bytes of the buffer for page sets that are laid out in one call."""
_CHUNK_BYTES: Final = 1 << 20
"""Bytes of pages in a full chunk."""


def chunk_pages(page_size: int) -> int:
    """How many pages a full chunk carries.

    A mebibyte, which fits into a processor's second cache together with its copy: whoever encodes or
    applies it touches its bytes two or three times. The format allows more.
    """
    return max(1, min(CHUNK_MAX_PAGES, _CHUNK_BYTES // page_size))


@dataclass(frozen=True, slots=True)
class TailState:
    """Where the tail stands, or, from `Tail.look`, what the WAL holds.

    Attributes:
      pages: database size at `frame`.
      start: frame at which the generation begins; mostly 0.
      frame: last commit frame taken.
      live: last commit frame in the WAL.
      bound: whether the WAL has had a frame in this generation, so that `salt` is known.
      mark: read lock the pin holds; 0 is that of an empty WAL.
      checksum: 16 hex digits, the WAL checksum at `frame`.
      salt: 16 hex digits.
      hash: state hash at `frame`.
    """

    pages: int
    start: int
    frame: int
    live: int
    bound: bool
    mark: int
    checksum: str
    salt: str
    hash: int


def _state(raw: Any) -> TailState:
    return TailState(
        pages=raw.pages,
        start=raw.start,
        frame=raw.frame,
        live=raw.live,
        bound=bool(raw.bound),
        mark=raw.mark,
        checksum=f"{raw.checksum[0]:08x}{raw.checksum[1]:08x}",
        salt=f"{raw.salt[0]:08x}{raw.salt[1]:08x}",
        hash=raw.hash,
    )


class Reader:
    """Reads the chunks of one selection in the transaction it was made in."""

    def __init__(self, handle: Any) -> None:
        self._t = handle
        self._err = new_error()
        self._written = ffi.new("size_t *")
        self._digest = ffi.new("uint64_t *")
        self._body: Any = None

    def _check(self, rc: int) -> None:
        if rc:
            check(rc, self._err)

    def chunk(self, at: int, n: int) -> tuple[memoryview, int]:
        """Pages number at..at+n of the gathered ones, as the raw body of a chunk.

        Returns:
          A body that the next call overwrites, and its digest.

        Raises:
          HashError: a page on disk is not what was committed.
        """
        if self._body is None:
            self._body = _allocate("uint8_t[]", CHUNK_MAX_BYTES)
        size = len(self._body)
        self._check(
            lib.nl_tail_chunk(
                self._t, at, n, self._body, size, self._written, self._digest, self._err
            )
        )
        return memoryview(ffi.buffer(self._body, self._written[0])), self._digest[0]

    def close(self) -> None:
        """Release transaction, pin and connections; idempotent."""
        if self._t is not None:
            lib.nl_tail_close(self._t)
            self._t = None


class Tail(Reader):
    """A private connection on the primary's database, with the pin that keeps its WAL.

    Args:
      path: the database, in WAL mode.
      key: of a sealed one.

    Raises:
      errors.OperationalError: the file cannot be opened.
      KeyRefusedError: not with this key.
      MisuseError: it is not in WAL mode, or its pages have a reserved tail.
    """

    def __init__(self, path: str, key: Key | None = None) -> None:
        out, err = ffi.new("nl_tail **"), new_error()
        check(lib.nl_tail_open(os.fsencode(path), key_handle(key), out, err), err)
        super().__init__(out[0])
        self._path, self._key = path, key
        self._raw = ffi.new("nl_tail_state *")
        self._count = ffi.new("uint32_t *")
        self._hash = ffi.new("uint64_t *")
        self._small = ffi.new("uint8_t[]", _SMALL)
        lib.nl_tail_get(self._t, self._raw)
        self.page_size: int = self._raw.page_size
        self.wal_step: int = lib.nl_tail_wal_step(self._t)
        """Bytes of a frame in the WAL file."""
        self.frame = 0
        tell_reports()

    # ------------------------------------------------------------ base of a generation

    def look(self, frame: int) -> tuple[TailState, bytes]:
        """What the WAL holds, without taking frames.

        Args:
          frame: whose checksum to read; ``checksum`` is all zeros when there is no such frame.

        Returns:
          State, of which `live`, `salt` and `checksum` count, and bytes 0..99 of page 1.
        """
        page1 = ffi.new("uint8_t[100]")
        raw = ffi.new("nl_tail_state *")
        self._check(lib.nl_tail_look(self._t, frame, raw, page1, self._err))
        return _state(raw), bytes(page1)

    def load(self, table: bytes, *, frame: int, salt: str | None, checksum: str) -> None:
        """Begin a generation at `frame` with a page-hash table that was right there."""
        at = ffi.new("nl_tail_state *")
        at.frame = frame
        at.bound = salt is not None
        at.salt = [int(part, 16) for part in _halves(salt or "0" * 16)]
        at.checksum = [int(part, 16) for part in _halves(checksum)]
        with ffi.from_buffer(table) as data:
            self._check(lib.nl_tail_load(self._t, data, len(table) // 8, at, self._err))
        self.frame = frame

    def scan(self) -> None:
        """Begin a generation at the present state, hashing every page."""
        self._check(lib.nl_tail_scan(self._t, self._err))
        self.frame = self.state().frame

    def rebase(self) -> None:
        """Begin a generation at the last frame taken, in the same WAL."""
        self._check(lib.nl_tail_rebase(self._t, self._err))

    # ------------------------------------------------------------ reading

    def begin(self) -> int:
        """Open a read transaction at the head of the log and take every frame up to it.

        Returns:
          The last commit frame, which is the end of the transaction.

        Raises:
          WalResetError: the generation does not go on in this WAL; no transaction is open.
        """
        self._check(lib.nl_tail_begin(self._t, self._err))
        lib.nl_tail_get(self._t, self._raw)
        frame: int = self._raw.frame
        self.frame = frame
        return frame

    def end(self) -> None:
        """End the read transaction; idempotent."""
        lib.nl_tail_end(self._t)

    def state(self) -> TailState:
        """The whole state; `pages` and `hash` alone are cheaper."""
        lib.nl_tail_get(self._t, self._raw)
        return _state(self._raw)

    @property
    def pages(self) -> int:
        """Database size at the last `begin`."""
        pages: int = self._raw.pages
        return pages

    @property
    def hash(self) -> int:
        """State hash at the last `begin`."""
        value: int = self._raw.hash
        return value

    @property
    def bound(self) -> bool:
        """Whether the WAL had a frame in this generation, at the last `begin`."""
        return bool(self._raw.bound)

    def verify(self) -> tuple[int, int]:
        """Hash every page again, inside begin/end.

        Returns:
          The state hash, and the first page that is not what was committed, or 0.
        """
        self._check(lib.nl_tail_verify(self._t, self._hash, self._count, self._err))
        return self._hash[0], self._count[0]

    # ------------------------------------------------------------ what is known

    def lookup(self, frame: int) -> int | None:
        """State hash at a commit of this generation; None when the frame is no commit."""
        if not lib.nl_tail_lookup(self._t, frame, self._count, self._hash):
            return None
        value: int = self._hash[0]
        return value

    def stands(self, frame: int) -> tuple[Position, int]:
        """On a replica: the primary's position and state hash at a commit of this generation.

        Args:
          frame: of that commit; not the one the generation begins with.

        Raises:
          NotReplicaError: the commit has not written them.
        """
        at = ffi.new("nl_position *")
        self._check(lib.nl_tail_stands(self._t, frame, at, self._hash, self._err))
        return Position(at.lineage, at.generation, at.frame), self._hash[0]

    def table(self, first: int, n: int) -> bytes:
        """Entries of the page-hash table from page `first` on: 8 bytes each, big-endian."""
        out = ffi.new("uint8_t[]", 8 * n)
        lib.nl_tail_table(self._t, first, n, out)
        return bytes(ffi.buffer(out, 8 * n))

    def commits(self, after: int) -> bytes:
        """Commits after a frame, 16 bytes each: frame u32, pages u32, state hash u64."""
        n = self.transactions(after)
        out = ffi.new("uint8_t[]", 16 * n)
        lib.nl_tail_commits(self._t, after, out, n)
        return bytes(ffi.buffer(out, 16 * n))

    def transactions(self, after: int) -> int:
        """How many commits come after a frame."""
        n: int = lib.nl_tail_commits(self._t, after, ffi.NULL, 0xFFFFFFFF)
        return n

    def frames(self, after: int) -> bytes:
        """Page numbers of the frames after a frame, u32 each."""
        n = max(self.frame - after, 0)
        out = ffi.new("uint8_t[]", 4 * n)
        n = lib.nl_tail_frames(self._t, after, out, n)
        return bytes(ffi.buffer(out, 4 * n))

    def index(self) -> bytes:
        """(page u32, last frame u32) of every page in this generation, ascending."""
        self._check(lib.nl_tail_index(self._t, ffi.NULL, 0, self._count, self._err))
        n = self._count[0]
        out = ffi.new("uint8_t[]", 8 * n)
        self._check(lib.nl_tail_index(self._t, out, n, self._count, self._err))
        return bytes(ffi.buffer(out, 8 * n))

    def read_wal(self, offset: int, n: int) -> bytes:
        """Bytes of the WAL file, through SQLite's own descriptor."""
        out = ffi.new("uint8_t[]", n)
        self._check(lib.nl_tail_read_wal(self._t, offset, n, out, self._err))
        return bytes(ffi.buffer(out, n))

    # ------------------------------------------------------------ page sets, inside begin/end

    def select(self) -> None:
        """Begin to gather the pages of a set."""
        self._check(lib.nl_tail_select(self._t, self._err))

    def select_pairs(self, pairs: bytes | memoryview, after: int) -> None:
        """Add the pages of an index whose last frame is later than `after`."""
        with ffi.from_buffer(pairs) as data:
            self._check(lib.nl_tail_select_pairs(self._t, data, len(pairs) // 8, after, self._err))

    def select_frames(self, after: int) -> None:
        """Add the pages of this generation's frames after `after`."""
        self._check(lib.nl_tail_select_frames(self._t, after, self._err))

    def select_range(self, first: int, last: int) -> None:
        """Gather pages first..last instead, as a snapshot needs them."""
        self._check(lib.nl_tail_select_range(self._t, first, last, self._err))

    def select_more(self, first: int, last: int) -> None:
        """Add pages first..last, as far as there are any."""
        self._check(lib.nl_tail_select_more(self._t, first, last, self._err))

    def compare(self, runs: bytes | memoryview, ranges: int) -> bytes:
        """Compare what a replica has; pages that differ or are wanted are added.

        Args:
          runs: accepted by `frames.check_runs`.
          ranges: how many of more than one page are among them.

        Returns:
          A bit for each of those, lowest first: set when it differs.
        """
        bits = ffi.new("uint8_t[]", (ranges + 7) // 8 or 1)
        with ffi.from_buffer("uint8_t[]", runs) as data:
            self._check(lib.nl_tail_compare(self._t, data, len(runs), bits, self._err))
        return bytes(ffi.buffer(bits, (ranges + 7) // 8))

    def selected(self) -> int:
        """Finish gathering; how many pages there are (at least one: page 1)."""
        self._check(lib.nl_tail_selected(self._t, self._count, self._err))
        n: int = self._count[0]
        return n

    def answer(self, header: SetHeader) -> tuple[int, bytes | None]:
        """Finish gathering and lay out the whole set if it is small.

        Args:
          header: all of it but `count`.

        Returns:
          How many pages, and the encoded set, or None when it has to go in chunks.
        """
        head = header.native()
        self._check(
            lib.nl_tail_answer(self._t, head, self._small, _SMALL, self._written, self._err)
        )
        size = self._written[0]
        return head.count, bytes(ffi.buffer(self._small, size)) if size else None

    def compact(self, header: SetHeader, frame: int) -> bytes | None:
        """The finished selection as a compact set, told from what its reader has.

        Args:
          header: all of it but `count`.
          frame: of this generation, where the database was as at the header's start.

        Returns:
          the set; None when it has to be one of version 1, or is larger than 256 KiB.
        """
        head, start = header.native(), ffi.new("nl_state *")
        if not lib.nl_tail_lookup(self._t, frame, self._count, self._hash):
            return None
        start.position, start.hash = getattr(head, "from"), head.hash_from
        start.pages, start.page_size = self._count[0], head.page_size
        self._check(
            lib.nl_tail_compact(
                self._t, start, frame, head, self._small, _SMALL, self._written, self._err
            )
        )
        size = self._written[0]
        return bytes(ffi.buffer(self._small, size)) if size else None

    def detach(self) -> Reader:
        """A reader of its own on the finished selection, which goes on after `end`.

        Raises:
          BusyError: a commit came in between: `end`, `begin` and select again.
        """
        out = ffi.new("nl_tail **")
        self._check(lib.nl_tail_detach(self._t, out, self._err))
        return Reader(out[0])

    # ------------------------------------------------------------ roll

    def repin(self) -> None:
        """Move the pin to the head of the log."""
        self._check(lib.nl_tail_repin(self._t, self._err))

    def unpin(self) -> None:
        """Let the WAL go: others may empty it from here on, until `repin`."""
        self._check(lib.nl_tail_unpin(self._t, self._err))

    def others(self) -> int:
        """Locks that other processes hold on the database now: bits of WRITES, CHECKPOINTS, READS."""
        self._check(lib.nl_tail_others(self._t, self._count, self._err))
        locks: int = self._count[0]
        return locks

    def reopen(self, accept: Callable[[Tail], None]) -> None:
        """Open what the path names by now, another file perhaps; there is no base then.

        Args:
          accept: raises what forbids it.

        Raises:
          errors.OperationalError, MisuseError: as at first; the file that was open stays so.
        """
        opened = Tail(self._path, self._key)
        try:
            accept(opened)
        except BaseException:
            opened.close()
            raise
        self.close()
        self._t, opened._t = opened._t, None
        self.page_size, self.wal_step, self.frame = opened.page_size, opened.wal_step, 0
        lib.nl_tail_get(self._t, self._raw)

    def passive(self) -> int:
        """Copy frames up to the pin into the database file; may run beside readers of the handle."""
        err, copied = new_error(), ffi.new("uint32_t *")
        check(lib.nl_roll_passive(self._t, copied, err), err)
        n: int = copied[0]
        return n

    def roll_begin(self, wait_ms: int) -> None:
        """Take the checkpoint and write locks and then every frame.

        Raises:
          BusyError: another process held a lock for wait_ms.
          WalResetError: the generation does not go on; no lock is held.
        """
        self._check(lib.nl_roll_begin(self._t, wait_ms, self._err))
        lib.nl_tail_get(self._t, self._raw)
        self.frame = self._raw.frame

    def roll_copy(self) -> None:
        """Between begin and finish: copy every frame, so that who begins to read does not need the WAL."""
        self._check(lib.nl_roll_copy(self._t, self._err))

    def roll_finish(self, *, keep: bool = False) -> None:
        """Checkpoint, empty the WAL, pin anew, release the locks.

        Args:
          keep: the file keeps its size, to be written over.

        Raises:
          BusyError: a reader still needs the WAL; the generation goes on.
        """
        self._check(lib.nl_roll_finish(self._t, keep, self._err))
        lib.nl_tail_get(self._t, self._raw)
        self.frame = self._raw.frame

    def roll_abort(self) -> None:
        """Release the locks; the generation goes on. Idempotent."""
        lib.nl_roll_abort(self._t)


def _halves(text: str) -> tuple[str, str]:
    return text[:8], text[8:]


__all__ = [
    "BusyError",
    "MisuseError",
    "Reader",
    "Tail",
    "TailState",
    "WalResetError",
    "chunk_pages",
]
