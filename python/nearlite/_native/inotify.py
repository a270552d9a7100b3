"""Linux tells of changes of files (csrc/inotify.c)."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Final

from nearlite._native._lib import lib

_EVENT: Final = struct.Struct("iIII")  # struct inotify_event: watch, mask, cookie, bytes of a name
_OVERFLOW: Final = -1  # the watch of an event that says that events were lost
_READ: Final = 64 << 10


class Inotify:
    """One descriptor to wait on, for any number of files and folders.

    Raises:
      OSError: there is no inotify here, or the user has too many of them.
    """

    def __init__(self) -> None:
        self._fd = _check(lib.nl_inotify_open())

    def fileno(self) -> int:
        """For poll()."""
        return self._fd

    def file(self, path: str) -> int:
        """Hear of the next write to a file; the number of its watch, which ends with that."""
        return _check(lib.nl_inotify_file(self._fd, os.fsencode(path)))

    def folder(self, path: str) -> int:
        """Hear of names that come and go in a folder; the number of its watch."""
        return _check(lib.nl_inotify_folder(self._fd, os.fsencode(path)))

    def remove(self, watch: int) -> None:
        """Hear no more of it. One whose file has gone has gone with it."""
        lib.nl_inotify_remove(self._fd, watch)

    def read(self) -> Iterator[tuple[int | None, str]]:
        """What has come: the watch, or None when events were lost; and in a folder the name."""
        try:
            data = os.read(self._fd, _READ)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            watch, _, _, size = _EVENT.unpack_from(data, at)
            name = data[at + _EVENT.size : at + _EVENT.size + size].rstrip(b"\0")
            at += _EVENT.size + size
            yield None if watch == _OVERFLOW else watch, os.fsdecode(name)

    def close(self) -> None:
        """End all watches."""
        os.close(self._fd)


def _check(number: int) -> int:
    if number < 0:
        raise OSError(-number, os.strerror(-number))
    return number
