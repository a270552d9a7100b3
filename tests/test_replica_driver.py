"""What the driver offers beside statements, on replicas: values in place, copies, the trace, limits, switches."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from primaries import Served, primary

import nearlite
from nearlite import errors
from nearlite.dbapi import constants


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with primary(tmp_path) as made:
        with closing(made.replica()) as first:
            first.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, b, CHECK (b IS NOT x'00'))")
            first.execute("INSERT INTO t(b) VALUES (?)", (b"0123456789",))
            first.commit()
        yield made


# ---------------------------------------------------------------- values in place


def test_a_piece_that_is_written_is_there_for_everybody(served: Served) -> None:
    replica, other = served.replica(), served.replica()
    with replica.blobopen("t", "b", 1) as blob:
        blob.write(b"abc")
        assert not replica.in_transaction
        other.sync()
        assert other.execute("SELECT b FROM t").fetchone() == (b"abc3456789",)
        assert replica.execute("SELECT b FROM t").fetchone() == (b"abc3456789",)


def test_pieces_inside_a_transaction_are_part_of_it(served: Served) -> None:
    replica = served.replica(isolation_level=None)
    replica.execute("BEGIN")
    with replica.blobopen("t", "b", 1) as blob:
        blob.write(b"xx")
        assert replica.in_transaction
        assert blob.read(2) == b"23"
        replica.execute("ROLLBACK")
        blob.seek(0)
        assert blob.read() == b"0123456789"


def test_a_value_that_others_changed_is_not_taken_for_the_same(served: Served) -> None:
    replica, other = served.replica(), served.replica()
    with replica.blobopen("t", "b", 1) as blob:
        other.execute("UPDATE t SET b = x'0102'")
        other.commit()
        with pytest.raises(errors.OperationalError, match="changed or deleted") as caught:
            blob.write(b"a")
        assert caught.value.sqlite_errorname == "SQLITE_ABORT"
        assert (len(blob), blob.read()) == (0, b"")
    replica.sync()
    assert replica.execute("SELECT b FROM t").fetchone() == (b"\x01\x02",)


def test_an_update_of_a_piece_has_the_checks_of_an_update(served: Served) -> None:
    replica = served.replica()
    replica.execute("UPDATE t SET b = x'01'")
    replica.commit()
    with replica.blobopen("t", "b", 1) as blob:
        with pytest.raises(errors.IntegrityError, match="CHECK"):
            blob.write(b"\0")
        assert blob.read() == b"\x01"


def test_an_open_value_does_not_hold_on_to_an_old_state(served: Served) -> None:
    """Rule B8: what is half read would keep the connection on its old snapshot."""
    replica, other = served.replica(), served.replica()
    blob = replica.blobopen("t", "b", 1, readonly=True)
    assert blob.read(1) == b"0"
    other.execute("INSERT INTO t(b) VALUES ('new')")
    other.commit()
    replica.sync()
    assert replica.execute("SELECT count(*) FROM t").fetchone() == (2,)
    assert blob.read(1) == b"1"
    blob.close()


def test_values_of_temp_tables_and_attached_files_are_written_here(
    served: Served, tmp_path: Path
) -> None:
    replica = served.replica(isolation_level=None)
    replica.attach(tmp_path / "other.db", "other")
    for name in ("temp", "other"):
        replica.execute(f"CREATE TABLE {name}.own(b)")
        replica.execute(f"INSERT INTO {name}.own VALUES (x'0000')")
        served.seen.clear()
        with replica.blobopen("own", "b", 1, name=name) as blob:
            blob.write(b"ab")
        assert replica.execute(f"SELECT b FROM {name}.own").fetchone() == (b"ab",)
        assert not served.seen


@settings(max_examples=15)
@given(st.data())
def test_pieces_come_out_as_those_of_a_bytearray(shared: Any, data: Any) -> None:
    content = data.draw(st.binary(min_size=1, max_size=40))
    model = bytearray(content)
    shared.execute("DELETE FROM t")
    shared.execute("INSERT INTO t VALUES (1, ?)", (content,))
    with shared.blobopen("t", "b", 1) as blob:
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(model)))
            piece = data.draw(st.binary(max_size=len(model) - at))
            blob.seek(at)
            blob.write(piece)
            model[at : at + len(piece)] = piece
            assert blob[:] == bytes(model)
            shared.execute("INSERT INTO t(b) VALUES (0)")
    assert shared.execute("SELECT b FROM t WHERE id = 1").fetchone() == (bytes(model),)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with primary(tmp_path_factory.mktemp("shared")) as made:
        replica = made.replica(isolation_level=None)
        replica.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, b)")
        yield replica


# ---------------------------------------------------------------- copies


def test_a_replica_is_copied_while_it_is_written_to(served: Served, tmp_path: Path) -> None:
    replica, other = served.replica(), served.replica()
    replica.executemany("INSERT INTO t(b) VALUES (?)", [(random.randbytes(900),)] * 200)
    replica.commit()
    steps: list[int] = []

    def progress(_status: int, left: int, _total: int) -> None:
        if not steps:
            other.execute("INSERT INTO t(b) VALUES ('while')")
            other.commit()
            replica.sync()
        steps.append(left)

    with closing(nearlite.connect(tmp_path / "copy.db")) as copy:
        replica.backup(copy, pages=10, progress=progress)
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert copy.execute("SELECT count(*) FROM t").fetchone() == (201,)  # of one state
        copy.execute("INSERT INTO t(b) VALUES ('of its own')")
        copy.commit()
        with pytest.raises(errors.NotSupportedError, match="a replica is what its primary is"):
            copy.backup(replica)
    assert len(steps) > 4


def test_the_bytes_of_a_replica_are_those_of_a_database_that_may_be_written_to(
    served: Served,
) -> None:
    replica = served.replica()
    with closing(nearlite.connect(":memory:")) as local:
        local.deserialize(replica.serialize())
        local.execute("INSERT INTO t(b) VALUES (1)")
        assert local.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert local.execute("SELECT count(*) FROM t").fetchone() == (2,)
        with pytest.raises(errors.NotSupportedError, match="open the bytes elsewhere"):
            replica.deserialize(local.serialize())


# ---------------------------------------------------------------- the trace


def test_the_trace_hears_of_what_is_sent_as_of_what_runs_here(served: Served) -> None:
    told: dict[str, list[str]] = {}
    with closing(nearlite.connect(":memory:")) as local:
        local.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, b)")
        for name, con in (("local", local), ("replica", served.replica())):
            con.set_trace_callback(told.setdefault(name, []).append)
            con.execute("DELETE FROM t")
            con.execute("INSERT INTO t VALUES (?, :b)", (1, "it's"))
            con.execute("SELECT * FROM t WHERE id = ?", (1,)).fetchall()
            con.commit()
            con.executemany("INSERT INTO t(b) VALUES (?)", [(b"\x01",), (None,)])
            con.rollback()
            con.executescript("CREATE TABLE u(a); INSERT INTO u VALUES (1); SELECT * FROM u;")
            con.execute("BEGIN IMMEDIATE")
            con.execute("COMMIT")
            con.set_trace_callback(None)
            con.execute("DELETE FROM t")
            con.commit()
    assert told["replica"] == told["local"]


def test_a_trace_that_fails_or_interrupts(served: Served) -> None:
    replica = served.replica()

    def fails(_text: str) -> None:
        raise ValueError

    replica.set_trace_callback(fails)
    replica.execute("INSERT INTO t(b) VALUES (1)")
    replica.commit()

    def interrupts(_text: str) -> None:
        raise KeyboardInterrupt

    replica.set_trace_callback(interrupts)
    with pytest.raises(KeyboardInterrupt):
        replica.execute("INSERT INTO t(b) VALUES (2)")
    replica.set_trace_callback(None)
    replica.rollback()
    assert replica.execute("SELECT count(*) FROM t").fetchone() == (2,)


def test_a_text_that_compiles_only_there_is_told_as_it_is(served: Served) -> None:
    replica, other = served.replica(), served.replica("other.db")
    other.execute("CREATE TABLE late(a)")
    other.commit()
    told: list[str] = []
    replica.set_trace_callback(told.append)
    replica.execute("INSERT INTO late VALUES (?)", (1,))
    replica.set_trace_callback(None)
    assert told == ["BEGIN ", "INSERT INTO late VALUES (?)"]
    replica.rollback()


# ---------------------------------------------------------------- limits and switches


def test_limits_of_the_connection_hold_for_what_would_be_sent(served: Served) -> None:
    replica = served.replica()
    served.seen.clear()
    replica.setlimit(constants.SQLITE_LIMIT_VARIABLE_NUMBER, 1)
    with pytest.raises(errors.OperationalError, match="too many SQL variables"):
        replica.execute("INSERT INTO t VALUES (?, ?)", (5, 6))
    replica.setlimit(constants.SQLITE_LIMIT_SQL_LENGTH, 60)
    long = "INSERT INTO t(b) VALUES ('" + "x" * 60 + "')"
    for call in (replica.execute, replica.executescript):
        with pytest.raises(errors.DataError, match="query string is too large"):
            call(long)
    with pytest.raises(errors.DataError, match="query string is too large"):
        replica.executemany(long, [()])
    assert not served.seen


def test_foreign_keys_by_switch_hold_where_writes_run(served: Served) -> None:
    replica = served.replica(isolation_level=None)
    replica.execute("CREATE TABLE child(a REFERENCES t(id))")
    replica.execute("INSERT INTO child VALUES (77)")
    replica.setconfig(constants.SQLITE_DBCONFIG_ENABLE_FKEY)
    assert replica.getconfig(constants.SQLITE_DBCONFIG_ENABLE_FKEY)
    with pytest.raises(errors.IntegrityError, match="FOREIGN KEY"):
        replica.execute("INSERT INTO child VALUES (78)")
    replica.execute("BEGIN")
    with pytest.raises(errors.ProgrammingError, match="inside a transaction"):
        replica.setconfig(constants.SQLITE_DBCONFIG_ENABLE_FKEY, False)
    replica.execute("ROLLBACK")
    replica.setconfig(constants.SQLITE_DBCONFIG_ENABLE_FKEY, False)
    replica.execute("INSERT INTO child VALUES (79)")
    with pytest.raises(errors.NotSupportedError, match="triggers"):
        replica.setconfig(constants.SQLITE_DBCONFIG_ENABLE_TRIGGER, False)


# ---------------------------------------------------------------- without a file


def test_what_needs_a_file_says_so_without_one(served: Served) -> None:
    remote = served.remote()
    with closing(nearlite.connect(":memory:")) as local:
        for call in (
            remote.serialize,
            lambda: remote.backup(local),
            lambda: remote.getconfig(constants.SQLITE_DBCONFIG_ENABLE_FKEY),
            lambda: remote.attach("x.db", "x"),
            lambda: remote.blobopen("t", "b", 1, name="temp"),
        ):
            with pytest.raises(errors.NotSupportedError, match="no database in this process"):
                call()
    with remote.blobopen("t", "b", 1) as blob:
        blob.write(b"over there")
        assert blob[:] == b"over there"
    remote.execute("INSERT INTO t(b) VALUES (1)")
    remote.rollback()


def test_open_values_and_connections_end_in_any_order(served: Served) -> None:
    replica = served.replica()
    blob = replica.blobopen("t", "b", 1)
    replica.close()
    with pytest.raises(errors.ProgrammingError, match="closed database"):
        blob.read()
    del blob, replica
    gc.collect()
    replica = served.replica()
    blob = replica.blobopen("t", "b", 1)
    failed: list[BaseException] = []

    def elsewhere() -> None:
        try:
            blob.read()
        except errors.ProgrammingError as error:
            failed.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert len(failed) == 1
    blob.close()
