"""A replica's first file: from a temporary name to its place, and what must be true of it later.

The folder ``<db>-nearlite/`` beside a replica holds nothing that the replica needs:

===================== ==========================================================================
``sync.lock``         held (flock) by the process that syncs this file in the background
``bootstrap.lock``    held by the process that creates the file
``bootstrap.part``    the file while it is being downloaded; a broken download goes on with it
``unsynced``          the boot id under which the file was placed before its pages were on the disk
``closed.json``       the file's identity when this machine closed it last (rule C1)
``stats.json``        what the process that syncs in the background has counted, for `nearlite status`
``equal``             its time: when a background sync last found the replica equal to its primary
===================== ==========================================================================

Placing before syncing is safe because of ``unsynced``: it is on the disk before the file gets its
name. As long as the system has not gone down since, the pages are in its cache; after a start under
another boot id the file counts only if all its pages hash to what its header says.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nearlite.errors import NotAReplicaError, OfflineError, SyncError

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LOCK_NAP = 0.02  # seconds between two looks at a lock that another process holds


def boot_id() -> str:
    """What changes when the operating system starts anew; random where that cannot be known."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return secrets.token_hex(16)  # never equal to an earlier one: always check the pages


def sync_names(folder: Path) -> None:
    """Make durable which files a folder has."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _inode(path: Path) -> str:
    """What a file keeps when it is given another name, and through a restart of the system."""
    return str(os.stat(path).st_ino)


def _text(path: Path) -> str:
    """What a small file holds. A pipe that has its name would be waited for; so only a file counts as there."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a file", str(path))
        with open(fd, encoding="utf-8", errors="replace", closefd=False) as file:
            return file.read()
    finally:
        os.close(fd)


