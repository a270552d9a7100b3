"""A program that uses what nearlite offers, for type checkers alone: nothing runs it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import nearlite
from nearlite.embedded import ReplicaConnection
from nearlite.remote import RemoteConnection

if TYPE_CHECKING:
    from typing_extensions import assert_type


class Mine(nearlite.Connection):
    """A program's own class."""


class Total:
    """An aggregate."""

    def __init__(self) -> None:
        self.total = 0

    def step(self, value: int) -> None:
        """Add."""
        self.total += value

    def finalize(self) -> int:
        """The sum."""
        return self.total


def plus(value: int) -> int:
    """A function."""
    return value + 1


def connections(url: str) -> None:
    """What `connect` answers."""
    assert_type(nearlite.connect(":memory:"), nearlite.Connection)
    assert_type(nearlite.connect("a.db", timeout=1, autocommit=True), nearlite.Connection)
    assert_type(nearlite.connect("a.db", encryption_key=bytes(32)), nearlite.Connection)
    assert_type(nearlite.connect("a.db", sync_url=url, sync_interval="live"), ReplicaConnection)
    assert_type(nearlite.connect(url, auth_token="t", network_timeout=3.0), RemoteConnection)
    assert_type(nearlite.connect("a.db", factory=Mine), Mine)
    assert_type(nearlite.connect("a.db", 5.0, 0, None, True, Mine), Mine)


def statements(connection: nearlite.Connection) -> None:
    """Cursors and rows."""
    assert_type(connection.execute("SELECT ?", (1,)), nearlite.Cursor)
    assert_type(connection.cursor().executemany("INSERT", [(1,)]), nearlite.Cursor)
    cursor = connection.cursor()
    assert_type(cursor.fetchall(), list[Any])
    assert_type(cursor.rowcount, int)
    assert_type(cursor.lastrowid, "int | None")
    connection.row_factory = nearlite.Row
    with connection as same:
        assert_type(same, nearlite.Connection)


def callbacks(connection: nearlite.Connection) -> None:
    """What SQLite calls."""
    connection.create_function("plus", 1, plus, deterministic=True)
    connection.create_aggregate("total", 1, Total)
    connection.set_progress_handler(None, 0)


def wholes(connection: nearlite.Connection, other: nearlite.Connection) -> None:
    """Databases as a whole, and what is beyond the standard library."""
    connection.backup(other)
    assert_type(connection.serialize(), bytes)
    assert_type(connection.iterdump(), Iterator[str])
    assert_type(connection.blobopen("t", "a", 1), nearlite.Blob)
    session = connection.session()
    assert_type(other.apply(session.changeset(), on_conflict="omit"), nearlite.Conflicts)
    for change in nearlite.read_changeset(session.patchset()):
        assert_type(change, nearlite.RowChange)
    snapshot = connection.snapshot()
    other.read_at(snapshot)
    assert_type(snapshot < other.snapshot(), bool)


def replicas(replica: ReplicaConnection) -> None:
    """Embedded replicas."""
    assert_type(replica.sync().position, nearlite.Position)
