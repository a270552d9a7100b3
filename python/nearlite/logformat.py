"""Byte layouts of the primary's log: index, page-hash table, journal. Pure: bytes in, objects out.

All integers are big-endian. docs/formats.md has the byte tables.

An *index* is what a roll leaves of a generation: its commits and, for every page it touched, the last
frame that touched it. Page images are not needed, because a page set carries every image as it is
*now*, read from the database. 16 MiB of frames become some 100 KB.

A *journal* is the same knowledge about the running generation, appended commit by commit and not
synced: it outlives a kill of the process, so that positions stay valid even when somebody else's last
close then removes the WAL. It is never trusted against the WAL, only when the WAL is gone.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from sys import byteorder
from typing import Final

from nearlite._native.frames import xxh3

VOID: Final = 0xFFFFFFFF
"""Last frame of a page that changed after the generation's last frame, by somebody else's hand."""

_INDEX = struct.Struct(">8sIIIIIIQIIQ8x")  # 64 bytes
_INDEX_MAGIC: Final = b"NLINDEX1"
_TABLE = struct.Struct(">8sIIIIIQ28x")  # 64 bytes
_TABLE_MAGIC: Final = b"NLHASHES"
_JOURNAL = struct.Struct(">8sIIIIQ")  # 32 bytes
_JOURNAL_MAGIC: Final = b"NLJOURN1"
_RECORD = struct.Struct(">IIIIQQ")  # 32 bytes
_RECORD_MAGIC: Final = 0x4E4C4A52  # "NLJR"
_COMMIT = struct.Struct(">IIQ")


class DamagedError(ValueError):
    """A log file is not what it should be; the log treats it as missing."""


def u32(data: bytes | memoryview) -> array[int]:
    """Big-endian u32 integers as an array."""
    values = array("I")
    values.frombytes(data)
    if byteorder == "little":
        values.byteswap()
    return values


def _big_endian(values: array[int]) -> bytes:
    if byteorder == "little":
        values = values[:]
        values.byteswap()
    return values.tobytes()


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit: its frame, the database size in pages after it, and the state hash."""

    frame: int
    pages: int
    hash: int


def encode_commit(commit: Commit) -> bytes:
    """A 16-byte commit entry."""
    return _COMMIT.pack(commit.frame, commit.pages, commit.hash)


def commits(data: bytes | memoryview) -> Iterator[Commit]:
    """Decode 16-byte commit entries."""
    for entry in _COMMIT.iter_unpack(data):
        yield Commit(*entry)


# ---------------------------------------------------------------- index


