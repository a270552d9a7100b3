"""Functions and collations of a program: the standard library as the oracle, and what it does not promise.

Callables are called by C directly (csrc/direct.c) or through cffi's trampolines; both have to do the same.
"""

from __future__ import annotations

import contextlib
import gc
import math
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import warnings
import weakref

import pytest
from callbacks import fetch, outcome, reported, scenarios
from hypothesis import given
from hypothesis import strategies as st

import nearlite
from nearlite._native import callbacks


@pytest.fixture(params=["direct", "trampolines"])
def way(request, monkeypatch):
    """How C calls Python."""
    monkeypatch.setattr(callbacks, "_DIRECT", request.param == "direct")
    return request.param


# ---------------------------------------------------------------- scenarios


def arguments_arrive_as_they_are(m):
    c = m.connect(":memory:")
    seen = []
    c.create_function("f", -1, lambda *values: seen.append([(type(v), v) for v in values]))
    c.execute("SELECT f(), f(1), f(-1.5), f('a\u20ac'), f(x'00ff'), f(NULL)").fetchall()
    c.execute("SELECT f(1, 'b', NULL, 2.5, x''), f(9223372036854775807, -9223372036854775808)")
    c.execute("SELECT f(?), f(?)", ("n\0l", b"n\0l")).fetchall()
    c.execute("SELECT f(?, 1), f(zeroblob(9000), ?)", ("x" * 300, "y" * 70000)).fetchall()
    c.execute(f"SELECT f({','.join(map(str, range(90)))})").fetchall()
    return seen


def results_are_stored_by_their_type(m):
    class Int(int):
        def __int__(self):
            return 7

        __index__ = __int__

    class Str(str):
        __slots__ = ()

        def encode(self, *_):
            return b"other"

    class Float(float):
        def __float__(self):
            return 7.5

    results = [
        None,
        0,
        True,
        -(2**63),
        -(2**63) + 1,
        -(2**63) + 2,
        -(2**63) + 15,
        -(2**63) + 16,
        2**63 - 1,
        Int(5),
        1.5,
        math.inf,
        math.nan,
        Float(2.5),
        "",
        "text",
        "n\0l",
        "\u20ac" * 3000,
        Str("abc"),
        b"",
        b"bin\0",
        bytes(9000),
        bytearray(b"ab"),
        memoryview(b"cd"),
    ]
    c = m.connect(":memory:")
    c.create_function("f", 1, lambda i: results[i])
    c.create_function("g", 2, lambda i, _: results[i])
    c.create_function("h", 1, lambda i: results[int(i)])
    return [
        c.execute(f"SELECT typeof({f}), {f}", {"i": i}).fetchall()
        for i in range(len(results))
        for f in ("f(:i)", "g(:i, 'x')", "h(:i + 0.0)", "h(CAST(:i AS TEXT))")
    ]


def failures_have_the_same_words(m):
    def raises(kind):
        raise {"z": ZeroDivisionError, "m": MemoryError, "o": OverflowError, "s": StopIteration}[
            kind
        ]("why")

    results = {"big": 2**63, "small": -(2**63) - 1, "huge": 2**70, "object": object(), "list": []}
    results |= {"half": "\ud800", "strided": memoryview(b"abcd")[::2], "complex": 1j}
    c = m.connect(":memory:")
    c.create_function("raises", 1, raises)
    c.create_function("gives", 1, results.get)
    c.create_function("decodes", 0, b"\xff".decode)
    c.create_function("none", 0, 5)
    c.create_function("f", 1, lambda x: x)
    with reported(m) as found:
        answers = [fetch(c, "SELECT raises(?)", (kind,)) for kind in "zmos"]
        answers += [fetch(c, "SELECT gives(?)", (kind,)) for kind in results]
        answers += [fetch(c, "SELECT decodes()"), fetch(c, "SELECT none()"), fetch(c, "SELECT f()")]
        answers += [fetch(c, "SELECT f(CAST(x'41ff' AS TEXT))"), fetch(c, "SELECT f(1, 2)")]
        answers += [fetch(c, "SELECT f(value) FROM json_each('[1, 2]') WHERE raises('z')")]
    quiet = fetch(c, "SELECT raises('z')")
    return answers, quiet, [(kind, text) for kind, text, _ in found], [n for _, _, n in found[:4]]


