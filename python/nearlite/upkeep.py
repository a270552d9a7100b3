"""Keeping a replica's WAL short (rule B5), and saying who keeps it long."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import Final

from nearlite._native.applier import Applier
from nearlite._native.sealing import Key
from nearlite.errors import OperationalError

_log = logging.getLogger("nearlite")

RESTART_BYTES: Final = 32 << 20
"""From here on a checkpoint waits, a little, for the readers of the old WAL to end."""
RESTART_WAIT: Final = 0.2
"""Seconds. New readers are not disturbed, only this replica's lag grows."""
WAL_LIMIT: Final = 64 << 20
"""From here on the log is told who is in the way."""
_LOCKS: Final = Path("/proc/locks")
_FIRST_MARK, _LAST_MARK = 124, 127  # bytes of the -shm: locks of readers that need the WAL


class Upkeep:
    """Checkpoints of one replica, on a connection of its own: beside an apply, never in its way.

    Args:
      path: of the replica.
      limit: bytes of WAL from which the log is told.

    Not thread-safe: only the background thread, and who closes it after that has ended.
    """

    def __init__(self, path: str, limit: int, key: Key | None = None) -> None:
        self._path = path
        self._key = key
        self._limit = limit
        self._applier: Applier | None = None
        self._complained = False

    def checkpoint(self) -> int:
        """Move what can be moved; answers the bytes of WAL that are still needed.

        Raises:
          errors.Error: the disk is full or failed; nothing is lost.
        """
        if self._applier is None:
            self._applier = Applier(self._path, key=self._key)
        frame_size = self._applier.state().page_size + 24
        frames, moved = self._applier.checkpoint("passive", wait=0.0)
        if frames * frame_size > RESTART_BYTES:
            with contextlib.suppress(OperationalError):  # a reader outlasted the wait
                self._applier.checkpoint("restart", wait=RESTART_WAIT)
                moved = frames
        needed = 0 if frames == moved else frames * frame_size
        self._tell(needed)
        return needed

    def _tell(self, needed: int) -> None:
        """Once when it has grown too long, once when that is over."""
        if needed > self._limit and not self._complained:
            self._complained = True
            _log.warning(
                "%s: the WAL has %.1f MiB because a read transaction keeps an old snapshot open%s; "
                "end it to let the WAL shrink. No data is at risk",
                self._path,
                needed / (1 << 20),
                readers(self._path),
            )
        elif needed == 0 and self._complained:
            self._complained = False
            _log.info("%s: nobody keeps the WAL any more", self._path)

    def close(self) -> None:
        """Idempotent."""
        applier, self._applier = self._applier, None
        if applier is not None:
            applier.close()


def readers(path: str) -> str:
    """Who reads out of the WAL, as far as the system tells: " (in python3, process 4711)", or nothing.

    The kernel knows the process of a POSIX lock, which is what stock SQLite takes. Ours are bound to an
    open file, and it names no process for those.
    """
    try:
        inode = f":{os.stat(f'{path}-shm').st_ino}"
        lines = [line.split() for line in _LOCKS.read_text().splitlines()]
    except OSError:
        return ""
    found: dict[str, None] = {}
    for line in lines:
        # 1: POSIX ADVISORY READ 4711 08:01:12345 124 124; a waiting one has "->" before its kind
        if len(line) != 8 or not line[5].endswith(inode) or line[1] not in ("POSIX", "OFDLCK"):
            continue
        if line[6].isdecimal() and _FIRST_MARK <= int(line[6]) <= _LAST_MARK:
            found[_name(line[4])] = None
    return f" (in {', '.join(found)})" if found else ""


def _name(pid: str) -> str:
    if not pid.isdecimal() or pid == "0":  # "-1": unknown; 0: outside this container
        return "a process that uses nearlite" if pid == "-1" else "a process outside this container"
    try:
        return f"{Path(f'/proc/{pid}/comm').read_text().strip()}, process {pid}"
    except OSError:
        return f"process {pid}"
