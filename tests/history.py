"""A database history made by stock SQLite, page sets between its states, and replicas of them.

An oracle that shares nothing with the primary's tail: pages are read out of the file itself after a
truncating checkpoint, and compared byte by byte.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

from nearlite import wire
from nearlite._native import frames
from nearlite._native.applier import Applier, Bootstrap, Hashes
from nearlite._native.frames import Chunk, ChunkHeader, SetHeader
from nearlite.position import Position

LINEAGE = 7


@dataclass(frozen=True)
class Moment:
    """One committed state: every page as the file holds it."""

    position: Position
    page_size: int
    pages: tuple[bytes, ...]

    @property
    def hash(self) -> int:
        return frames.state_hash(b"".join(self.pages), self.page_size)


class History:
    """A stock database whose states are looked at after each step."""

    def __init__(self, path: Path, *, page_size: int = 4096, auto_vacuum: int = 0) -> None:
        self.path = path
        self.db = sqlite3.connect(path, isolation_level=None)
        self.db.execute(f"PRAGMA page_size={page_size}")
        self.db.execute(f"PRAGMA auto_vacuum={auto_vacuum}")
        self.db.execute("PRAGMA journal_mode=wal")
        self.db.execute("PRAGMA wal_autocheckpoint=0")
        self.page_size = page_size
        self._frame = 0

    def step(self, *sql: str) -> Moment:
        """Run statements as one transaction (a single one as it is: VACUUM), look at the result."""
        if len(sql) > 1:
            self.db.execute("BEGIN")
        for statement in sql:
            self.db.execute(statement)
        if len(sql) > 1:
            self.db.execute("COMMIT")
        return self.look()

    def look(self) -> Moment:
        self.db.execute("PRAGMA wal_checkpoint(truncate)")
        data = self.path.read_bytes()
        size = self.page_size
        self._frame += 1
        pages = tuple(data[i : i + size] for i in range(0, len(data), size))
        return Moment(Position(LINEAGE, 1, self._frame), size, pages)


def header(old: Moment | None, new: Moment, numbers: list[int]) -> SetHeader:
    return SetHeader(
        page_size=new.page_size,
        pages=len(new.pages),
        count=len(numbers),
        start=Position(0, 0, 0) if old is None else old.position,
        target=new.position,
        hash_start=0 if old is None else old.hash,
        hash_target=new.hash,
        commit_ms=1_700_000_000_000 + new.position.frame,
        snapshot=old is None,
    )


def changed(old: Moment | None, new: Moment) -> list[int]:
    """Page numbers that differ; all of them for a snapshot; never the lock-byte page."""
    before = () if old is None else old.pages
    lock = frames.lock_page(new.page_size)
    return [
        number
        for number, page in enumerate(new.pages, 1)
        if number != lock and (number > len(before) or before[number - 1] != page)
    ]


def raw_chunks(new: Moment, numbers: list[int], per_chunk: int = 1024) -> list[wire.RawChunk]:
    made = []
    per_chunk = min(per_chunk, (4 << 20) // new.page_size)
    for at in range(0, len(numbers), per_chunk):
        part = numbers[at : at + per_chunk]
        body = bytearray(frames.chunk_size(new.page_size, len(part)))
        where = frames.pages_offset(len(part))
        body[where:] = b"".join(new.pages[number - 1] for number in part)
        made.append(wire.RawChunk(body, len(part), frames.seal(body, new.page_size, part)))
    return made


def page_set(
    old: Moment | None, new: Moment, *, per_chunk: int = 1024
) -> tuple[SetHeader, list[Chunk]]:
    """The set between two moments, verified and ready to apply."""
    numbers = changed(old, new)
    head = header(old, new, numbers)
    chunks, after = [], 0
    for raw in raw_chunks(new, numbers, per_chunk):
        chunk_header = ChunkHeader(raw.count, len(raw.body), len(raw.body), raw.digest)
        chunks.append(Chunk(head, chunk_header, raw.body, after=after))
        after = chunks[-1].last
    return head, chunks


def wire_set(old: Moment | None, new: Moment, *, compress: bool = False) -> bytes:
    """The same as bytes on the wire."""
    numbers = changed(old, new)
    pieces = wire.page_set(header(old, new, numbers), raw_chunks(new, numbers), compress=compress)
    return b"".join(bytes(piece) for piece in pieces)


# ---------------------------------------------------------------- a replica of it


def replica_of(moment: Moment, path: Path) -> Applier:
    """A replica file at `moment`, made as a bootstrap makes it."""
    bootstrapped(moment, path)
    return Applier(str(path))


def bootstrapped(moment: Moment, path: Path) -> Hashes:
    """The same file without an applier on it; its page hashes."""
    head, chunks = page_set(None, moment)
    file = Bootstrap(str(path), moment.page_size)
    for chunk in chunks:
        file.chunk(chunk)
    known = file.finish(head)
    file.close()
    return known


def advance(applier: Applier, old: Moment, new: Moment) -> None:
    """Apply the set between two moments; the replica then is what it has to be."""
    head, chunks = page_set(old, new)
    state = applier.apply(head, chunks, wait=5)
    assert state is not None
    assert (state.position, state.hash) == (new.position, new.hash)