def defining_is_refused_in_the_same_way(m):
    c = m.connect(":memory:")
    f = len
    tries = [
        lambda: c.create_function("f", -2, f),
        lambda: c.create_function("f", 40000, f),
        lambda: c.create_function("f" * 256, 1, f),
        lambda: c.create_function(1, 1, f),
        lambda: c.create_function("a\0b", 1, f),
        lambda: c.create_function("a\udc80", 1, f),
        lambda: c.create_function("f", 1.5, f),
        lambda: c.create_function("f", 2**40, f),
        lambda: c.create_window_function("f", -2, f),
        lambda: c.create_window_function(None, 1, f),
        lambda: c.create_aggregate("f", -2, f),
        lambda: c.create_collation(None, f),
        lambda: c.create_collation("a\0b", f),
        lambda: c.create_collation("c", 5),
        lambda: c.create_collation("c", None),
        lambda: c.set_progress_handler(f, 2**40),
        lambda: c.set_progress_handler(f, "1"),
    ]
    return [outcome(one) for one in tries]


def functions_are_replaced_and_overloaded(m):
    c = m.connect(":memory:")
    c.create_function("f", 1, lambda x: ("one", x)[0])
    c.create_function("f", 2, lambda *_: "two")
    c.create_function("f", -1, lambda *_: "any")
    found = [fetch(c, "SELECT f(1), f(1, 2), f(), F(1, 2, 3)")]
    c.create_function("f", 1, lambda _: "new")
    c.create_function("upper", 1, lambda _: "ours")
    found.append(fetch(c, "SELECT f(1), f(1, 2), upper('a')"))
    c.create_function("upper", 1, lambda x: x, deterministic=True)
    return [*found, fetch(c, "SELECT upper('a')")]


def a_running_function_is_not_replaced(m):
    c = m.connect(":memory:")
    answers = []

    def replaces(_):
        answers.append(outcome(lambda: c.create_function("f", 1, len)))
        answers.append(outcome(lambda: c.create_function("other", 1, len)))
        answers.append(outcome(lambda: c.create_collation("anew", max)))
        return 1

    c.create_function("f", 1, replaces)
    return [fetch(c, "SELECT f(1)"), answers, fetch(c, "SELECT other('abc')")]


def deterministic_functions_serve_indexes(m):
    c = m.connect(":memory:")
    c.execute("CREATE TABLE t (a)")
    c.create_function("vague", 1, lambda x: x)
    c.create_function("clear", 1, lambda x: x and x.lower(), deterministic=True)
    c.executemany("INSERT INTO t VALUES (?)", [("B",), ("a",), (None,)])
    return [
        fetch(c, "CREATE INDEX v ON t (vague(a))"),
        fetch(c, "CREATE UNIQUE INDEX i ON t (clear(a))"),
        fetch(c, "INSERT INTO t VALUES ('A')"),
        fetch(c, "SELECT a FROM t WHERE clear(a) >= 'a' ORDER BY clear(a)"),
    ]


