"""The primary's database file: created, made a WAL database, refused when it is somebody's replica."""

from __future__ import annotations

from pathlib import Path
from secrets import randbelow

from nearlite import errors
from nearlite._native.database import NO_PARAMETERS, Database
from nearlite._native.sealing import Key
from nearlite._native.tail import Tail


def prepare_file(path: Path, key: Key | None = None) -> bool:
    """Create the database, or make it a WAL database; answers whether it was created.

    Raises:
      WrongKeyError: it is sealed with another key, or not sealed at all, or is and there is none.
    """
    created = not path.exists() or path.stat().st_size == 0
    database = Database(str(path), create=True, checkpoint=False, key=key)
    try:
        mode = database.prepare("PRAGMA journal_mode=WAL").run(NO_PARAMETERS)
        if mode != [("wal",)]:
            raise errors.OperationalError(
                f"{path} could not be changed to WAL mode (it is {mode[0][0]}); close the programs "
                "that use it, or store it on a local disk. Nothing was changed"
            )
        if created:
            # A WAL database of zero bytes has no page 1 for a replica to hold its position in.
            database.exec("CREATE TABLE nearlite(x); DROP TABLE nearlite; VACUUM")
            database.exec("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        database.close()
    return created


def refuse_replica(tail: Tail, path: Path) -> None:
    """Raise NotSupportedError if the file is a replica."""
    _, page1 = tail.look(0)
    if page1[18] == 3:
        raise errors.NotSupportedError(
            f"{path} is a replica: its content belongs to its primary, and writing to it would fork "
            "the history. Serve the primary's own file, or make a database of its own from it with "
            "VACUUM INTO. Nothing was changed"
        )


def move_schema(path: Path, key: Key | None = None) -> None:
    """Commit a random step of the schema cookie, so that no open connection anywhere can take the
    new history's schema for one it knows (rule B7).
    """
    database = Database(str(path), create=False, checkpoint=False, key=key)
    try:
        now = database.prepare("PRAGMA schema_version").run(NO_PARAMETERS)[0][0]
        step = (1 << 16) + randbelow((1 << 24) - (1 << 16))
        database.exec(f"PRAGMA schema_version={(now + step) & 0x7FFFFFFF}")
    finally:
        database.close()
