"""Values in place (`blobopen`), databases as bytes (`serialize`), switches, dumps: as the standard library has them."""

from __future__ import annotations

import gc
import os
import random
import sqlite3
import threading
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nearlite
from nearlite._native import (
    _lib,  # these run with SQLite's asserts, too: blobs end with connections
)

assert _lib.sqlite_version


@pytest.fixture
def connection() -> Iterator[Any]:
    with closing(nearlite.connect(":memory:")) as made:
        made.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, b BLOB)")
        made.execute("INSERT INTO t(b) VALUES (?)", (b"0123456789",))
        made.commit()
        yield made


# ---------------------------------------------------------------- blobs


def test_a_blob_is_read_and_written_as_a_file(connection: Any) -> None:
    with connection.blobopen("t", "b", 1) as blob:
        assert isinstance(blob, nearlite.Blob)
        assert len(blob) == 10
        assert blob.read(3) == b"012"
        assert blob.tell() == 3
        blob.write(b"xyz")
        assert blob.tell() == 6
        blob.seek(-2, os.SEEK_END)
        assert blob.read() == b"89"
        assert blob.read() == b""
    assert connection.execute("SELECT b FROM t").fetchone() == (b"012xyz6789",)


slices = st.builds(
    slice,
    st.none() | st.integers(-12, 12),
    st.none() | st.integers(-12, 12),
    st.none() | st.integers(-12, 12).filter(bool),
)


@given(st.binary(max_size=12), st.lists(st.tuples(slices | st.integers(-14, 14), st.randoms())))
def test_a_blob_is_indexed_as_a_bytearray(data: bytes, steps: list[Any]) -> None:
    model = bytearray(data)
    with closing(nearlite.connect(":memory:")) as made:
        made.execute("CREATE TABLE t(b)")
        made.execute("INSERT INTO t VALUES (?)", (data,))
        with made.blobopen("t", "b", 1) as blob:
            for key, rng in steps:
                new: Any = rng.randrange(256)
                if isinstance(key, slice):
                    new = bytes(rng.randrange(256) for _ in model[key])
                elif not -len(model) <= key < len(model):
                    with pytest.raises(IndexError, match="Blob index out of range"):
                        blob[key]
                    with pytest.raises(IndexError, match="Blob index out of range"):
                        blob[key] = new
                    continue
                expected = model[key]
                assert blob[key] == (bytes(expected) if isinstance(key, slice) else expected)
                model[key] = new
                blob[key] = new
            assert blob[:] == model
        assert made.execute("SELECT b FROM t").fetchone()[0] == model


@pytest.mark.parametrize(
    ("error", "text", "act"),
    [
        (ValueError, "offset out of blob range", lambda b: b.seek(11)),
        (ValueError, "offset out of blob range", lambda b: b.seek(-1)),
        (ValueError, "'origin' should be", lambda b: b.seek(0, 7)),
        (OverflowError, "too large", lambda b: b.seek(1 << 40)),
        (ValueError, "data longer than blob length", lambda b: b.write(bytes(11))),
        (TypeError, "bytes-like", lambda b: b.write("text")),
        (TypeError, "indices must be integers", lambda b: b[1.5]),
        (IndexError, "cannot fit 'int'", lambda b: b[1 << 64]),
        (IndexError, "wrong size", lambda b: b.__setitem__(slice(0, 5), b"1234")),
        (
            BufferError,
            "not C-contiguous",
            lambda b: b.__setitem__(slice(0, 3), memoryview(b"abcde")[::2]),
        ),
        (ValueError, "must be in range", lambda b: b.__setitem__(0, 256)),
        (TypeError, "cannot be interpreted", lambda b: b.__setitem__(0, b"1")),
        (TypeError, "doesn't support item deletion", lambda b: b.__delitem__(0)),
        (TypeError, "doesn't support slice deletion", lambda b: b.__delitem__(slice(0, 1))),
        (TypeError, "is not iterable", lambda b: 1 in b),
        (TypeError, "cannot create", lambda b: type(b)()),
    ],
)
def test_what_a_blob_refuses_changes_nothing(
    connection: Any, error: type[Exception], text: str, act: Callable[[Any], object]
) -> None:
    with connection.blobopen("t", "b", 1) as blob:
        with pytest.raises(error, match=text):
            act(blob)
        assert (blob.tell(), blob[:]) == (0, b"0123456789")


