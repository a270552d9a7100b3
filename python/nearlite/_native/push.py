"""Frames of somebody else's WAL become frames of the primary's (csrc/push.c)."""

from __future__ import annotations

import os
from typing import Any, Final

from nearlite._native._lib import check, ffi, lib, new_error
from nearlite._native.frames import Buffer, lend
from nearlite._native.sealing import Key, key_handle

_FRAME_HEADER: Final[int] = lib.NL_FRAME_HEADER_SIZE


class Pusher:
    """The writer of one push: a private connection. `stop` may be called by any thread, the rest by one at a time.

    Args:
      path: the primary's database.
      page_size: of it.
      key: of a sealed one.
      durable: a commit is synced.
    """

    def __init__(
        self, path: str, page_size: int, *, key: Key | None = None, durable: bool = True
    ) -> None:
        self._err = new_error()
        self._step = _FRAME_HEADER + page_size
        slot = ffi.new("nl_pusher **")
        name = os.fsencode(path)
        check(lib.nl_pusher_open(name, key_handle(key), int(durable), slot, self._err), self._err)
        self._handle: Any = slot[0]

    def begin(self, frame: int, salt: str, *, wait: float) -> None:
        """Take the write lock.

        Args:
          frame: of the WAL, which the push follows.
          salt: of the WAL, 16 hex digits; of no account with frame 0.
          wait: seconds to wait for the lock.

        Raises:
          PositionError: the log ends elsewhere; nothing was done.
          BusyError, errors.OperationalError: another program holds the lock.
        """
        salts = ffi.new("uint32_t[2]", [int(salt[:8], 16), int(salt[8:], 16)])
        self._check(lib.nl_pusher_begin(self._handle, frame, salts, int(wait * 1000), self._err))

    def add(self, frames: Buffer) -> None:
        """Frames of a transaction that goes on.

        Raises:
          FormatError: they are none that SQLite writes.
        """
        with lend(frames) as data:
            count = len(frames) // self._step
            self._check(lib.nl_pusher_frames(self._handle, data, count, self._err))

    def commit(self, frames: Buffer, *, check: float) -> None:
        """The last frames, of which the very last is a commit frame; what fails undoes the whole push.

        Args:
          check: seconds that looking at the result may take.

        Raises:
          FormatError: they are none that SQLite writes.
          UnsoundError: what results is no sound database.
          TooBigError: the look took too long, or was stopped.
        """
        with lend(frames) as data:
            count, ms = len(frames) // self._step, int(check * 1000)
            self._check(lib.nl_pusher_commit(self._handle, data, count, ms, self._err))

    def stop(self) -> None:
        """End a look that is under way."""
        lib.nl_pusher_stop(self._handle)

    def close(self) -> None:
        """Undo what was not committed, and release the connection; idempotent."""
        if self._handle is not None:
            lib.nl_pusher_close(self._handle)
            self._handle = None

    def _check(self, rc: int) -> None:
        if rc:
            check(rc, self._err)
