"""The driver against the standard library: one scenario, two modules, equal outcomes.

A scenario is given a module (``sqlite3`` or ``nearlite``) and answers anything that can be compared; what it
raises is part of the outcome, as the name of the DB-API class, the text and SQLite's code.
"""

from __future__ import annotations

import copy
import datetime
import enum
import gc
import pickle
import signal
import sqlite3
import subprocess
import sys
import threading
import uuid
import weakref
from contextlib import closing
from decimal import Decimal

import pytest

import nearlite

SCENARIOS = []


def scenario(function):
    SCENARIOS.append(function)
    return function


def outcome(function, module):
    try:
        return ("value", function(module))
    except Exception as error:
        name = type(error).__name__
        if isinstance(error, sqlite3.Error):
            return ("error", name, str(error), getattr(error, "sqlite_errorname", None))
        return ("error", name)


def each(module, connection, *statements):
    """What every one of `statements` comes to, on one connection."""
    found = []
    for statement in statements:
        sql, params = (statement, ()) if isinstance(statement, str) else statement

        def run(_module, sql=sql, params=params):
            cursor = connection.execute(sql, params)
            return (cursor.fetchall(), cursor.description, cursor.rowcount, cursor.lastrowid)

        found.append((outcome(run, module), connection.in_transaction))
    return found


# ---------------------------------------------------------------- everyday statements


@scenario
def rows_description_rowcount_lastrowid(m):
    con = m.connect(":memory:")
    return each(
        m, con,
        "create table t(a integer primary key, b)",
        ("insert into t(b) values(?)", ("x",)),
        ("insert into t(b) values(?)", [5]),
        'select a, b as "B b", a+1 from t',
        "update t set b = 'z'",
        "delete from t where a = 1",
        "replace into t values(2, 'r')",
        "insert into t values(9, 'n') returning a, b",
        "with w as (select 100 as x) insert into t(a) select x from w",
        "select count(*) from t",
        "create table u(a)",
        "drop table u",
        "pragma user_version",
        "-- nothing",
        "",
        "select 1;",
        "select 1; -- comment\n /* and */ ",
    )  # fmt: skip


@scenario
def errors_of_sqlite(m):
    con = m.connect(":memory:")
    con.execute("create table t(a unique not null, b check(b > 0), c references t(a))")
    con.execute("pragma foreign_keys = on")
    return each(
        m, con,
        "insert into t values(1, 1, null)",
        "insert into t values(1, 1, null)",
        "insert into t values(null, 1, null)",
        "insert into t values(2, 0, null)",
        "select * from missing",
        "select frob(1)",
        "selec 1",
        "select abs(-9223372036854775808)",
        "commit",
        "commit",
        "rollback",
        "savepoint s",
        "release x",
        "select zeroblob(3000000000)",
        "attach 'file:///nonexistent/dir/x' as y",
        "create table t(a)",
        "insert into t values(1,2)",
        "select like('a','b','cc')",
    )  # fmt: skip


@scenario
def parameters_of_every_kind(m):
    class Text(str):
        __slots__ = ()

    class Number(int):
        pass

    class Color(enum.IntEnum):
        RED = 3

    class Names(dict):
        def __missing__(self, key):
            return key * 2

    class Sequence:
        def __len__(self):
            return 1

        def __getitem__(self, index):
            assert index == 0
            return "item"

    con = m.connect(":memory:")
    return each(
        m, con,
        *[("select ?, typeof(?1)", (v,)) for v in (
            None, True, False, 0, -1, 2**63 - 1, -(2**63), 1.5, float("inf"), float("nan"), "", "é\0x",
            b"", b"\0\xff", bytearray(b"ab"), memoryview(b"abc")[1:], Text("t"), Number(7), Color.RED,
        )],
        ("select ?", (2**63,)),
        ("select ?", (2**70,)),
        ("select ?", (-(2**63) - 1,)),
        ("select ?", ("\ud800",)),
        ("select ?", (Decimal(1),)),
        ("select ?", (uuid.UUID(int=1),)),
        ("select ?", (object,)),
        ("select ?", ([],)),
        ("select ?, ?", (1, {})),
        ("select ?", (1j,)),
        ("select ?", (datetime.timedelta(1),)),
        ("select ?", ()),
        ("select ?", (1, 2)),
        ("select 1", (1,)),
        ("select :a, :b", {"a": 1, "b": "x"}),
        ("select :a, @b, $c", {"a": 1, "b": 2, "c": 3, "d": 4}),
        ("select :a", {"b": 1}),
        ("select :a", Names()),
        ("select ?", {"a": 1}),
        ("select :a", {"a": Decimal(2)}),
        ("select ?", Sequence()),
        ("select ?", 5),
        ("select ?", None),
        ("select ?", "x"),
        ("select ?", range(1)),
        ("select 1", set()),
    )  # fmt: skip


@scenario
def one_statement_at_a_time(m):
    con = m.connect(":memory:")
    return each(
        m, con,
        "select 1; select 2", "select 1;;", "select 1; // c++", "select 1; *x", "select 1; -*x",
        "select 1; /* */ a", "select 1; /**/a", "select 1; -", "select 1; /", "select 1; -- \n select 2",
        "select 1; /* unfinished", "select\0 1", "select 1\0",
    )  # fmt: skip


@scenario
def statements_of_the_wrong_type(m):
    con = m.connect(":memory:")
    return [outcome(lambda _, v=v: con.execute(v), m) for v in (b"select 1", 5, None)]


# ---------------------------------------------------------------- cursors