def functions_use_their_connection(m):
    c = m.connect(":memory:", isolation_level=None)
    c.execute("CREATE TABLE t (a)")
    c.execute("CREATE TABLE log (a)")
    c.executemany("INSERT INTO t VALUES (?)", [(i,) for i in range(30)])

    def logs(value):
        c.execute("INSERT INTO log VALUES (?)", (value,))
        return c.execute("SELECT count(*) FROM log").fetchone()[0]

    def depth(n):
        return 0 if n == 0 else 1 + c.execute("SELECT depth(?)", (n - 1,)).fetchone()[0]

    def scripted(n):
        c.executescript(f"INSERT INTO log VALUES ({n}); DELETE FROM log WHERE a > 3")
        return c.total_changes

    def many(n):
        c.executemany("INSERT INTO log VALUES (?)", [(n,), (n,)])

    c.create_function("logs", 1, logs)
    c.create_function("depth", 1, depth)
    c.create_function("scripted", 1, scripted)
    c.create_function("many", 1, many)
    return [
        fetch(c, "SELECT logs(a) FROM t"),
        fetch(c, "SELECT depth(8)"),
        fetch(c, "UPDATE t SET a = logs(a) WHERE a < 3"),
        fetch(c, "SELECT scripted(77), many(5)"),
        fetch(c, "SELECT a, count(*) FROM log GROUP BY a"),
    ]


def a_running_cursor_is_refused(m):
    c = m.connect(":memory:")
    running = c.cursor()
    found = []

    def tries(what):
        uses = {
            "execute": lambda: running.execute("SELECT 1"),
            "executemany": lambda: running.executemany("SELECT ?", [(1,)]),
            "executescript": lambda: running.executescript("SELECT 1"),
            "fetchone": running.fetchone,
            "fetchall": running.fetchall,
            "close": running.close,
            "init": lambda: running.__init__(c),
        }
        found.append(outcome(uses[what]))

    c.create_function("tries", 1, tries)
    for what in ("execute", "executemany", "fetchone", "fetchall", "close", "init"):
        running.execute("SELECT tries(?)", (what,)).fetchall()
        running.execute("SELECT tries(?)", (what,)).fetchall()
    return found


def a_connection_refuses_what_would_break_it(m):
    c = m.connect(":memory:", isolation_level=None)
    c.execute("CREATE TABLE t (a)")
    c.executemany("INSERT INTO t VALUES (?)", [(i,) for i in range(5)])
    found = []
    sql = ["DROP TABLE t", "BEGIN", "COMMIT", "ROLLBACK", "VACUUM", "ATTACH ':memory:' AS x"]

    def tries(i):
        found.append(fetch(c, sql[i]))
        return i

    c.create_function("tries", 1, tries)
    answers = [fetch(c, "SELECT tries(a) FROM t"), fetch(c, "SELECT tries(5)")]
    return answers, found


def collations_order(m):
    c = m.connect(":memory:")
    c.create_collation("backwards", lambda a, b: (a < b) - (a > b))
    c.create_collation("Gr\u00f6\u00dfe", lambda a, b: len(a) - len(b))
    c.create_collation("huge", lambda a, b: 2**70 if a > b else -(2**70) if a < b else False)
    c.create_collation("text", lambda _a, _b: "x")
    c.create_collation("none", lambda _a, _b: None)
    c.execute("CREATE TABLE t (a TEXT COLLATE backwards UNIQUE, b)")
    c.executemany("INSERT INTO t VALUES (?, ?)", [(x, 1) for x in "bca"] + [("long\0er", 2)])
    found = [
        fetch(c, "SELECT a FROM t ORDER BY a"),
        fetch(c, 'SELECT a FROM t ORDER BY a COLLATE "Gr\u00f6\u00dfe" DESC LIMIT 1'),
        fetch(c, "SELECT a FROM t ORDER BY a COLLATE huge"),
        fetch(c, "SELECT 'a' = 'b' COLLATE text, 'a' < 'b' COLLATE none"),
        fetch(c, "SELECT a FROM t WHERE a < 'b'"),
        fetch(c, "INSERT INTO t VALUES ('b', 2)"),
    ]
    c.create_collation("huge", None)
    return [*found, fetch(c, "SELECT a FROM t ORDER BY a COLLATE huge")]


