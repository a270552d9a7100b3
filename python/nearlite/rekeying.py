"""Another key for a sealed database, while others read and write it (csrc/rekey.c has the order of things).

Broken off at any point the file is whole, and both keys open it until the change has been made to its end: the
same call goes on where it stopped.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from nearlite._native import faults
from nearlite._native._lib import BusyError, FormatError
from nearlite._native.applier import Applier
from nearlite._native.sealing import BLOCK_SIZE, SEAL_SIZE, Block, Codec, Key
from nearlite._native.tail import FRAME_HEADER_SIZE, WAL_HEADER_SIZE
from nearlite.errors import EncryptionError, OperationalError, WrongKeyError
from nearlite.log import Log
from nearlite.logformat import DamagedError

_BEGUN = faults.declare("rekey.begun")
_EMPTIED = faults.declare("rekey.emptied")
_RESEALED = faults.declare("rekey.resealed")

PATIENCE: Final = 30.0
"""Seconds that somebody may be in the way."""
_BUSY: Final = 5  # SQLITE_BUSY
_LOOK: Final = 1.0  # seconds that one attempt to empty the log waits for readers
_NAP: Final = 0.001
_KEPT_PAGES: Final = 4096  # written anew until the WAL is made shorter
_FRAMES: Final = 64  # of an archived WAL, sealed anew at a time
_RESEAL: Final = (".hashes", ".index", ".trail")


def rekey_file(path: Path, old: Key, new: Key, *, wait: float = PATIENCE) -> int:
    """Make `new` the key of the sealed database at `path`, and of what lies beside it.

    Other connections, of whatever process, read and write on meanwhile with the old key; when it is done it
    opens the file no more, and they fail with WrongKeyError at their next write, or at the first page that the
    data keys they know do not open.

    Args:
      old: for all who have this very object it becomes `new`, before it opens nothing any more.
      wait: seconds that a reader may keep the log, or a writer the write lock.

    Returns:
      pages that were sealed anew; 0 where the change was made already.

    Raises:
      WrongKeyError: neither of them opens the file, or a change to a third key was begun.
      OperationalError: it is served now, or somebody was in the way for too long; it says which keys open the file.
    """
    log = _log_of(path)
    try:
        try:
            applier = Applier(str(path), key=old)
        except WrongKeyError:
            if not is_done(path, new):
                raise
            _mend_block(path, new, wait)
            old.become(new)
            return 0
        with closing(applier):
            applier.rekey_begin(new, wait=wait)
            faults.hit(_BEGUN)
            if log is not None:
                log.journals_sync()
            count = _pages(applier, wait)
            if log is None:
                log = _log_of(path)  # begun after the first look; a later one has both data keys
            if log is not None:
                _reseal(log, new)
            faults.hit(_RESEALED)
            old.become(new)  # while both open it: who shares `old` never has the one that does not
            applier.rekey_end(new, wait=wait)
        return count
    except OperationalError as error:
        if not _is_busy(error):
            raise
        opens = "Only the old key opens" if _is_unchanged(path) else "Both keys open"
        raise OperationalError(
            f"the key of {path} is not changed yet, because another connection reads or writes for long: "
            f"{error}. {opens} the file; do it again to go on"
        ) from error
    finally:
        if log is not None:
            log.close()


def is_done(path: Path, key: Key) -> bool:
    """Whether this key alone opens the file."""
    block = _block(path)
    if len(block) < BLOCK_SIZE:
        return False
    try:
        Codec.open(block, key)
    except (WrongKeyError, FormatError):
        return False
    return _is_unchanged(path)


def _is_unchanged(path: Path) -> bool:
    """Whether no change of the key is under way."""
    return Block.look(_block(path)).previous == 0


def _block(path: Path) -> bytes:
    """The header block; shorter where there is none."""
    with path.open("rb") as file:
        return file.read(BLOCK_SIZE)


def _mend_block(path: Path, key: Key, wait: float) -> None:
    """Where the end was broken off between the two copies of the header block, one is still the old key's."""
    block = _block(path)
    half = BLOCK_SIZE // 2
    if block[:half] != block[half:]:
        with closing(Applier(str(path), key=key)) as applier:
            applier.rekey_end(key, wait=wait)


def _log_of(path: Path) -> Log | None:
    """The log of a primary or of a replica that serves replicas, owned. Raises OperationalError."""
    real = path.resolve()
    there = real.with_name(f"{real.name}-nearlite") / "lock"
    return Log(str(path)) if there.exists() else None


def _pages(applier: Applier, wait: float) -> int:
    """All pages, in the file and in the log; how many were written."""
    end = time.monotonic() + wait
    total = since = 0
    while True:
        at, written = 1, 0
        while at:
            at, count = applier.rekey_pages(at, wait=wait)
            written += count
            since += count
            if since >= _KEPT_PAGES:
                applier.checkpoint("passive", wait=0.0)
                since = 0
        total += written
        _empty_log(applier, end)
        faults.hit(_EMPTIED)
        if written == 0:  # the log was emptied after the last of them
            return total
        end = time.monotonic() + wait


def _empty_log(applier: Applier, end: float) -> None:
    """Until then. Raises OperationalError: SQLITE_BUSY."""
    while True:
        try:
            applier.checkpoint("truncate", wait=min(_LOOK, max(0.0, end - time.monotonic())))
            return
        except OperationalError as error:
            # SQLite waits for readers, if not to the end, and not at all for somebody else's checkpoint.
            if not _is_busy(error) or time.monotonic() >= end:
                raise
            time.sleep(_NAP)


def _is_busy(error: OperationalError) -> bool:
    return isinstance(error, BusyError) or getattr(error, "sqlite_errorcode", 0) & 0xFF == _BUSY


def _reseal(log: Log, key: Key) -> None:
    """Each file of the log by itself: both data keys are at hand. What is damaged goes: it was of no use to anybody."""
    log.seal(key)
    codec = Codec.open(_block(log.database), key)
    for path in sorted(log.folder.iterdir()):
        if path.suffix == ".journal":
            log.journal_replace(path.name, log.journal_whole(path.name))
        elif (
            path.suffix in _RESEAL or path.name == "state.json"
        ):  # other .json of a replica are in clear
            try:
                data = log.read(path.name)
            except DamagedError:
                path.unlink()
            else:
                log.write(path.name, data, durable=False)
        elif path.suffix == ".wal" and not _reseal_frames(path, codec):
            path.unlink()
    log.sync_folder()


def _reseal_frames(path: Path, codec: Codec) -> bool:
    """An archived WAL, whose header is in clear; False: it is damaged."""
    step = FRAME_HEADER_SIZE + codec.page_size + SEAL_SIZE
    part = path.with_name(f"{path.name}.part")
    with path.open("rb") as source, part.open("wb") as target:
        target.write(source.read(WAL_HEADER_SIZE))
        first = 1
        while data := source.read(_FRAMES * step):
            try:
                frames = b"" if len(data) % step else codec.open_frames(first, data)
            except EncryptionError:
                frames = b""
            if not frames:
                part.unlink()
                return False
            target.write(codec.seal_frames(first, frames))
            first += _FRAMES
        target.flush()
        os.fsync(target.fileno())
    part.rename(path)
    return True
