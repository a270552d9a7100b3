"""A libSQL client in offline mode as far as a primary sees it: stock SQLite on a copy, whose WAL is never emptied."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from nearlite._native.wal import WalChain
from nearlite.primary import Primary
from nearlite.pulls import End
from nearlite.pushes import Pushed

HEADER = 24
PAGE = 4096
STEP = HEADER + PAGE


class Offline:
    """Its file.

    Args:
      path: where it is made.
      base: of the primary's generation.
      generation: its number.
    """

    def __init__(self, path: Path, base: bytes, generation: int) -> None:
        path.write_bytes(base)
        self.generation = generation
        self.done = 0
        self._wal = Path(f"{path}-wal")
        self.database = sqlite3.connect(path, isolation_level=None)
        self.database.execute("PRAGMA wal_autocheckpoint=0")
        self.database.execute("PRAGMA synchronous=OFF")

    @classmethod
    def of(cls, primary: Primary, path: Path) -> Offline:
        base = primary.pulls.base()
        assert base is not None
        return cls(path, b"".join(base), base.generation)

    def __enter__(self) -> Offline:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.database.close()

    def run(self, *statements: str) -> None:
        for statement in statements:
            self.database.execute(statement)

    def rows(self, sql: str) -> list[Any]:
        return self.database.execute(sql).fetchall()

    @property
    def frames(self) -> list[bytes]:
        """Of its WAL, to the last commit: what SQLite wrote and took back may stand behind it."""
        data = self._wal.read_bytes() if self._wal.exists() else b""
        if not data:
            return []
        _, count = WalChain.decode(data[:32]).verify(data[32:])
        return [data[at : at + STEP] for at in range(32, 32 + count * STEP, STEP)]

    def push(self, primary: Primary, *, batch: int = 128) -> Pushed:
        """What the primary does not have yet, as the client does it."""
        baton, frames = None, self.frames
        pushed = Pushed(True, self.done)
        while self.done < len(frames):
            some = b"".join(frames[self.done : self.done + batch])
            pushed = primary.pushes.push(self.generation, self.done + 1, some, baton)
            primary.after_commit()
            if not pushed.taken or pushed.frame < self.done + len(some) // STEP:
                return pushed
            self.done, baton = pushed.frame, pushed.baton
        return pushed


def told(frame: bytes) -> tuple[bytes, bytes]:
    """What of a frame is the same everywhere: page number and commit size, and the page."""
    return frame[:8], frame[HEADER:]


def served(primary: Primary, generation: int) -> list[bytes]:
    """The frames of a generation as they are pulled."""
    data = b""
    while not isinstance(
        found := primary.pulls.frames(generation, len(data) // STEP + 1, 100), End
    ):
        data += found
    return [data[at : at + STEP] for at in range(0, len(data), STEP)]


def frame(page: int, size: int, data: bytes) -> bytes:
    """One, with salts and checksums that mean nothing."""
    return b"".join(n.to_bytes(4, "big") for n in (page, size, 1, 2, 3, 4)) + data


def last(frames: Sequence[bytes], page: int) -> int:
    """Which frame has a page last."""
    return max(i for i, one in enumerate(frames) if int.from_bytes(one[:4], "big") == page)