def test_other_buffers_are_written(connection: Any) -> None:
    with connection.blobopen("t", "b", 1) as blob:
        blob.write(array("h", [0x4141, 0x4242]))
        blob[4:6] = memoryview(b"cd")
        assert blob[:6] == b"AABBcd"


@pytest.mark.parametrize(
    ("where", "options"),
    [(("t", "b", 2), {}), (("t", "x", 1), {}), (("x", "b", 1), {}), (("t", "b", 1), {"name": "x"})],
)
def test_a_value_that_is_not_there(connection: Any, where: Any, options: Any) -> None:
    with pytest.raises(nearlite.OperationalError, match="no such"):
        connection.blobopen(*where, **options)
    with pytest.raises(OverflowError):
        connection.blobopen("t", "b", 1 << 63)


def test_a_blob_whose_row_changes_is_over(connection: Any) -> None:
    blob = connection.blobopen("t", "b", 1)
    connection.execute("UPDATE t SET b = 'abc'")
    with pytest.raises(nearlite.OperationalError):
        blob.read()
    blob.close()
    blob.close()
    with pytest.raises(nearlite.ProgrammingError, match="closed blob"):
        blob.read()


def test_a_blob_for_reading_is_not_written(connection: Any) -> None:
    blob = connection.blobopen("t", "b", 1, readonly=True)
    with pytest.raises(nearlite.OperationalError, match="readonly"):
        blob.write(b"x")
    blob.close()


def test_a_blob_ends_with_its_connection(connection: Any) -> None:
    blob = connection.blobopen("t", "b", 1)
    connection.close()
    with pytest.raises(nearlite.ProgrammingError, match="closed database"):
        blob.read()
    del blob
    gc.collect()


def test_a_blob_that_is_forgotten_lets_go_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(nearlite.connect(path, isolation_level=None)) as one:
        one.execute("CREATE TABLE t(b)")
        one.execute("INSERT INTO t VALUES (zeroblob(3000))")
        blob = one.blobopen("t", "b", 1)
        blob.write(b"written")
        with closing(sqlite3.connect(path, timeout=0)) as other:
            with pytest.raises(sqlite3.OperationalError, match="locked"):
                other.execute("DELETE FROM t")
            # Its end, on whatever thread the collector runs, is the commit.
            holder = [blob]
            del blob
            thread = threading.Thread(target=holder.clear)
            thread.start()
            thread.join()
            assert other.execute("SELECT substr(b, 1, 7) FROM t").fetchone() == (b"written",)
            other.execute("DELETE FROM t")


def test_another_thread_may_not_use_a_blob(connection: Any) -> None:
    failures: list[BaseException] = []

    def use() -> None:
        try:
            blob.read()
        except nearlite.ProgrammingError as error:
            failures.append(error)

    with connection.blobopen("t", "b", 1) as blob:
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert "created in a thread" in str(failures[0])


# ---------------------------------------------------------------- a database as bytes


