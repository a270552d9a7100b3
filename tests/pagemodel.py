"""A replica made of a dict: the simplest thing that can take page sets, used as an oracle."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import stock

from nearlite._native import frames
from nearlite.position import Position
from nearlite.wire import Chunk, End, Header, PageSetReader


class PageModel:
    """Pages by number, and the position of the last set taken."""

    def __init__(self) -> None:
        self.pages: dict[int, bytes] = {}
        self.page_size = 0
        self.size = 0
        self.at: Position | None = None
        self.claimed = 0
        """State hash announced for `at`; a fuzzy snapshot need not have it yet."""

    @property
    def hash(self) -> int:
        value = 0
        for number, page in self.pages.items():
            value ^= frames.page_hash(page, number)
        return value

    def take(self, pieces: Iterable[bytes]) -> int:
        """Apply one set; answers how many pages it carried. Snapshots are not hash-checked."""
        reader = PageSetReader()
        header, carried, ended = None, 0, False
        for piece in pieces:
            for event in reader.receive(piece):
                if isinstance(event, Header):
                    header = event.header
                    self._check_start(header)
                elif isinstance(event, Chunk):
                    for i in range(event.chunk.count):
                        number, _, page = event.chunk.page(i)
                        self.pages[number] = page
                        carried += 1
                    event.chunk.close()
                else:
                    assert isinstance(event, End)
                    ended = True
        assert ended
        assert header is not None
        for number in [n for n in self.pages if n > header.pages]:
            del self.pages[number]
        self.at, self.size = header.target, header.pages
        self.claimed = header.hash_target
        assert header.count == carried
        if not header.snapshot:
            assert self.hash == header.hash_target
        return carried

    def _check_start(self, header: frames.SetHeader) -> None:
        if header.snapshot:
            self.pages.clear()
            self.page_size = header.page_size
        else:
            assert header.start == self.at
            assert header.hash_start == self.claimed

    def write(self, path: Path) -> Path:
        """The database as a plain file."""
        lock = frames.lock_page(self.page_size)
        blank = bytes(self.page_size)
        data = b"".join(
            blank if number == lock else self.pages[number] for number in range(1, self.size + 1)
        )
        path.write_bytes(data)
        return path

    def dump(self, path: Path) -> list[str]:
        """Its SQL, through stock SQLite, after an integrity check."""
        return stock.dump(self.write(path), plain=True)
