"""`nearlite encrypt` and `decrypt`: a copy of a database, sealed or in clear, page by page as it is."""

from __future__ import annotations

import os
import secrets
import time
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from nearlite._native._lib import sqlite_exception
from nearlite._native.database import NO_PARAMETERS, Backup, Database
from nearlite._native.sealing import Key
from nearlite.errors import NotSupportedError

_SIDE_FILES: Final = ("-wal", "-nlwal", "-shm", "-journal")
_PAGES: Final = 4096  # copied at a time: others may write in between, and it begins again
_PATIENCE: Final = 30.0  # seconds that somebody may be in the way
_DONE: Final = 101
_OK: Final = 0


def encrypt_file(source: Path, out: Path, key: Key) -> None:
    """Write one consistent state of a plain database to `out`, sealed.

    Raises:
      FileExistsError: `out` appeared meanwhile; it was not touched.
      NotSupportedError: it is a replica.
      Error: the database cannot be read, or the disk is full; `out` does not exist.
    """
    with closing(Database(str(source), create=False)) as plain:
        _copy(plain, source, out, key)


def decrypt_file(source: Path, out: Path, key: Key) -> None:
    """Write one consistent state of a sealed database to `out`, in clear.

    Raises:
      WrongKeyError: it is not the key of that file.
      FileExistsError, Error: as `encrypt_file`.
    """
    with closing(Database(str(source), create=False, key=key)) as sealed:
        _copy(sealed, source, out, None)


def _copy(source: Database, path: Path, out: Path, key: Key | None) -> None:
    part = out.with_name(f".{out.name}.{secrets.token_hex(4)}.part")
    try:
        size = int(_one(source, "PRAGMA page_size"))
        if _one(source, "SELECT substr(data, 19, 1) FROM sqlite_dbpage WHERE pgno = 1") == b"\3":
            raise NotSupportedError(
                f"{path} is a replica: its primary makes another one, sealed or plain, with "
                "connect(..., sync_url=..., encryption_key=...); `nearlite backup` makes an ordinary "
                "database of it. Nothing was changed"
            )
        with closing(Database(str(part), key=key, page_size=size)) as target:
            _all_pages(source, target)
            target.exec("PRAGMA wal_checkpoint(TRUNCATE)")
        _sync(part)
        # Rule C3: a log that outlived its database would be replayed over the new file.
        for suffix in _SIDE_FILES:
            if not out.exists():
                out.with_name(out.name + suffix).unlink(missing_ok=True)
        os.link(part, out)  # unlike rename, fails when the name is taken
        _sync(out.absolute().parent)
    finally:
        for suffix in ("", *_SIDE_FILES):
            part.with_name(part.name + suffix).unlink(missing_ok=True)


def _one(database: Database, sql: str) -> Any:
    rows = database.prepare(sql).run(NO_PARAMETERS)
    return rows[0][0] if rows else None


def _all_pages(source: Database, target: Database) -> None:
    copying = Backup((source, "main"), (target, "main"))
    try:
        until = time.monotonic() + _PATIENCE
        while True:
            rc, _, _ = copying.step(_PAGES)
            if rc == _DONE:
                return
            if rc == _OK:
                until = time.monotonic() + _PATIENCE
            elif time.monotonic() >= until:
                raise sqlite_exception(rc, "database is locked")
    finally:
        copying.end()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