@scenario
def fetching(m):
    con = m.connect(":memory:")
    cur = con.cursor()
    found = [
        cur.fetchone(),
        cur.fetchall(),
        cur.fetchmany(),
        cur.rowcount,
        cur.lastrowid,
        cur.description,
    ]
    sql = "with recursive n(i) as (select 1 union all select i+1 from n limit 5000) select i, 'x'||i from n"
    cur.execute(sql)
    found += [cur.fetchone(), cur.fetchmany(), cur.fetchmany(3), next(cur)]
    cur.arraysize = 7
    found += [
        cur.fetchmany(),
        cur.fetchmany(size=2),
        len(cur.fetchmany(3000)),
        sum(r[0] for r in cur),
    ]
    found += [cur.fetchone(), cur.fetchall(), cur.fetchmany(5), list(cur)]
    cur.execute(sql)
    found += [cur.fetchmany(0)[:2], cur.execute("select 1").fetchall(), cur.fetchone()]
    return found


@scenario
def iteration_and_fetching_mixed(m):
    cur = m.connect(":memory:").execute("select 1 union select 2 union select 3 union select 4")
    return [(row, cur.fetchone()) for row in cur]


@scenario
def executing_again_while_iterating(m):
    con = m.connect(":memory:")
    cur = con.execute("select 1 union select 2 union select 3")
    found = [next(cur)]
    cur.execute("select 'new'")
    return found + list(cur)


@scenario
def two_cursors_of_one_text(m):
    con = m.connect(":memory:")
    sql = "with recursive n(i) as (select 1 union all select i+1 from n limit 3000) select i from n"
    a, b = con.execute(sql), con.execute(sql)
    pairs = [(a.fetchone(), b.fetchone()) for _ in range(2999)]
    return (pairs[-1], a.fetchall(), b.fetchall())


@scenario
def a_failed_execute_clears_the_cursor(m):
    con = m.connect(":memory:")
    cur = con.execute("select 1 as a union select 2")
    first = outcome(lambda _: cur.execute("select nonsense"), m)
    return [first, cur.fetchall(), cur.description, cur.rowcount]


@scenario
def closed_cursors_and_connections(m):
    con = m.connect(":memory:")
    cur = con.execute("select 1")
    cur.close()
    found = [
        outcome(lambda _, f=f: f(), m)
        for f in (
            cur.fetchone,
            cur.fetchall,
            cur.close,
            lambda: cur.execute("select 1"),
            lambda: list(cur),
        )
    ]
    cur = con.execute("select 1")
    con.close()
    con.close()
    found += [
        outcome(lambda _, f=f: f(), m)
        for f in (
            cur.fetchone, cur.fetchall, cur.fetchmany, cur.close, lambda: cur.execute("select 1"),
            con.commit, con.rollback, con.cursor, lambda: con.execute("select 1"), lambda: con.in_transaction,
            lambda: con.total_changes, con.interrupt, con.__enter__, lambda: con.isolation_level,
        )
    ]  # fmt: skip
    return [*found, cur.description]


@scenario
def executemany_counts(m):
    con = m.connect(":memory:")
    con.execute("create table t(a unique, b)")
    cur = con.cursor()
    found = []

    def run(sql, sets):
        answer = outcome(lambda _: cur.executemany(sql, sets) is cur, m)
        total = con.execute("select count(*), sum(a) from t").fetchall()
        found.append((answer, cur.rowcount, cur.lastrowid, con.in_transaction, total))

    run("insert into t values(?, ?)", [(1, 2), (2, 3)])
    run("insert into t values(:a, :b)", ({"a": i, "b": i} for i in range(10, 20)))
    run("insert into t values(?, ?)", [(30, 1), (1, 1), (31, 1)])
    run("insert into t values(?, ?)", [(40, 1), (41,), (42, 1)])
    run("insert into t values(?, ?)", [(50, 1), (object(), 1), (51, 1)])
    run("update t set b = ? where a > ?", [(1, 10), (2, 15), (3, 1000)])
    run("delete from t where a = ?", [(1,), (77,), (2,)])
    run("select ?", [(1,)])
    run("create table u(a)", [()])
    run("insert into t values(?, ?)", [])
    run("insert into t values(?, ?)", iter([]))
    run("insert into t values(?, ?)", 5)
    run("insert into t values(?, ?)", [5])
    run("insert into t(a) values(?)", "xyz")
    run("insert into t(a) values(?)", [(2**63,)])
    run("insert into t(a) select 1000+value from generate_series(1,?)", [(1,)])
    con.commit()
    run("insert into t values(?, ?)", [])
    return found


@scenario
def executemany_from_a_failing_generator(m):
    con = m.connect(":memory:")
    con.execute("create table t(a)")

    def values():
        yield (1,)
        yield (2,)
        raise KeyError("mine")

    first = outcome(lambda _: con.executemany("insert into t values(?)", values()), m)
    return first, con.execute("select a from t").fetchall(), con.in_transaction


@scenario
def scripts(m):
    con = m.connect(":memory:")
    cur = con.cursor()
    found = []
    for script in (
        "create table t(a); insert into t values(1); insert into t values(2);",
        "insert into t values(3); bad; insert into t values(4)",
        "begin; insert into t values(5);",
        "select 1; -- end",
        "",
        "create table \0 x(a)",
        b"select 1",
        5,
    ):
        answer = outcome(lambda _, s=script: cur.executescript(s) is cur, m)
        found.append((answer, con.in_transaction, con.execute("select count(*) from t").fetchall()))
    con.execute("insert into t values(9)")
    con.executescript("select 1")
    found.append(con.in_transaction)
    return found


# ---------------------------------------------------------------- transactions


@scenario
def legacy_transactions(m):
    found = []
    for level in ("", "DEFERRED", "IMMEDIATE", "EXCLUSIVE", "immediate", None):
        con = m.connect(":memory:", isolation_level=level)
        found.append(con.isolation_level)
        found.append(
            each(
                m, con, "create table t(a)", "select 1", "insert into t values(1)", "create table u(a)",
                "/* x */ update t set a = 2", "commit", "begin", "insert into t values(3)", "rollback",
                "select * from t", "savepoint x", "release x", "with z as (select 1) delete from t",
            )
        )  # fmt: skip
        con.commit()
        con.rollback()
        found.append(con.in_transaction)
    return found


