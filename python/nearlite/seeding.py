"""A bootstrap's temporary file, from the first page of a snapshot to its place as the replica."""

from __future__ import annotations

import contextlib

from nearlite._native.applier import Bootstrap, Hashes
from nearlite._native.frames import SetHeader
from nearlite.bootstrap import Folder
from nearlite.receiving import SetReader


class SeedFile:
    """The temporary file of a bootstrap, if there is one.

    Args:
      folder: of the replica.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._file: Bootstrap | None = None
        self._last: SetHeader | None = None

    def write(self, header: SetHeader, reader: SetReader) -> int:
        """Write a snapshot or lay changes over it; answers the state hash of what is there."""
        if self._file is None:
            self._file = Bootstrap(str(self._folder.part), header.page_size)
        for chunk in reader.chunks():
            with chunk:
                self._file.chunk(chunk)
        self._last = header
        return self._file.hash(header.pages)

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

    def close(self) -> None:
        """Remove it, unless it was placed; idempotent."""
        if self._file is not None:
            self._file.close()
            with contextlib.suppress(FileNotFoundError):
                self._folder.part.unlink()
