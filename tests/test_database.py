"""One connection and its statements, below the DB-API: rows, flags, batches, failures."""

from __future__ import annotations

import gc
import queue
import sqlite3
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nearlite import errors
from nearlite._native import database as native
from nearlite._native.database import Database

pack = msgspec.msgpack.encode


@pytest.fixture
def db():
    database = Database(":memory:")
    yield database
    database.close()


def rows(statement, *params):
    found = statement.run(pack(params))
    while statement.more:
        found += statement.fetch()
    return found


values = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
)


@given(st.lists(values, max_size=20))
def test_values_come_back_as_they_went_in(given_values):
    database = Database(":memory:")
    marks = ",".join("?" * len(given_values)) or "null"
    got = rows(database.prepare(f"select {marks}"), *given_values)
    assert got == [tuple(given_values) or (None,)]
    assert [type(v) for v in got[0][: len(given_values)]] == [type(v) for v in given_values]


@pytest.mark.parametrize("size", [0, 31, 32, 255, 256, 4000, 4096, 5000, 65535, 65536, 1_000_000])
def test_text_and_blobs_of_every_length_class(db, size):
    text, blob = "x" * size, b"\xff" * size
    assert rows(db.prepare("select ?, ?, 7"), text, blob) == [(text, blob, 7)]


def test_nul_bytes_stay_in_text(db):
    assert rows(db.prepare("select ?, 'a' || char(0) || 'b'"), "x\0y") == [("x\0y", "a\0b")]


def test_a_large_result_comes_in_batches_and_completely(db):
    statement = db.prepare(
        "with recursive n(i) as (select 1 union all select i+1 from n where i<20000) select i, i*2 from n"
    )
    first = statement.run(pack(()))
    assert statement.more
    assert len(first) < 1000
    rest = []
    while statement.more:
        rest += statement.fetch()
    assert first + rest == [(i, i * 2) for i in range(1, 20001)]


def test_a_statement_is_reusable_after_a_large_result(db):
    statement = db.prepare("select ?")
    assert rows(statement, "x" * 100_000) == [("x" * 100_000,)]
    assert rows(statement, "y") == [("y",)]
    assert rows(statement, "z" * 5_000) == [("z" * 5_000,)]


def test_rows_before_a_failure_are_delivered_first(db):
    db.exec("create table t(a); insert into t values (1), (2), (-9223372036854775808)")
    statement = db.prepare("select abs(a) from t")
    assert statement.run(pack(())) == [(1,), (2,)]
    assert statement.more
    with pytest.raises(errors.OperationalError, match="integer overflow"):
        statement.fetch()
    assert statement.fetch() == []


def test_text_that_is_not_utf8_is_reported_as_the_standard_library_does(db):
    sql = "select 'good' as c union all select cast(x'61ff62' as text)"
    with pytest.raises(sqlite3.OperationalError) as expected:
        sqlite3.connect(":memory:").execute(sql).fetchall()
    statement = db.prepare(sql)
    assert statement.run(pack(())) == [("good",)]
    with pytest.raises(errors.OperationalError) as got:
        statement.fetch()
    assert str(got.value) == str(expected.value)


def test_text_can_arrive_as_bytes_or_marked(db):
    statement = db.prepare("select 'abc', x'01', 2")
    statement.set_text(native.TEXT_BYTES)
    assert statement.run(pack(())) == [(b"abc", b"\x01", 2)]
    statement.set_text(native.TEXT_EXT)
    assert statement.run(pack(())) == [(msgspec.msgpack.Ext(1, b"abc"), b"\x01", 2)]


def test_the_number_of_parameters_is_checked(db):
    statement = db.prepare("select ?, ?")
    with pytest.raises(errors.ProgrammingError, match="uses 2, and there are 1 supplied"):
        statement.run(pack((1,)))


def test_integers_beyond_64_bits_are_refused(db):
    with pytest.raises(OverflowError, match="too large"):
        db.prepare("select ?").run(pack((2**63,)))


@pytest.mark.parametrize(
    "data",
    [b"", b"\x91", b"\x91\xc1", b"\x91\xd9\x05abc", b"\x91\xda\x00", b"\x91\xdb\xff\xff\xff\xff",
     b"\x91\x81\x01\x02", b"\x91\xcf\x00", b"\xdd\x00", b"\x01", b"\x91\xc6\xff\xff\xff\xffx"],
)  # fmt: skip
def test_malformed_parameters_are_an_error(db, data):
    with pytest.raises(errors.ProgrammingError):
        db.prepare("select ?").run(data)


