"""Everything a test opens, sealed: its files, replicas, primaries, and what the library opens beside them.

The classes below all Python code opens files with take the key as a parameter whose default is None. Here it is
a key, so that a test about anything else is one about sealed files as well, without a word in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nearlite._native.applier import Applier, Bootstrap
from nearlite._native.database import Database
from nearlite._native.sealing import Key
from nearlite._native.tail import Tail
from nearlite.dbapi.connection import Connection
from nearlite.embedded import ReplicaConnection
from nearlite.primary import Primary
from nearlite.relay import Relay
from nearlite.replica import Replica

RAW = bytes(range(32))
_VARIABLE = "NEARLITE_TEST_SEALED"
"""Set in the environment of processes that a test starts."""


def _functions() -> Iterator[tuple[Any, str]]:
    for cls in (Applier, Bootstrap, Database, Replica):
        yield cls.__init__, "key"
    for cls in (Primary, Relay):
        yield cls.open.__func__, "key"
    for cls in (Connection, ReplicaConnection):
        yield cls.__init__, "encryption_key"


def _default(key: Key | None) -> None:
    for function, name in _functions():
        assert name in function.__kwdefaults__, function
        function.__kwdefaults__[name] = key
    Tail.__init__.__defaults__ = (key,)


def seal_if_told() -> None:
    """For a process that a test has started."""
    if os.environ.get(_VARIABLE):
        _default(Key.of_bytes(RAW))


@contextmanager
def everything_sealed() -> Iterator[None]:
    """Here, and in processes that are started meanwhile and call `seal_if_told`."""
    os.environ[_VARIABLE] = "1"
    _default(Key.of_bytes(RAW))
    try:
        yield
    finally:
        _default(None)
        del os.environ[_VARIABLE]
