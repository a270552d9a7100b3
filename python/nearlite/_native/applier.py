"""Handles on apply.c and bootstrap.c: writing a replica file.

Neither class is safe for use by two threads at once; :mod:`nearlite.replica` serialises.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nearlite._native._lib import check, ffi, lib
from nearlite._native.frames import SET_HEADER_SIZE, lend
from nearlite._native.sealing import Key, key_handle
from nearlite.position import Position

if TYPE_CHECKING:
    from nearlite._native.frames import Buffer, Chunk, SetHeader

_CHECKPOINTS: Final[dict[str, int]] = {
    "passive": lib.NL_CHECKPOINT_PASSIVE,
    "restart": lib.NL_CHECKPOINT_RESTART,
    "truncate": lib.NL_CHECKPOINT_TRUNCATE,
}


@dataclass(slots=True)
class State:
    """Where a replica file stands. Not frozen, which would triple the time that making one takes.

    Attributes:
      position: the commit of the primary it equals.
      hash: state hash there.
      pages: database size in pages.
      page_size: bytes.
      wal_frames: frames in the replica's own WAL.
    """

    position: Position
    hash: int
    pages: int
    page_size: int
    wal_frames: int


def _state(c: Any) -> State:
    p = c.position
    return State(
        Position(p.lineage, p.generation, p.frame), c.hash, c.pages, c.page_size, c.wal_frames
    )


@dataclass(frozen=True, slots=True)
class Hashes:
    """Page hashes of a whole database.

    Attributes:
      at: the ``nl_state *`` they belong to.
      table: 8 bytes a page, in the machine's byte order.
    """

    at: Any
    table: bytes


@dataclass(frozen=True, slots=True)
class Survey:
    """What a file holds, page by page; its hashes are with the applier that made it.

    Attributes:
      claimed: what its header says; the position is 0.0.0 when it is no replica.
      hash: state hash of the pages as they are.
      cookie: schema cookie in page 1.
    """

    claimed: State
    hash: int
    cookie: int


class PageHashes:
    """Hashes of the pages of a file, for a comparison.

    Args:
      table: 8 bytes a page, in the machine's byte order.
    """

    def __init__(self, table: bytes | bytearray) -> None:
        self._table = ffi.from_buffer("uint64_t[]", table)

    def ranges(self, first: int, span: int, count: int) -> bytes:
        """As :meth:`Applier.ranges`."""
        out = ffi.new("uint8_t[]", 8 * count)
        lib.nl_ranges_fold(self._table, len(self._table), first, span, count, out)
        return bytes(ffi.buffer(out))


class Applier:
    """The writer of one replica file: a private connection that may lift its write protection.

    Args:
      path: the replica file, which exists.
      key: of a sealed one.
      durable: sync each apply to the disk before it returns. A replica can be brought up again
        from its primary, therefore the default is False (SQLite's synchronous=NORMAL).
    """

    def __init__(self, path: str, *, key: Key | None = None, durable: bool = False) -> None:
        self._err = ffi.new("nl_error *")
        self._out = ffi.new("nl_state *")
        self._header = ffi.new("nl_set_header *")
        slot = ffi.new("nl_applier **")
        name = os.fsencode(path)
        check(lib.nl_applier_open(name, key_handle(key), int(durable), slot, self._err), self._err)
        self._handle: Any = slot[0]

    def _live(self) -> Any:
        if self._handle is None:
            raise ValueError("the applier is closed")
        return self._handle

    def state(self) -> State:
        """Position and state hash as every reader sees them now.

        Raises:
          NotAReplicaError: the file carries no replica header, or is writable.
        """
        check(lib.nl_applier_state(self._live(), self._out, self._err), self._err)
        return _state(self._out)

    def apply(self, header: SetHeader, chunks: Sequence[Chunk], *, wait: float) -> State | None:
        """Apply a whole page set as one transaction.

        Args:
          wait: seconds to wait for the write lock.

        Returns:
          the state after; None when the replica does not stand at the set's start, in which case
          nothing was written.
        """
        array = ffi.new("nl_chunk *[]", [chunk.handle for chunk in chunks])
        rc = lib.nl_applier_apply(
            self._live(),
            header.native(),
            array,
            len(chunks),
            int(wait * 1000),
            self._out,
            self._err,
        )
        return self._came_to(rc)

    def _came_to(self, rc: int) -> State | None:
        """The state after an apply; None when the replica stood elsewhere. Raises what it failed with."""
        if rc == lib.NL_E_POSITION:
            return None
        check(rc, self._err)
        return _state(self._out)

    def receive(self, header: SetHeader, data: Buffer, *, wait: float) -> State | None:
        """Verify a whole set that is in memory, and apply it as :meth:`apply` does.

        Args:
          header: what `data` begins with.
          data: the set, from its header to its end.
          wait: seconds to wait for the write lock.

        Raises:
          FormatError, HashError: it cannot be used; no lock was taken, or all was rolled back.
          PiecemealError: its chunks have to be decompressed, or are many: verify and apply them.
        """
        with lend(data) as body:
            rc = lib.nl_applier_receive(
                self._live(),
                header.native(),
                body + SET_HEADER_SIZE,
                len(data) - SET_HEADER_SIZE,
                int(wait * 1000),
                self._out,
                self._err,
            )
        return self._came_to(rc)

    def compact(self, start: Any, data: Buffer, *, wait: float) -> State | None:
        """Apply a compact set, which is told from what this replica has.

        Args:
          start: ``nl_state *`` of where the replica stood when it asked.
          data: the set, all of it.
          wait: seconds to wait for the write lock.

        Returns:
          the state after; None when the replica does not stand there, in which case nothing was written.

        Raises:
          HashError: damaged, or this replica's pages are not what the primary takes them for; nothing
            was written.
          FormatError: malformed; nothing was written.
        """
        rc = lib.nl_applier_compact(
            self._live(),
            start,
            lend(data),
            len(data),
            int(wait * 1000),
            self._header,
            self._out,
            self._err,
        )
        return self._came_to(rc)

    def begin(self, header: SetHeader, *, wait: float) -> bool:
        """Take the write lock for a set larger than memory; False as None in :meth:`apply`."""
        rc = lib.nl_applier_begin(
            self._live(), header.native(), int(wait * 1000), self._out, self._err
        )
        if rc == lib.NL_E_POSITION:
            return False
        check(rc, self._err)
        return True

    def chunk(self, chunk: Chunk) -> None:
        """Write the next chunk; nobody sees it yet. After an exception: :meth:`rollback`."""
        check(lib.nl_applier_chunk(self._live(), chunk.handle, self._err), self._err)

    def commit(self) -> State:
        """Compare the state hash and publish; after an exception everything is undone."""
        check(lib.nl_applier_commit(self._live(), self._out, self._err), self._err)
        return _state(self._out)

    def rollback(self) -> None:
        """Undo what :meth:`begin` started; harmless when nothing is open."""
        lib.nl_applier_rollback(self._live())

    def checkpoint(self, mode: str, *, wait: float) -> tuple[int, int]:
        """Move WAL frames into the database file.

        Args:
          mode: ``"passive"``, ``"restart"`` or ``"truncate"``.
          wait: seconds the latter two may wait for readers.

        Returns:
          frames in the WAL, and how many of them are in the database file now.
        """
        number = _CHECKPOINTS[mode]
        counts = ffi.new("uint32_t[2]")
        check(
            lib.nl_applier_checkpoint(
                self._live(), number, int(wait * 1000), counts, counts + 1, self._err
            ),
            self._err,
        )
        return counts[0], counts[1]

    def full_hash(self) -> tuple[State, int]:
        """Hash every page: what the header says, and what the pages are."""
        found = ffi.new("uint64_t *")
        check(lib.nl_applier_full_hash(self._live(), self._out, found, self._err), self._err)
        return _state(self._out), found[0]

    def survey(self, *, adopt: bool = False, wait: float | None = None) -> Survey:
        """Hash every page, believing nothing, for a repair.

        Args:
          adopt: a file that is no replica counts, too.
          wait: seconds it may take; None: as long as it takes.

        Raises:
          NotReplicaError: it is none, and `adopt` is not set.
          BusyError: it took longer.
        """
        found, cookie = ffi.new("uint64_t *"), ffi.new("uint32_t *")
        wait_ms = -1 if wait is None else int(wait * 1000)
        check(
            lib.nl_applier_survey(
                self._live(), int(adopt), wait_ms, self._out, found, cookie, self._err
            ),
            self._err,
        )
        return Survey(_state(self._out), found[0], cookie[0])

    def claim(self) -> State:
        """As :meth:`state`, of a file that may be shorter than it says it is."""
        check(lib.nl_applier_claim(self._live(), self._out, self._err), self._err)
        return _state(self._out)

    def ranges(self, first: int, span: int, count: int) -> bytes:
        """Hashes of `count` ranges of ``2**span`` pages as surveyed: 8 bytes each, big-endian."""
        out = ffi.new("uint8_t[]", 8 * count)
        lib.nl_applier_ranges(self._live(), first, span, count, out)
        return bytes(ffi.buffer(out))

    def begin_repair(self, header: SetHeader, *, wait: float) -> bool:
        """:meth:`begin` for a repair's set; False when the file has changed since the survey."""
        rc = lib.nl_applier_repair(self._live(), header.native(), int(wait * 1000), self._err)
        if rc == lib.NL_E_POSITION:
            return False
        check(rc, self._err)
        return True

    def adopt(self, known: Hashes) -> None:
        """Take over page hashes, so that the next changes read no old page back.

        They are forgotten again unless the file stands where they belong.
        """
        table = ffi.from_buffer("uint64_t[]", known.table)
        check(lib.nl_applier_adopt(self._live(), known.at, table, self._err), self._err)

    def rekey_begin(self, key: Key, *, wait: float) -> None:
        """Both keys open the file from here on, and a new data key seals; again: goes on.

        Raises:
          KeyRefusedError: a change to another key was begun before.
          BusyError: the write lock was not to be had.
        """
        check(
            lib.nl_applier_rekey_begin(self._live(), key.handle, int(wait * 1000), self._err),
            self._err,
        )

    def rekey_pages(self, at: int, *, wait: float) -> tuple[int, int]:
        """Seal some pages anew, from page `at` on, as one transaction.

        Returns:
          where to go on, 0 at the end, and how many were written.
        """
        place, count = ffi.new("uint32_t *", at), ffi.new("uint32_t *")
        check(
            lib.nl_applier_rekey_pages(self._live(), place, count, int(wait * 1000), self._err),
            self._err,
        )
        return place[0], count[0]

    def rekey_end(self, key: Key, *, wait: float) -> None:
        """`key` alone opens the file from here on."""
        check(
            lib.nl_applier_rekey_end(self._live(), key.handle, int(wait * 1000), self._err),
            self._err,
        )

    def close(self) -> None:
        """Idempotent."""
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.nl_applier_close(handle)


class Bootstrap:
    """A replica's first file under a temporary name.

    Args:
      path: must not exist, unless `resume`.
      page_size: bytes.
      key: to seal it with; None: a plain file.
      resume: go on with the file that an earlier one left.

    Attributes:
      held: whole pages that were there.
    """

    def __init__(
        self, path: str, page_size: int, *, key: Key | None = None, resume: bool = False
    ) -> None:
        self._err = ffi.new("nl_error *")
        slot, held = ffi.new("nl_bootstrap **"), ffi.new("uint32_t *")
        name, handle = os.fsencode(path), key_handle(key)
        if resume:
            rc = lib.nl_bootstrap_resume(name, handle, page_size, slot, held, self._err)
        else:
            rc = lib.nl_bootstrap_open(name, handle, page_size, slot, self._err)
        check(rc, self._err)
        self._handle: Any = slot[0]
        self.held: int = held[0]

    def hashes(self, pages: int) -> PageHashes:
        """Of pages 1..pages as they are in the file."""
        table = bytearray(8 * pages)
        lib.nl_bootstrap_hashes(self._handle, ffi.from_buffer("uint64_t[]", table), pages)
        return PageHashes(table)

    def chunk(self, chunk: Chunk) -> None:
        """Write the chunk's pages, over earlier images of the same pages."""
        check(lib.nl_bootstrap_chunk(self._handle, chunk.handle, self._err), self._err)

    def hash(self, pages: int) -> int:
        """XOR of the page hashes of pages 1..pages as they are in the file."""
        return int(lib.nl_bootstrap_hash(self._handle, pages))

    def finish(self, header: SetHeader) -> Hashes:
        """Make it a replica that stands at the header's target; checks completeness and hash.

        Returns:
          what the file's first :class:`Applier` may adopt.
        """
        at = ffi.new("nl_state *")
        at.position = header.native().to
        at.hash = header.hash_target
        at.pages = header.pages
        at.page_size = header.page_size
        check(lib.nl_bootstrap_finish(self._handle, at, self._err), self._err)
        table = bytearray(8 * header.pages)
        lib.nl_bootstrap_hashes(self._handle, ffi.from_buffer("uint64_t[]", table), header.pages)
        return Hashes(at, bytes(table))

    def sync(self) -> None:
        """Fsync."""
        check(lib.nl_bootstrap_sync(self._handle, self._err), self._err)

    def close(self) -> None:
        """Idempotent; the file stays."""
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.nl_bootstrap_close(handle)


def sync_database(path: str, key: Key | None = None) -> None:
    """Flush the database file of a live database to the disk."""
    err = ffi.new("nl_error *")
    check(lib.nl_sync_database(os.fsencode(path), key_handle(key), err), err)