@scenario
def isolation_levels_that_are_none(m):
    con = m.connect(":memory:")
    found = []
    for level in ("", None, "DEFERRED", "BOGUS", 5, "exclusive", "IMMEDIATE\0"):

        def assign(_module, level=level):
            con.isolation_level = level
            return con.isolation_level

        found.append(outcome(assign, m))
    found.append(outcome(lambda _: m.connect(":memory:", isolation_level="BOGUS"), m))
    con.execute("create table t(a)")
    con.isolation_level = ""
    con.execute("insert into t values(1)")
    con.isolation_level = None
    return [*found, con.in_transaction]


@scenario
def context_managers(m):
    con = m.connect(":memory:")
    con.execute("create table t(a unique)")
    with con as same:
        con.execute("insert into t values(1)")
    found = [same is con, con.in_transaction]

    def failing(_module):
        with con:
            con.execute("insert into t values(2)")
            con.execute("insert into t values(1)")

    found += [outcome(failing, m), con.in_transaction, con.execute("select a from t").fetchall()]
    con.executescript(
        "pragma foreign_keys=on; create table p(a primary key);"
        "create table c(a references p deferrable initially deferred)"
    )

    def failing_commit(_module):
        with con:
            con.execute("insert into c values(5)")

    found += [outcome(failing_commit, m), con.in_transaction]
    return found


@scenario
def uncommitted_work_is_lost(m):
    con = m.connect(":memory:")
    con.execute("create table t(a)")
    con.execute("insert into t values(1)")
    con.rollback()
    return con.execute("select * from t").fetchall()


@scenario
def total_changes(m):
    con = m.connect(":memory:")
    con.execute("create table t(a)")
    con.executemany("insert into t values(?)", [(1,), (2,)])
    con.execute("update t set a = 3")
    return con.total_changes


# ---------------------------------------------------------------- rows, text and types


@scenario
def rows_with_names(m):
    con = m.connect(":memory:")
    con.row_factory = m.Row
    row = con.execute("select 1 as a, 'x' as \"B\", 2 as a, 'é' as É").fetchone()
    other = con.execute("select 1 as a, 'x' as \"B\", 2 as a, 'é' as É").fetchone()
    third = con.execute("select 1 as z, 'x' as \"B\", 2 as a, 'é' as É").fetchone()

    def item(key):
        return outcome(lambda _: row[key], m)

    keys = (0, -1, 3, 4, -5, "a", "A", "b", "missing", "É", "é", slice(1, 3), slice(None, None, -1), 1.5, None,
            2**100, True)  # fmt: skip
    return [
        [item(key) for key in keys], len(row), list(row), tuple(row), dict(zip(row.keys(), row, strict=True)), row.keys(),
        row == other, row != other, row == third, row == tuple(row), hash(row) == hash(other),
        "x" in row, list(reversed(row)), isinstance(row, tuple), type(row) is m.Row,
        outcome(lambda _: m.Row(5, ()), m), outcome(lambda _: m.Row(con.cursor(), []), m),
        outcome(lambda _: row < other, m),
    ]  # fmt: skip


@scenario
def row_factories(m):
    con = m.connect(":memory:")
    con.row_factory = lambda cursor, row: {
        d[0]: v for d, v in zip(cursor.description, row, strict=True)
    }
    cur = con.execute("select 1 as a union all select 2 union all select 3")
    found = [cur.fetchone()]
    cur.row_factory = None
    found.append(cur.fetchone())
    cur.row_factory = lambda cursor, row: list(row)
    found += [cur.fetchall(), con.cursor().row_factory is con.row_factory]
    cur.row_factory = lambda cursor, row: 1 // 0
    cur.execute("select 1")
    return [*found, outcome(lambda _: cur.fetchone(), m)]


@scenario
def text_factories(m):
    con = m.connect(":memory:")
    found = []
    for factory in (
        str,
        bytes,
        bytearray,
        lambda data: data.decode("latin-1").upper(),
        lambda data: 1 // 0,
        None,
        5,
    ):
        con.text_factory = factory
        cur = con.execute("select 'aé', x'01', 'b', null, 5 as x")
        found.append(outcome(lambda _, cur=cur: cur.fetchall(), m))
    return found


@scenario
def text_that_is_not_utf8(m):
    con = m.connect(":memory:")
    sql = "select cast(x'61ff00' as text) as \"n é\""
    cur = con.execute(sql)
    found = [outcome(lambda _: cur.fetchone(), m)]
    con.text_factory = bytes
    found.append(con.execute(sql).fetchone())
    con.text_factory = lambda data: data.decode(errors="ignore")
    return [*found, con.execute(sql).fetchone()]


@scenario
def numbers_as_sqlite_stores_them(m):
    con = m.connect(":memory:")
    con.execute("create table t(i integer, r real, n numeric, x text, b blob)")
    for value in (1, 1.0, 1.5, "1", "1.0", "abc", b"1", True, 2**62, 1e300, None):
        con.execute("insert into t values(?,?,?,?,?)", (value,) * 5)
    rows = con.execute(
        "select *, typeof(i), typeof(r), typeof(n), typeof(x), typeof(b) from t"
    ).fetchall()
    return [[(type(v).__name__, v) for v in row] for row in rows]