def what_a_collation_raises_ends_the_statement(m):
    c = m.connect(":memory:")
    calls = []

    def bad(a, b):
        calls.append((a, b))
        raise ZeroDivisionError("bad")

    c.create_collation("bad", bad)
    found = [
        fetch(c, "SELECT x FROM (SELECT 'a' x UNION ALL SELECT 'b') ORDER BY x COLLATE bad"),
        fetch(c, "SELECT 'a' < 'b' COLLATE bad"),
        fetch(c, "SELECT 1"),
    ]
    return found, len(calls)


@pytest.mark.parametrize("scenario", scenarios(globals()), ids=lambda f: f.__name__)
def test_like_the_standard_library(scenario, way):
    assert outcome(scenario, nearlite) == outcome(scenario, sqlite3)


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-(2**63), -(2**63) + 40),
    st.floats(allow_nan=False),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.binary(),
)


@pytest.fixture(scope="module")
def pair():
    connections = [m.connect(":memory:") for m in (nearlite, sqlite3)]
    for c in connections:
        c.create_function("f", -1, lambda *values: values[0] if values else None)
    yield connections
    for c in connections:
        c.close()


@given(st.lists(values, min_size=1, max_size=4))
def test_any_value_goes_in_and_comes_out(pair, items):
    sql = f"SELECT typeof(f({','.join('?' * len(items))})), f({','.join('?' * len(items))})"
    one, two = (c.execute(sql, items * 2).fetchall() for c in pair)
    assert one == two


# ---------------------------------------------------------------- what is ours


def test_none_takes_a_function_away(way):
    c = nearlite.connect(":memory:")
    c.create_function("f", 1, abs)
    c.create_function("f", 1, None)
    with pytest.raises(nearlite.OperationalError, match="no such function: f"):
        c.execute("SELECT f(1)")


def test_a_closed_connection_and_another_thread_are_refused():
    c = nearlite.connect(":memory:")
    defines = [
        lambda: c.create_function("f", 1, abs),
        lambda: c.create_collation("f", max),
        lambda: c.create_aggregate("f", 1, list),
        lambda: c.set_trace_callback(None),
    ]
    found = []

    def elsewhere():
        found.extend(outcome(one) for one in defines)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert [name for _, name, *_ in found] == ["ProgrammingError"] * 4
    assert all("created in a thread" in text for _, _, text, _ in found)
    c.close()
    for one in defines:
        with pytest.raises(nearlite.ProgrammingError, match="closed database"):
            one()


def test_closing_in_a_callback_is_refused_and_harms_nothing(way):
    c = nearlite.connect(":memory:")
    found = []
    c.create_function("f", 1, lambda x: (found.append(outcome(c.close)), x)[1])
    c.create_collation("k", lambda _a, _b: (found.append(outcome(c.close)), 0)[1])
    assert c.execute("SELECT f(1)").fetchall() == [(1,)]
    assert c.execute("SELECT 'a' = 'b' COLLATE k").fetchall() == [(1,)]
    assert [text for _, _, text, _ in found] == [
        "the connection cannot be closed by a callback of its own"
    ] * 2
    c.close()


def test_collations_may_not_use_their_connection(way):
    c = nearlite.connect(":memory:")
    c.execute("CREATE TABLE t (a)")
    half_read = c.execute("SELECT value FROM json_each(?)", ("[" + "1," * 5000 + "1]",))
    half_read.fetchone()
    uses = [
        lambda: c.execute("DROP TABLE t"),
        lambda: c.cursor().execute("SELECT 1"),
        lambda: c.executescript("SELECT 1"),
        lambda: c.executemany("INSERT INTO t VALUES (?)", [(1,)]),
        half_read.fetchall,
        half_read.close,
        lambda: c.create_function("g", 1, abs),
        lambda: c.backup(nearlite.connect(":memory:")),
        c.serialize,
        lambda: c.deserialize(b""),
    ]
    found = []

    def compares(a, b):
        found.extend(outcome(use) for use in uses)
        uses.clear()
        return (a > b) - (a < b)

    c.create_collation("k", compares)
    c.execute("SELECT 'a' < 'b' COLLATE k").fetchall()
    assert {name for _, name, *_ in found} <= {"ProgrammingError", "MisuseError"}
    assert all("callback" in text or "Recursive" in text for _, _, text, _ in found)
    assert c.execute("SELECT count(*) FROM t").fetchone() == (0,)