@dataclass(frozen=True, slots=True)
class Index:
    """What is kept of a closed generation.

    Attributes:
      lineage, generation: which.
      start: frame it began at.
      frame: its last frame.
      page_size: bytes.
      pages: database size at `frame`.
      hash: state hash at `frame`.
      commits: 16 bytes each, ascending, from `start` on (the first one is the base).
      pairs: 8 bytes each: page, last frame (VOID: changed after `frame`), by ascending page.
    """

    lineage: int
    generation: int
    start: int
    frame: int
    page_size: int
    pages: int
    hash: int
    commits: bytes
    pairs: bytes

    def encode(self) -> bytes:
        """The file."""
        body = self.commits + self.pairs
        head = _INDEX.pack(
            _INDEX_MAGIC,
            self.lineage,
            self.generation,
            self.start,
            self.frame,
            self.page_size,
            self.pages,
            self.hash,
            len(self.commits) // 16,
            len(self.pairs) // 8,
            xxh3(body),
        )
        return head + body

    @classmethod
    def decode(cls, data: bytes) -> Index:
        """Read a file back.

        Raises:
          DamagedError: truncated, of another version, or its digest is wrong.
        """
        if len(data) < _INDEX.size:
            raise DamagedError("the index is truncated")
        magic, lineage, generation, start, frame, page_size, pages, state_hash, n, m, digest = (
            _INDEX.unpack_from(data)
        )
        body = data[_INDEX.size :]
        if magic != _INDEX_MAGIC or len(body) != 16 * n + 8 * m or xxh3(body) != digest:
            raise DamagedError("the index is damaged")
        split = 16 * n
        return cls(
            lineage,
            generation,
            start,
            frame,
            page_size,
            pages,
            state_hash,
            body[:split],
            body[split:],
        )

    def lookup(self, frame: int) -> int | None:
        """State hash at a commit frame, or None."""
        at = self._before(frame)
        entry = self.commits[16 * at : 16 * at + 16]
        if not entry or int.from_bytes(entry[:4], "big") != frame:
            return None
        return int.from_bytes(entry[8:], "big")

    def transactions(self, after: int) -> int:
        """How many commits come after a frame."""
        return len(self.commits) // 16 - self._before(after + 1)

    def _before(self, frame: int) -> int:
        """How many entries lie before a frame."""
        low, high = 0, len(self.commits) // 16
        while low < high:
            middle = (low + high) // 2
            if int.from_bytes(self.commits[16 * middle : 16 * middle + 4], "big") < frame:
                low = middle + 1
            else:
                high = middle
        return low

    def states(self) -> set[tuple[int, int]]:
        """Database size in pages and state hash of each commit, the beginning included."""
        return {(pages, found) for _, pages, found in _COMMIT.iter_unpack(self.commits)}

    def with_changes(self, pages: set[int]) -> Index:
        """The same generation, with these pages changed after its last frame."""
        values = u32(self.pairs)
        last = dict(zip(values[0::2], values[1::2], strict=True))
        last.update(dict.fromkeys(pages, VOID))
        return Index(
            self.lineage,
            self.generation,
            self.start,
            self.frame,
            self.page_size,
            self.pages,
            self.hash,
            self.commits,
            encode_pairs(last),
        )

    def touched(self) -> set[int]:
        """All pages in it."""
        return set(u32(self.pairs)[0::2])


def encode_pairs(last: dict[int, int]) -> bytes:
    """(page, last frame) pairs by ascending page."""
    values = array("I")
    for page in sorted(last):
        values.append(page)
        values.append(last[page])
    return _big_endian(values)


# ---------------------------------------------------------------- page-hash table


