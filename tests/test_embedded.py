"""An embedded replica's connection: what runs here, what runs there, and who sees it when."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from primaries import primary
from sealing import reader
from stock import Stock

import nearlite
from nearlite import ProgrammingError, SyncError

EITHER = True

SQL, PIPELINE = "/nl/v1/sql", "/v3/pipeline"


@pytest.fixture
def served(tmp_path):
    with primary(tmp_path) as found:
        setup = found.remote(isolation_level=None)
        setup.executescript(
            "create table t(a integer primary key, b); insert into t values(1, 'one'), (2, 'two')"
        )
        found.seen.clear()
        yield found


def rows(con, sql, *params):
    return con.execute(sql, params).fetchall()


def test_reads_need_no_request(served):
    con = served.replica()
    served.seen.clear()
    for _ in range(3):
        assert rows(con, "select b from t order by a") == [("one",), ("two",)]
        assert rows(con, "select b from t where a = ?", 2) == [("two",)]
    assert rows(con, "pragma table_info(t)")[0][1] == "a"
    assert served.seen == []


def test_an_autocommit_write_is_one_request_and_visible_to_everybody(served, tmp_path):
    con = served.replica(isolation_level=None)
    other = served.replica()
    served.seen.clear()
    cursor = con.execute("insert into t(b) values('three')")
    assert (cursor.lastrowid, cursor.rowcount) == (3, 1)
    assert served.seen == [SQL]
    assert rows(con, "select count(*) from t") == [(3,)]
    assert rows(other, "select count(*) from t") == [(3,)]
    with Stock(tmp_path / "replica.db") as stock:
        assert stock.execute("select count(*) from t") == [[3]]


def test_a_transaction_of_one_write_is_two_requests(served):
    con = served.replica()
    served.seen.clear()
    cursor = con.execute("insert into t(b) values('three')")
    assert (cursor.lastrowid, cursor.rowcount, con.in_transaction) == (3, 1, True)
    con.commit()
    assert len(served.seen) == 2
    assert served.seen[-1] == SQL
    assert rows(con, "select count(*) from t") == [(3,)]


def test_a_transaction_sees_its_own_writes_and_nobody_else_does(served):
    con, other = served.replica(), served.replica()
    con.execute("update t set b = 'changed'")
    assert rows(con, "select distinct b from t") == [("changed",)]
    assert rows(con, "select count(*) from t where b = 'changed'") == [(2,)]
    assert rows(other, "select count(*) from t where b = 'changed'") == [(0,)]
    con.rollback()
    assert rows(con, "select count(*) from t where b = 'changed'") == [(0,)]


def test_executemany_is_one_request_in_autocommit(served):
    con = served.replica(isolation_level=None)
    served.seen.clear()
    assert con.executemany("insert into t(b) values(?)", [(i,) for i in range(500)]).rowcount == 500
    assert served.seen == [SQL]
    assert rows(con, "select count(*) from t") == [(502,)]


def test_a_script_is_one_request(served):
    con = served.replica()
    served.seen.clear()
    con.executescript(
        "create table u(a); insert into u values(1); insert into u values(2); select * from u;"
    )
    assert served.seen == [SQL]
    assert rows(con, "select count(*) from u") == [(2,)]


def test_reads_in_a_script_do_not_cut_it(served):
    con = served.replica()
    served.seen.clear()
    con.executescript(
        """
        create table u(a); -- not here yet; nor is what reads it
        select * from u; select 1; pragma table_info(t); pragma integrity_check; explain select * from t;
        begin; insert into u values('a;b'); select b from t; commit;
        create trigger g after insert on u begin insert into t(b) values(new.a); select 1; end;
        insert into u values(2);
        """
    )
    assert served.seen == [SQL]
    assert rows(con, "select a from u") == [("a;b",), (2,)]
    assert rows(con, "select count(*) from t") == [(3,)]


def test_a_script_that_only_reads_needs_no_request(served):
    con = served.replica()
    served.seen.clear()
    con.executescript("select * from t; pragma table_list; -- nothing more")
    assert served.seen == []
    with pytest.raises(nearlite.OperationalError, match="integer overflow"):
        con.executescript("select 1; select abs(-9223372036854775808) from t; select 2")


def test_only_what_has_to_run_here_cuts_a_script(served):
    con = served.replica()
    served.seen.clear()
    con.executescript(
        """
        pragma foreign_keys = on;
        insert into t(b) values('three'); select * from t; insert into t(b) values('four');
        create temp table mine(a); insert into mine select a from t;
        insert into t(b) values('five'); select * from t;
        """
    )
    assert served.seen == [SQL, SQL]
    assert rows(con, "select count(*) from mine") == [(4,)]
    assert rows(con, "select count(*) from t") == [(5,)]


def test_a_transaction_in_a_script_holds_here_and_there(served):
    con = served.replica(isolation_level=None)
    con.executescript(
        """
        create temp table mine(a);
        begin; insert into t(b) values('undone'); insert into mine values(1); rollback;
        begin; insert into mine values(2); insert into t(b) values('kept'); commit;
        """
    )
    assert not con.in_transaction
    assert rows(con, "select a from mine") == [(2,)]
    assert rows(con, "select b from t where a > 2") == [("kept",)]


def test_a_script_that_is_refused_runs_up_to_there(served):
    con = served.replica(isolation_level=None)
    con.execute("create temp table mine(a)")
    with pytest.raises(nearlite.NotSupportedError, match="nothing was executed"):
        con.executescript(
            "insert into t(b) values(3); insert into t(b) select a from mine; insert into t(b) values(4)"
        )
    assert rows(con, "select count(*) from t") == [(3,)]


def test_a_script_larger_than_one_request_travels_in_parts(served):
    con = served.replica(isolation_level=None)
    served.seen.clear()
    text = "x" * 1_000_000
    con.executescript("begin;" + f"insert into t(b) values('{text}');" * 20 + "commit;")
    assert 2 <= len(served.seen) <= 4
    assert rows(con, "select count(*), sum(length(b)) from t where a > 2") == [(20, 20_000_000)]


def test_large_executemany_travels_in_pieces_inside_one_transaction(served):
    con = served.replica(isolation_level=None)
    served.seen.clear()
    blob = bytes(1 << 20)
    con.executemany("insert into t(b) values(?)", [(blob,)] * 20)
    assert 2 <= len(served.seen) <= 4
    assert rows(con, "select count(*), sum(length(b)) from t where typeof(b) = 'blob'") == [
        (20, 20 << 20)
    ]


def test_a_transaction_that_read_an_older_state_cannot_write(served):
    con, other = served.replica(isolation_level=None), served.remote(isolation_level=None)
    con.execute("begin")
    assert rows(con, "select b from t where a = 1") == [("one",)]
    other.execute("update t set b = 'theirs' where a = 1")
    for _ in range(2):
        with pytest.raises(nearlite.OperationalError, match="database is locked") as caught:
            con.execute("update t set b = b || '+' where a = 1")
        assert caught.value.sqlite_errorname == "SQLITE_BUSY_SNAPSHOT"
        assert con.in_transaction
        assert rows(con, "select b from t where a = 1") == [("one",)]  # its snapshot, as in SQLite
    con.rollback()
    con.execute("begin")
    assert rows(con, "select b from t where a = 1") == [("theirs",)]
    con.execute("update t set b = b || '+' where a = 1")
    con.commit()
    assert rows(other, "select b from t where a = 1") == [("theirs+",)]


@pytest.mark.parametrize("how", ["executemany", "executescript", "unknown table", "savepoint"])
def test_every_way_to_write_after_reading_is_checked(served, how):
    con = served.replica(isolation_level=None)
    con.execute("savepoint s" if how == "savepoint" else "begin")
    rows(con, "select * from t")
    served.remote(isolation_level=None).executescript("create table fresh(a); delete from t")
    with pytest.raises(nearlite.OperationalError) as caught:
        if how == "executemany":
            con.executemany("insert into t(b) values(?)", [("x",), ("y",)])
        elif how == "executescript":
            con.autocommit = False
            rows(con, "select * from t")
            served.remote(isolation_level=None).execute("insert into fresh values(0)")
            con.executescript("insert into t(b) values(1); insert into t(b) values(2)")
        elif how == "unknown table":
            con.execute("insert into fresh values(1)")
        else:
            con.execute("insert into t(b) values(1)")
    assert caught.value.sqlite_errorname == "SQLITE_BUSY_SNAPSHOT"
    con.rollback() if how != "savepoint" else con.execute("rollback")
    assert rows(con, "select count(*) from t") == [(0,)]


def test_a_transaction_that_has_read_nothing_writes_to_the_newest_state(served, tmp_path):
    con, other = served.replica(isolation_level=None), served.remote(isolation_level=None)
    con.execute("create temp table mine(a)")
    con.execute("begin")
    rows(con, "select * from mine")
    rows(con, "select 1")
    other.execute("update t set b = 'theirs' where a = 1")
    con.execute("update t set b = b || '+' where a = 1")
    con.execute("commit")
    assert rows(con, "select b from t where a = 1") == [("theirs+",)]


def test_a_roll_of_the_log_is_no_change(tmp_path):
    with primary(tmp_path) as served:
        served.remote(isolation_level=None).executescript(
            "create table t(a); insert into t values(1)"
        )
        con = served.replica(isolation_level=None)
        con.execute("begin")
        assert rows(con, "select a from t") == [(1,)]
        before = con.position
        assert served.app._served.roll()
        con.execute("update t set a = a + 1")
        con.execute("commit")
        assert con.position.generation > before.generation
        assert rows(con, "select a from t") == [(2,)]


def test_increments_of_two_replicas_are_all_kept(served, tmp_path):
    """Read, compute, write: each in a process of its own, again after SQLITE_BUSY_SNAPSHOT."""
    program = """