@pytest.mark.parametrize(
    "sql", ["VACUUM", "SELECT a FROM t WHERE a = f(5)", "ALTER TABLE t RENAME a TO b", "REINDEX"]
)
def test_a_function_may_not_pull_the_ground_away_under_its_statement(sql, way):
    """SQLite runs it for an index in VACUUM, and for its planner while it compiles."""
    c = nearlite.connect(":memory:", isolation_level=None)
    found = []
    tries = [
        "DROP TABLE t",
        "ATTACH ':memory:' AS x",
        "VACUUM",
        "CREATE TEMP TABLE u (a)",
        "COMMIT",
    ]

    def uses(x):
        found.extend(outcome(lambda one=one: c.execute(one))[0] for one in tries)
        return x

    c.create_function("f", 1, uses, deterministic=True)
    c.executescript("CREATE TABLE t (a, UNIQUE (a)); CREATE INDEX i ON t (f(a))")
    c.executemany("INSERT INTO t VALUES (?)", [(i,) for i in range(50)])
    c.execute("ANALYZE")
    found.clear()
    outcome(lambda: c.execute(sql).fetchall())
    assert c.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    c.close()


def test_a_function_in_a_query_in_a_collation_of_a_function(way):
    c = nearlite.connect(":memory:")
    c.create_collation("k", lambda a, b: (a < b) - (a > b))
    rows = "SELECT 'a' x UNION ALL SELECT 'c' UNION ALL SELECT 'b' ORDER BY x COLLATE k"
    c.create_function("f", 1, lambda n: c.execute(rows).fetchall()[n][0])
    assert c.execute("SELECT f(0), f(1), f(2)").fetchall() == [("c", "b", "a")]


def test_callbacks_too_deep_in_each_other_are_refused(way):
    c = nearlite.connect(":memory:")

    def deeper(n):
        return 1 + (c.execute("SELECT deeper(?)", (n - 1,)).fetchone()[0] if n else 0)

    c.create_function("deeper", 1, deeper)
    assert c.execute("SELECT deeper(40)").fetchone() == (41,)
    with pytest.raises(nearlite.OperationalError, match="raised exception"):
        c.execute("SELECT deeper(100000)")
    assert c.execute("SELECT deeper(1)").fetchone() == (2,)


def test_a_signal_handler_may_not_use_a_connection_that_is_not_in_a_callback():
    """It interrupts C code in the middle of a statement of a function's; see `tick` in database.c."""
    c = nearlite.connect(":memory:")
    found = []
    long = "WITH RECURSIVE t(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM t) SELECT count(*) FROM t"

    def handler(*_):
        found.append(outcome(lambda: c.execute("SELECT 1")))
        c.interrupt()

    def runs(_):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        return outcome(lambda: c.execute(long))[1]

    c.create_function("runs", 1, runs)
    before = signal.signal(signal.SIGALRM, handler)
    try:
        with pytest.raises(nearlite.OperationalError, match="interrupted"):
            c.execute("SELECT runs(1)").fetchall()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert found[0][1] == "ProgrammingError"
    assert "in the middle of a step" in found[0][2]


