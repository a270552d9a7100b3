"""A bootstrap's temporary file, from the first page of a snapshot to its place as the replica.

A download that is broken off leaves the file, and the next one goes on behind its last whole page. What is
in it is of an older state by then, or was not written whole: nothing of it is believed. When the rest
has come every page is compared with the primary's, as a repair does, and what differs is replaced.
So there is no journal of what the file holds: its bytes say it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, Protocol

from nearlite._native._lib import FormatError
from nearlite._native.applier import Bootstrap, Hashes
from nearlite._native.frames import PAGE_SIZES, Chunk, SetHeader
from nearlite._native.sealing import BLOCK_SIZE, Block, Key, is_sealed
from nearlite.bootstrap import Folder
from nearlite.comparing import Comparison
from nearlite.errors import AnswerError, WrongKeyError
from nearlite.http import Deadline, Response, Transport
from nearlite.wire import NOWHERE

_MAGIC: Final = b"SQLite format 3\0"


class Chunks(Protocol):
    """What has the chunks of a set: a SetReader."""

    def chunks(self) -> Iterator[Chunk]:
        """Verified ones; the caller closes each."""


class SeedFile:
    """The temporary file of a bootstrap, if there is one.

    Args:
      folder: of the replica.
      key: it is to be sealed with.
    """

    def __init__(self, folder: Folder, key: Key | None = None) -> None:
        self._folder = folder
        self._key = key
        self._file: Bootstrap | None = None
        self._last: SetHeader | None = None
        self._page_size = 0

    def resume(self) -> int:
        """Go on with what an earlier download left; how many pages there are, mostly 0."""
        try:
            with self._folder.part.open("rb") as file:
                head = file.read(BLOCK_SIZE)
                # Placed, and a kill came before it lost this name: it is a replica, wherever it is by now.
                if os.fstat(file.fileno()).st_nlink > 1:
                    return 0
            size = self._page_size_in(head)
            if size in PAGE_SIZES:
                part = str(self._folder.part)
                self._file = Bootstrap(part, size, key=self._key, resume=True)
        except FileNotFoundError:
            return 0
        except (FormatError, WrongKeyError):  # begun with another key, or no more than begun
            return 0
        if self._file is None or self._file.held == 0:
            self.close()
            return 0
        self._page_size = size
        return self._file.held

    def _page_size_in(self, head: bytes) -> int:
        """What the beginning of the file says; 0: nothing that this download could go on with."""
        if self._key is None:
            size = int.from_bytes(head[16:18], "big") if head[:16] == _MAGIC else 0
            return 65536 if size == 1 else size
        if not is_sealed(head) or len(head) != BLOCK_SIZE:
            return 0
        return Block.look(head).page_size

    def write(self, header: SetHeader, reader: Chunks) -> int:
        """Write a snapshot or lay changes over it; answers the state hash of what is there.

        Raises:
          AnswerError: what is there has pages of another size: it was removed.
        """
        if self._page_size not in (0, header.page_size):
            raise AnswerError(
                "the database has another page size than when its download was broken off",
                state="no local file was created",
                action="try again: the download starts over",
            )
        self._page_size = header.page_size
        if self._file is None:
            self._folder.part.unlink(missing_ok=True)  # of no use: it has not even a page 1
            try:
                part = str(self._folder.part)
                self._file = Bootstrap(part, header.page_size, key=self._key)
            except BaseException:  # not even its header block could be written
                self._folder.part.unlink(missing_ok=True)
                raise
        for chunk in reader.chunks():
            with chunk:
                self._file.chunk(chunk)
        self._last = header
        return self._file.hash(header.pages)

    def compare(self, transport: Transport, deadline: Deadline) -> Response:
        """The answer that is the page set of what differs between the file and the primary now."""
        assert self._file is not None
        assert self._last is not None
        last = self._last
        hashes = self._file.hashes(last.pages)
        comparison = Comparison(transport, last.page_size, last.pages, NOWHERE)
        return comparison.answer(hashes, deadline)

    def place(self) -> Hashes | None:
        """Make it the replica; nothing when there was no bootstrap.

        Returns:
          its page hashes, for the first applier.
        """
        if self._file is None or self._last is None:
            return None
        known = self._file.finish(self._last)
        self._file.close()
        self._folder.place()
        return known

    def close(self, *, keep: bool = False) -> None:
        """Remove it, unless it was placed or is to be kept for the next attempt; idempotent."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
            if not keep:
                self._folder.part.unlink(missing_ok=True)