@dataclass(frozen=True, slots=True)
class HashTable:
    """The hash of every page at one position: 8 bytes per page; their XOR is the state hash."""

    lineage: int
    generation: int
    frame: int
    page_size: int
    table: bytes

    def encode(self) -> bytes:
        """The file."""
        return self.head(len(self.table) // 8, xor(self.table)) + self.table

    def head(self, pages: int, state_hash: int) -> bytes:
        """Its first 64 bytes."""
        return _TABLE.pack(
            _TABLE_MAGIC,
            self.lineage,
            self.generation,
            self.frame,
            self.page_size,
            pages,
            state_hash,
        )

    @classmethod
    def decode(cls, data: bytes) -> HashTable:
        """Read a file back.

        Raises:
          DamagedError: truncated, of another version, or its XOR is wrong.
        """
        if len(data) < _TABLE.size:
            raise DamagedError("the page-hash table is truncated")
        magic, lineage, generation, frame, page_size, pages, state_hash = _TABLE.unpack_from(data)
        table = data[_TABLE.size :]
        if magic != _TABLE_MAGIC or len(table) != 8 * pages or xor(table) != state_hash:
            raise DamagedError("the page-hash table is damaged")
        return cls(lineage, generation, frame, page_size, table)


def xor(table: bytes) -> int:
    """XOR of 8-byte big-endian entries: the state hash."""
    # Halving XORs big integers, which is C speed without a loop over entries.
    entries = len(table) // 8
    if entries == 0:
        return 0
    value, bits = int.from_bytes(table, "big"), 64 * entries
    while entries > 1:
        half = entries // 2
        low = value & ((1 << (64 * half)) - 1)
        value = (value >> (64 * half)) ^ low
        entries -= half
        bits = 64 * entries
    return value & ((1 << bits) - 1)


def differences(old: bytes, new: bytes) -> set[int]:
    """Pages whose entries differ, and pages that only one table has."""
    if old == new:
        return set()
    changed: set[int] = set()
    shorter = min(len(old), len(new))
    step = 4096  # entries are compared block by block, then one by one
    for begin in range(0, shorter, step):
        end = min(begin + step, shorter)
        if old[begin:end] == new[begin:end]:
            continue
        changed.update(
            at // 8 + 1 for at in range(begin, end, 8) if old[at : at + 8] != new[at : at + 8]
        )
    changed.update(range(shorter // 8 + 1, max(len(old), len(new)) // 8 + 1))
    return changed


# ---------------------------------------------------------------- journal


def journal_header(lineage: int, generation: int, start: int, page_size: int, salt: str) -> bytes:
    """The first 32 bytes of a journal; `salt` is 16 hex digits, the WAL it belongs to."""
    return _JOURNAL.pack(_JOURNAL_MAGIC, lineage, generation, start, page_size, int(salt, 16))


def journal_record(after: int, frames: bytes, commits: bytes, checksum: str) -> bytes:
    """Some frames, ending with a commit.

    Args:
      after: frame before the first.
      frames: page numbers, u32 each.
      commits: 16 bytes each.
      checksum: 16 hex digits, of the last frame.
    """
    head = (_RECORD_MAGIC, after, len(frames) // 4, len(commits) // 16, int(checksum, 16))
    body = frames + commits
    digest = xxh3(_RECORD.pack(*head, 0) + body)
    return _RECORD.pack(*head, digest) + body


@dataclass(slots=True)
class Journal:
    """A journal as far as it is whole.

    Attributes:
      lineage, generation, start, page_size: of its generation.
      salt: 16 hex digits.
      frame: last frame in it.
      checksum: 16 hex digits, of that frame; "" when there is none.
      frames: page numbers of frames start + 1 .. frame, u32 each.
      commits: 16 bytes each.
    """

    lineage: int
    generation: int
    start: int
    page_size: int
    salt: str
    frame: int
    checksum: str
    frames: bytes
    commits: bytes

    @classmethod
    def decode(cls, data: bytes) -> Journal:
        """Read as many records as are whole; what follows was torn by a crash.

        Raises:
          DamagedError: not even the header is right.
        """
        if len(data) < _JOURNAL.size or not data.startswith(_JOURNAL_MAGIC):
            raise DamagedError("the journal has no header")
        _, lineage, generation, start, page_size, salt = _JOURNAL.unpack_from(data)
        frames, commits, frame, checksum, at = bytearray(), bytearray(), start, "", _JOURNAL.size
        while at + _RECORD.size <= len(data):
            magic, after, n, m, check, digest = _RECORD.unpack_from(data, at)
            body = data[at + _RECORD.size : at + _RECORD.size + 4 * n + 16 * m]
            head = _RECORD.pack(magic, after, n, m, check, 0)
            if magic != _RECORD_MAGIC or after != frame or xxh3(head + body) != digest:
                break
            frames += body[: 4 * n]
            commits += body[4 * n :]
            frame += n
            checksum = f"{check:016x}"
            at += _RECORD.size + len(body)
        return cls(
            lineage,
            generation,
            start,
            page_size,
            f"{salt:016x}",
            frame,
            checksum,
            bytes(frames),
            bytes(commits),
        )

    def index(self, base: Commit) -> Index:
        """The index of the generation as far as the journal reaches."""
        last = {page: self.start + i + 1 for i, page in enumerate(u32(self.frames))}
        end = list(commits(self.commits[-16:]))[-1] if self.commits else base
        return Index(
            self.lineage,
            self.generation,
            self.start,
            self.frame,
            self.page_size,
            end.pages,
            end.hash,
            encode_commit(base) + self.commits,
            encode_pairs(last),
        )
