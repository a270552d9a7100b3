"""Aggregates, windows, authorizers, progress and traces: the standard library as the oracle, and what is ours."""

from __future__ import annotations

import gc
import sqlite3
import sys
import threading
import weakref

import pytest
from callbacks import fetch, outcome, reported, scenarios

import nearlite
from nearlite._native import callbacks


@pytest.fixture(params=["direct", "trampolines"])
def way(request, monkeypatch):
    """How C calls Python."""
    monkeypatch.setattr(callbacks, "_DIRECT", request.param == "direct")
    return request.param


class Total:
    """An aggregate and a window function."""

    def __init__(self):
        self.values = []

    def step(self, *values):
        self.values.append(values)

    def inverse(self, *values):
        assert self.values.pop(0) == values

    def value(self):
        return repr(self.values)

    finalize = value


def without(*methods):
    return type("Without", (), {k: v for k, v in vars(Total).items() if k not in methods})


def raising(method, kind=ZeroDivisionError):
    def raises(*_):
        raise kind("why")

    return type("Raising", (Total,), {method: raises})


def table(module, n=7):
    c = module.connect(":memory:")
    c.execute("CREATE TABLE t (g, v)")
    c.executemany("INSERT INTO t VALUES (?, ?)", [(i % 3, i) for i in range(n)])
    return c


WINDOW = "SELECT g, f(v) OVER (ORDER BY v ROWS BETWEEN 1 PRECEDING AND 1 FOLLOWING) FROM t"


def aggregates_collect_groups(m):
    c = table(m)
    c.create_aggregate("f", 1, Total)
    c.create_aggregate("f", -1, Total)
    return [
        fetch(c, "SELECT g, f(v) FROM t GROUP BY g ORDER BY g"),
        fetch(c, "SELECT f(v, g), f(v), f() FROM t"),
        fetch(c, "SELECT f(v) FROM t WHERE v < 0"),
        fetch(c, "SELECT f(DISTINCT g) FROM t"),
        fetch(c, "SELECT f(v) FILTER (WHERE v > 3) FROM t"),
        fetch(c, "SELECT (SELECT f(u.v) FROM t AS u WHERE u.g = t.g) FROM t"),
        fetch(c, "SELECT f('a', 1.5, NULL, x'00', ?)", ("x" * 9000,)),
        fetch(c, WINDOW),
    ]


def results_of_aggregates(m):
    c = m.connect(":memory:")
    found = []
    for result in (None, 5, 2**63 - 1, -(2**63) + 3, 1.5, "text", b"blob", True, memoryview(b"ab")):
        c.create_aggregate(
            "f", 1, type("A", (), {"step": lambda *_: 1, "finalize": lambda _, r=result: r})
        )
        found.append(fetch(c, "SELECT typeof(f(1)), f(2)"))
    return found


def windows_move(m):
    c = table(m)
    c.create_window_function("f", 1, Total)
    found = [
        fetch(c, WINDOW),
        fetch(c, "SELECT f(v) OVER (PARTITION BY g ORDER BY v) FROM t"),
        fetch(c, "SELECT f(v) OVER () FROM t WHERE v < 3"),
        fetch(c, "SELECT g, f(v) FROM t GROUP BY g"),
    ]
    c.create_window_function("f", 1, None)
    return [*found, fetch(c, WINDOW)]


def aggregates_that_fail(m):
    c = table(m)
    found = []
    with reported(m) as told:
        for method in ("__init__", "step", "finalize", "value", "inverse"):
            for kind in (ZeroDivisionError, MemoryError, OverflowError, AttributeError):
                c.create_aggregate("f", 1, raising(method, kind))
                found.append(fetch(c, "SELECT f(v) FROM t"))
                c.create_window_function("f", 1, raising(method, kind))
                found.append(fetch(c, WINDOW))
            if method != "__init__":
                c.create_aggregate("f", 1, without(method, *{"value", "finalize"} & {method}))
                found.append(fetch(c, "SELECT f(v) FROM t"))
                c.create_window_function("f", 1, without(method))
                found.append(fetch(c, WINDOW))
        c.create_aggregate("f", 1, 5)
        found.append(fetch(c, "SELECT f(v) FROM t"))
        c.create_aggregate("f", 1, type("Bad", (Total,), {"finalize": lambda _: object()}))
        found.append(fetch(c, "SELECT f(v) FROM t"))
        c.create_aggregate("f", 1, type("Big", (Total,), {"finalize": lambda _: 2**64}))
        found.append(fetch(c, "SELECT f(v) FROM t"))
    return found, [kind for kind, _, _ in told]