def test_a_database_becomes_bytes_and_a_database_again(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(nearlite.connect(path)) as made:
        made.execute("CREATE TABLE t(n)")
        made.executemany("INSERT INTO t VALUES (?)", [(i,) for i in range(1000)])
        made.commit()
        data = made.serialize()
        with pytest.raises(nearlite.OperationalError, match="unable to serialize 'nobody'"):
            made.serialize(name="nobody")
    other = tmp_path / "b.db"
    other.write_bytes(data)
    with closing(sqlite3.connect(other)) as stock:
        assert stock.execute("SELECT sum(n) FROM t").fetchone() == (499500,)
    with closing(nearlite.connect(":memory:")) as made:
        made.deserialize(bytearray(data))
        assert made.execute("SELECT sum(n) FROM t").fetchone() == (499500,)
        made.execute("INSERT INTO t VALUES (1)")  # it grows
        made.execute("INSERT INTO t SELECT n FROM t, (SELECT 1 UNION SELECT 2)")
        made.commit()
        assert len(made.serialize()) >= len(data)
    assert other.read_bytes() == data


def test_bytes_that_are_no_database(connection: Any) -> None:
    connection.deserialize(b"\0\1\3")
    with pytest.raises(nearlite.DatabaseError, match="file is not a database"):
        connection.execute("SELECT * FROM sqlite_schema")


@given(st.randoms())
def test_damaged_bytes_are_an_error_at_worst(rng: random.Random) -> None:
    with closing(nearlite.connect(":memory:")) as made:
        made.execute("CREATE TABLE t(n)")
        made.executemany("INSERT INTO t VALUES (?)", [(i,) for i in range(300)])
        made.commit()
        data = bytearray(made.serialize())
    for _ in range(rng.randrange(1, 20)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    with closing(nearlite.connect(":memory:")) as made:
        try:
            made.deserialize(data)
            made.execute("SELECT sum(n) FROM t").fetchone()
        except nearlite.DatabaseError:
            pass


# ---------------------------------------------------------------- switches


def test_switches_of_a_connection(connection: Any) -> None:
    switch = nearlite.SQLITE_DBCONFIG_ENABLE_FKEY
    assert connection.getconfig(switch) is False
    connection.setconfig(switch)
    assert connection.getconfig(switch) is True
    assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)
    with pytest.raises(ValueError, match="unknown config 'op': -1"):
        connection.getconfig(-1)
    with pytest.raises(ValueError, match="unknown config 'op': 1000"):
        connection.setconfig(1000)


# ---------------------------------------------------------------- dumps

SCRIPT = """
CREATE TABLE "a ""t"(id INTEGER PRIMARY KEY AUTOINCREMENT, "a 'column'" TEXT, b BLOB, r REAL);
INSERT INTO "a ""t"("a 'column'", b, r) VALUES ('it''s', x'00ff', 1.5), (NULL, x'', -1);
CREATE TABLE w(k TEXT PRIMARY KEY, n) WITHOUT ROWID;
INSERT INTO w VALUES ('x', 9223372036854775807), ('y', -9223372036854775808);
CREATE TABLE g(n, twice GENERATED ALWAYS AS (n * 2) STORED);
INSERT INTO g(n) VALUES (21);
CREATE INDEX i ON w(n);
CREATE VIEW v AS SELECT n FROM w;
CREATE TRIGGER tr AFTER INSERT ON w BEGIN SELECT 1; END;
CREATE VIRTUAL TABLE f USING fts5(text);
INSERT INTO f VALUES ('some words');
"""


def test_a_dump_is_that_of_the_standard_library() -> None:
    with (
        closing(nearlite.connect(":memory:")) as ours,
        closing(sqlite3.connect(":memory:")) as theirs,
    ):
        for one in (ours, theirs):
            one.executescript(SCRIPT)
        mine = _lines(list(ours.iterdump()))
        stock = _lines(list(theirs.iterdump()))
    assert mine == stock
    assert len(mine) == 13


def _lines(dumped: list[str]) -> list[str]:
    """Sorted, and without what the standard library writes in another way from one version to the next.

    That is sqlite_sequence, and virtual tables: it writes their rows into a table that is not there yet, so that
    what it writes cannot be read.
    """
    other = ("'f_", '"f_', '"f"', "'f'", " f ", "sqlite_sequence", "writable_schema")
    return sorted(line for line in dumped if not any(name in line for name in other))


def test_what_a_dump_makes_is_equal_and_text_keeps_its_nul(tmp_path: Path) -> None:
    with closing(nearlite.connect(":memory:")) as ours:
        ours.executescript(SCRIPT)
        ours.execute("INSERT INTO g(n) VALUES (9e999)")
        ours.execute("INSERT INTO w VALUES (?, ?)", ("a\0b'c", "\0"))
        ours.commit()
        with closing(sqlite3.connect(tmp_path / "made.db")) as made:
            made.executescript("\n".join(ours.iterdump()))
        for query in (
            'SELECT * FROM "a ""t"',
            "SELECT *, typeof(k), length(CAST(k AS BLOB)) FROM w",
            "SELECT * FROM g",
            "SELECT text FROM f WHERE f MATCH 'words'",
            "SELECT * FROM sqlite_sequence",
            "SELECT type, name, sql FROM sqlite_schema ORDER BY name",
        ):
            with closing(sqlite3.connect(tmp_path / "made.db")) as made:
                rows = made.execute(query).fetchall()
            assert rows == ours.execute(query).fetchall(), query


def test_a_dump_of_some_tables() -> None:
    with closing(nearlite.connect(":memory:")) as ours:
        ours.executescript(SCRIPT)
        assert list(ours.iterdump(filter="g%")) == [
            "BEGIN TRANSACTION;",
            "CREATE TABLE g(n, twice GENERATED ALWAYS AS (n * 2) STORED);",
            'INSERT INTO "g" VALUES(21);',
            "COMMIT;",
        ]