import sys, nearlite
con = nearlite.connect(sys.argv[1], sync_url=sys.argv[2], isolation_level=None)
again = done = 0
while done < 40:
    con.execute("begin")
    try:
        (n,) = con.execute("select b from t where a = 100").fetchone()
        con.execute("update t set b = ? where a = 100", (n + 1,))
        con.execute("commit")
        done += 1
    except nearlite.OperationalError as error:
        assert error.sqlite_errorname == "SQLITE_BUSY_SNAPSHOT", error
        again += 1
        con.rollback()
con.close()
print(again)
"""
    served.remote(isolation_level=None).execute("insert into t values(100, 0)")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, tmp_path / f"{n}.db", served.url],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for n in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert rows(served.remote(), "select b from t where a = 100") == [(80,)]


def test_temp_tables_stay_here(served):
    con = served.replica()
    served.seen.clear()
    con.execute("create temp table mine(a)")
    con.execute("insert into mine values(5)")
    con.commit()
    assert rows(con, "select mine.a, t.b from mine, t where t.a = 1") == [(5, "one")]
    assert rows(con, "select count(*) from mine") == [(1,)]
    assert served.seen == []
    assert rows(served.remote(), "select count(*) from sqlite_schema where name = 'mine'") == [(0,)]


def test_a_temp_table_may_shadow_one_of_the_primary(served):
    con = served.replica(isolation_level=None)
    con.execute("insert into t(b) values('there')")
    con.execute("create temp table t(a, b)")
    served.seen.clear()
    con.execute("insert into t(b) values('there')")
    assert served.seen == []
    assert rows(con, "select count(*) from temp.t") == [(1,)]
    con.execute("drop table temp.t")
    con.execute("insert into t(b) values('there')")
    assert served.seen == [SQL]


def test_a_temp_table_and_the_primary_count_together(served):
    con, stock = served.replica(isolation_level=None), sqlite3.connect(":memory:")
    stock.isolation_level = None
    stock.executescript(
        "create table t(a integer primary key, b); insert into t values(1, 1), (2, 2)"
    )
    before = stock.total_changes
    for each in (con, stock):
        each.execute("create temp table mine(a integer primary key, b)")
        each.execute("insert into t(b) values('there')")
        each.execute("insert into mine values(77, last_insert_rowid())")
        each.execute("begin")
        each.execute("insert into t(a, b) values(last_insert_rowid() + 1, changes())")
        each.execute("update mine set b = b + last_insert_rowid() + changes()")
        each.execute("commit")
    for sql in (
        "select * from t where a > 2",
        "select * from mine",
        "select changes(), last_insert_rowid()",
    ):
        assert rows(con, sql) == rows(stock, sql)
    assert con.total_changes == stock.total_changes - before


def test_a_rolled_back_temp_table_shadows_nothing(served):
    con = served.replica(isolation_level=None)
    con.execute("begin")
    con.execute("create temp table t(a, b)")
    con.execute("insert into t(b) values('here')")
    con.execute("rollback")
    con.execute("insert into t(b) values('there')")
    assert rows(con, "select count(*) from t where b = 'there'") == [(1,)]
    con.isolation_level = ""
    con.execute("begin")
    con.execute("create temp table t(a, b)")
    con.execute("insert into t(b) values('here')")
    con.rollback()
    con.execute("insert into t(b) values('there')")
    con.commit()
    assert rows(con, "select count(*) from t where b = 'there'") == [(2,)]


def test_attached_files_stay_here(served, tmp_path):
    con = served.replica(isolation_level=None)
    served.seen.clear()
    con.execute("attach ? as notes", (str(tmp_path / "notes.db"),))
    con.execute("create table notes.n(x)")
    con.execute("insert into notes.n select a from t")
    assert rows(con, "select count(*) from notes.n") == [(2,)]
    assert served.seen == []


def test_temp_and_main_in_one_transaction(served):
    con = served.replica()
    con.execute("create temp table mine(a)")
    con.execute("insert into mine values(1)")
    con.execute("insert into t(b) values('three')")
    assert rows(con, "select * from mine") == [(1,)]
    with pytest.raises(nearlite.NotSupportedError, match="nothing was executed"):
        con.execute("select * from mine, t")
    con.rollback()
    assert rows(con, "select count(*) from mine") == [(0,)]
    assert rows(con, "select count(*) from t") == [(2,)]


def test_a_pragma_in_a_transaction_is_answered_where_its_table_is(served, tmp_path):
    con = served.replica(isolation_level=None)
    con.execute("create temp table mine(here)")
    con.execute("attach ? as notes", (str(tmp_path / "notes.db"),))
    con.execute("create table notes.n(there)")
    con.execute("create table notes.t(shadowed)")

    def columns(table):
        return [row[1] for row in con.execute(f"pragma table_info({table})")]

    con.execute("begin")
    con.execute("alter table t add column c")
    assert columns("mine") == columns("[MINE]") == ["here"]
    assert columns("n") == columns("'n'") == ["there"]
    assert columns("t") == columns('"T"') == ["a", "b", "c"]
    con.execute("rollback")
    assert columns("t") == ["a", "b"]


def test_a_write_that_needs_a_temp_table_is_refused(served):
    con = served.replica()
    con.execute("create temp table mine(a)")
    with pytest.raises(nearlite.NotSupportedError, match="exist only here"):
        con.execute("insert into t(b) select a from mine")
    assert not con.in_transaction


def test_what_does_not_compile_here_is_the_primarys_to_judge(served):
    con = served.replica()
    served.remote(isolation_level=None).execute("create table fresh(a)")
    assert rows(con, "select * from fresh") == []
    con.execute("insert into fresh values(:v)", {"v": 1})
    con.commit()
    assert rows(con, "select a from fresh") == [(1,)]
    with pytest.raises(nearlite.OperationalError, match="no such table: stale"):
        con.execute("select * from stale")


def test_infinity_reaches_the_primary_and_comes_back(served):
    con = served.replica(isolation_level=None)
    for number in (float("inf"), float("-inf")):
        con.execute("insert into t(b) values(?)", (number,))
        found = con.execute("select b, typeof(b) from t order by rowid desc limit 1").fetchone()
        assert found == served.remote().execute("select ?, 'real'", (number,)).fetchone()


def test_sync_brings_what_others_wrote(served):
    con = served.replica()
    served.remote(isolation_level=None).execute("insert into t(b) values('three')")
    assert rows(con, "select count(*) from t") == [(2,)]
    result = con.sync()
    assert result.pages > 0
    assert result.position == con.position
    assert rows(con, "select count(*) from t") == [(3,)]
    assert con.sync().pages == 0
    assert 0 <= con.lag < 30


def test_rows_half_read_do_not_hide_a_write(served):
    con = served.replica(isolation_level=None)
    con.executemany("insert into t(b) values(?)", [(i,) for i in range(5000)])
    cursor = con.execute("select a from t order by a")
    assert cursor.fetchone() == (1,)
    con.execute("delete from t where a > 10")
    assert rows(con, "select count(*) from t") == [(10,)]
    assert len(cursor.fetchall()) == 5001


@pytest.mark.parametrize("factory", [None, nearlite.Row, lambda _cursor, row: list(row)])
def test_a_loop_over_rows_may_write(served, factory):
    con = served.replica(isolation_level=None)
    con.executemany("insert into t(b) values(?)", [(f"text {i}",) for i in range(5000)])
    con.row_factory = factory
    seen = []
    for row in con.execute("select a, b from t order by a"):
        seen.append(tuple(row))
        if len(seen) in (1, 3, 4000):
            con.execute("delete from t where a > 3000")
    assert len(seen) == 5002
    assert seen[-1] == (5002, "text 4999")


def test_rows_read_ahead_are_converted_when_they_are_fetched(served):
    calls = []
    nearlite.register_converter("told", lambda data: calls.append(data) or int(data))
    con = served.replica(isolation_level=None, detect_types=nearlite.PARSE_DECLTYPES)
    con.text_factory = lambda data: "<" + data.decode() + ">"
    con.execute("create table s(n told, w text)")
    con.executemany("insert into s values(?, ?)", [(i, f"w{i}") for i in range(3000)])
    cursor = con.execute("select n, w from s")
    assert cursor.fetchone() == (0, "<w0>")
    con.execute("insert into s values(9, 'new')")
    assert len(calls) == 1
    assert cursor.fetchmany(2) == [(1, "<w1>"), (2, "<w2>")]
    assert cursor.fetchall()[-1] == (2999, "<w2999>")


def temporary_files():
    """Descriptors of files without a name in the folder for temporary files."""
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            file = os.readlink(f"/proc/self/fd/{name}")
            if os.path.dirname(file) == tempfile.gettempdir() and file.endswith(" (deleted)"):
                found.add(f"/proc/self/fd/{name}")
    return found


def test_many_rows_read_ahead_are_kept_in_a_file(served, tmp_path, monkeypatch):
    con = served.replica(isolation_level=None)
    con.execute("with c(i) as (values(1) union all select i + 1 from c where i < 3000) "
                "insert into t(b) select randomblob(10000) from c")  # fmt: skip
    expected = rows(con, "select * from t order by a")
    cursor = con.execute("select * from t order by a")
    first = cursor.fetchone()
    before = temporary_files()
    tracemalloc.start()
    try:
        con.execute("delete from t")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    (kept,) = temporary_files() - before
    with open(kept, "rb") as file:
        assert (expected[2000][1][:64] in file.read()) is (con._key is None)
    assert peak < 20 << 20  # of 30 MB; what is encoded and decoded at a time is 1 MiB
    assert [first, *cursor] == expected


def test_what_fails_behind_rows_read_ahead_fails_there(served):
    con = served.replica(isolation_level=None)
    con.executemany("insert into t(b) values(?)", [(i,) for i in range(3000)])
    sql = "select case when a < 2500 then a else abs(-9223372036854775808) end from t order by a"
    cursor = con.execute(sql)
    cursor.fetchone()
    con.execute("insert into t(b) values('not its business')")
    got = []
    with pytest.raises(nearlite.OperationalError, match="integer overflow"):
        got.extend(cursor)
    assert cursor.fetchall() == []


def test_what_ends_the_reading_ahead_is_raised_and_the_rows_end_with_an_error(served):
    con = served.replica(isolation_level=None)
    con.executemany("insert into t(b) values(?)", [(i,) for i in range(3000)])

    def picky(value):
        if value == 2500:
            raise KeyboardInterrupt
        return value

    con.create_function("picky", 1, picky)
    cursor = con.execute("select picky(a) from t order by a")
    cursor.fetchone()
    before = served.remote(isolation_level=None).execute("select count(*) from t").fetchone()
    with pytest.raises(KeyboardInterrupt):
        con.execute("insert into t(b) values('not sent')")
    assert (
        served.remote(isolation_level=None).execute("select count(*) from t").fetchone() == before
    )
    with pytest.raises(nearlite.OperationalError, match="were not read: KeyboardInterrupt"):
        list(cursor)


def test_a_full_disk_of_temporary_files_is_told_behind_the_rows_that_were_kept(served):
    program = """