@given(st.binary(max_size=40))
def test_arbitrary_parameters_bind_or_fail(data):
    database = Database(":memory:")
    for sql in ("select ?", "select ?, ?, ?"):
        try:
            database.prepare(sql).run(data)
        except (errors.ProgrammingError, OverflowError):
            pass


W, T, A, S = native.WRITES_MAIN, native.WRITES_TEMP, native.WRITES_ATTACHED, native.SCHEMA


@pytest.mark.parametrize(
    ("sql", "has", "lacks"),
    [
        ("select * from t", native.READONLY | native.MAIN | native.ROWS, W | T | A),
        ("select 1", native.READONLY | native.ROWS, native.MAIN | native.TEMP),
        ("select count(*) from sqlite_master", native.MAIN, native.TEMP),
        ("select count(*) from sqlite_schema", native.MAIN, native.TEMP),
        ("select count(*) from sqlite_temp_master", native.TEMP, native.MAIN),
        ("select count(*) from temp.sqlite_master", native.TEMP, native.MAIN),
        ("select count(*) from other.sqlite_master", native.ATTACHED, native.MAIN | native.TEMP),
        ("select count(*) from t", native.MAIN, native.TEMP),
        ("select count(*) from tt", native.TEMP, native.MAIN),
        ("insert into t values(1)", W | native.DML, native.READONLY | native.ROWS | S),
        ("insert into t values(1) returning a", W | native.ROWS, native.READONLY),
        ("with x as (select 1) insert into t select * from x", W, native.DML),
        (" -- c\n/* d */ replace into t values(1)", W | native.DML, native.READONLY),
        ("delete from tt", T | native.TEMP, W | A),
        ("select * from tt", native.READONLY | native.TEMP, T),
        ("update other.o set a = 1", A | native.ATTACHED, W | T),
        ("insert into tt select * from t", T | native.MAIN, W),
        ("create table n(a)", W | S, T),
        ("create temp table n(a)", T | S, W),
        ("alter table t add column z", W | S, T),
        ("alter table tt add column z", T | S, W),
        ("alter table t rename to u", W | S, T | native.TEMP),
        ("alter table t rename column a to c", W | S, T | native.TEMP),
        ("alter table t2 drop column b", W | S, T | native.TEMP),
        ("alter table tt rename to u", T | S, W),
        ("drop table other.o", A | S, W),
        ("create index i on t(a)", W | S, T),
        ("begin", native.TRANSACTION, native.COMMIT | native.SAVEPOINT | W),
        ("end", native.TRANSACTION | native.COMMIT, native.ROLLBACK),
        ("rollback", native.TRANSACTION | native.ROLLBACK, native.COMMIT),
        ("savepoint s", native.SAVEPOINT, native.TRANSACTION),
        ("pragma user_version", native.PRAGMA, W),
        ("attach ':memory:' as x", native.ATTACH, W),
        ("detach other", native.ATTACH, W),
        ("explain insert into t values(1)", native.EXPLAIN | native.ROWS, 0),
        (" -- nothing", native.EMPTY | native.READONLY, W),
        ("insert into v values(1)", W, T),
        ("vacuum", 0, native.READONLY),
    ],
)
def test_flags_say_what_a_statement_does(db, sql, has, lacks):
    db.exec(
        "create table t(a); create table t2(a, b); create temp table tt(a);"
        "attach ':memory:' as other;"
        "create table other.o(a); create view v as select a from t;"
        "create trigger vi instead of insert on v begin insert into t values(new.a); end"
    )
    flags = db.prepare(sql).flags
    assert flags & has == has
    assert flags & lacks == 0


def test_the_tail_begins_after_blanks_and_comments(db):
    sql = "select 1; -- é\n select 2"
    statement = db.prepare(sql)
    assert sql.encode()[statement.tail :] == b"select 2"
    assert db.prepare("select 1; /* end */ ").tail == len("select 1; /* end */ ")


def test_many_runs_once_per_set_and_counts(db):
    db.exec("create table t(a unique, b)")
    statement = db.prepare("insert into t values(?, ?)")
    statement.many(pack([(i, "x") for i in range(1000)]), native.NO_BEGIN)
    assert (db.done, db.changes) == (1000, 1000)
    with pytest.raises(errors.IntegrityError):
        statement.many(pack([(5000, "x"), (3, "x"), (6000, "x")]), native.NO_BEGIN)
    assert db.done == 1
    assert rows(db.prepare("select count(*), max(a) from t")) == [(1001, 5000)]


def test_a_transaction_begins_only_before_dml(db):
    db.exec("create table t(a)")
    db.set_begin(native.BEGIN["IMMEDIATE"])
    db.prepare("select 1").run(pack(()))
    assert not db.in_transaction
    db.prepare("insert into t values(1)").run(pack(()))
    assert db.in_transaction