@scenario
def adapters_and_converters(m):
    class Point:
        def __init__(self, x, y):
            self.x, self.y = x, y

        def __conform__(self, protocol):
            return f"{self.x};{self.y}" if protocol is m.PrepareProtocol else None

    m.register_converter("point", lambda data: tuple(map(int, data.split(b";"))))
    m.register_adapter(complex, repr)
    con = m.connect(":memory:", detect_types=m.PARSE_DECLTYPES | m.PARSE_COLNAMES)
    con.execute("create table t(p point, q POINT(5) not null, z)")
    con.execute("insert into t values(?, ?, ?)", (Point(1, 2), Point(3, 4), 1j))
    con.execute("insert into t values(?, ?, ?)", (None, "5;6", Point(7, 8)))
    cur = con.execute('select p, q, z, z as "w [point]", p as "v[x]" from t where rowid = 2')
    found = [cur.description, cur.fetchall(), con.execute("select * from t").fetchall()]
    con.execute("insert into t values(?, 'bad', 1)", (Point(9, 9),))
    cur = con.execute("select q from t order by rowid")
    return [*found, cur.fetchone(), outcome(lambda _: [cur.fetchone(), cur.fetchone()], m)]


@scenario
def a_table_that_changes_under_a_cached_statement(m):
    con = m.connect(":memory:")
    con.execute("create table t(a)")
    con.execute("insert into t values(1)")
    cur = con.cursor()
    found = []
    for change in (
        "alter table t add column b",
        "drop table t",
        "create table t(x, y)",
        "insert into t values(1,2)",
    ):
        found.append(
            outcome(lambda _: (cur.execute("select * from t").fetchall(), cur.description), m)
        )
        con.execute(change)
    return [*found, cur.execute("select * from t").fetchall(), cur.description]


@scenario
def iterdump(m):
    con = m.connect(":memory:")
    con.executescript(
        "create table t(a, b); insert into t values(1, 'x''y'), (null, x'00'); create view v as select 1"
    )
    return list(con.iterdump())


@scenario
def module_names(m):
    return [m.apilevel, m.paramstyle, m.PARSE_DECLTYPES, m.PARSE_COLNAMES, m.DateFromTicks(0).year,
            m.complete_statement("select 1;"), m.Binary is memoryview, m.adapt(5, None, 5)]  # fmt: skip


@scenario
def subclasses_and_factories(m):
    class MyCursor(m.Cursor):
        pass

    class MyConnection(m.Connection):
        def cursor(self, *args):
            return super().cursor(MyCursor)

    con = m.connect(":memory:", factory=MyConnection)
    return [
        type(con).__name__, type(con.cursor()).__name__, type(con.execute("select 1")).__name__,
        outcome(lambda _: m.connect(":memory:").cursor(lambda c: None), m),
        outcome(lambda _: m.connect(":memory:").cursor(None), m),
        outcome(lambda _: m.connect(":memory:").cursor(type("S", (str,), {"__class__": m.Cursor})), m),
        outcome(lambda _: m.Cursor(5), m),
        outcome(lambda _: m.connect(), m),
        m.connect(":memory:", 5.0, 0, None, True, MyConnection).isolation_level,
    ]  # fmt: skip


@scenario
def lastrowid_after_executemany_scripts_and_failures(m):
    con = m.connect(":memory:")
    con.execute("create table t(a integer primary key, b unique)")
    cur = con.cursor()
    found = []

    def run(call):
        found.append((outcome(lambda _: call() is cur, m), cur.lastrowid))
        found.append((cur.execute("select 1").lastrowid, con.execute("select 1").lastrowid))

    run(lambda: cur.executemany("insert into t(b) values(?)", [(1,), (2,)]))
    run(lambda: cur.executescript("insert into t(b) values(3)"))
    run(lambda: cur.execute("insert or fail into t(b) values(4), (4)"))
    run(lambda: cur.executemany("insert into t(b) values(?)", [(5,), (5,)]))
    run(lambda: cur.executescript("insert into t(b) values(6); bad"))
    return found


@scenario
def fetchmany_of_sizes_that_are_none(m):
    con = m.connect(":memory:")
    return [
        outcome(lambda _, size=size: con.execute("select 1 union select 2").fetchmany(size), m)
        for size in (1.5, "x", [], True, -1)
    ]


@scenario
def isolation_levels_of_a_class_of_its_own(m):
    class Level(str):
        __slots__ = ()

        def upper(self):
            return None

    con = m.connect(":memory:", isolation_level=Level("immediate"))
    found = [con.isolation_level]
    con.isolation_level = Level("exclusive")
    return [*found, con.isolation_level]


@scenario
def conform_and_adapt_that_raise(m):
    class Bad:
        def __init__(self, error):
            self.error = error

        def __conform__(self, protocol):
            raise self.error

    con = m.connect(":memory:")
    found = [
        outcome(lambda _, e=e: con.execute("select ?", (Bad(e),)), m) for e in (TypeError, KeyError)
    ]
    return found + [outcome(lambda _, e=e: m.adapt(Bad(e)), m) for e in (TypeError, KeyError)]


@scenario
def recursive_use_of_a_cursor(m):
    con = m.connect(":memory:", detect_types=m.PARSE_COLNAMES)
    con.execute("create table t(a)")
    cur = con.cursor()
    found = []

    def values(use):
        use()
        yield (1,)

    uses = {
        "execute": lambda: cur.execute("select 1"),
        "fetch": cur.fetchone,
        "close": cur.close,
        "init": lambda: cur.__init__(con),
        "iterate": lambda: next(cur),
    }
    for name, use in uses.items():
        sets = values(use)
        found.append(outcome(lambda _, v=sets: cur.executemany("insert into t values(?)", v), m))
        m.register_converter(name, lambda _data, use=use: use())
        cur.execute(f'select 1 as "x [{name}]" union select 2')
        found.append(outcome(lambda _: cur.fetchall(), m))
    return found


@scenario
def base_init_not_called(m):
    class Lazy(m.Cursor):
        def __init__(self, con):
            pass

    class LazyConnection(m.Connection):
        def __init__(self):
            pass

    cur = Lazy(m.connect(":memory:"))
    con = LazyConnection()
    return [
        outcome(lambda _: cur.execute("select 1"), m), outcome(lambda _: cur.fetchone(), m),
        outcome(lambda _: cur.close(), m), outcome(lambda _: con.cursor(), m),
        outcome(lambda _: con.in_transaction, m),
    ]  # fmt: skip