def stops(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "sql", ["SELECT f(1)", "SELECT 'a' < 'b' COLLATE k", "SELECT 1 UNION SELECT f(1)"]
)
def test_ctrl_c_in_a_callback_is_not_swallowed(sql, way):
    c = nearlite.connect(":memory:")
    c.create_function("f", 1, stops)
    c.create_collation("k", stops)
    with pytest.raises(KeyboardInterrupt):
        c.execute(sql).fetchall()
    with pytest.raises(KeyboardInterrupt):
        c.executescript(sql)
    c.execute("CREATE TABLE t (a)")
    with pytest.raises(KeyboardInterrupt):
        c.executemany(
            f"INSERT INTO t {sql} WHERE ?" if "UNION" not in sql else f"INSERT INTO t {sql}",
            [(1,)] if "UNION" not in sql else [()],
        )
    assert c.execute("SELECT 1").fetchall() == [(1,)]


def test_an_exception_that_a_function_catches_is_gone(way):
    c = nearlite.connect(":memory:")
    c.create_function("stops", 0, stops)

    def catches():
        try:
            c.execute("SELECT stops()")
        except KeyboardInterrupt:
            return "caught"

    c.create_function("catches", 0, catches)
    assert c.execute("SELECT catches()").fetchall() == [("caught",)]
    assert c.execute("SELECT 1").fetchall() == [(1,)]


# ---------------------------------------------------------------- lifetimes


class Function:
    def __call__(self, *_):
        return 1


def test_what_is_not_called_any_more_is_given_back(way):
    c = nearlite.connect(":memory:")
    held = c._database.callbacks
    dead = []

    def new():
        function = Function()
        weakref.finalize(function, dead.append, len(dead))
        return function

    c.create_function("f", 1, new())
    c.create_function("f", 1, new())  # in place of the first
    assert (len(dead), len(held)) == (1, 1)
    c.create_function("f", 1, None)
    assert (len(dead), len(held)) == (2, 0)
    c.create_collation("k", new())
    c.create_collation("k", None)
    for kind in (c.create_aggregate, c.create_window_function):
        kind("f", 1, new())
        kind("f", 1, None)
    assert (len(dead), len(held)) == (5, 0)
    for refused in ("f" * 300, "g"):
        with pytest.raises((nearlite.Error, OverflowError)):
            c.create_function(refused, -5, new())
    assert (len(dead), len(held)) == (7, 0)
    c.create_function("f", 1, new())
    c.create_collation("k", new())
    c.close()
    assert (len(dead), len(held)) == (9, 0)


def test_a_function_that_is_taken_away_while_it_runs_runs_on(way):
    c = nearlite.connect(":memory:")

    def removes(_):
        c.set_trace_callback(None)
        gc.collect()
        return 5

    c.set_trace_callback(removes)
    assert c.execute("SELECT 1").fetchall() == [(1,)]


def test_a_connection_that_its_functions_refer_to_is_garbage(way):
    def make():
        c = nearlite.connect(":memory:")
        c.create_function("f", 1, lambda x: c.execute("SELECT ?", (x,)).fetchone()[0])
        c.create_aggregate("a", 1, type("A", (), {"step": lambda s, x: c, "finalize": lambda s: 1}))
        c.create_collation("k", lambda a, b: c and 0)
        c.set_authorizer(lambda *_: c and 0)
        c.set_progress_handler(lambda: c and 0, 1000)
        c.set_trace_callback(lambda _: c)
        assert c.execute("SELECT f(1), a(2) FROM (SELECT 1 AS x ORDER BY 'a' COLLATE k)").fetchall()
        half_read = c.execute("SELECT f(value) FROM json_each('[1,2,3]')")
        half_read.fetchone()
        return weakref.ref(c), weakref.ref(c._database), half_read.description

    gc.collect()
    before = len(callbacks._live)
    made = [make() for _ in range(5)]
    gc.collect()
    assert [(c(), d()) for c, d, _ in made] == [(None, None)] * 5
    assert len(callbacks._live) == before