def aggregates_use_their_connection(m):
    c = table(m)

    class Nested(Total):
        def step(self, v):
            self.values.append(c.execute("SELECT count(*) FROM t WHERE v <= ?", (v,)).fetchone())

        def finalize(self):
            return c.execute("SELECT f(v) FROM t WHERE v < 2").fetchone()[0] + super().value()

    c.create_aggregate("f", 1, Total)
    c.create_aggregate("nested", 1, Nested)
    return [fetch(c, "SELECT g, nested(v) FROM t GROUP BY g")]


def authorizers_are_asked(m):
    c = table(m)
    c.execute("CREATE VIEW w AS SELECT g FROM t")
    asked = []

    def authorizer(*what):
        asked.append(what)
        return m.SQLITE_OK

    c.set_authorizer(authorizer)
    c.execute("SELECT v FROM t")
    c.execute("INSERT INTO t(v) VALUES (1)")
    c.execute("SELECT g FROM w")
    c.execute("DELETE FROM t")
    c.execute("PRAGMA user_version = 5")
    c.rollback()
    return asked


def what_authorizers_answer(m):
    c = table(m)
    found = []
    with reported(m) as told:
        for answer in (0, 1, 2, 3, -1, True, 2**31, 2**32, -(2**40), 0.0, None, "0"):
            c.set_authorizer(lambda action, *_, a=answer: a if action == m.SQLITE_READ else 0)
            found.append(fetch(c, "SELECT v FROM t WHERE g = 0"))
        c.set_authorizer(lambda *_: 1 / 0)
        found.append(fetch(c, "SELECT v FROM t WHERE g = 0"))
        c.set_authorizer(5)
        found.append(fetch(c, "SELECT v FROM t WHERE g = 0"))
    c.set_authorizer(None)
    return [*found, fetch(c, "SELECT v FROM t WHERE g = 0"), [one[:2] for one in told]]


def an_authorizer_concerns_what_was_compiled_before(m):
    c = table(m)
    found = [fetch(c, "SELECT count(v) FROM t"), fetch(c, "INSERT INTO t VALUES (1, 2)")]
    c.commit()
    c.set_authorizer(lambda *_: m.SQLITE_DENY)
    found += [fetch(c, "SELECT count(v) FROM t"), fetch(c, "INSERT INTO t VALUES (1, 2)")]
    found += [outcome(lambda: c.executemany("INSERT INTO t VALUES (?, 2)", [(1,)]))]
    found += [outcome(lambda: c.executescript("SELECT 1"))]
    c.set_authorizer(None)
    return [*found, fetch(c, "SELECT count(v) FROM t")]


LONG = "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 3000) SELECT count(*) FROM s"


def progress_stops_a_statement(m):
    c = m.connect(":memory:")
    found = []
    with reported(m) as told:
        for answer in (0, None, False, 1, "x", [], 2**70):
            c.set_progress_handler(lambda a=answer: a, 10)
            found.append(fetch(c, LONG))
        c.set_progress_handler(lambda: 1 / 0, 10)
        found.append(fetch(c, LONG))
        c.set_progress_handler(5, 10)
        found.append(fetch(c, LONG))
        for n in (0, -5):
            c.set_progress_handler(lambda: 1, n)
            found.append(fetch(c, LONG))
        c.set_progress_handler(None, 10)
    return [*found, fetch(c, LONG), told[0][0], len(told)]


def traces_tell_what_is_run(m):
    c = table(m)
    c.executescript(
        "CREATE TABLE u (a); CREATE TRIGGER r AFTER INSERT ON t BEGIN "
        "INSERT INTO u VALUES (new.v); DELETE FROM u WHERE a = 5; END"
    )
    told = []
    c.set_trace_callback(told.append)
    c.execute("SELECT ?, ?, ?, ?, ?", (1, 2.5, "t'\u20ac", b"\0\1", None))
    c.execute("INSERT INTO t VALUES (:g, :v)", {"g": 1, "v": "x"})
    c.executemany("INSERT INTO u VALUES (?)", [(i,) for i in range(3)])
    c.commit()
    c.executescript("SELECT 1; -- nothing\n SELECT 2;")
    c.execute("SELECT v FROM t").fetchall()
    c.isolation_level = "IMMEDIATE"
    c.execute("DELETE FROM t")
    c.rollback()
    fetch(c, "SELECT nothing")
    c.set_trace_callback(None)
    c.execute("SELECT 5")
    return told


def a_trace_of_too_long_a_statement(m):
    c = m.connect(":memory:")
    told = []
    c.set_trace_callback(told.append)
    c.setlimit(m.SQLITE_LIMIT_LENGTH, 300)
    with reported(m) as found:
        c.execute("SELECT length(?)", ("x" * 290,))
        c.execute("SELECT length(?)", ("short",))
    return told, found[0][:2], len(found)