@scenario
def looped(module):
    """A cursor that is executed again inside its own loop."""
    found = []
    with closing(module.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t(a)")
        connection.executemany("INSERT INTO t VALUES (?)", [(i,) for i in range(10)])
        cursor = connection.execute("SELECT a FROM t ORDER BY a")
        for (value,) in cursor:
            found.append(value)
            if len(found) == 4:
                cursor.execute("SELECT a + 100 FROM t WHERE a < 2")
        return [*found, cursor.fetchall()]


@scenario
def loops(module):
    """Two loops over one cursor, executed again with rows that a factory makes."""
    found = []
    with closing(module.connect(":memory:")) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3")
        outer = iter(cursor)
        found.append(next(outer))
        cursor.row_factory = lambda _cursor, row: list(row)
        found.append(next(outer))
        cursor.execute("SELECT 4 UNION ALL SELECT 5 UNION ALL SELECT 6")
        found += [next(outer), next(iter(cursor)), cursor.fetchone(), next(outer, None)]
        connection.execute("CREATE TABLE t(a)")
        cursor.executemany("INSERT INTO t VALUES (?)", ())
        return [*found, *outer]


@scenario
def converted(module):
    """A converter that fails for one row, twice."""
    failures = ["once", "twice"]

    def convert(value):
        if value == b"1" and failures:
            raise ZeroDivisionError(failures.pop())
        return int(value)

    module.register_converter("picky", convert)
    with closing(module.connect(":memory:", detect_types=module.PARSE_DECLTYPES)) as connection:
        connection.execute("CREATE TABLE t(a picky)")
        connection.executemany("INSERT INTO t VALUES (?)", [(0,), (1,), (2,), (3,)])
        cursor = connection.execute("SELECT a FROM t ORDER BY a")
        found = [cursor.fetchone()]
        with pytest.raises(ZeroDivisionError):
            cursor.fetchone()
        with pytest.raises(ZeroDivisionError):
            cursor.fetchall()
        return [*found, *cursor.fetchall()]


@scenario
def many(module):
    """Sizes that no C int holds."""
    with closing(module.connect(":memory:")) as connection:
        cursor = connection.execute("SELECT 1")
        for size in (2**31, 2**63, -(2**40)):
            with pytest.raises(OverflowError):
                cursor.fetchmany(size)
        return list(cursor.fetchmany(2**31 - 1))


@scenario
def sets_reused(module):
    """An iterator may hand out one container again and again, and go on after a failure."""

    def lists():
        one = [0]
        for i in range(5):
            one[0] = i
            yield one

    def mappings():
        one = {}
        for i in range(5, 10):
            one["a"] = i
            yield one

    def buffers():
        one = bytearray(1)
        for i in range(5):
            one[0] = i
            yield (one,)

    with closing(module.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t(a PRIMARY KEY)")
        cursor = connection.cursor()
        counts = [
            cursor.executemany("INSERT INTO t VALUES (?)", lists()).rowcount,
            cursor.executemany("INSERT INTO t VALUES (:a)", mappings()).rowcount,
            cursor.executemany("INSERT INTO t VALUES (?)", buffers()).rowcount,
        ]
        rest = iter([("x",), ("x",), ("y",), ("z",), ("z",), ("w",)])
        failures = 0
        while True:
            try:
                cursor.executemany("INSERT INTO t VALUES (?)", rest)
                break
            except module.IntegrityError:
                failures += 1
        return [counts, failures, connection.execute("SELECT * FROM t ORDER BY rowid").fetchall()]


@scenario
def sets_seen(module):
    """What runs while sets are taken, or adapted, finds those before in the table."""
    seen = []

    class Adapted:
        def __init__(self, value):
            self.value = value

        def __conform__(self, _protocol):
            seen.append(connection.execute("SELECT count(*) FROM t").fetchone())
            return self.value

    def sets():
        for i in range(3):
            seen.append(connection.execute("SELECT count(*) FROM t").fetchone())
            seen.append(connection.in_transaction)
            connection.commit()
            yield (i,)

    with closing(module.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t(a)")
        connection.executemany("INSERT INTO t VALUES (?)", sets())
        seen.append(connection.in_transaction)
        connection.executemany("INSERT INTO t VALUES (?)", [(1,), (Adapted(2),), (Adapted(3),)])
        connection.rollback()
        connection.executemany("INSERT INTO t VALUES (?)", ())
        seen.append(connection.in_transaction)
        return [seen, connection.execute("SELECT * FROM t").fetchall()]


@scenario
def read_otherwise(module):
    """text_factory is changed while a cursor is half read: its statement is not used for the old one again."""
    found = []
    with closing(module.connect(":memory:")) as connection:
        sql = "WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r) SELECT 'x' || i FROM r LIMIT ?"
        for factory in (bytes, str, bytearray, str):
            cursor = connection.execute(sql, (5000,))
            cursor.fetchone()
            connection.text_factory = factory
            found.append(len(cursor.fetchall()))
            found += connection.execute(sql, (1,)).fetchall()
    return found


@scenario
def closed_in_loop(module):
    with closing(module.connect(":memory:")) as connection:
        cursor = connection.execute("SELECT 1 UNION ALL SELECT 2 UNION ALL SELECT 3")
        found = []
        with pytest.raises(module.ProgrammingError):
            for row in cursor:
                found.append(row)
                cursor.close()
        return found


@scenario
def closed_while_rows_are_made(module):
    """Rows that were not read are not left out in silence."""
    outcomes = []
    for fetch in ("fetchall", "__iter__", "fetchmany"):
        connection = module.connect(":memory:")
        connection.execute("CREATE TABLE t(a)")
        connection.executemany("INSERT INTO t VALUES (?)", [("x" * 100,)] * 5000)
        connection.commit()
        cursor = connection.execute("SELECT a FROM t")
        cursor.row_factory = lambda cursor, row: cursor.connection.close() or row
        if fetch == "fetchmany":
            outcomes.append(outcome(lambda _: cursor.fetchmany(5000), module))  # noqa: B023
        else:
            outcomes.append(outcome(lambda _: list(getattr(cursor, fetch)()), module))  # noqa: B023
    return outcomes


@scenario
def refused_openings(module):
    for path in ("a\0b", b"a\0b"):
        with pytest.raises(ValueError, match="embedded null"):
            module.connect(path)
    if sys.version_info >= (3, 12) or module is nearlite:
        for autocommit in (1, 0, None, "yes", -1.0, 2):
            with pytest.raises(ValueError, match="autocommit must be"):
                module.connect(":memory:", autocommit=autocommit)


@scenario
def given_up(module):
    """A cursor that is half read and let go of ends at once, whatever makes its rows."""
    found = []
    gc.disable()
    try:
        for options in ({}, {"detect_types": module.PARSE_DECLTYPES}):
            for factory in (None, module.Row, lambda _cursor, row: list(row)):
                with closing(module.connect(":memory:", **options)) as connection:
                    connection.row_factory = factory
                    connection.execute("CREATE TABLE t(a picky)")
                    connection.executemany("INSERT INTO t VALUES (?)", [("x" * 99,)] * 1000)
                    connection.commit()
                    found.append(len(connection.execute("SELECT a FROM t").fetchone()))
                    connection.execute("DROP TABLE t")
    finally:
        gc.enable()
    return found


@scenario
def orders(module):
    """Collations may answer any integer."""
    found = []
    with closing(module.connect(":memory:")) as connection:
        for order in (-sys.maxsize - 1, -sys.maxsize, sys.maxsize, -(1 << 70), 1 << 70, -1, 0):
            connection.create_collation("any", lambda _a, _b, order=order: order)
            found += connection.execute(
                "SELECT 'a' = 'b' COLLATE any, 'a' < 'b' COLLATE any, 'a' > 'b' COLLATE any"
            ).fetchall()
    return found


@scenario
def texts(module):
    """What a converter and a text_factory are given."""
    module.register_converter("raw", bytes)
    with closing(module.connect(":memory:", detect_types=module.PARSE_DECLTYPES)) as connection:
        connection.text_factory = bytearray
        connection.execute("CREATE TABLE t(a raw, b)")
        values = ["", b"", "é", b"x", 5, None, 1e100, 1e-5, 0.5, 100.0, float("inf")]
        connection.executemany("INSERT INTO t VALUES (?, '')", [(value,) for value in values])
        return connection.execute("SELECT * FROM t").fetchall()


@scenario
def left(module):
    """What a function raises to end the program is not kept for another statement."""

    def picky(value):
        if value == 3:
            raise KeyboardInterrupt
        return value

    with closing(module.connect(":memory:")) as connection:
        connection.create_function("picky", 1, picky)
        connection.execute("CREATE TABLE t(a UNIQUE)")
        connection.executemany("INSERT INTO t VALUES (?)", [(1,), (2,), (3,)])
        try:
            connection.execute("SELECT picky(a) FROM t").close()
        except (KeyboardInterrupt, module.OperationalError):
            pass
        try:
            connection.execute("INSERT INTO t VALUES (1)")
        except module.IntegrityError as error:
            return str(error)
    return None


@scenario
def pickled(module):
    """Rows with names are not pickled, nor copied."""
    with closing(module.connect(":memory:")) as connection:
        connection.row_factory = module.Row
        row = connection.execute("SELECT 1 AS a").fetchone()
        for make in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot pickle"):
                make(row)
        return list(row)


if sys.version_info >= (3, 11):  # before, the standard library raised other classes

    @pytest.mark.filterwarnings("ignore:The default .* is deprecated")
    @pytest.mark.filterwarnings("ignore:Passing more than 1 positional")
    @pytest.mark.filterwarnings("ignore:unclosed database in <sqlite3")
    @pytest.mark.filterwarnings("ignore:Exception ignored in. <sqlite3.Connection")
    @pytest.mark.parametrize("function", SCENARIOS, ids=lambda f: f.__name__)
    def test_outcome_equals_that_of_the_standard_library(function):
        assert outcome(function, nearlite) == outcome(function, sqlite3)
        gc.collect()  # since 3.13 the standard library warns of its unclosed connections: here, if ever


# ---------------------------------------------------------------- threads, signals, lifetimes


def test_the_same_text_run_between_a_statement_and_its_result_is_another_statement():
    """A signal handler, or a finalizer, runs there; so does a profiler, at a known place."""
    with closing(nearlite.connect(":memory:", isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t(a)")
        runs = []
        inside = []

        def profile(_frame, event, function):
            if event == "c_return" and not inside and "nl_stmt_go" in repr(function):
                inside.append(1)
                runs.extend(connection.execute(sql, (-7,)).fetchall() for sql in texts)
                inside.clear()

        texts = ["SELECT ?", "SELECT ? || ''", "INSERT INTO t VALUES (?) RETURNING a"]
        for sql in (*texts, *texts):
            sys.setprofile(profile)
            try:
                got = connection.execute(sql, (5,)).fetchall()
            finally:
                sys.setprofile(None)
            assert got in ([(5,)], [("5",)])
        assert runs == [[(-7,)], [("-7",)], [(-7,)]] * 6


def test_a_connection_that_a_signal_handler_cannot_close_stays_open():
    class AlarmError(Exception):
        pass

    def handler(*_args):
        with pytest.raises(nearlite.ProgrammingError, match="in use by another call"):
            connection.close()
        raise AlarmError

    connection = nearlite.connect(":memory:")
    connection.execute("CREATE TABLE t(a)")
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(AlarmError):
            connection.execute(
                "WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r) SELECT count(*) FROM r"
            )
    finally:
        signal.signal(signal.SIGALRM, before)
    assert connection.execute("SELECT count(*) FROM t").fetchone() == (0,)
    connection.close()
    with pytest.raises(nearlite.ProgrammingError, match="closed"):
        connection.execute("SELECT 1")


@pytest.mark.parametrize("fetch", ["fetchone", "fetchall", "fetchmany", "__next__", "__iter__"])
def test_rows_are_not_lost_when_a_factory_raises_stop_iteration(fetch):
    with closing(nearlite.connect(":memory:")) as connection:
        connection.row_factory = lambda _cursor, _row: next(iter(()))
        cursor = connection.execute("SELECT 1 UNION ALL SELECT 2")
        with pytest.raises(RuntimeError):
            list(getattr(cursor, fetch)())


def test_threads_that_share_a_cursor_lose_no_rows():
    with closing(nearlite.connect(":memory:", check_same_thread=False)) as connection:
        connection.execute("CREATE TABLE t(a)")
        connection.executemany("INSERT INTO t VALUES (?)", [(i,) for i in range(50_000)])
        cursor = connection.execute("SELECT a FROM t")
        got = []

        def fetch(many):
            while True:
                try:
                    rows = cursor.fetchmany(100) if many else [cursor.fetchone()]
                except nearlite.ProgrammingError:
                    continue  # another thread is in the cursor
                if rows in ([], [None]):
                    return
                got.extend(rows)

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        try:
            threads = [threading.Thread(target=fetch, args=(many,)) for many in (0, 1, 0, 1)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            sys.setswitchinterval(interval)
        assert sorted(got) == [(i,) for i in range(50_000)]


def test_a_fork_while_another_thread_is_in_a_connection():
    program = """
import os, threading, nearlite
connection = nearlite.connect(":memory:", check_same_thread=False)
begun, end = threading.Event(), threading.Event()
def wait():
    begun.set()
    end.wait()
    return 1
connection.create_function("wait", 0, wait)
thread = threading.Thread(target=connection.execute, args=("SELECT wait()",))
thread.start()
begun.wait()
if not os.fork():
    for use in (lambda: connection.execute("SELECT 1"), connection.close):
        try:
            use()
            print("done", flush=True)
        except nearlite.ProgrammingError as error:
            print("fork" in str(error), flush=True)
    os._exit(0)
os.wait()
end.set()
thread.join()
print(connection.execute("SELECT 2").fetchone())
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=60
    )
    assert run.stdout.splitlines()[0] == "True", (run.stdout, run.stderr)
    assert run.stdout.splitlines()[-1] == "(2,)"


def test_a_cursor_that_a_signal_handler_closes_in_a_long_statement():
    class AlarmError(Exception):
        pass

    with closing(nearlite.connect(":memory:")) as connection:
        connection.execute("CREATE TABLE t(a)")
        connection.executemany("INSERT INTO t VALUES (?)", [("y" * 100,) for _ in range(5000)])
        connection.commit()
        sql = "SELECT a FROM t"
        cursor = connection.execute(sql)
        cursor.fetchone()

        def handler(*_args):
            cursor.close()
            raise AlarmError

        before = signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            with pytest.raises(AlarmError):
                connection.execute(
                    "WITH r(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM r) SELECT count(*) FROM r"
                )
        finally:
            signal.signal(signal.SIGALRM, before)
        assert len(connection.execute(sql).fetchall()) == 5000
        connection.execute("DROP TABLE t")


def test_another_thread_is_refused_unless_told_otherwise():
    con = nearlite.connect(":memory:")
    cur = con.execute("select 1")
    failures = []

    def work():
        for call in (
            con.cursor,
            con.commit,
            con.close,
            cur.fetchone,
            cur.fetchall,
            lambda: con.execute("select 1"),
        ):
            try:
                call()
            except nearlite.ProgrammingError as error:
                failures.append("same thread" in str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failures == [True] * 6


def test_threads_that_share_a_connection_wait_for_each_other():
    con = nearlite.connect(":memory:", check_same_thread=False, isolation_level=None)
    con.execute("create table t(a)")
    failures = []

    def work(start):
        try:
            for i in range(200):
                con.execute("insert into t values(?)", (start + i,))
                assert con.execute("select a from t where a = ?", (start + i,)).fetchall() == [
                    (start + i,)
                ]
                con.executemany("insert into t values(?)", [(-1,), (-1,)])
                assert len(con.execute("select a from t limit 500").fetchall()) <= 500
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n * 1000,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert con.execute("select count(*) from t where a >= 0").fetchone() == (800,)


ENDLESS = (
    "with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) as m from n"
)


@pytest.mark.parametrize(
    "work",
    [
        f"con.execute({ENDLESS!r})",
        f"con.executemany('insert into t select max(m) + ? from ({ENDLESS})', [(1,)])",
        f"con.executescript({ENDLESS!r})",
        "con.executemany('insert into t values(?)', itertools.repeat((1,)))",
        "for row in con.execute('with recursive n(i) as (select 1 union all select i from n) select i from n'): pass",
        "locked.execute('insert into t values(1)')",
    ],
)
def test_ctrl_c_stops_what_runs_and_leaves_the_connection_usable(work, tmp_path):
    program = f"""
import itertools, nearlite, os, signal, threading, time
con = nearlite.connect({str(tmp_path / "x.db")!r})
con.executescript("pragma journal_mode=wal; create table t(a)")
locked = nearlite.connect({str(tmp_path / "x.db")!r}, timeout=60)
if {work.startswith("locked")}:
    con.execute("begin immediate")
# a program started in the background of a shell ignores SIGINT
signal.signal(signal.SIGINT, signal.default_int_handler)
sent = []
def send():
    sent.append(time.monotonic())
    os.kill(os.getpid(), signal.SIGINT)
threading.Timer(0.05, send).start()
try:
    {work}
except KeyboardInterrupt:
    print("interrupted", time.monotonic() - sent[0] < 1)
con.rollback()
print(con.execute("select 1").fetchall(), con.execute("select count(*) from t").fetchall())
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30
    )
    assert run.stderr == ""
    assert run.stdout == "interrupted True\n[(1,)] [(0,)]\n"


def test_rows_before_the_one_that_memory_does_not_hold_are_delivered():
    program = """
import nearlite, resource
con = nearlite.connect(":memory:")
resource.setrlimit(resource.RLIMIT_AS, (1 << 29, 1 << 29))
cur = con.execute(
    "select i, case i when 3 then length(randomblob(999999999)) end from "
    "(select 1 as i union all select 2 union all select 3)"
)
print(cur.fetchone(), cur.fetchone())
try:
    cur.fetchone()
except MemoryError:
    print("out of memory")
print(con.execute("select 1").fetchall())
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=30
    )
    assert run.stdout == "(1, None) (2, None)\nout of memory\n[(1,)]\n", run.stderr


def test_interrupt_from_another_thread():
    con = nearlite.connect(":memory:", check_same_thread=False)
    failures = []

    def work():
        try:
            con.execute(ENDLESS)
        except nearlite.OperationalError as error:
            failures.append(error.sqlite_errorname)

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive():
        con.interrupt()
        thread.join(0.005)
    assert failures == ["SQLITE_INTERRUPT"]


def test_other_threads_run_during_a_long_query():
    con = nearlite.connect(":memory:", check_same_thread=False)

    def work():
        with pytest.raises(nearlite.OperationalError):
            con.execute(ENDLESS)

    thread = threading.Thread(target=work)
    thread.start()
    assert sum(range(100_000)) == 4999950000
    while thread.is_alive():
        con.interrupt()
        thread.join(0.005)


def test_a_scan_holds_no_read_transaction_once_it_is_read(tmp_path):
    con = nearlite.connect(tmp_path / "x.db", isolation_level=None)
    con.executescript("pragma journal_mode=wal; create table t(a); insert into t values(1), (2)")
    cur = con.execute("select a from t")
    assert con.execute("pragma wal_checkpoint(truncate)").fetchone() == (0, 0, 0)
    assert cur.fetchall() == [(1,), (2,)]


def test_an_abandoned_cursor_ends_its_statement(tmp_path):
    con = nearlite.connect(tmp_path / "x.db", isolation_level=None)
    con.executescript("pragma journal_mode=wal; create table t(a); begin")
    con.executemany("insert into t values(?)", [(i,) for i in range(20_000)])
    con.commit()
    cur = con.execute("select a from t")
    cur.fetchone()
    other = nearlite.connect(tmp_path / "x.db", isolation_level=None, timeout=0)
    assert other.execute("pragma wal_checkpoint(truncate)").fetchone()[0] == 1
    del cur
    gc.collect()
    assert other.execute("pragma wal_checkpoint(truncate)").fetchone()[0] == 0


def test_statements_are_cached_up_to_the_limit_and_used_ones_stay():
    con = nearlite.connect(":memory:", cached_statements=4)
    for i in range(50):
        assert con.execute(f"select {i}").fetchone() == (i,)
        assert con.execute("select 'hot'").fetchone() == ("hot",)
    assert len(con._statements) == 4
    assert "select 'hot'" in con._statements
    none = nearlite.connect(":memory:", cached_statements=0)
    assert none.execute("select 1").fetchone() == (1,)
    assert not none._statements


def test_a_connection_can_be_referred_to_weakly_and_dies():
    con = nearlite.connect(":memory:")
    con.execute("select 1").fetchall()
    reference = weakref.ref(con)
    del con
    gc.collect()
    assert reference() is None


def test_paths_of_every_kind(tmp_path):
    for path in (
        tmp_path / "a.db",
        str(tmp_path / "a.db"),
        bytes(tmp_path / "a.db"),
        f"file:{tmp_path}/a.db?mode=rw",
    ):
        con = nearlite.connect(path, uri=str(path).startswith("file:"))
        con.execute("create table if not exists t(a)")
        con.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.db"]


def test_errors_are_those_of_the_standard_library_too():
    con = nearlite.connect(":memory:")
    with pytest.raises(sqlite3.OperationalError) as caught:
        con.execute("select * from missing")
    assert isinstance(caught.value, con.OperationalError)
    assert caught.value.sqlite_errorcode == 1


if sys.version_info >= (3, 12):  # the standard library has autocommit since then

    @pytest.mark.parametrize("mode", [True, False])
    def test_autocommit_as_in_the_standard_library(mode):
        def run(m):
            con = m.connect(":memory:", autocommit=mode)
            found = [con.autocommit, con.in_transaction]
            found.append(
                each(
                    m,
                    con,
                    "create table t(a)",
                    "insert into t values(1)",
                    "begin",
                    "select * from t",
                )
            )
            con.rollback()
            found += [
                con.in_transaction,
                outcome(lambda _: con.execute("select * from t").fetchall(), m),
            ]
            with con:
                con.execute("create table if not exists u(a)")
            found.append(con.in_transaction)
            for value in (m.LEGACY_TRANSACTION_CONTROL, True, False, 5, None):
                found.append(outcome(lambda _, v=value: setattr(con, "autocommit", v), m))
                found += [con.autocommit, con.in_transaction]
            con.executescript("insert into u values(5)")
            found.append(con.in_transaction)
            return found

        assert outcome(run, nearlite) == outcome(run, sqlite3)