import resource, sys, nearlite
con = nearlite.connect(sys.argv[1], sync_url=sys.argv[2], isolation_level=None)
cursor = con.execute("select a, b from t order by a")
cursor.fetchone()
from nearlite.spooling import Spool
put = Spool._put
def full(self, block):
    if self._blocks == 40:
        self._file.write(block[:100])
        raise OSError(28, "No space left on device")
    return put(self, block)
Spool._put = full
con.execute("insert into t(b) values('written all the same')")
seen = 0
try:
    for row in cursor:
        seen += 1
except nearlite.DiskFullError as error:
    print("told", 0 < seen < 3001, con.execute("select count(*) from t").fetchone())
"""
    served.remote(isolation_level=None).execute(
        "with c(i) as (values(1) union all select i + 1 from c where i < 3000) "
        "insert into t(b) select randomblob(4000) from c"
    )
    command = [sys.executable, "-c", program, served.path.parent / "other.db", served.url]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.stdout == "told True (3003,)\n", run.stderr


def test_without_read_your_writes_a_write_arrives_with_a_sync(served):
    con = served.replica(isolation_level=None, read_your_writes=False)
    con.execute("insert into t(b) values('three')")
    assert rows(con, "select count(*) from t") == [(2,)]
    con.sync()
    assert rows(con, "select count(*) from t") == [(3,)]


def test_reads_go_on_without_the_primary_and_writes_say_so(tmp_path):
    with primary(tmp_path) as served:
        served.remote(isolation_level=None).execute("create table t(a)")
        con = nearlite.connect(tmp_path / "replica.db", sync_url=served.url)
    assert rows(con, "select count(*) from t") == [(0,)]
    with pytest.raises(nearlite.OfflineError) as caught:
        con.execute("insert into t values(1)")
    assert not caught.value.data_at_risk
    assert not con.in_transaction
    with pytest.raises(nearlite.OfflineError):
        con.sync()
    assert isinstance(con.last_sync_error, nearlite.OfflineError)
    assert rows(con, "select count(*) from t") == [(0,)]
    con.close()
    again = nearlite.connect(tmp_path / "replica.db", sync_url=served.url)
    assert rows(again, "select count(*) from t") == [(0,)]
    again.close()


def test_a_transaction_whose_primary_goes_away_is_lost_and_says_so(tmp_path):
    with primary(tmp_path) as served:
        served.remote(isolation_level=None).execute("create table t(a)")
        con = nearlite.connect(tmp_path / "replica.db", sync_url=served.url)
        con.execute("insert into t values(1)")
    with pytest.raises(nearlite.OfflineError):
        con.execute("insert into t values(2)")
    with pytest.raises(nearlite.OperationalError, match="was lost"):
        con.commit()
    con.rollback()
    assert not con.in_transaction
    assert rows(con, "select count(*) from t") == [(0,)]
    con.close()


def test_a_stream_that_the_primary_has_forgotten_is_opened_again(served):
    for con in (served.remote(), served.replica()):
        con.execute("insert into t(b) values('kept')")
        con.commit()
        assert con._stream._baton is not None
        con._stream._baton = "forgotten"
        con.execute("insert into t(b) values('kept')")
        con.commit()
        con._stream._baton = "forgotten"
        con.isolation_level = None
        con.execute("insert into t(b) values('kept')")
    assert rows(con, "select count(*) from t where b = 'kept'") == [(6,)]


def test_a_transaction_that_the_primary_has_forgotten_is_lost(served):
    con = served.replica()
    con.execute("insert into t(b) values('lost')")
    con._stream._baton = "forgotten"
    with pytest.raises(nearlite.SyncError):
        con.execute("insert into t(b) values('lost')")
    with pytest.raises(nearlite.OperationalError, match="was lost"):
        con.execute("insert into t(b) values('lost')")
    con.rollback()
    assert rows(con, "select count(*) from t") == [(2,)]


@pytest.mark.parametrize("path", [":memory:", ""])
def test_a_replica_without_a_file_is_refused(path, served):
    with pytest.raises(nearlite.ProgrammingError, match="primary's URL in place of a path"):
        nearlite.connect(path, sync_url=served.url)


def test_a_file_that_is_no_replica_is_not_touched(served, tmp_path):
    path = tmp_path / "mine.db"
    with reader(path) as mine:
        mine.execute("create table precious(a)")
    mine.close()
    before = path.read_bytes()
    with pytest.raises(nearlite.NotAReplicaError):
        nearlite.connect(path, sync_url=served.url)
    assert path.read_bytes() == before


def test_a_wrong_token_is_its_own_error(tmp_path):
    with primary(tmp_path, auth_token="right") as served:
        with pytest.raises(nearlite.UnauthorizedError):
            served.replica(auth_token="wrong")
        with pytest.raises(nearlite.UnauthorizedError) as caught:
            served.remote(auth_token="wrong").execute("select 1")
        assert "wrong" not in str(caught.value)
        con = served.replica(auth_token=lambda: "right")
        assert rows(con, "select 1") == [(1,)]
        assert rows(served.remote(auth_token="right"), "select 1") == [(1,)]


def test_the_token_may_come_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("NEARLITE_AUTH_TOKEN", "right")
    with primary(tmp_path, auth_token="right") as served:
        assert rows(served.replica(), "select 1") == [(1,)]


def test_vacuum_into_writes_a_file_here(served, tmp_path):
    con = served.replica(isolation_level=None)
    served.seen.clear()
    con.execute("vacuum into ?", (str(tmp_path / "copy.db"),))
    assert served.seen == []
    copy = reader(tmp_path / "copy.db")
    assert copy.execute("select count(*) from t").fetchone() == (2,)
    copy.close()


def test_vacuum_runs_on_the_primary(served):
    con = served.replica(isolation_level=None)
    served.seen.clear()
    con.execute("vacuum")
    assert served.seen == [SQL]
    assert rows(con, "select count(*) from t") == [(2,)]


def test_two_connections_share_what_a_process_knows_of_a_replica(served):
    one, two = served.replica(), served.replica()
    assert one._replica is two._replica
    one.close()
    assert rows(two, "select count(*) from t") == [(2,)]
    assert two.sync().pages == 0


@pytest.mark.plain  # stock SQLite opens no sealed one
def test_nobody_else_can_write_the_file(served, tmp_path):
    served.replica()
    program = "import sqlite3, sys; sqlite3.connect(sys.argv[1], isolation_level=None).execute('delete from t')"
    run = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "replica.db"], capture_output=True, text=True
    )
    assert "readonly database" in run.stderr


def test_autocommit_false_opens_a_transaction_there_with_the_first_write(served):
    con = served.replica(autocommit=False)
    served.seen.clear()
    assert con.in_transaction
    assert rows(con, "select count(*) from t") == [(2,)]
    assert served.seen == []
    con.execute("insert into t(b) values('three')")
    con.commit()
    assert con.in_transaction
    assert rows(con, "select count(*) from t") == [(3,)]
    con.rollback()


def test_converters_and_text_factory_work_on_rows_from_the_primary(served):
    con = served.replica(detect_types=nearlite.PARSE_DECLTYPES)
    nearlite.register_converter("shout", lambda data: data.decode().upper())
    con.execute("create table s(w shout, n)")
    got = con.execute("insert into s values('hey', 'n') returning w, n").fetchall()
    assert got == [("HEY", "n")] or got == [("hey", "n")]
    assert rows(con, "select w, n from s") == [("HEY", "n")]
    con.text_factory = bytes
    assert rows(con, "select n from s") == [(b"n",)]
    con.rollback()


def test_rows_from_the_primary_have_names(served):
    con = served.replica()
    con.row_factory = nearlite.Row
    row = con.execute("insert into t(b) values('x') returning a as Id, b").fetchone()
    assert (row["id"], row["B"], row.keys()) == (3, "x", ["Id", "b"])
    con.rollback()


def test_a_remote_connection_needs_no_file(served):
    before = set(os.listdir(served.path.parent))
    con = served.remote()
    assert rows(con, "select b from t order by a") == [("one",), ("two",)]
    with con:
        con.execute("insert into t(b) values('three')")
    assert rows(con, "select count(*) from t") == [(3,)]
    with pytest.raises(nearlite.NotSupportedError):
        con.interrupt()
    con.close()
    with pytest.raises(nearlite.ProgrammingError, match="closed"):
        con.execute("select 1")
    assert set(os.listdir(served.path.parent)) == before


# ---------------------------------------------------------------- Ctrl-C


class _Interrupting:
    """A lock that is acquired when the signal's exception comes."""

    def __init__(self, lock):
        self.lock = lock
        self.release = lock.release

    def acquire(self, **how):
        assert self.lock.acquire(**how)
        raise KeyboardInterrupt


