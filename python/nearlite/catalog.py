"""The folder of a server of many databases: which there are, and how they come and go.

    NAME/                one database, in a folder of its own
      data.db            and what lies beside any database: data.db-wal, data.db-shm, data.db-nearlite/
      config.json        what it is allowed and limited to
    .nearlite/           no name begins with a dot
      lock               held while a process has the folder
      new/               what is being made; nothing of it is served
      old/               what is being removed
      kept/              what was deleted and is to be kept: NAME-TIME, in the same form

A database is there when its folder is, whole: it is made in ``new``, synced, and gets its name by one rename. It
goes by one rename as well. So a process that is killed at any instant leaves a database or none; what lies in
``new`` and ``old`` at the next start is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from nearlite import errors
from nearlite._native import faults
from nearlite.configs import Config, decode
from nearlite.names import is_name

log = logging.getLogger("nearlite.server")

DATA: Final = "data.db"
CONFIG: Final = "config.json"
_OWN: Final = ".nearlite"
_LARGEST_CONFIG: Final = 1 << 20
_MADE: Final = faults.declare("catalog.made")
_NAMED: Final = faults.declare("catalog.named")
_UNNAMED: Final = faults.declare("catalog.unnamed")
_REMOVED: Final = faults.declare("catalog.removed")
_CONFIGURED: Final = faults.declare("catalog.configured")


class Catalog:
    """The databases of a folder, which is this process's until `close`.

    What makes, removes or configures a database blocks, and is called by one at a time for each name.

    Args:
      folder: created when missing.

    Raises:
      errors.OperationalError: another process has it, or it cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        self._lock = -1
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            self.folder = folder.resolve(strict=True)
            self._own = self.folder / _OWN
            for made in (self._own, *map(self._own.joinpath, ("new", "old", "kept"))):
                made.mkdir(mode=0o700, exist_ok=True)
                if not stat.S_ISDIR(made.lstat().st_mode):
                    raise errors.OperationalError(f"{made} is no folder; nothing was changed")
            self._lock = os.open(
                self._own / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
        except OSError as error:
            raise errors.OperationalError(
                f"{folder} cannot be used as the folder of a server's databases: {error.strerror}. "
                "Nothing was changed"
            ) from error
        try:
            self._acquire()
            self._tidy()
            #: what is known of each database; an error in place of a configuration that cannot be read
            self.configs = dict(self._load())
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"<Catalog of {str(self.folder)!r}>"

    def _acquire(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, 64, 0).decode("ascii", "replace").strip() or "unknown"
            raise errors.OperationalError(
                f"the databases in {self.folder} are already served by process {owner}. Ask its admin API "
                "(--admin URL), or stop it. Nothing was changed"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let others have the folder; idempotent."""
        if self._lock >= 0:
            with contextlib.suppress(OSError):  # a child forked just now may hold a copy
                fcntl.flock(self._lock, fcntl.LOCK_UN)
            os.close(self._lock)
            self._lock = -1

    def _tidy(self) -> None:
        """Remove what was being made or removed when a process was killed."""
        for name in ("new", "old"):
            for left in (self._own / name).iterdir():
                log.info("%s was left by a process that was killed, and is removed", left)
                _remove(left)

    def _load(self) -> Iterator[tuple[str, Config | errors.Error]]:
        with os.scandir(self.folder) as entries:
            found = [entry for entry in entries if entry.name != _OWN]
        for entry in found:
            if not is_name(entry.name) or not entry.is_dir(follow_symlinks=False):
                log.warning("%s is no database, and is left alone", entry.path)
                continue
            try:
                yield entry.name, decode(_read(self.folder / entry.name / CONFIG))
            except FileNotFoundError:
                log.warning(
                    "%s has no %s: it is no database, and is left alone", entry.path, CONFIG
                )
            except (OSError, errors.Error) as error:
                log.error("%s cannot be served: %s", entry.path, error)  # noqa: TRY400
                yield entry.name, errors.OperationalError(str(error))

    # ------------------------------------------------------------------ one database

    def path(self, name: str) -> Path:
        """The file of a database that is there.

        Raises:
          errors.OperationalError: something in its folder leads elsewhere.
        """
        assert is_name(name)
        folder = self.folder / name
        try:
            if not stat.S_ISDIR(folder.lstat().st_mode):
                raise errors.OperationalError(f"{folder} is no folder")
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        raise errors.OperationalError(
                            f"{entry.path} is a symbolic link: what is served lies in its folder"
                        )
        except OSError as error:
            raise errors.OperationalError(f"{folder}: {error.strerror}") from error
        return folder / DATA

    def create(self, name: str, config: Config, fill: Callable[[Path], None]) -> None:
        """Make a database.

        Args:
          name: nobody has it.
          config: its configuration.
          fill: makes the file at the path that it is given, synced, and closes it.

        Raises:
          FileExistsError: something has the name; or what `fill` raises. Nothing is left in either case.
        """
        assert is_name(name)
        made = self._own / "new" / f"{name}-{secrets.token_hex(8)}"
        made.mkdir(mode=0o700)
        try:
            fill(made / DATA)
            _write(made / CONFIG, config.encode())
            _sync(made)
            faults.hit(_MADE)
            target = self.folder / name
            if os.path.lexists(target):  # rename would take the place of an empty folder
                raise FileExistsError(17, "exists", str(target))
            made.rename(target)
        except BaseException:
            with contextlib.suppress(OSError):
                _remove(made)
            raise
        faults.hit(_NAMED)
        self.configs[name] = config
        _sync(self.folder)

    def remove(self, name: str, *, keep: bool = False) -> Path | None:
        """Take a database away, which nobody has open; where it is kept, if it is."""
        assert is_name(name)
        suffix = secrets.token_hex(8)
        if keep:
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            target = self._own / "kept" / f"{name}-{stamp}-{suffix[:4]}"
        else:
            target = self._own / "old" / f"{name}-{suffix}"
        (self.folder / name).rename(target)
        self.configs.pop(name, None)
        faults.hit(_UNNAMED)
        _sync(target.parent)
        _sync(self.folder)
        if keep:
            return target
        try:
            _remove(target)
        except OSError as error:  # its name is free in any case
            log.warning("%s could not be removed yet: %s", target, error)
        faults.hit(_REMOVED)
        return None

    def configure(self, name: str, config: Config) -> None:
        """Change a configuration: after a loss of power it is the old or the new one."""
        folder = self.folder / name
        part = folder / (CONFIG + ".part")
        _write(part, config.encode())
        faults.hit(_CONFIGURED)
        part.replace(folder / CONFIG)
        self.configs[name] = config
        _sync(folder)


def _read(path: Path) -> bytes:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with os.fdopen(handle, "rb") as file:
        return file.read(_LARGEST_CONFIG)


def _write(path: Path, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)
