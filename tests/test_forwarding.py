"""Replica and remote connections against the standard library on a local file: equal outcomes.

Every scenario runs three times: on Python's own sqlite3 with a local file, on an embedded replica of
a served primary, on a purely remote connection.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing

import pytest
from primaries import primary
from sealing import reader

import nearlite

EITHER = True

SCENARIOS = []


def scenario(function):
    SCENARIOS.append(function)
    return function


def attempt(call):
    """What a call comes to: its value, or the DB-API class, text and code of what it raises."""
    try:
        return ("value", call())
    except Exception as error:
        name = type(error).__name__
        if isinstance(error, sqlite3.Error):
            return ("error", name, str(error), getattr(error, "sqlite_errorname", None))
        return ("error", name)


def each(con, *statements):
    """Rows, description, rowcount and transaction state after each statement."""
    found = []
    for statement in statements:
        sql, params = (statement, ()) if isinstance(statement, str) else statement

        def run(sql=sql, params=params):
            cursor = con.execute(sql, params)
            names = cursor.description and [column[0] for column in cursor.description]
            return (cursor.fetchall(), names, cursor.rowcount)

        found.append((attempt(run), con.in_transaction))
    return found


@scenario
def everyday_statements(con):
    return each(
        con,
        "create table t(a integer primary key, b)",
        ("insert into t(b) values(?)", ("x",)),
        (
            "insert into t(b) values(:b)",
            {
                "b": 2.5,
            },
        ),
        ("insert into t(b) values(?)", [b"\0\xff"]),
        ("insert into t(b) values(?)", (None,)),
        ("insert into t values(?, ?)", (2**40, "é\0x")),
        "select * from t",
        ("select b, typeof(b) from t where a = ?", (3,)),
        "update t set b = 'z' where a < 3",
        "insert into t(b) values('r'), ('s') returning a, b",
        "delete from t where a = 1",
        "replace into t values(2, 'r')",
        "with w as (select 100 as x) insert into t(a) select x from w",
        "select count(*), last_insert_rowid() from t",
        "commit",
        "select count(*) from t",
        "create index i on t(b)",
        "alter table t add column c default 7",
        "select c from t limit 1",
        "alter table t rename column c to d",
        "alter table t rename to u",
        "alter table u drop column d",
        "select * from u limit 1",
        "alter table u rename to t",
        "drop table t",
        "select * from t",
    )


@scenario
def an_iterator_of_executemany_uses_the_connection(con):
    con.execute("create table t(a)")
    con.commit()

    def writing():
        for i in range(3):
            con.execute("insert into t values(?)", (-i,))
            yield (con.execute("select count(*) from t where a < 0").fetchone()[0],)

    def committing():
        for i in range(25_000):
            if i == 24_000:
                con.commit()
            yield (i,)

    found = [con.executemany("insert into t values(?)", writing()).rowcount, con.in_transaction]
    found += con.execute("select min(a), max(a), count(*) from t").fetchall()
    con.rollback()
    found += con.execute("select count(*) from t").fetchall()
    con.executemany("insert into t values(?)", committing())
    found += con.execute("select count(*), count(distinct a) from t").fetchall()
    con.commit()
    return [*found, con.execute("select count(*), count(distinct a) from t").fetchall()]


@scenario
def values_survive_the_journey(con):
    con.execute("create table t(v)")
    values = [
        None,
        True,
        0,
        -1,
        2**62,
        -(2**63),
        1.5,
        -0.0,
        1e300,
        5e-324,
        "",
        "é\U0001f600\0",
        b"",
        bytes(range(256)),
    ]
    con.executemany("insert into t values(?)", [(value,) for value in values])
    found = con.execute("select v, typeof(v) from t").fetchall()
    con.commit()
    return found, con.execute("select v, typeof(v) from t").fetchall()


@scenario
def failing_statements(con):
    con.execute("create table t(a unique not null, b check(b > 0))")
    return each(
        con,
        "insert into t values(1, 1)",
        "insert into t values(1, 1)",
        "insert into t values(null, 1)",
        "insert into t values(2, 0)",
        "select count(*) from t",
        "commit",
        "insert into t values(1, 1)",
        "rollback",
        "insert into missing values(1)",
        "rollback",
        "select * from missing",
        "select nonsense(1)",
        "selec 1",
        "create table t(a)",
        "insert into t values(1,2,3)",
        "rollback",
        "commit",
        "begin",
        ("insert into t values(?, ?)", (1,)),
        ("insert into t values(:x, :y)", {"x": 1}),
        ("insert into t values(?, ?)", (1, object())),
    )  # fmt: skip


@scenario
def commits_and_rollbacks(con):
    con.execute("create table t(a)")
    found = [con.in_transaction]
    con.execute("insert into t values(1)")
    found.append(con.in_transaction)
    found.append(con.execute("select * from t").fetchall())
    con.rollback()
    found += [con.in_transaction, con.execute("select * from t").fetchall()]
    con.execute("insert into t values(2)")
    con.commit()
    con.commit()
    con.rollback()
    return [*found, con.in_transaction, con.execute("select * from t").fetchall()]


@scenario
def explicit_transactions(con):
    con.isolation_level = None
    con.execute("create table t(a)")
    return each(
        con,
        "begin", "select * from t", "insert into t values(1)", "select * from t", "commit", "select * from t",
        "begin", "insert into t values(2)", "rollback", "select * from t",
        "begin immediate", "insert into t values(3)", "begin", "commit", "commit",
        "begin", "select 1", "commit", "rollback",
        "begin exclusive", "rollback",
        "insert into t values(4)", "select * from t",
    )  # fmt: skip


@scenario
def savepoints(con):
    con.isolation_level = None
    con.execute("create table t(a)")
    return each(
        con,
        "savepoint one", "insert into t values(1)", "savepoint two", "insert into t values(2)",
        "rollback to two", "select * from t", "release two", "release one", "select * from t",
        "begin", "savepoint x", "release x", "savepoint y", "insert into t values(3)", "rollback to y", "commit",
        "select * from t", "release nothing", "savepoint z", "rollback",
    )  # fmt: skip


@scenario
def isolation_levels(con):
    con.execute("create table t(a)")
    found = []
    for level in ("DEFERRED", "IMMEDIATE", "EXCLUSIVE", None, ""):
        con.isolation_level = level
        con.execute("insert into t values(1)")
        found.append(con.in_transaction)
        con.commit()
    return found, con.execute("select count(*) from t").fetchall()


@scenario
def context_manager(con):
    con.execute("create table t(a unique)")
    with con:
        con.execute("insert into t values(1)")

    def fails():
        with con:
            con.execute("insert into t values(2)")
            con.execute("insert into t values(1)")

    return attempt(fails), con.in_transaction, con.execute("select * from t").fetchall()


@scenario
def texts_that_hold_no_statement(con):
    class Text(str):
        __slots__ = ()

    return each(
        con, "", "  ", ";", "-- nothing", "/* nothing */ ;", "/* unfinished", "/*", ("", (1,)), Text("select 7"),
        Text("create table t(a)"), "select * from t",
    )  # fmt: skip


@scenario
def executemany_of_what_is_no_insert_by_its_first_word(con):
    con.execute("create table t(a)")
    cur = con.cursor()
    return [
        (attempt(lambda sql=sql: cur.executemany(sql, [(1,), (2,)]) is cur), cur.rowcount, con.in_transaction)
        for sql in (
            "with w(x) as (select ?) insert into t select x from w", "select ?", "pragma user_version",
            "-- ?", "nonsense ?", "with w(x) as (select ?) select x from w",
        )
    ] + con.execute("select * from t").fetchall()  # fmt: skip


@scenario
def sets_before_one_that_cannot_be_sent_are_kept(con):
    con.execute("create table t(a)")
    found = []
    for level in ("", None):
        con.isolation_level = level
        for bad in (2**63, "\ud800", object()):
            sets = [(1,), (bad,), (2,)]
            found.append(
                attempt(lambda sets=sets: con.executemany("insert into t values(?)", sets))
            )
            found.append(con.in_transaction)
            found += con.execute("select count(*) from t").fetchall()
            con.commit()
    return found


@scenario
def executemany(con):
    con.execute("create table t(a unique, b)")
    cur = con.cursor()
    found = []

    def run(sql, sets):
        answer = attempt(lambda: cur.executemany(sql, sets) is cur)
        found.append(
            (
                answer,
                cur.rowcount,
                con.in_transaction,
                con.execute("select count(*), sum(a) from t").fetchall(),
            )
        )

    run("insert into t values(?, ?)", [(1, 2), (2, 3)])
    run("insert into t values(:a, :b)", ({"a": i, "b": i} for i in range(10, 3000)))
    run("insert into t values(?, ?)", [(3001, 1), (1, 1), (3002, 1)])
    run("insert into t values(?, ?)", [(4000, 1), (4001,), (4002, 1)])
    run("insert into t values(?, ?)", [(5000, 1), (object(), 1)])
    run("update t set b = ? where a > ?", [(1, 2000), (2, 2500), (3, 100_000)])
    con.commit()
    con.isolation_level = None
    run("insert into t values(?, ?)", [(6000, 1), (6001, 2)])
    run("insert into t values(?, ?)", [(7000, 1), (1, 1), (7001, 1)])
    run("delete from t where a = ?", [(6000,), (6001,)])
    run("insert into t values(?, ?)", [])
    run("select ?", [(1,)])
    return found


@scenario
def scripts(con):
    found = []
    for script in (
        "create table t(a); insert into t values(1); -- ;\n insert into t values('a;b');",
        "create trigger g after insert on t begin insert into log values(new.a); end; create table log(x); insert into t values(3)",
        "insert into t values(4); bad; insert into t values(5)",
        "begin; insert into t values(6); commit; select * from t",
        "begin; insert into t values(7);",
        "",
        "select 1",
    ):
        answer = attempt(lambda script=script: con.executescript(script) is not None)
        found.append((answer, con.in_transaction, con.execute("select a from t").fetchall()))
    con.execute("insert into t values(9)")
    con.executescript("insert into t values(10)")
    return [*found, con.in_transaction, con.execute("select a from t").fetchall()]


@scenario
def changes_are_counted(con):
    con.execute("create table t(a)")
    con.executemany("insert into t values(?)", [(1,), (2,)])
    con.execute("update t set a = 3")
    con.commit()
    return con.total_changes


COUNTERS = "select changes(), total_changes(), last_insert_rowid()"


@scenario
def counters_answer_as_on_a_local_file(con):
    found = []

    def look():
        row = con.execute(COUNTERS).fetchone()
        found.append(
            (row, con.execute(COUNTERS + " from log limit 1").fetchone(), con.total_changes)
        )

    def run(sql, *params):
        found.append(attempt(lambda: con.execute(sql, *params).rowcount))
        look()

    con.executescript(
        """
        create table log(x); insert into log values(0);
        create table t(a integer primary key, b unique, parent);
        create trigger g after insert on t begin insert into log values(new.a), (new.b); end;
        """
    )
    look()
    for level in (None, ""):
        con.isolation_level = level
        base = 100 if level is None else 200
        run("insert into t(a, b) values(?, 'x' || ?)", (base, base))
        run("insert into t(b, parent) values(?, last_insert_rowid())", (base,))
        run(
            "update t set parent = last_insert_rowid() + changes() + total_changes() where a = ?",
            (base,),
        )
        run("update t set b = b where a > 10000")
        run("insert into t(b) values(?)", (base,))
        run("insert into missing values(1)")
        run("delete from t where a = ?", (base + 1,))
        run(f"create table made{base}(a)")
        run("with w(x) as (select 7) insert into log select x from w")
        run("replace into t(a, b) values(?, 'z')", (base,))
        run("select 1")
        con.executemany("insert into log values(?)", [(1,), (2,), (3,)])
        look()
        con.commit()
        look()
        con.executescript("insert into log values(1); update log set x = x + 1;")
        look()
        run("insert into t(b) values(?)", (base + 50,))
        con.rollback()
        look()
        found.append(con.execute("select * from t").fetchall())
    return found


@scenario
def lastrowid(con):
    con.execute("create table t(a integer primary key)")
    cur = con.cursor()
    found = [cur.lastrowid]
    for sql in ("insert into t values(5)", "insert into t values(7)", "select 1", "delete from t"):
        cur.execute(sql)
        found.append(cur.lastrowid)
    return found


@scenario
def foreign_keys_are_enforced_where_the_write_happens(con):
    con.executescript(
        "create table p(a primary key); create table c(a references p deferrable initially deferred)"
    )
    con.execute("pragma foreign_keys = on")
    found = each(con, "pragma foreign_keys", "insert into c values(1)", "commit")
    con.execute("insert into p values(1)")
    found += each(
        con, "commit", "insert into c values(2)", "commit", "rollback", "select count(*) from c"
    )
    con.execute("pragma foreign_keys = off")
    return found + each(con, "insert into c values(9)", "commit", "select count(*) from c")


@scenario
def user_version(con):
    return each(
        con,
        "pragma user_version",
        "pragma user_version = 5",
        "pragma user_version",
        "pragma table_info(x)",
    )


@scenario
def a_transaction_sees_the_schema_it_changes(con):
    con.isolation_level = None
    con.execute("create table old(a)")
    con.execute("begin")
    con.execute("create table p(a primary key, b)")
    con.execute("create table c(x references p, y)")
    con.execute("create index ci on c(y)")
    con.execute("insert into c values(1, 2)")
    found = each(
        con,
        "pragma table_info(c)", "pragma table_info = 'c'", 'PRAGMA main . table_xinfo ( "c" ) ;',
        "pragma table_list(c)", "select name from pragma_table_list where schema = 'main' order by name",
        "pragma index_list(c)", "pragma index_info(ci)", "pragma index_xinfo('ci')",
        "pragma foreign_key_list(c)", "pragma foreign_key_check", "pragma foreign_key_check(c)",
        "pragma integrity_check", "pragma quick_check(3)", "pragma page_count", "pragma freelist_count",
        "select name, type from sqlite_master", "select name from main.sqlite_schema",
        "select count(*) from sqlite_master", "select count(*) from sqlite_schema where name = 'c'",
        "select max(rowid) from sqlite_schema", "select 1 from sqlite_schema limit 1",
        "select name from pragma_table_info('c')", "select count(*) from pragma_index_list('c')",
        "pragma user_version = 7", "pragma user_version", "pragma application_id",
        "select count(*) from sqlite_temp_master", "pragma foreign_keys", "pragma database_list(x)",
    )  # fmt: skip
    con.execute("rollback")
    return [row if "file" not in str(row) else "" for row in found[:-1]] + each(
        con, "pragma table_info(c)", "pragma user_version", "select count(*) from sqlite_master"
    )


@scenario
def explain(con):
    con.execute("create table t(a)")
    found = con.execute("explain query plan insert into t select 1").description
    return [column[0] for column in found], con.in_transaction


@scenario
def a_statement_ends_the_transaction_itself(con):
    con.execute("create table t(a unique)")
    con.execute("insert into t values(1)")
    con.commit()
    return each(
        con,
        "insert into t values(2)",
        "insert or rollback into t values(1)",
        "select * from t",
        "commit",
    )


@scenario
def vacuum(con):
    con.execute("create table t(a)")
    con.isolation_level = None
    return each(con, "vacuum", "begin", "insert into t values(1)", "vacuum", "commit")


@scenario
def values_in_place(con):
    """Also inside a transaction whose rows only the primary has; pieces as SQLite itself reads and writes them."""
    found = each(
        con,
        'create table "odd ""name"("rowid" text, "b ]" , "oid")',
        ('insert into "odd ""name" values(\'other\', ?, 1)', (bytes(range(256)) * 40,)),
        "insert into \"odd \"\"name\" values('1', 'a text: €', 2)",
    )
    for committed in (False, True):
        if committed:
            con.commit()
        for row in (1, 2):
            with con.blobopen('odd "name', "b ]", row) as blob:
                found.append([len(blob), blob.read(5), blob.read(0), blob[-1], blob[2:9:3]])
                blob.write(b"\0\xff\x80"[row - 1 :])
                blob[-2:] = b"zz"
                blob[0] = 65 + committed
                found.append([blob.tell(), blob.read(), con.in_transaction])
                found.append(attempt(lambda blob=blob: blob.write(b"x")))
        with con.blobopen('odd "name', "b ]", 1, readonly=True) as blob:
            found.append([blob.read(4), attempt(lambda blob=blob: blob.write(b"x"))])
    for where in (("t", "b", 1), ('odd "name', "c", 1), ('odd "name', "b ]", 3)):
        found.append(attempt(lambda where=where: con.blobopen(*where))[:2])
    blob = con.blobopen('odd "name', "b ]", 1)
    found += each(con, 'update "odd ""name" set "b ]" = 5')
    found += [attempt(lambda: blob.read(1))[:2], attempt(lambda: blob.write(b"y"))[:2]]
    found.append(attempt(lambda: con.blobopen('odd "name', "b ]", 1))[:2])
    blob.close()
    con.commit()
    return found + each(con, 'select * from "odd ""name"', "select total_changes() > 0")


def _local(tmp_path):
    return reader(tmp_path / "oracle.db")


if sys.version_info >= (3, 11):  # before, the standard library raised other classes

    @pytest.mark.parametrize("function", SCENARIOS, ids=lambda f: f.__name__)
    def test_a_replica_does_what_a_local_file_does(function, tmp_path):
        with primary(tmp_path) as served:
            got = attempt(lambda: function(served.replica()))
        oracle = _local(tmp_path)
        try:
            assert got == attempt(lambda: function(oracle))
        finally:
            oracle.close()

    # What only makes sense with a file of one's own, or differs because the server has a say.
    NOT_REMOTE = {"foreign_keys_are_enforced_where_the_write_happens", "savepoints"}

    @pytest.mark.parametrize(
        "function", [f for f in SCENARIOS if f.__name__ not in NOT_REMOTE], ids=lambda f: f.__name__
    )
    def test_a_remote_connection_does_what_a_local_file_does(function, tmp_path):
        with primary(tmp_path) as served:
            got = attempt(lambda: function(served.remote()))
        oracle = _local(tmp_path)
        try:
            assert got == attempt(lambda: function(oracle))
        finally:
            oracle.close()


def test_a_statement_that_failed_by_an_old_schema_is_compiled_by_the_newest(tmp_path):
    """SQLite compiles it again inside a step, and does not look there whether its schema is the newest."""
    with primary(tmp_path) as served:
        remote = served.remote(isolation_level=None)
        remote.execute("CREATE TABLE t(a)")
        remote.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
        with closing(reader(served.path, isolation_level=None)) as foreign:
            foreign.execute("ALTER TABLE t ADD COLUMN b")
            with pytest.raises(sqlite3.OperationalError, match="2 columns"):
                remote.executemany("INSERT INTO t VALUES (?)", [(3,)])
            foreign.execute("DROP TABLE t")
            foreign.execute("CREATE TABLE t(a)")
        remote.executemany("INSERT INTO t VALUES (?)", [(4,)])
        assert remote.execute("SELECT a FROM t").fetchall() == [(4,)]


def test_values_in_place_of_utf_16(tmp_path):
    """Pieces are of the bytes that are stored, whatever they are an encoding of."""
    outcomes = []
    for name in ("primary.db", "oracle.db"):
        with closing(reader(tmp_path / name)) as made:
            made.execute("PRAGMA encoding = 'UTF-16le'")
            made.execute("CREATE TABLE t(b)")
            made.executemany("INSERT INTO t VALUES (?)", [("a\u20acz",), (b"\0\xd8abc",)])
            made.commit()

    def change(con):
        found = []
        for row in (1, 2):
            with con.blobopen("t", "b", row) as blob:
                found.append([len(blob), blob.read()])
                blob.seek(2)
                blob.write(b"b\0")
        return found + each(con, "select typeof(b), b, hex(b) from t")

    with closing(nearlite.connect(tmp_path / "oracle.db")) as oracle:
        outcomes.append(change(oracle))
    with primary(tmp_path) as served:
        outcomes.append(change(served.replica()))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] == [6, "a\u20acz".encode("utf-16-le")]