def test_nothing_leaks_however_often_it_is_called(way):
    c = nearlite.connect(":memory:")
    c.create_function("f", -1, lambda *values: values[-1])
    c.create_function("bad", 1, lambda _: 1 / 0)
    c.create_collation("k", lambda a, b: (a > b) - (a < b))

    def round_():
        for value in (1, 2.5, "text" * 9, b"blob" * 9, None):
            c.execute("SELECT f(?, ?), ? < 'b' COLLATE k", (value, value, value)).fetchall()
        for sql in ("SELECT bad(1)", "SELECT bad(CAST(x'ff' AS TEXT))"):
            with pytest.raises(nearlite.OperationalError):
                c.execute(sql)

    round_()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(200):
        round_()
    gc.collect()
    assert sys.getallocatedblocks() - before < 100
    assert not callbacks.carried


class Total:
    def __init__(self):
        self.rows = 0

    def step(self, *_values):
        self.rows += 1

    def inverse(self, *_values):
        self.rows -= 1

    def value(self):
        return self.rows

    finalize = value


class Broken(Total):
    def step(self, *_values):
        raise ZeroDivisionError


def everything(folder, closed):
    """A connection with a callback of every kind and everything that can be held, used, and dropped as it is."""
    c = nearlite.connect(folder / "a.db", detect_types=nearlite.PARSE_DECLTYPES)
    c.row_factory = nearlite.Row
    c.text_factory = lambda text: text.decode() + "!"
    c.create_function("f", 1, lambda value: 1 // value)
    c.create_aggregate("g", 1, Total)
    c.create_aggregate("b", 1, Broken)
    c.create_window_function("w", 1, Total)
    c.create_collation("k", lambda a, b: (a > b) - (a < b))
    c.set_authorizer(lambda *_what: nearlite.SQLITE_OK)
    c.set_progress_handler(lambda: None, 10)
    c.set_trace_callback(lambda _sql: None)
    session = c.session()
    c.executemany("INSERT INTO t VALUES (?, ?, ?)", ((None, "x" * 200, b"y") for _ in range(50)))
    for sql in (
        "SELECT * FROM t ORDER BY a COLLATE k", "SELECT f(id) FROM t", "SELECT f(0)", "SELECT g(a) FROM t",
        "SELECT b(a) FROM t", "SELECT w(a) OVER (ORDER BY id ROWS 3 PRECEDING) FROM t", "SELECT ?", "bogus",
    ):  # fmt: skip
        with contextlib.suppress(nearlite.Error):
            c.execute(sql).fetchmany(3)
    changes = session.changeset()
    half_read = nearlite.read_changeset(changes)
    next(half_read)
    c.rollback()
    c.execute("UPDATE t SET a = 'n' WHERE id = 1")
    c.commit()
    c.snapshot()
    blob = c.blobopen("t", "d", 1, readonly=True)
    blob.read(1)
    c.set_authorizer(None)
    with contextlib.closing(nearlite.connect(":memory:")) as other:
        c.backup(other, pages=1)
        other.apply(changes, on_conflict="omit")
        other.commit()
        other.deserialize(other.serialize())
    if closed:
        c.close()
    else:
        c.execute("SELECT t.a FROM t, t AS u").fetchone()


def test_nothing_leaks_of_everything(way, tmp_path):
    with contextlib.closing(nearlite.connect(tmp_path / "a.db")) as first:
        first.execute("PRAGMA journal_mode = WAL")
        first.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, a k, d)")
        first.execute("INSERT INTO t VALUES (1, 'one', x'00')")
        first.commit()

        def rounds(count):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ResourceWarning)
                for i in range(count):
                    everything(tmp_path, i % 2)
                gc.collect()
            with open("/proc/self/statm") as memory:
                return sys.getallocatedblocks(), int(memory.read().split()[1]) * 4096

        rounds(40)
        blocks, resident = rounds(40)
        after, later = rounds(120)
        assert after - blocks < 200
        if os.environ.get("NEARLITE_FFI") != "sanitize":  # ASan keeps what was freed, for a while
            assert later - resident < 3 << 20  # one statement that stays costs 5 KB and more
    assert not callbacks.carried