def test_columns_follow_a_schema_change(db):
    db.exec("create table t(a); insert into t values(1)")
    statement = db.prepare("select * from t")
    assert rows(statement) == [(1,)]
    assert statement.columns == ("a",)
    db.exec("alter table t add column b default 5")
    assert rows(statement) == [(1, 5)]
    assert statement.columns == ("a", "b")


def test_long_messages_are_whole(db):
    name = "n" * 400
    with pytest.raises(errors.OperationalError, match=f"no such table: {name}"):
        db.prepare(f"select * from {name}")


def test_a_closed_database_refuses(db):
    statement = db.prepare("select 1")
    db.close()
    db.close()
    with pytest.raises(errors.ProgrammingError, match="closed database"):
        statement.run(pack(()))
    with pytest.raises(errors.ProgrammingError, match="closed database"):
        db.prepare("select 1")


def test_closing_with_a_half_read_statement_releases_the_file(tmp_path):
    path = tmp_path / "x.db"
    database = Database(str(path))
    database.exec("pragma journal_mode=wal; create table t(a)")
    statement = database.prepare(
        "with recursive n(i) as (select 1 union all select i+1 from n limit 9999) select i from n, t"
        " union all select i from (with recursive n(i) as (select 1 union all select i+1 from n limit"
        " 9999) select i from n)"
    )
    statement.run(pack(()))
    assert (tmp_path / "x.db-wal").exists()
    database.close()
    assert not (tmp_path / "x.db-wal").exists()


def test_statements_and_databases_may_die_in_any_order():
    for _ in range(20):
        database = Database(":memory:")
        statements = [database.prepare("select 1") for _ in range(5)]
        loop = [database, statements]
        loop.append(loop)
        del database, statements, loop
    gc.collect()


def test_a_statement_may_be_freed_by_a_thread_while_another_is_inside(db):
    slow = db.prepare(
        "with recursive n(i) as (select 1 union all select i+1 from n where i<300000) select count(*) from n"
    )
    doomed = [db.prepare(f"select {i}") for i in range(200)]
    started = threading.Event()

    def work():
        started.set()
        assert rows(slow) == [(300000,)]

    thread = threading.Thread(target=work)
    thread.start()
    started.wait()
    doomed.clear()
    thread.join()
    assert rows(db.prepare("select 1")) == [(1,)]


def test_a_call_is_not_refused_because_a_statement_is_being_freed(db):
    """The garbage collector frees on whatever thread it happens to run."""
    given, done = queue.SimpleQueue(), threading.Event()

    def free():
        while given.get() is not None:
            pass
        done.set()

    thread = threading.Thread(target=free)
    thread.start()
    one = db.prepare("select 1")
    for number in range(20_000):
        given.put(db.prepare("select 2"))
        assert rows(one) == [(1,)], number
    given.put(None)
    thread.join()


def test_a_second_thread_is_refused_not_obeyed(db):
    endless = db.prepare(
        "with recursive n(i) as (select 1 union all select i from n) select max(i) from n"
    )
    failures = []

    def work():
        while not failures:
            try:
                endless.run(pack(()))
            except errors.ProgrammingError:
                pass  # the other thread was inside: this is the second one then
            except errors.OperationalError as error:
                failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    refused = 0
    while not refused:
        try:
            db.prepare("select 1")
        except errors.ProgrammingError:
            refused += 1
    while thread.is_alive():
        db.interrupt()
        thread.join(0.01)
    assert [error.sqlite_errorname for error in failures] == ["SQLITE_INTERRUPT"]


def test_a_budget_stops_a_statement(db):
    db.set_budget(10_000)
    endless = db.prepare(
        "with recursive n(i) as (select 1 union all select i from n) select max(i) from n"
    )
    with pytest.raises(errors.OperationalError):
        endless.run(pack(()))
    assert db.over_budget
    assert rows(db.prepare("select 1")) == [(1,)]
    assert not db.over_budget


def test_waiting_for_a_lock_ends_at_the_timeout_and_at_interrupt(tmp_path):
    path = str(tmp_path / "x.db")
    holder = Database(path)
    holder.exec("create table t(a); begin exclusive")
    with pytest.raises(errors.OperationalError, match="locked") as caught:
        Database(path, busy_ms=20).prepare("select * from t")
    assert caught.value.sqlite_errorname == "SQLITE_BUSY"
    waiting = Database(path, busy_ms=-1)
    timer = threading.Timer(0.02, waiting.interrupt)
    timer.start()
    with pytest.raises(errors.OperationalError):
        waiting.exec("insert into t values(1)")
    timer.join()
    holder.close()
