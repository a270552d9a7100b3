"""Everything a test opens, sealed: its files, replicas, primaries, and what the library opens beside them.

The classes below all Python code opens files with take the key as a parameter whose default is None. Here it is
a key, so that a test about anything else is one about sealed files as well, without a word in it.
"""

from __future__ import annotations

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
        yield cls.__init__, "encryption_key"
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


def log_file(database: Path, name: str) -> bytes:
    """What a file of a database's log says."""
    data = (database.with_name(f"{database.name}-nearlite") / name).read_bytes()
    if not is_on():
        return data
    from nearlite.logseal import Sealed

    return Sealed(database, _key()).opened(name, data)