class Folder:
    """``<db>-nearlite/`` beside a replica."""

    def __init__(self, path: str) -> None:
        self.database = Path(path)
        self.path = Path(path + "-nearlite")
        self.part = self.path / "bootstrap.part"
        self.sync_lock = self.path / "sync.lock"
        self._unsynced = self.path / "unsynced"
        self._closed = self.path / "closed.json"
        self._equal = self.path / "equal"
        self._stats = self.path / "stats.json"
        self._equal_seen: tuple[int, float] | None = (
            None  # its time, and the monotonic time that it means
        )

    def touch_equal(self, age: float = 0.0) -> None:
        """The replica equalled its primary so long ago; for processes that do not sync themselves."""
        with contextlib.suppress(OSError):
            self._equal.touch()
            if age > 0:
                at = time.time() - age
                os.utime(self._equal, (at, at))
            self._equal_seen = self._equal.stat().st_mtime_ns, time.monotonic() - age

    def publish(self, stats: dict[str, Any]) -> None:
        """Leave numbers for whoever looks at the replica from outside."""
        with contextlib.suppress(OSError):
            self._replace(self._stats, json.dumps({"version": 1, "at": time.time(), **stats}))

    def published(self) -> dict[str, Any]:
        """The numbers that were left last, by whatever process; empty when there are none."""
        try:
            found = json.loads(_text(self._stats))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) and found.get("version") == 1 else {}

    def seconds_since_equal(self) -> float | None:
        """How long ago `touch_equal` was called, in any process.

        A time that is seen for the first time is measured by the system's clock, which may be set; from then on
        its age grows by the monotonic one.
        """
        try:
            at = self._equal.stat().st_mtime_ns
        except OSError:
            return None
        now, seen = time.monotonic(), self._equal_seen
        if seen is None or seen[0] != at:
            seen = self._equal_seen = at, now - max(0.0, time.time() - at / 1e9)
        return now - seen[1]

    def make(self) -> None:
        """Create the folder when it is missing.

        Raises:
          SyncError: that cannot be done.
        """
        try:
            self.path.mkdir(mode=0o755, exist_ok=True)
        except OSError as error:
            raise SyncError(
                f"{self.path}, the folder beside the replica, could not be created: {error.strerror}",
                state="no local file was created or changed",
                action="move away what has its name, or make the folder that it lies in writable",
            ) from error

    # ------------------------------------------------------------------ creating the file

    @contextlib.contextmanager
    def creating(self, seconds: float) -> Iterator[None]:
        """Be the only process that creates this replica.

        Args:
          seconds: how long another process that is downloading may stand still.
        """
        self.make()
        fd = os.open(self.path / "bootstrap.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            seen, until = -1, time.monotonic() + seconds
            while not _locked(fd):
                size = self._part_size()
                if size != seen:
                    seen, until = size, time.monotonic() + seconds
                elif time.monotonic() >= until:
                    raise OfflineError(
                        "another process is creating this replica and does not get on",
                        state="no local file was created by this process",
                        action="try again",
                    )
                time.sleep(_LOCK_NAP)
            yield
        finally:
            # Unlocked, not only closed: a child forked meanwhile has a copy of the descriptor.
            fcntl.flock(fd, fcntl.LOCK_UN)
            os.close(fd)

    def _part_size(self) -> int:
        try:
            return self.part.stat().st_size
        except FileNotFoundError:  # not begun, or placed just now
            return 0

    def place(self) -> None:
        """Give the finished ``bootstrap.part`` its real name; never over another file.

        Raises:
          NotAReplicaError: a file of that name appeared meanwhile.
        """
        self._write_durably(self._unsynced, f"{boot_id()} {_inode(self.part)}")
        # Rule C3: a -wal of a database that is gone would be replayed over the new file.
        for suffix in ("-wal", "-nlwal", "-shm", "-journal"):
            if self.database.exists():
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.database}{suffix}")
        try:
            os.link(self.part, self.database)  # unlike rename, fails when the name is taken
        except FileExistsError:
            raise NotAReplicaError(
                f"{self.database} appeared while the replica was being created",
                state="that file was not touched",
                action="choose another path or move the file away",
            ) from None
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP):
                raise
            os.rename(self.part, self.database)  # a filesystem without hard links
        else:
            self.part.unlink()

    # ------------------------------------------------------------------ what was not synced yet

    def synced(self) -> None:
        """The pages are on the disk now."""
        with contextlib.suppress(FileNotFoundError):
            self._unsynced.unlink()

    def is_unsynced(self) -> bool:
        """Placed, but not known to be on the disk."""
        return self._unsynced.exists()

    def may_be_torn(self) -> bool:
        """Placed without a sync, and the system has gone down since.

        False for any other file that has got the name meanwhile: that one is not ours to judge.
        """
        try:
            boot, _, inode = _text(self._unsynced).partition(" ")
            return boot != boot_id() and inode == _inode(self.database)
        except (FileNotFoundError, NotADirectoryError):
            return False

    # ------------------------------------------------------------------ is it the file we left

    def _identity(self) -> list[int]:
        found = os.stat(self.database)
        return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns]

    def remember(self) -> None:
        """Called after a close: the file as it is now holds what its header says.

        Only when the -wal is gone, that is, when that close was the last one of all processes and
        everything is in the file itself.
        """
        if any(os.path.exists(f"{self.database}{suffix}") for suffix in ("-wal", "-nlwal")):
            return
        with contextlib.suppress(OSError):
            self._sweep()
            self._replace(self._closed, json.dumps({"version": 1, "file": self._identity()}))

    def forget(self) -> None:
        """The file is open for applying: until the next close nothing is promised."""
        with contextlib.suppress(OSError):
            self._closed.unlink()

    def is_as_we_left_it(self) -> bool:
        """Whether the file is the one this machine closed last, untouched since (rule C1).

        False asks for a full hash: a copy without its -wal, a file restored by other means, or
        only a process that was killed.
        """
        try:
            known = json.loads(_text(self._closed))
            return bool(known["version"] == 1 and known["file"] == self._identity())
        except (OSError, ValueError, KeyError, TypeError):
            return False

    # ------------------------------------------------------------------ small files

    def _replace(self, name: Path, text: str) -> None:
        part = name.with_suffix(f".{os.getpid()}.part")
        try:
            part.write_text(text)
            os.replace(part, name)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink()
            raise

    def _sweep(self) -> None:
        """Remove what killed processes have left of small files.

        One that is being written just now is missed by nobody: whoever writes it lets that fail.
        """
        for name in (self._closed, self._stats):
            for part in self.path.glob(f"{name.stem}.*.part"):
                part.unlink(missing_ok=True)

    def _write_durably(self, name: Path, text: str) -> None:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, text.encode())
            os.fsync(fd)
        finally:
            os.close(fd)
        # The folder may be as new as the file in it.
        for folder in (self.path, self.path.absolute().parent):
            sync_names(folder)