def a_trace_that_fails_is_not_heard_of(m):
    c = m.connect(":memory:")
    c.set_trace_callback(lambda _: 1 / 0)
    with reported(m) as told:
        found = fetch(c, "SELECT 1")
    c.set_trace_callback(5)
    return found, told[0][:2], fetch(c, "SELECT 2")


def a_trace_uses_its_connection(m):
    c = m.connect(":memory:", isolation_level=None)
    c.execute("CREATE TABLE log (a)")

    def keeps(text):
        if "log" not in text:
            c.execute("INSERT INTO log VALUES (?)", (text,))

    c.set_trace_callback(keeps)
    c.execute("SELECT 1")
    c.execute("SELECT 2").fetchall()
    return fetch(c, "SELECT a FROM log")


def hooks_are_replaced_while_they_are_called(m):
    c = table(m)
    told = []

    def first(text):
        told.append(("first", text))
        c.set_trace_callback(lambda text: told.append(("second", text)))

    c.set_trace_callback(first)
    c.execute("SELECT 1")
    c.execute("SELECT 2")
    return told


@pytest.mark.parametrize("scenario", scenarios(globals()), ids=lambda f: f.__name__)
def test_like_the_standard_library(scenario, way):
    assert outcome(scenario, nearlite) == outcome(scenario, sqlite3)


# ---------------------------------------------------------------- what is ours


def test_progress_is_called_as_often_as_promised():
    def calls(n):
        c = nearlite.connect(":memory:")
        found = []
        c.set_progress_handler(lambda: found.append(1), n)
        c.execute(LONG).fetchall()
        return len(found)

    steps = calls(1)
    for n in (2, 7, 100, 1000, 1001, 2500, 40_000):
        assert calls(n) == pytest.approx(steps / n, rel=0.02, abs=1)


def stops(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("define", "moves"),
    [
        (lambda c: c.set_trace_callback(stops), True),
        (lambda c: c.set_authorizer(stops), True),
        (lambda c: c.set_progress_handler(stops, 1), True),
        (lambda c: c.create_aggregate("f", 1, raising("__init__", KeyboardInterrupt)), False),
        (lambda c: c.create_aggregate("f", 1, raising("step", KeyboardInterrupt)), False),
        (lambda c: c.create_aggregate("f", 1, raising("finalize", KeyboardInterrupt)), False),
        (lambda c: c.create_window_function("f", 1, raising("inverse", KeyboardInterrupt)), True),
        (lambda c: c.create_window_function("f", 1, raising("value", KeyboardInterrupt)), True),
    ],
)
def test_ctrl_c_in_any_callback_is_not_swallowed(define, moves, way):
    c = table(nearlite)
    c.create_window_function("f", 1, Total)
    define(c)
    sql = WINDOW if moves else "SELECT f(v) FROM t"
    with pytest.raises(KeyboardInterrupt):
        c.execute(sql).fetchall()
    with pytest.raises(KeyboardInterrupt):
        c.executescript(sql)
    c.set_trace_callback(None)
    c.set_authorizer(None)
    c.set_progress_handler(None, 1)
    assert c.execute("SELECT 1").fetchall() == [(1,)]
    assert not callbacks.carried


@pytest.mark.parametrize("hook", ["authorizer", "progress"])
def test_hooks_in_the_middle_of_a_step_may_not_use_their_connection(hook):
    c = table(nearlite)
    found = []

    def uses(*_):
        if not found:
            found.extend(
                outcome(use)
                for use in (
                    lambda: c.execute("DROP TABLE t"),
                    lambda: c.executescript("SELECT 1"),
                    lambda: c.executemany("INSERT INTO t(v) VALUES (?)", [(1,)]),
                    lambda: c.create_function("x", 1, abs),
                    c.commit,
                    c.close,
                )
            )
        return 0

    c.set_authorizer(uses) if hook == "authorizer" else c.set_progress_handler(uses, 1)
    assert c.execute("SELECT count(*) FROM t").fetchall() == [(7,)]
    assert [name for _, name, *_ in found] == ["ProgrammingError"] * 6
    assert c.execute("SELECT count(*) FROM t").fetchall() == [(7,)]


def test_an_authorizer_that_ignores_what_vacuum_attaches():
    """SQLite itself crashes."""
    c = table(nearlite)
    c.commit()
    c.set_authorizer(lambda action, *_: 2 if action == nearlite.SQLITE_ATTACH else 0)
    with pytest.raises(nearlite.DatabaseError, match="authoriz"):
        c.execute("VACUUM")
    assert c.execute("SELECT count(*) FROM t").fetchall() == [(7,)]


