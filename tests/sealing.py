"""Everything a test opens, sealed: its files, replicas, primaries, and what the library opens beside them.

The classes below all Python code opens files with take the key as a parameter whose default is None. Here it is
a key, so that a test about anything else is one about sealed files as well, without a word in it.
"""

from __future__ import annotations

import inspect
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

RAW = bytes(range(32))
_VARIABLE = "NEARLITE_TEST_SEALED"
"""Set while it is on, for processes that a test starts."""
_SITE = Path(__file__).parent / "sealed_site"


def _functions() -> Iterator[tuple[Any, str]]:
    import nearlite
    from nearlite._native.applier import Applier, Bootstrap
    from nearlite._native.database import Database
    from nearlite.dbapi.connection import Connection
    from nearlite.embedded import ReplicaConnection
    from nearlite.primary import Primary
    from nearlite.relay import Relay
    from nearlite.replica import Replica

    for cls in (Applier, Bootstrap, Database, Replica):
        yield cls.__init__, "key"
    for cls in (Primary, Relay):
        yield cls.open.__func__, "key"
    for cls in (Connection, ReplicaConnection):
        yield inspect.unwrap(cls.__init__), "encryption_key"
    yield nearlite.asgi, "encryption_key"


def _default(key: Any) -> None:
    from nearlite._native.tail import Tail

    for function, name in _functions():
        assert name in function.__kwdefaults__, function
        function.__kwdefaults__[name] = key
    Tail.__init__.__defaults__ = (key,)


def _key() -> Any:
    from nearlite._native.sealing import Key

    return Key.of_bytes(RAW)


def is_on() -> bool:
    """Whether everything is sealed now."""
    return _VARIABLE in os.environ


def seal() -> None:
    """From here on, in this process."""
    _default(_key())


@contextmanager
def everything_sealed() -> Iterator[None]:
    """Here, until the block ends, and in Python programs that are started meanwhile."""
    path = os.pathsep.join(filter(None, (str(_SITE), os.environ.get("PYTHONPATH"))))
    key = {"NEARLITE_ENCRYPTION_KEY_FILE": str(_SITE / "key")}  # for the command line
    with mock.patch.dict(os.environ, {_VARIABLE: "1", "PYTHONPATH": path, **key}):
        seal()
        try:
            yield
        finally:
            _default(None)


@contextmanager
def everything_plain() -> Iterator[None]:
    """Here, until the block ends, whatever was said before."""
    with mock.patch.dict(os.environ):
        for name in (_VARIABLE, "NEARLITE_ENCRYPTION_KEY_FILE"):
            os.environ.pop(name, None)
        _default(None)
        yield


def reader(path: object, **options: Any) -> Any:
    """Who uses a file and is no part of what is tested: stock SQLite, unless only our driver can."""
    if not is_on():
        return sqlite3.connect(path, **options)
    from nearlite.dbapi.connection import Connection

    return Connection(path, encryption_key=RAW, **options)


def wal_of(path: object) -> Path:
    """The log of a database."""
    return Path(f"{path}-{'nlwal' if is_on() else 'wal'}")


def _log(database: Path, name: str) -> tuple[Path, Any]:
    from nearlite.logseal import Clear, Sealed

    path = database.with_name(f"{database.name}-nearlite") / name
    return path, Sealed(database, _key()) if is_on() else Clear()


def log_file(database: Path, name: str) -> bytes:
    """What a file of a database's log says."""
    path, seal = _log(database, name)
    data = path.read_bytes()
    return seal.journal(name, data) if name.endswith(".journal") else seal.opened(name, data)


def put_log_file(database: Path, name: str, data: bytes) -> None:
    """Makes a file of a database's log say something else; no journal."""
    path, seal = _log(database, name)
    path.write_bytes(b"".join(seal.file(name, (data,))))


def slot_size(page_size: int) -> int:
    """Bytes that a page takes in a file."""
    from nearlite._native.sealing import SEAL_SIZE

    return page_size + SEAL_SIZE if is_on() else page_size


def made(path: Path, page_size: int) -> None:
    """An empty database of such pages, if files are sealed: it is too late for the PRAGMA then."""
    from nearlite._native.database import Database

    Database(str(path), page_size=page_size).close()


def _slot(path: Path, number: int) -> tuple[Any, int, int]:
    """Codec (None: plain), offset and size of a page in its file."""
    from nearlite._native.sealing import BLOCK_SIZE, SEAL_SIZE, Block, Codec

    with path.open("rb") as file:
        head = file.read(BLOCK_SIZE)
    if not is_on():
        size = int.from_bytes(head[16:18], "big")
        size = 65536 if size == 1 else size
        return None, (number - 1) * size, size
    size = Block.look(head).page_size + SEAL_SIZE
    return Codec.open(head, _key()), BLOCK_SIZE + (number - 1) * size, size


def page_of(path: Path, number: int) -> bytes:
    """A page as the database file has it."""
    codec, offset, size = _slot(path, number)
    with path.open("rb") as file:
        data = os.pread(file.fileno(), size, offset)
    return codec.open_page(number, data) if codec else data


def edit_page(path: Path, number: int, at: int, data: bytes) -> None:
    """Other bytes in a page, from `at` on, as whoever has the key can write them."""
    page = bytearray(page_of(path, number))
    page[at : at + len(data)] = data
    put_page(path, number, page)


def rot(path: Path, number: int, at: int = 100) -> None:
    """Flips bits of a byte of a page where it lies on the disk."""
    _, offset, _ = _slot(path, number)
    with path.open("r+b") as file:
        (byte,) = os.pread(file.fileno(), 1, offset + at)
        os.pwrite(file.fileno(), bytes([byte ^ 0x55]), offset + at)


def put_page(path: Path, number: int, page: bytes) -> None:
    """Writes a page behind everybody's back, sealed as the file is."""
    codec, offset, _ = _slot(path, number)
    with path.open("r+b") as file:
        os.pwrite(file.fileno(), codec.seal_page(number, page) if codec else page, offset)