# ---------------------------------------------------------------- threads, forks, exits


def test_threads_call_functions_at_the_same_time(way):
    failures = []

    def work():
        try:
            c = nearlite.connect(":memory:")
            c.create_function("f", 1, lambda x: f"{x}")
            c.create_collation("k", lambda a, b: (a > b) - (a < b))
            for _ in range(20):
                rows = c.execute(
                    "SELECT f(value) AS x FROM json_each(?) ORDER BY x COLLATE k",
                    ("[" + ",".join(map(str, range(100))) + "]",),
                ).fetchall()
                assert rows == sorted((str(i),) for i in range(100))
            c.close()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_shared_connection_and_its_functions():
    c = nearlite.connect(":memory:", check_same_thread=False, isolation_level=None)
    c.execute("CREATE TABLE t (a)")
    c.create_function("f", 1, lambda x: c.execute("SELECT count(*) FROM t").fetchone()[0] * 0 + x)
    failures = []

    def work(n):
        try:
            for i in range(50):
                c.execute("INSERT INTO t SELECT f(?)", (n * 1000 + i,))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert c.execute("SELECT count(*), count(DISTINCT a) FROM t").fetchone() == (150, 150)


def run(code):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_interpreter_ends_while_functions_run():
    """Threads in SQLite do not come back into an interpreter that is gone; objects are freed all the same."""
    done = run("""
        import atexit, threading, nearlite
        begun = threading.Event()
        def forever(x):
            begun.set()
            return x
        def work():
            c = nearlite.connect(":memory:")
            c.create_function("f", 1, forever)
            c.create_collation("k", lambda a, b: (a > b) - (a < b))
            c.execute("WITH RECURSIVE t(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM t)"
                      " SELECT max(f(i)), max('a' < 'b' || i COLLATE k) FROM t")
        threading.Thread(target=work, daemon=True).start()
        kept = nearlite.connect(":memory:")
        kept.create_function("f", 1, lambda x: kept)
        kept.set_trace_callback(print)
        cursor = kept.execute("SELECT value FROM json_each('[1,2,3]')")
        atexit.register(lambda: print(kept.execute("SELECT 5").fetchall()))
        begun.wait()
        print("end")
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert "end" in done.stdout
    assert "[(5,)]" in done.stdout


def test_handlers_at_exit_may_wait_for_threads_that_are_called_back():
    """Those that were registered before nearlite was imported run behind its own."""
    done = run("""
        import atexit, threading
        end = threading.Event()
        def stop():
            end.set()
            thread.join()
            print("joined", connection.execute("SELECT f(1)").fetchone())
        atexit.register(stop)
        import nearlite
        connection = nearlite.connect(":memory:", check_same_thread=False)
        connection.create_function("f", 1, lambda x: x)
        begun = threading.Event()
        def work():
            while not end.is_set():
                connection.execute("SELECT f(value) FROM json_each('[1,2,3]')").fetchall()
                begun.set()
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        begun.wait()
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "joined (1,)\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_neither_calls_nor_frees():
    done = run("""
        import os, sys, gc, nearlite
        calls = []
        c = nearlite.connect(":memory:")
        def f(x):
            calls.append(x)
            if x == 7 and not os.fork():
                try:
                    c.execute("SELECT 1")
                except nearlite.ProgrammingError as error:
                    os._exit(3 if "fork" in str(error) else 4)
            return x
        c.create_function("f", 1, f)
        c.create_collation("k", lambda a, b: 0)
        c.set_trace_callback(calls.append)
        assert c.execute("SELECT f(7)").fetchall() == [(7,)]
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 3
        if not os.fork():
            before = len(calls)
            del c, f
            gc.collect()
            os._exit(5 if len(calls) == before else 6)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 5
        assert c.execute("SELECT f(1)").fetchall() == [(1,)]
    """)
    assert (done.returncode, done.stderr) == (0, "")
