"""What state.json says, and what of the log is kept.

The file is read and written as a whole; docs/formats.md describes every field.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal

import msgspec

from nearlite.position import Position

Durability = Literal["full", "normal"]

RETAIN_BYTES: Final = 256 << 20
RETAIN_DATABASES: Final = 4
RETAIN_SECONDS: Final = 24 * 3600.0


class Wal(msgspec.Struct, frozen=True):
    """The WAL that the generation is bound to.

    Attributes:
      salt: 16 hex digits.
      frame: a commit frame known to be in it.
      checksum: 16 hex digits, of that frame.
    """

    salt: str
    frame: int
    checksum: str


class Base(msgspec.Struct, frozen=True):
    """Where the generation begins.

    Attributes:
      frame: mostly 0; otherwise the generation began in a WAL that had frames already.
      checksum: 16 hex digits, of that frame.
      pages: database size.
      hash: state hash, 16 hex digits.
    """

    frame: int
    checksum: str
    pages: int
    hash: str


class Archived(msgspec.Struct, frozen=True, omit_defaults=True):
    """A closed generation.

    Attributes:
      generation: its number.
      start, frame: first position is `start`, last `frame`.
      pages, hash: size and state hash (16 hex digits) at `frame`.
      salt: of its WAL, 16 hex digits, or None when it had no frame.
      foreign: whether others changed the database after `frame` and before the next generation.
      bytes: size of the archived WAL, 0 when there is none.
      closed_ms: when, milliseconds since 1970.
      onward: libSQL's clients may have been given numbers up to this one behind its end (onward.py).
    """

    generation: int
    start: int
    frame: int
    pages: int
    hash: str
    salt: str | None
    foreign: bool
    bytes: int
    closed_ms: int
    onward: int = 0


class Seen(msgspec.Struct, frozen=True):
    """The database file as a clean stop left it: when all is equal, nobody wrote since.

    Attributes:
      device, inode, size, mtime_ns, ctime_ns: of the file.
      change: SQLite's file change counter (bytes 24..27 of page 1).
      schema: its schema cookie (bytes 40..43).
    """

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    change: int
    schema: int


class State(msgspec.Struct, frozen=True, kw_only=True):
    """state.json. Every change is a new file under the same name.

    Attributes:
      lineage: 8 hex digits.
      parent: position in another lineage that this one began at, or None.
      generation: the running one.
      base: where it begins.
      wal: the WAL it is bound to; None while that has had no frame.
      page_size: bytes.
      durability: of the primary that ran last.
      boot_id: of the machine when it ran.
      clean: whether it stopped cleanly.
      seen: the database file at the last roll or stop.
      archived: closed generations, oldest first.
    """

    format: Literal["nearlite-log"] = "nearlite-log"
    version: Literal[1] = 1
    lineage: str
    parent: str | None = None
    generation: int
    base: Base
    wal: Wal | None
    page_size: int
    durability: Durability
    boot_id: str
    clean: bool
    seen: Seen | None
    archived: tuple[Archived, ...] = ()

    @property
    def lineage_number(self) -> int:
        """The lineage as it stands in positions."""
        return int(self.lineage, 16)

    def position(self, frame: int) -> Position:
        """A position in the running generation."""
        return Position(self.lineage_number, self.generation, frame)


def boot_id() -> str:
    """Changes when the operating system restarts; "" where it cannot be told."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def retained(
    archived: tuple[Archived, ...],
    *,
    database_bytes: int,
    index_bytes: dict[int, int],
    now: int,
    retain_bytes: int | None,
    retain_seconds: float,
    held: int | None,
) -> Iterator[Archived]:
    """Which generations stay, oldest first; of some only the index.

    A generation stays while it is younger than `retain_seconds` *or* fits into the bytes allowed,
    counted from the newest; the newest stays in any case, or a roll would cut off followers that are
    in step. Its frames stay only while they fit: no native replica needs them, and a
    day of frames can be larger than the disk.

    Args:
      archived: oldest first.
      database_bytes: size of the database.
      index_bytes: size of each generation's index.
      now: milliseconds since 1970.
      retain_bytes: None means 4 times the database or 256 MiB, whichever is more.
      retain_seconds: age.
      held: oldest generation that a running snapshot needs, or None.
    """
    limit = retain_bytes
    if limit is None:
        limit = max(RETAIN_DATABASES * database_bytes, RETAIN_BYTES)
    total, frames_fit = 0, True
    kept: list[Archived] = []
    for old in reversed(archived):
        index = index_bytes.get(old.generation, 0)
        frames_fit = frames_fit and total + old.bytes + index <= limit
        young = now - old.closed_ms < retain_seconds * 1000
        needed = held is not None and old.generation >= held
        if kept and not (young or needed or total + index <= limit):
            break
        total += index + (old.bytes if frames_fit else 0)
        kept.append(old if frames_fit else msgspec.structs.replace(old, bytes=0))
    yield from reversed(kept)
