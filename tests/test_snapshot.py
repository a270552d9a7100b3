"""Snapshots: states of a file in WAL mode that are read again, on other connections, while others write."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from primaries import primary

import nearlite
from nearlite._native import _lib  # these run with SQLite's asserts, too

assert _lib.sqlite_version

COUNT = "SELECT count(*) FROM t"


@pytest.fixture(params=[None, bytes(32)], ids=["plain", "sealed"])
def wal(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    opened = []

    def connect(**options: Any) -> Any:
        connection = nearlite.connect(tmp_path / "a.db", encryption_key=request.param, **options)
        opened.append(connection)
        return connection

    first = connect()
    first.execute("PRAGMA journal_mode = WAL")
    first.executescript("CREATE TABLE t(a); INSERT INTO t VALUES (1)")
    first.commit()
    yield connect
    for connection in opened:
        connection.close()


def add(connection: Any) -> None:
    connection.execute("INSERT INTO t VALUES (0)")
    connection.commit()


def test_several_connections_read_one_state_while_it_is_written_to(wal: Any) -> None:
    writer, one, two = wal(), wal(), wal()
    one.execute("BEGIN")
    assert one.execute(COUNT).fetchone() == (1,)
    add(writer)
    snapshot = one.snapshot()
    two.read_at(snapshot)
    assert two.in_transaction
    assert [c.execute(COUNT).fetchone() for c in (writer, one, two)] == [(2,), (1,), (1,)]
    with pytest.raises(nearlite.OperationalError, match="locked"):  # what it read is not the last
        two.execute("INSERT INTO t VALUES (9)")
    two.rollback()
    assert two.execute(COUNT).fetchone() == (2,)
    assert one.execute(COUNT).fetchone() == (1,)  # whoever named it goes on


def test_snapshots_are_ordered_by_age(wal: Any, tmp_path: Path) -> None:
    writer, reader = wal(), wal()
    found = []
    for _ in range(4):
        found.append(reader.snapshot())
        assert not reader.in_transaction
        add(writer)
    assert sorted([found[2], *found[::-1]]) == [*found[:2], found[2], *found[2:]]
    assert found[0] < found[1] <= found[2] != found[3]
    again = writer.snapshot()
    assert again == reader.snapshot() > found[3]
    assert len({again, reader.snapshot()}) == 1
    with closing(nearlite.connect(tmp_path / "b.db")) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE t(a)")
        of_other = other.snapshot()
        assert of_other != again
        with pytest.raises(TypeError):
            assert of_other < again
        with pytest.raises(ValueError, match="of another file"):
            reader.read_at(of_other)
    assert repr(again) == f"<nearlite.Snapshot of {str(tmp_path / 'a.db')!r}>"


def test_the_open_transaction_goes_to_another_state(wal: Any) -> None:
    writer, reader = wal(), wal()
    writer.execute("BEGIN")
    writer.execute(COUNT).fetchone()
    old = writer.snapshot()
    writer.rollback()
    add(writer)
    reader.execute("BEGIN")
    assert reader.execute(COUNT).fetchone() == (2,)
    reader.read_at(old)
    assert reader.execute(COUNT).fetchone() == (1,)
    reader.commit()
    assert reader.execute(COUNT).fetchone() == (2,)


def test_a_state_that_is_gone_says_so(wal: Any) -> None:
    writer, reader = wal(), wal()
    old = reader.snapshot()
    add(writer)
    assert writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
    add(writer)
    with pytest.raises(nearlite.OperationalError, match="no longer there") as failed:
        reader.read_at(old)
    assert failed.value.sqlite_errorname == "SQLITE_ERROR_SNAPSHOT"
    assert not reader.in_transaction
    assert reader.execute(COUNT).fetchone() == (3,)


def test_what_has_no_snapshots(wal: Any) -> None:
    writer = wal()
    snapshot = writer.snapshot()
    writer.execute("INSERT INTO t VALUES (2)")
    for use in (writer.snapshot, lambda: writer.read_at(snapshot)):
        with pytest.raises(nearlite.OperationalError, match="has written"):
            use()
    assert writer.in_transaction
    writer.commit()
    with pytest.raises(nearlite.OperationalError, match="unknown database 'nowhere'"):
        writer.snapshot(name="nowhere")
    rows = writer.execute(
        "WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r) SELECT i FROM r, t"
    )
    rows.fetchone()
    with pytest.raises(nearlite.OperationalError, match="rows of another state"):
        writer.read_at(snapshot)
    rows.close()
    writer.close()
    with pytest.raises(nearlite.ProgrammingError, match="closed"):
        writer.snapshot()
    with closing(nearlite.connect(":memory:")) as memory:
        with pytest.raises(nearlite.OperationalError, match="not in WAL mode"):
            memory.snapshot()
        assert not memory.in_transaction


def test_snapshots_whatever_autocommit_and_text_are(wal: Any) -> None:
    for autocommit in (True, False, nearlite.LEGACY_TRANSACTION_CONTROL):
        writer, reader = wal(), wal(autocommit=autocommit)
        reader.text_factory = bytes
        open_before = reader.in_transaction
        snapshot = reader.snapshot()
        assert reader.in_transaction is open_before is (autocommit is False)
        count = writer.execute(COUNT).fetchone()
        add(writer)
        reader.read_at(snapshot)
        assert reader.execute(COUNT).fetchone() == count
        reader.execute("COMMIT")
        assert reader.execute(COUNT).fetchone() == (count[0] + 1,)


def test_an_empty_log_has_no_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(nearlite.connect(path)) as first:
        first.execute("PRAGMA journal_mode = WAL")
        first.execute("CREATE TABLE t(a)")
    with closing(nearlite.connect(path)) as second:
        with pytest.raises(nearlite.OperationalError, match="WAL is empty"):
            second.snapshot()
        add(second)
        second.read_at(second.snapshot())
        assert second.execute(COUNT).fetchone() == (1,)


def test_attached_files_have_snapshots_of_their_own(wal: Any, tmp_path: Path) -> None:
    writer = wal()
    with closing(nearlite.connect(tmp_path / "b.db")) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.executescript("CREATE TABLE u(a); INSERT INTO u VALUES (1)")
        reader = nearlite.connect(":memory:")
        reader.attach(tmp_path / "b.db", "b")
        old = reader.snapshot(name="b")
        keeps = nearlite.connect(tmp_path / "b.db")
        keeps.read_at(old)
        other.execute("DELETE FROM u")
        other.commit()
        reader.read_at(old, name="b")
        assert reader.execute("SELECT count(*) FROM b.u").fetchone() == (1,)
        reader.close()
        keeps.close()
    writer.close()


def test_a_replica_has_snapshots(tmp_path: Path) -> None:
    with primary(tmp_path) as made:
        writer, one, two = made.replica("writer.db"), made.replica(), made.replica()
        writer.executescript("CREATE TABLE t(a); INSERT INTO t VALUES (1)")
        one.sync()
        one.execute("BEGIN")
        one.execute(COUNT).fetchone()
        snapshot = one.snapshot()
        writer.execute("INSERT INTO t VALUES (2)")
        writer.commit()
        two.sync()
        assert two.execute(COUNT).fetchone() == (2,)
        two.read_at(snapshot)
        assert two.execute(COUNT).fetchone() == (1,)
        two.rollback()
        assert two.execute(COUNT).fetchone() == (2,)
        one.rollback()
        with pytest.raises(nearlite.NotSupportedError):
            made.remote().snapshot()
