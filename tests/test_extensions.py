"""Extensions: loaded only where a program allows it, and what they define on replicas and servers."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import sqlite_vec
from primaries import primary

import nearlite
from nearlite import errors

NEAR = sqlite_vec.serialize_float32([1.0, 2.0, 3.0])
FAR = sqlite_vec.serialize_float32([9.0, 9.0, 9.0])


def allowed(connection: nearlite.Connection) -> None:
    connection.enable_load_extension(True)
    sqlite_vec.load(connection)
    connection.enable_load_extension(False)


def test_vectors_are_found_on_a_local_file(tmp_path: Path) -> None:
    with closing(nearlite.connect(tmp_path / "v.db")) as db:
        allowed(db)
        db.execute("CREATE VIRTUAL TABLE v USING vec0(e float[3])")
        db.executemany("INSERT INTO v(rowid, e) VALUES (?, ?)", [(1, FAR), (2, NEAR)])
        db.commit()
        nearest = "SELECT rowid FROM v WHERE e MATCH ? ORDER BY distance LIMIT 1"
        assert db.execute(nearest, (NEAR,)).fetchall() == [(2,)]


def test_a_library_is_loaded_only_where_that_was_allowed() -> None:
    path = sqlite_vec.loadable_path()
    with closing(nearlite.connect(":memory:")) as db:
        for _ in range(2):
            with pytest.raises(errors.OperationalError, match="not authorized"):
                db.load_extension(path)
            with pytest.raises(errors.OperationalError, match="not authorized"):
                db.execute("SELECT load_extension(?)", (path,))
            allowed(db)
        with pytest.raises(errors.OperationalError, match="no such function"):
            nearlite.connect(":memory:").execute("SELECT vec_version()")


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library")
    with closing(nearlite.connect(":memory:")) as db:
        db.enable_load_extension(True)
        with pytest.raises(
            errors.OperationalError, match=r"invalid ELF header|cannot open|too short"
        ):
            db.load_extension(str(tmp_path / "text.so"))
        with pytest.raises(errors.OperationalError, match="nowhere"):
            db.load_extension(str(tmp_path / "nowhere"))
        with pytest.raises(errors.OperationalError, match="no_such_function"):
            db.load_extension(sqlite_vec.loadable_path(), entrypoint="no_such_function")
        with pytest.raises(ValueError, match="null"):
            db.load_extension("a\0b")
    with pytest.raises(errors.ProgrammingError, match="closed"):
        db.load_extension("x")


def test_on_a_replica_an_extension_serves_what_runs_here(tmp_path: Path) -> None:
    with primary(tmp_path) as served:
        replica = served.replica(isolation_level=None)
        replica.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, e BLOB)")
        replica.executemany("INSERT INTO t(e) VALUES (?)", [(FAR,), (NEAR,)])
        nearest = "SELECT id FROM t ORDER BY vec_distance_l2(e, ?) LIMIT 1"
        with pytest.raises(errors.OperationalError, match="no such function"):
            replica.execute(nearest, (NEAR,))
        allowed(replica)
        assert replica.execute(nearest, (NEAR,)).fetchall() == [(2,)]
        with pytest.raises(errors.OperationalError, match="no such module: vec0"):
            replica.execute("CREATE VIRTUAL TABLE v USING vec0(e float[3])")


def test_nobody_loads_a_library_into_a_server(tmp_path: Path) -> None:
    path = sqlite_vec.loadable_path()
    with primary(tmp_path) as served:
        remote = served.remote()
        with pytest.raises(errors.Error, match=r"not authorized|unsupported|no such function"):
            remote.execute("SELECT load_extension(?)", (path,))
        with pytest.raises(errors.NotSupportedError, match="no database in this process"):
            remote.enable_load_extension(True)