@pytest.mark.parametrize("what", ["position", "sync", "write"])
def test_ctrl_c_leaves_no_lock_behind(served, what):
    con = served.replica(isolation_level=None)
    replica = con._replica
    lock = replica._applying
    replica._applying = _Interrupting(lock)
    with pytest.raises(KeyboardInterrupt):
        if what == "position":
            _ = con.position
        elif what == "sync":
            con.sync()
        else:
            con.execute("insert into t(b) values('cut')")
    replica._applying = lock

    def is_free():
        free = lock.acquire(timeout=0)
        if free:
            lock.release()
        return free

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(is_free).result()


@pytest.mark.parametrize("remote", [False, True])
def test_after_ctrl_c_inside_a_transaction_rollback_ends_it(served, remote):
    con = served.remote() if remote else served.replica()
    con.execute("insert into t(b) values('first')")
    stream = con._stream
    send = stream._send

    def carried_out(*args):
        send(*args)
        raise KeyboardInterrupt

    stream._send = carried_out
    with pytest.raises(KeyboardInterrupt):
        con.execute("insert into t(b) values('second')")
    stream._send = send
    con.rollback()
    assert not con.in_transaction
    assert rows(con, "select count(*) from t") == [(2,)]


# ------------------------------------------------------------ the file's place


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_a_file_that_is_gone_is_neither_written_nor_made_anew_empty(served, tmp_path, how):
    con = served.replica()
    path = tmp_path / "replica.db"
    assert path.exists()
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"replica.db{suffix}").unlink(missing_ok=True)
    if how == "replaced":
        path.write_bytes(b"somebody else's")
    with pytest.raises(SyncError, match="was removed or replaced while this process had it open"):
        con.sync()
    with pytest.raises(SyncError, match="was removed or replaced"):
        served.replica()
    assert rows(con, "select count(*) from t") == [(2,)]
    con.close()
    if how == "replaced":
        assert path.read_bytes() == b"somebody else's"
        path.unlink()
    assert not path.exists()
    again = served.replica()
    assert rows(again, "select count(*) from t") == [(2,)]