def test_instances_of_an_aggregate_go_with_their_group(way):
    c = table(nearlite)
    alive = weakref.WeakSet()

    class Tracked(Total):
        def __init__(self):
            super().__init__()
            alive.add(self)

    for sql in ("SELECT g, f(v) FROM t GROUP BY g", WINDOW):
        c.create_window_function("f", 1, Tracked)
        c.execute(sql).fetchall()
        gc.collect()
        assert len(alive) == 0
    for method in ("step", "finalize", "value", "inverse"):
        c.create_window_function("f", 1, type("Bad", (Tracked,), {method: lambda *_: 1 / 0}))
        for sql in ("SELECT f(v) FROM t", WINDOW):
            outcome(lambda sql=sql: c.execute(sql).fetchall())
        gc.collect()
        assert len(alive) == 0
    # A statement that is left half read, and one that is interrupted.
    c.create_window_function("f", 1, Tracked)
    c.execute(
        "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 300) SELECT i, f(i) OVER (ORDER BY i ROWS 2 PRECEDING) FROM s, t"
        " LIMIT 10000"
    ).fetchone()
    gc.collect()
    assert len(alive) == 0
    c.close()


@pytest.mark.parametrize("end", ["close", "reset", "collect"])
def test_an_aggregate_that_ends_with_its_statement_finds_its_connection_shut(end, way):
    c = table(nearlite)
    found = []
    cursor = c.cursor()

    class Uses(Total):
        def finalize(self):
            found.extend(
                outcome(use)[0] for use in (c.close, cursor.close, lambda: c.execute("SELECT 1"))
            )
            return 1

    c.create_window_function("f", 1, Uses)
    # Half read: the group is open, and there are more rows than a batch holds.
    cursor.execute(
        "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 9000) "
        "SELECT i, f(i) OVER (ORDER BY i ROWS 2 PRECEDING) FROM s"
    ).fetchone()
    found.clear()
    if end == "close":
        c.close()
        assert found[1:] == ["error"] * 2  # closing twice is nothing
    elif end == "reset":
        cursor.execute("SELECT 1")
        assert found[:2] == ["error", "error"]
        assert c.execute("SELECT 1").fetchall() == [(1,)]
    else:
        del cursor
        gc.collect()
    assert len(found) % 3 == 0


def test_nothing_of_the_hooks_leaks(way):
    c = table(nearlite)
    c.create_window_function("f", 1, Total)
    c.create_aggregate("bad", 1, raising("step"))
    c.set_trace_callback(lambda _: None)
    c.set_progress_handler(lambda: 0, 5)

    def round_():
        c.set_authorizer(lambda *_: 0)
        c.execute(WINDOW).fetchall()
        with pytest.raises(nearlite.OperationalError):
            c.execute("SELECT bad(v) FROM t")
        c.set_authorizer(None)
        c.create_aggregate("again", 1, Total)
        c.execute("SELECT again(v) FROM t").fetchall()

    round_()
    gc.collect()
    before = sys.getallocatedblocks()
    for _ in range(150):
        round_()
    gc.collect()
    assert sys.getallocatedblocks() - before < 150
    held = c._database.callbacks
    c.close()
    assert len(held) == 0


def test_an_attached_file_that_is_compiled_anew_is_attached_as_it_is(tmp_path):
    """An authorizer has statements compiled anew, ATTACH as well, which of a sealed connection makes no new file."""
    key = bytes(range(32))
    other = tmp_path / "other.db"
    with nearlite.connect(other, encryption_key=key) as made:
        made.execute("CREATE TABLE t (a)")
        made.execute("INSERT INTO t VALUES (5)")
    made.close()
    c = nearlite.connect(tmp_path / "one.db", encryption_key=key, isolation_level=None)
    for _ in range(2):
        c.execute("ATTACH ? AS other", (str(other),))
        assert c.execute("SELECT a FROM other.t").fetchall() == [(5,)]
        c.execute("DETACH other")
        c.set_authorizer(lambda *_: 0)
    c.close()


def test_another_thread_interrupts_a_function():
    c = nearlite.connect(":memory:", check_same_thread=False)
    inside = threading.Event()
    go_on = threading.Event()

    def waits():
        inside.set()
        go_on.wait(10)
        return 1

    c.create_function("waits", 0, waits)
    found = []
    thread = threading.Thread(
        target=lambda: found.append(
            outcome(lambda: c.execute("SELECT waits() UNION ALL SELECT waits()"))
        )
    )
    thread.start()
    inside.wait(10)
    c.interrupt()
    go_on.set()
    thread.join()
    assert found[0][:3] == ("error", "OperationalError", "interrupted")