def test_a_folder_that_is_not_there_is_a_sync_error(served, tmp_path):
    with pytest.raises(SyncError, match=r"could not be created.*No such file or directory"):
        nearlite.connect(tmp_path / "nowhere" / "replica.db", sync_url=served.url)


def test_something_else_in_the_place_of_its_folder_is_a_sync_error(served, tmp_path):
    served.replica().close()
    beside = tmp_path / "replica.db-nearlite"
    shutil.rmtree(beside)
    beside.write_text("somebody else's")
    with pytest.raises(SyncError, match=r"replica.db-nearlite, the folder .*: File exists"):
        served.replica()
    (tmp_path / "second.db-nearlite").write_text("somebody else's")
    with pytest.raises(SyncError, match=r"second.db-nearlite, the folder .*: File exists"):
        served.replica("second.db")
    assert beside.read_text() == "somebody else's"
    beside.unlink()
    assert rows(served.replica(), "select 1") == [(1,)]


@pytest.mark.parametrize(
    "options",
    [
        *({"network_timeout": bad} for bad in (math.nan, 0, -1, "x", None, True)),
        *({"sync_interval": bad} for bad in (math.nan, math.inf, 0, -1, "x", True)),
        {"timeout": math.nan},
        *(
            {"proxy": bad}
            for bad in ("http://[::1", "h:99999", "h:x", "", "socks5://h", 5, "h\n:8")
        ),
        *({"headers": bad} for bad in ([("a", "b")], "x", 5, {"a": "\0"})),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused_where_it_is_given(tmp_path, options):
    with pytest.raises(ProgrammingError, match=f"{next(iter(options))}|header"):
        nearlite.connect(tmp_path / "replica.db", sync_url="http://127.0.0.1:9", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_path_with_a_nul_is_refused_and_one_that_is_no_utf_8_works(served, tmp_path):
    with pytest.raises(ProgrammingError, match="NUL"):
        served.replica("a\0b")
    con = served.replica(os.fsdecode(b"l\xe4tin-1.db"))
    con.execute("create table w(a)")
    con.sync()
    assert b"l\xe4tin-1.db" in os.listdir(os.fsencode(tmp_path))
    assert rows(con, "select count(*) from w") == [(0,)]


@pytest.mark.parametrize("forever", [math.inf, 1e300, 10**400], ids=["infinite", "float", "int"])
def test_whoever_wants_to_wait_for_ever_may(served, forever):
    con = served.replica(timeout=forever, network_timeout=forever, sync_interval=1e300)
    con.execute("create table w(a)")
    con.sync(timeout=forever)
    con.wait_for(con.last_write_position, timeout=forever)
    assert rows(con, "select count(*) from w") == [(0,)]
    for bad in (math.nan, -1, "x"):
        with pytest.raises(ProgrammingError, match="timeout"):
            con.sync(timeout=bad)
        with pytest.raises(ProgrammingError, match="timeout"):
            con.wait_for(con.last_write_position, timeout=bad)


def test_a_file_that_is_emptied_while_it_is_open_says_so(served, tmp_path):
    con = served.replica()
    con.execute("create table w(a)")
    while con._replica._upkeep.checkpoint():  # whoever brings the new file to the disk reads it
        pass
    os.truncate(tmp_path / "replica.db", 0)
    with pytest.raises(nearlite.DamagedError, match="was a replica and is none any more"):
        _ = con.position
    for use in (con.sync, lambda: con.execute("insert into w values(1)")):
        with pytest.raises(SyncError, match=r"is none any more.*could not be repaired") as caught:
            use()
        assert caught.value.data_at_risk
        assert "remove the file and its log" in str(caught.value)
    con.close()
    (tmp_path / "replica.db").unlink()
    assert rows(served.replica(), "select count(*) from w") == [(0,)]


@pytest.mark.plain  # of a sealed one too little is left: test_sealed_replicas.py
@pytest.mark.parametrize("kept", [100, 512, 4096, 6000])
def test_a_file_that_is_cut_off_while_it_is_open_is_repaired(served, tmp_path, kept):
    con = served.replica()
    con.execute("create table w(a)")
    con.executemany("insert into w values(?)", [("x" * 100,)] * 200)
    con.commit()
    while con._replica._upkeep.checkpoint():  # whoever brings the new file to the disk reads it
        pass
    os.truncate(tmp_path / "replica.db", kept)
    with closing(served.remote()) as there:
        there.execute("create table u(a)")
    con.sync()
    con.sync(repair=True)
    assert rows(con, "select count(*), sum(length(a)) from w") == [(200, 20_000)]
    assert rows(con, "select count(*) from u") == [(0,)]


# ---------------------------------------------------------------- callbacks


def test_functions_and_collations_serve_what_is_read_here(served):
    con = served.replica(isolation_level=None)
    con.create_function("twice", 1, lambda text: text * 2)
    con.create_collation("backwards", lambda a, b: (a < b) - (a > b))
    served.seen.clear()
    assert rows(con, "select twice(b) from t order by b collate backwards") == [
        ("twotwo",),
        ("oneone",),
    ]
    con.execute("create temp table own as select twice(b) as b from t")
    assert rows(con, "select count(*) from own where b = twice('one')") == [(1,)]
    assert served.seen == []


@pytest.mark.parametrize(
    "sql", ["insert into t(b) values(twice('x'))", "delete from t where b = 'a' collate backwards"]
)
def test_what_runs_on_the_primary_cannot_call_functions_here(served, sql):
    con = served.replica(isolation_level=None)
    con.create_function("twice", 1, lambda text: text * 2)
    con.create_collation("backwards", lambda a, b: (a < b) - (a > b))
    with pytest.raises(
        nearlite.OperationalError,
        match=r"no such .*: the statement runs on the primary, where what",
    ):
        con.execute(sql)
    assert rows(con, "select count(*) from t") == [(2,)]


def test_a_function_of_a_replica_writes_to_the_primary(served):
    con = served.replica(isolation_level=None)

    def keeps(text):
        con.execute("insert into t(b) values(?)", (text,))
        return con.execute("select count(*) from t").fetchone()[0]

    con.create_function("keeps", 1, keeps)
    assert rows(con, "select keeps('three'), keeps('four')") == [(3, 4)]
    many = ",".join(map(str, range(3000)))
    cursor = con.execute(
        f"select value, iif(value % 1000 = 999, keeps('x'), 0) from json_each('[{many}]')"
    )
    assert len(cursor.fetchall()) == 3000
    assert rows(con, "select count(*) from t") == [(7,)]


def test_hooks_of_a_replica_hear_of_the_programs_statements_and_of_nothing_of_ours(served):
    con = served.replica(isolation_level=None)
    heard = []
    con.set_trace_callback(heard.append)
    con.set_authorizer(
        lambda action, *_: nearlite.SQLITE_DENY if action == nearlite.SQLITE_FUNCTION else 0
    )
    con.execute("insert into t(b) values('three')")
    assert rows(con, "select b from t where a = 3") == [("three",)]
    assert heard == ["insert into t(b) values('three')", "select b from t where a = 3"]
    with pytest.raises(nearlite.DatabaseError, match="not authorized"):
        con.execute("select abs(a) from t")


@pytest.mark.parametrize("code", [nearlite.SQLITE_DENY, nearlite.SQLITE_IGNORE, 7])
def test_what_the_authorizer_forbids_does_not_reach_the_primary(served, code):
    con = served.replica(isolation_level=None)
    forbidden = nearlite.SQLITE_UPDATE, nearlite.SQLITE_FUNCTION, nearlite.SQLITE_READ
    con.execute("insert into t(b) values('three')")
    con.set_authorizer(lambda action, *_: code if action in forbidden else 0)
    served.seen.clear()
    for sql in ("update t set b = 'x'", "update t set b = abs(a)"):
        with pytest.raises(nearlite.DatabaseError):
            con.execute(sql)
        with pytest.raises(nearlite.DatabaseError):
            con.executescript(f"{sql};")
        with pytest.raises(nearlite.DatabaseError):
            con.executemany(sql, [()])
    assert served.seen == []
    con.execute("begin")
    con.execute("insert into t(b) values('four')")
    with pytest.raises(nearlite.DatabaseError):
        con.execute("select b from t")
    con.execute("rollback")


def test_a_remote_connection_says_that_there_is_nothing_to_call_from(served):
    con = served.remote()
    for define in (
        lambda: con.create_function("f", 1, abs),
        lambda: con.create_collation("k", max),
        lambda: con.set_trace_callback(print),
        lambda: con.set_progress_handler(None, 0),
    ):
        with pytest.raises(nearlite.NotSupportedError, match="SQLite runs on the server"):
            define()
